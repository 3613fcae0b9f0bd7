"""The index files of a catalogue: their names, which file is there, and whether it is sound."""

from __future__ import annotations

import os
from pathlib import Path

from tigerfg.index import flat, ivf
from tigerfg.index.derived import check_index
from tigerfg.index.store import Store
from tigerfg.index.vectors import check_vectors

FILES = (flat.INDEX_FILE, ivf.INDEX_FILE)
LOOKS = 3  # at files that seem damaged


def identity(file: Path) -> tuple[int, ...] | None:
    """Tells one file of a name from another; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def check_files(store: Store) -> list[str]:
    """What is wrong with the index and vectors files: a line each.

    What seems wrong is looked at again: it may have been replaced meanwhile.
    """
    lines: list[str] = []
    for _ in range(LOOKS):
        with store.snapshot():
            lines = [line for name in FILES for line in check_index(store.path / name, store)]
            lines += check_vectors(store)
        if not lines:
            break
    return lines
