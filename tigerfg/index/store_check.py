"""Is the store what it should be? Its pages, tables, vectors, and what filters see of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import numpy as np

from tigerfg.errors import CatalogError
from tigerfg.index.filters import field_rows

WITHOUT_VECTOR = "items WHERE id NOT IN (SELECT id FROM encodings)"
_ROWS = {
    "items without a vector": WITHOUT_VECTOR,
    "vectors without an item": "encodings WHERE id NOT IN (SELECT id FROM items)",
    "filter values without an item": "fields WHERE id NOT IN (SELECT id FROM items)",
    "removed items that are still there": "removals JOIN items USING (id)",
    "numbers after the last write": "items WHERE id > (SELECT number FROM counter)",
    "items under another id than their record's": "items WHERE NOT EXISTS (SELECT * FROM fields "
    "WHERE key = 'item_id' AND value = item_id AND fields.id = items.id)",
    # SQLite itself looks at no CHECK of a file that is open for reading only
    "grounding maps of another size than their grid": "encodings WHERE "
    "typeof(grounding_map) != 'blob' OR length(grounding_map) IS NOT 2 * rows * columns",
    "grounding maps of zeros": "encodings WHERE grounding_map = zeroblob(2 * rows * columns)",
}


def problems_of(
    db: sqlite3.Connection, vectors: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[str]:
    """One line each, an empty list when all is well.

    Args:
        db: a connection on which one state of the store is read.
        vectors: ids int64 (n,) and vectors float32 (n, E), all of them in parts.
    """
    problems = [
        f"sqlite: {line}" for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"
    ]
    for what, source in _ROWS.items():
        if count := db.execute(f"SELECT count(*) FROM {source}").fetchone()[0]:
            problems.append(f"{count} {what}")
    problems += _records(db)
    try:
        for ids, some in vectors:
            norms = np.linalg.norm(some, axis=1)
            wrong = int((~(np.abs(norms - 1) < 0.01)).sum())  # fp16 rounds within 0.001
            if wrong:
                problems.append(f"{wrong} vectors not of length 1 among ids {ids[0]}-{ids[-1]}")
    except CatalogError as error:  # names the first that cannot be read
        problems.append(str(error))
    return problems


def _records(db: sqlite3.Connection) -> list[str]:
    """Whether filters see what the items' records say.

    Both are hashed row by row and added up, whatever their order: nothing is kept.
    """
    broken: list[int] = []
    total = 0
    for number, document in db.execute("SELECT id, document FROM items"):
        try:
            total += sum(map(hash, field_rows(number, document)))
        except ValueError:
            broken.append(number)
    if broken:
        return [f"{len(broken)} items whose record is no JSON, such as that of id {broken[0]}"]
    seen = db.execute("SELECT key, value, id FROM fields WHERE id IN (SELECT id FROM items)")
    if total != sum(map(hash, seen)):
        return [
            "filters do not see what the items' records say: restore a snapshot, or index the "
            "items again in a new directory"
        ]
    return []
