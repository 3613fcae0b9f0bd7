"""The item store: a SQLite file that is the truth of a catalogue.

Every write is one transaction, acknowledged when its commit has reached the disk. Writes are
numbered: a stored item's internal id is the number of the write that stored it, and each removal is
logged under a number of its own, so that whatever derives from the store (the vector index) catches
up from the last number it has seen. Internal ids are never used twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.database import (
    StoreMeta,
    create_database,
    explained,
    file_of,
    frozen_state,
    is_catalog,
    lock_for_writing,
    open_database,
)
from tigerfg.index.filters import field_rows, matching
from tigerfg.index.plan import IndexSettings
from tigerfg.index.store_check import problems_of
from tigerfg.index.where import Group, Scalar

_CHUNK = 500  # names or rows a statement
_QUERIES = "queries"  # table of sample queries
_INSERT_FIELD = "INSERT INTO fields VALUES (?, ?, ?)"
_DELETE_FIELD = "DELETE FROM fields WHERE key = ? AND value = ? AND id = ?"


class Record(NamedTuple):
    """One item to store: ``vector`` is (E,) of length 1, ``grounding_map`` (rows, columns)."""

    item_id: str
    content_hash: bytes  # of what was encoded
    document: str  # the item's JSON form
    vector: np.ndarray
    grounding_map: np.ndarray


class Known(NamedTuple):
    """What tells a stored item from one that is given: see `Record`."""

    content_hash: bytes
    document: str


class Row(NamedTuple):
    """One stored item as hits need it."""

    document: dict[str, Any]
    grounding_map: np.ndarray  # float32 (rows, columns)


class Sampled(NamedTuple):
    """One stored item with what was computed of it: ``vector`` float32 (E,)."""

    document: dict[str, Any]
    content_hash: bytes
    vector: np.ndarray


class Store:
    """Open with `Store.create` or `Store.open`. Not thread-safe: the caller holds a lock.

    Every method raises CatalogError, with one line, when SQLite or the disk refuses; a write that
    raises has changed nothing.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, meta: StoreMeta, lock: int | None):
        self.path, self.meta = path, meta
        self._db, self._lock = db, lock
        self._file = file_of(path)
        self._frozen: tuple[int, ...] | None = None  # see `refresh`

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        model: str,
        fingerprint: str,
        embedding_dim: int,
        settings: IndexSettings | None = None,
    ) -> Store:
        """Make an empty catalogue in a directory that is new or empty, and open it for writing."""
        path, settings = Path(os.path.abspath(path)), settings or IndexSettings()
        return cls._open(path, create_database(path, model, fingerprint, embedding_dim, settings))

    @classmethod
    def open(cls, path: str | os.PathLike, read_only: bool = False) -> Store:
        """Open a catalogue; only one process at a time can have it open for writing."""
        path = Path(os.path.abspath(path))
        locking = not read_only and is_catalog(path)
        return cls._open(path, lock_for_writing(path) if locking else None)

    @classmethod
    def _open(cls, path: Path, lock: int | None) -> Store:
        try:
            frozen = frozen_state(path) if lock is None else None
            store = cls(path, *open_database(path, read_only=lock is None), lock)
            store._frozen = frozen
            return store
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._lock is None

    def require_writer(self, action: str) -> None:
        """CatalogError if the catalogue is open for reading only."""
        if self.read_only:
            raise CatalogError(f"cannot {action}: {self.path} is open for reading only")

    def refresh(self) -> None:
        """See what others wrote where a connection does not: one that cannot make WAL's files takes
        the store as unchanging (`frozen_state`)."""
        if self._frozen is None or self._db.in_transaction:
            return
        if self._frozen != (now := frozen_state(self.path)):
            db, _ = open_database(self.path, read_only=True)
            self._db.close()
            self._db, self._frozen = db, now

    @property
    def number(self) -> int:
        """Number of the last write."""
        with self._reading("read"):
            return self._db.execute("SELECT number FROM counter").fetchone()[0]

    def __len__(self) -> int:
        with self._reading("count"):
            return self._db.execute("SELECT count(*) FROM items").fetchone()[0]

    def put(self, records: Sequence[Record], replace: bool = False) -> int:
        """Store a batch in one transaction; on return it is on the disk.

        Args:
            records: distinct item ids; without ``replace`` none of them may be stored already.
            replace: remove the stored items of these ids in the same transaction.

        Returns:
            How many stored items were replaced.
        """
        with self._writing("store items"):
            replaced = self._remove([record.item_id for record in records]) if replace else 0
            first = self._advance(len(records)) + 1
            numbered = list(enumerate(records, first))
            self._db.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?)",
                ((number, r.item_id, r.content_hash, r.document) for number, r in numbered),
            )
            self._db.executemany(
                "INSERT INTO encodings VALUES (?, ?, ?, ?, ?)",
                (
                    (n, _fp16(r.vector), _fp16(r.grounding_map), *r.grounding_map.shape)
                    for n, r in numbered
                ),
            )
            self._db.executemany(
                _INSERT_FIELD,
                (row for number, r in numbered for row in field_rows(number, r.document)),
            )
        return replaced

    def update(self, documents: Mapping[str, str]) -> int:
        """Give stored items other JSON forms, by item id, in one transaction.

        What was encoded of them stays, and so do their internal ids: nothing that derives from the
        vectors has to follow. Returns how many there were; unknown ids are passed.
        """
        with self._writing("update items"):
            found = self._by_item_id(documents)
            stale: set[tuple[str, Any, int]] = set()
            fresh: set[tuple[str, Any, int]] = set()
            for number, item_id, document in found:
                stale.update(field_rows(number, document))
                fresh.update(field_rows(number, documents[item_id]))
            self._db.executemany(_DELETE_FIELD, stale - fresh)
            self._db.executemany(_INSERT_FIELD, fresh - stale)
            self._db.executemany(
                "UPDATE items SET document = ? WHERE id = ?",
                ((documents[item_id], number) for number, item_id, _ in found),
            )
            if found:
                self._advance(1)  # filters select anew
        return len(found)

    def delete(self, item_ids: Iterable[str]) -> int:
        """Remove items in one transaction; returns how many there were, unknown ids are passed."""
        with self._writing("delete items"):
            return self._remove(item_ids)

    def known(self, item_ids: Iterable[str]) -> dict[str, Known]:
        """The stored ones of these items, by item id."""
        found = {}
        for chunk in _chunks(map(checked_id, item_ids)):
            with self._reading("look up items"):
                for item_id, *known in self._db.execute(
                    "SELECT item_id, content_hash, document FROM items "
                    f"WHERE item_id IN ({_marks(chunk)})",
                    chunk,
                ):
                    found[item_id] = Known(*known)
        return found

    def document(self, item_id: str) -> dict[str, Any] | None:
        """A stored item's JSON form, None when there is none of this id."""
        rows = self._by_item_id([item_id])
        return self._parsed(rows[0][2]) if rows else None

    def documents_after(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """The next items' JSON forms in the order of storing, and the last one's internal id."""
        with self._reading("read items"):
            rows = self._db.execute(
                "SELECT id, document FROM items WHERE id > ? ORDER BY id LIMIT ?", (number, _CHUNK)
            ).fetchall()
        return (rows[-1][0] if rows else number), [self._parsed(row[1]) for row in rows]

    def rows(self, ids: Iterable[int]) -> dict[int, Row]:
        """Items and grounding maps by internal id."""
        found = {}
        for chunk in _chunks(ids):
            with self._reading("read items"):
                for number, document, grounding_map, *shape in self._db.execute(
                    "SELECT id, document, grounding_map, rows, columns FROM items "
                    f"JOIN encodings USING (id) WHERE id IN ({_marks(chunk)})",
                    chunk,
                ):
                    grid = np.frombuffer(grounding_map, "<f2").astype(np.float32).reshape(shape)
                    found[number] = Row(self._parsed(document), grid)
        return found

    def select(self, term: Group) -> np.ndarray:
        """Internal ids int64 of the items that match a filter of `parse_filter`, ascending."""
        with self._reading("filter"):
            return matching(term, self._numbers, self.ids)

    def ids(self) -> np.ndarray:
        """Internal ids int64 of all items, ascending."""
        with self._reading("read items"):
            return np.sort(self._numbers("SELECT id FROM items"))  # unordered: from an index alone

    def removed_since(self, number: int) -> np.ndarray:
        """Internal ids int64 that were removed after a write number."""
        with self._reading("read removals"):
            return self._numbers("SELECT id FROM removals WHERE number > ?", [number])

    def vectors_since(
        self, number: int, chunk: int = 16_384
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids int64 (n,) ascending and vectors float32 (n, E) stored after a write number."""
        while True:
            with self._reading("read vectors"):
                rows = self._db.execute(
                    "SELECT id, vector FROM encodings WHERE id > ? ORDER BY id LIMIT ?",
                    (number, chunk),
                ).fetchall()
            if not rows:
                return
            number = rows[-1][0]
            ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
            vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f2")
            yield ids, vectors.astype(np.float32).reshape(len(ids), self.meta.embedding_dim)

    def keep_queries(self, vectors: np.ndarray) -> None:
        """Keep sample queries (Q, E) for tuning, in place of those before; none: forget them."""
        with self._writing("keep sample queries"):
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {_QUERIES} (vector BLOB NOT NULL)")
            self._db.execute(f"DELETE FROM {_QUERIES}")
            rows = [(_fp16(vector),) for vector in vectors]
            self._db.executemany(f"INSERT INTO {_QUERIES} VALUES (?)", rows)

    def queries(self) -> np.ndarray:
        """The sample queries float32 (Q, E), Q = 0 where none were given."""
        with self._reading("read sample queries"):
            known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_QUERIES,))
            # the table is made by the first `keep_queries`: older catalogues have none
            there = known.fetchone() is not None
            rows = self._db.execute(f"SELECT vector FROM {_QUERIES}").fetchall() if there else []
        vectors = np.frombuffer(b"".join(vector for (vector,) in rows), "<f2")
        return vectors.astype(np.float32).reshape(len(rows), self.meta.embedding_dim)

    def sample(self, count: int, seed: int) -> list[Sampled]:
        """At most ``count`` different items at random, in the order of storing; without those whose
        record is damaged."""
        with self._reading("sample items"):
            ids = self.ids()
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(ids, min(count, len(ids)), replace=False)).tolist()
            rows = [
                row
                for chunk in _chunks(chosen)
                for row in self._db.execute(
                    "SELECT document, content_hash, vector FROM items "
                    f"JOIN encodings USING (id) WHERE id IN ({_marks(chunk)}) ORDER BY id",
                    chunk,
                )
            ]
        read = ((_document(text), digest, vector) for text, digest, vector in rows)
        return [
            Sampled(document, digest, np.frombuffer(vector, "<f2").astype(np.float32))
            for document, digest, vector in read
            if document is not None
        ]

    def check(self) -> list[str]:
        """Look for damage: one line each, an empty list when all is well; call it inside a
        snapshot where others may write meanwhile."""
        return problems_of(self._db, self.vectors_since(0))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside sees one state of the catalogue, whatever others write."""
        with self._reading("read"):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file and let the next writer in."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _parsed(self, text: str) -> dict[str, Any]:
        """An item's JSON form; CatalogError if it is damaged."""
        document = _document(text)
        if document is None:
            raise CatalogError(
                f"{self.path} is damaged: an item's record is no JSON; verify the catalogue"
            )
        return document

    def _by_item_id(self, item_ids: Iterable[str]) -> list[tuple[int, str, str]]:
        """(id, item_id, document) of the stored ones among some item ids."""
        found = []
        for chunk in _chunks(map(checked_id, item_ids)):
            with self._reading("look up items"):
                found += self._db.execute(
                    f"SELECT id, item_id, document FROM items WHERE item_id IN ({_marks(chunk)})",
                    chunk,
                ).fetchall()
        return found

    def _remove(self, item_ids: Iterable[str]) -> int:
        found = self._by_item_id(item_ids)
        ids = [(number,) for number, _, _ in found]
        self._db.executemany("DELETE FROM items WHERE id = ?", ids)
        self._db.executemany("DELETE FROM encodings WHERE id = ?", ids)
        self._db.executemany(
            _DELETE_FIELD,
            (row for number, _, document in found for row in field_rows(number, document)),
        )
        first = self._advance(len(ids)) + 1
        self._db.executemany(
            "INSERT INTO removals VALUES (?, ?)",
            ((number, removed) for number, (removed,) in enumerate(ids, first)),
        )
        return len(ids)

    def _advance(self, count: int) -> int:
        """Take ``count`` write numbers; returns the last one taken before."""
        last = self.number
        self._db.execute("UPDATE counter SET number = ?", (last + count,))
        return last

    def _numbers(self, sql: str, parameters: Sequence[Scalar] = ()) -> np.ndarray:
        """The column `id` of a query, int64, in any order.

        As one text: row by row, Python takes four times as long. SQLite makes none of more than 1
        GB, which some 90 million ids are.
        """
        try:
            [[text]] = self._db.execute(f"SELECT group_concat(id, ' ') FROM ({sql})", parameters)
        except sqlite3.DataError:
            return np.fromiter((row[0] for row in self._db.execute(sql, parameters)), np.int64)
        return np.fromstring(text or "", np.int64, sep=" ")

    def _reading(self, action: str) -> contextlib.AbstractContextManager[None]:
        return explained(self.path, action)

    @contextlib.contextmanager
    def _writing(self, action: str) -> Iterator[None]:
        self.require_writer(action)
        if file_of(self.path) != self._file:
            raise CatalogError(
                f"cannot {action}: {self.path} was removed, or replaced by another catalogue"
            )
        with explained(self.path, action):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise


def _fp16(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, "<f2").tobytes()


def _document(text: str) -> dict[str, Any] | None:
    """An item's JSON form; None if it is damaged."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def checked_id(item_id: str) -> str:
    """The id; InputError if it is no string, or no valid Unicode text."""
    if not isinstance(item_id, str):
        raise InputError(f"item id is of type {type(item_id).__name__}: give a string")
    try:
        item_id.encode()
    except UnicodeEncodeError:
        raise InputError(f"item id {item_id!r} is no valid Unicode text") from None
    return item_id


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    values = list(values)
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
