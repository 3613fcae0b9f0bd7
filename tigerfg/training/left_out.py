"""Naming training data that was left out: the log names the first of every reason."""

from __future__ import annotations

import logging

log = logging.getLogger("tigerfg")

NAMED = 10  # of every reason


def name_left_out(source: object, what: str, reason: str, count: int) -> None:
    """Log what was left out of a source and why, if it is among the first of its reason.

    Args:
        count: how many were left out for this reason, this one included.
    """
    if count <= NAMED:
        log.warning("%s: %s left out: %s", source, what, reason)
    elif count == NAMED + 1:
        log.warning("%s: more left out are only counted: %s", source, reason)
