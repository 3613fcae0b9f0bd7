"""`where` filters on the SQLite store: every condition is one range of the table ``fields``.

Every scalar of an item is one row of that table (key, value, id), which is its own index. What the
conditions give is joined as arrays of ids: where half of a million items pass, that takes a
fraction of the time of joins in SQLite. What filters mean is in `where`. Names and values of items
and filters only ever travel as bound parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tigerfg.index.stored import parse_document
from tigerfg.index.where import Condition, Group, Scalar, filter_fields

Read = Callable[[str, list[Scalar]], np.ndarray]  # SQL and its parameters -> ids, in any order

_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_MOST_VALUES = 30_000  # at once: SQLite binds at most 32,766


def matching(term: Group, read: Read, everything: Callable[[], np.ndarray]) -> np.ndarray:
    """Ids int64 of the items that match a parsed filter, ascending, each once.

    Args:
        read: runs a query on the store.
        everything: ids of all items, ascending.
    """
    if term.word == "or":
        return _distinct(np.concatenate([_part(part, read, everything) for part in term.parts]))
    found: np.ndarray | None = None
    for part in sorted(term.parts, key=_rank):
        if found is None:
            found = _part(part, read, everything)
        else:
            others = _part(part, read, lambda held=found: held)
            found = found[np.isin(found, others, assume_unique=True)]
        if not len(found):
            break
    return everything() if found is None else found


def field_rows(number: int, document: str) -> Iterator[tuple[str, Scalar, int]]:
    """The rows of the table ``fields`` of an item, from its internal id and its JSON form.

    Raises:
        ValueError: that is damaged.
    """
    item = parse_document(document)
    if item is None:
        raise ValueError(f"the record of the internal id {number} is no JSON object")
    for key, values in filter_fields(item).items():
        for value in values:
            yield key, value, number


def _part(part: Condition | Group, read: Read, everything: Callable[[], np.ndarray]) -> np.ndarray:
    if isinstance(part, Group):
        return matching(part, read, everything)
    holding = _holding(*part, read)
    if not _negated(part):
        return holding
    others = everything()
    return others[np.isin(others, holding, assume_unique=True, invert=True)]


def _negated(part: Condition) -> bool:
    return part.operator in ("$ne", "$nin") or (part.operator == "$exists" and not part.operand)


def _rank(part: Condition | Group) -> int:
    """Negations come late: they only need what the others have left; groups may hold some."""
    return 2 if isinstance(part, Group) else int(_negated(part))


def _holding(name: str, operator: str, operand: object, read: Read) -> np.ndarray:
    """Ids of the items with a value for which a condition holds, or its opposite does."""
    if operator == "$exists":
        ranges: list[tuple[str, list[Scalar]]] = [("", [])]
    elif operator in ("$eq", "$ne"):
        ranges = [(" AND value = ?", [operand])]
    elif operator in ("$in", "$nin"):
        ranges = [
            (f" AND value IN ({', '.join('?' * len(some))})", some)
            for start in range(0, len(operand), _MOST_VALUES)
            for some in [operand[start : start + _MOST_VALUES]]
        ]
    else:
        # SQLite orders every number before every text, and '' is the smallest text.
        kind = ">= ''" if isinstance(operand, str) else "< ''"
        ranges = [(f" AND value {_COMPARISONS[operator]} ? AND value {kind}", [operand])]
    found = [
        read(f"SELECT id FROM fields WHERE key = ?{condition}", [name, *values])
        for condition, values in ranges
    ]
    return _distinct(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _distinct(ids: np.ndarray) -> np.ndarray:
    """Ascending, each once; a tenth of the time of numpy's own, which hashes."""
    ids = np.sort(ids)
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])] if len(ids) else ids
