"""What a catalogue keeps of an item, in SQLite and in Milvus alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tigerfg.errors import InputError

CHUNK = 500  # names or rows a statement

T = TypeVar("T")


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


def checked_id(item_id: str) -> str:
    """The id; InputError if it is no string, or no valid Unicode text."""
    if not isinstance(item_id, str):
        raise InputError(f"item id is of type {type(item_id).__name__}: give a string")
    try:
        item_id.encode()
    except UnicodeEncodeError:
        raise InputError(f"item id {item_id!r} is no valid Unicode text") from None
    return item_id


def in_chunks(values: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Values in parts of at most ``size``."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def parse_document(text: str) -> dict[str, Any] | None:
    """An item from its JSON form; None if that is damaged."""
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
