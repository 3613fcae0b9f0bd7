"""Whether a suite may be built in a directory, what a killed builder left, one at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from tigerfg.errors import InputError

from .manifest import Manifest
from .schema import LAYOUTS

_PARTS = (".manifest.json.*.part", *(f"{name}/.*.part" for name in ("train", "eval-records")))
_PARTS += tuple(f"{layout}/.*.part" for layout in LAYOUTS)
_OF_A_START = ("train", ".lock", "cutouts.sqlite*", _PARTS[0])  # there before the manifest is


def check_place(folder: Path) -> None:
    """Whether a suite can be built there: nothing of another kind is overwritten.

    Raises:
        InputError: it holds neither a suite nor nothing, nor what a start that was interrupted
            leaves.
    """
    if (folder / "manifest.json").exists():
        Manifest.load(folder)
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        full = path.name == "train" and (not path.is_dir() or any(path.iterdir()))
        if full or not any(fnmatch(path.name, name) for name in _OF_A_START):
            raise InputError(
                f"{folder}: holds {path.name} but no suite: give a new or empty directory"
            )


def remove_parts(folder: Path) -> None:
    """Remove what a killed builder left half written, in the suite's own places."""
    for part in (part for place in _PARTS for part in folder.glob(place)):
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
