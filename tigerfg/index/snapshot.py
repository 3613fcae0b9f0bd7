"""A consistent copy of a catalogue while others search it and write to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tigerfg.errors import CatalogError
from tigerfg.files import fsync_directory
from tigerfg.index.database import STORE_FILE, explained, open_database
from tigerfg.index.index_files import FILES
from tigerfg.index.vectors import copy_vectors


def copy_catalog(source: Path, target: Path) -> None:
    """Copy the catalogue in one directory, at one state of it, to a new or empty directory.

    The store is copied by SQLite's online backup in one read transaction, so writers and searches
    go on meanwhile. Index and vectors files go with it; they are taken first, so that they are
    never newer than the store. The copy appears whole or not at all, and is a catalogue of its own.

    Raises:
        CatalogError: the target is neither new nor empty, in the source, or cannot be written; or
            the source cannot be read. Nothing of the copy stays.
    """
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise CatalogError(f"{target} is in the catalogue's own directory: name another one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CatalogError(f"{target} is neither new nor empty: name another directory")
    try:
        with (
            contextlib.closing(open_database(source, read_only=True)[0]) as db,
            _staged(target) as staged,
        ):
            for name in FILES:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(source / name, staged / name)
            copy_vectors(source, staged)
            with (
                explained(target, f"write a snapshot of {source}"),
                contextlib.closing(sqlite3.connect(staged / STORE_FILE)) as copy,
            ):
                db.backup(copy)
            for file in staged.iterdir():
                _fsync(file)
            fsync_directory(staged)
            os.replace(staged, target)  # an empty directory there is replaced
            fsync_directory(target.parent)
    except OSError as error:
        raise CatalogError(
            f"cannot write a snapshot to {target}: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory beside the target that is gone afterwards, unless it was moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        staged = Path(folder) / target.name
        staged.mkdir()
        yield staged


def _fsync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
