"""What becomes of an item on its way into a catalogue that may hold its id already."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from tigerfg.errors import InputError
from tigerfg.index.stored import Known


class Fate(Enum):
    """UNCHANGED: stored already. UPDATE: only what was not encoded differs. PUT: it is new, or
    replaces the stored one."""

    UNCHANGED = "unchanged"
    UPDATE = "update"
    PUT = "put"


def fate_of(
    given: Known, stored: Known | None, replace: bool, objection: Callable[[str], str | None]
) -> Fate:
    """What to do with an item.

    Args:
        stored: what the collection has under its id. replace: whether that may be replaced.
        objection: the collection's.

    Raises:
        InputError: the id is taken, or the collection cannot hold the item.
    """
    if given == stored:
        return Fate.UNCHANGED
    if stored is not None and not replace:
        raise InputError("the id is taken by another item of this catalogue: upsert replaces it")
    if wrong := objection(given.document):
        raise InputError(wrong)
    if stored is not None and stored.content_hash == given.content_hash:
        return Fate.UPDATE
    return Fate.PUT
