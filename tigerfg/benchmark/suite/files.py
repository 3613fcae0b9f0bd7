"""What a killed builder left, and one builder at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from tigerfg.errors import InputError


def remove_parts(folder: Path) -> None:
    """Remove what a killed builder left half written."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_builder(folder: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is building there") from error
        yield
