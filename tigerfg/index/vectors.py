"""The stored vectors again, as rows that can be read without SQLite: for refinement, and to build.

A vectors-*.f16 file holds records (internal id, length, float16 vector) in the order of storing and
is only ever appended to; `vectors.json`, replaced as a whole, names it and says how many records
count, their CRC-32 and its own. Rows are mapped, not read: what a search touches is in the page
cache; the process keeps what the store holds beyond the file, and the ids where some are missing in
between. Derived like the index files, never the truth.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tigerfg.files import fsync_directory
from tigerfg.index.derived import NewerError, discard_newer
from tigerfg.index.halves import BIAS, small, widened
from tigerfg.index.store import Store

STAMP_FILE = "vectors.json"
_NEWER = "they are newer than the store"
_CHECK = "check"  # in the stamp: the CRC-32 of the rest of it
BLOCK = 16_384  # rows read at once
MOST_TAIL = 1 << 18  # rows that a writer keeps in memory before it appends them to its file

_NAME = re.compile(r"vectors-[0-9a-f]{32}\.f16")

logger = logging.getLogger("tigerfg")


class VectorRows:
    """Float16 vectors by internal id; those of removed items stay until a fresh file is made.

    Not thread-safe; create it and call `sync` inside one ``store.snapshot()``. It writes to a file
    of its own, or goes on in the one that it was loaded from: no two may go on in the same.

    Args:
        fresh: begin a new file and fill it while catching up, so that a whole catalogue is never in
            memory. For the process that writes to the catalogue.
    """

    def __init__(self, store: Store, fresh: bool = False) -> None:
        self._store, self._writes = store, fresh or not store.read_only
        dim = store.meta.embedding_dim
        self._dtype = np.dtype([("id", "<i8"), ("length", "<f4"), ("vector", "<f2", (dim,))])
        self._name = f"vectors-{uuid.uuid4().hex}.f16"
        self._number, self._crc = 0, 0
        self._rows, self._tail = np.zeros(0, self._dtype), np.zeros(0, self._dtype)
        self._count, self._first, self._last = 0, 0, 0
        self._steps: np.ndarray | None = None  # ids after the first, where some are missing
        if not fresh:
            self._load()
        self._know(self._rows["id"])
        self.sync()

    def __len__(self) -> int:
        """Rows, those of removed items among them."""
        return self._count

    @property
    def unsaved(self) -> int:
        """Rows that are in memory, not in the file."""
        return self._count - len(self._rows)

    def attach(self, store: Store) -> None:
        """Follow another connection to the same catalogue from now on."""
        self._store = store

    def sync(self) -> None:
        """Catch up with the store."""
        number = self._store.number
        if number == self._number:
            return
        for ids, vectors in self._store.vectors_since(self._last):
            self._hold(ids, vectors)
            if self._writes and self.unsaved >= MOST_TAIL:
                self.save()
        self._number = number

    def scores(self, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Inner products float32 (B, C) of queries (B, E) and the vectors, at unit length, of
        internal ids int64 (B, C) that are here."""
        found = self._records(ids)
        # Not a product of matrices, which may add up every row in another order: equal vectors get
        # equal scores.
        scores = np.vecdot(small(found["vector"]), (queries * BIAS)[:, None])
        scores /= found["length"]
        return scores

    def get(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of unit length, float32 (n, E), of internal ids int64 (n,) that are here."""
        found = self._records(ids)
        vectors = widened(found["vector"])
        vectors /= found["length"][:, None]
        return vectors

    def stored(self, ids: np.ndarray) -> np.ndarray:
        """Float16 vectors (n, E) as they are stored, their lengths 1 to that precision."""
        return self._records(ids)["vector"]

    def blocks(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """These ids, ascending, and their vectors, block by block."""
        for start in range(0, len(ids), BLOCK):
            part = ids[start : start + BLOCK]
            yield part, self.get(part)

    def save(self) -> None:
        """Append what the file lacks; a failure is logged, never raised."""
        if self._store.replaced:
            return
        try:
            crc = self._append()
            self._stamp(crc)
            self._rows, self._tail = self._mapped(self._name, self._count), np.zeros(0, self._dtype)
            self._crc = crc
        except OSError as error:
            self._writes = False  # the next block would hardly fare better
            with contextlib.suppress(OSError):  # half of it would only fill the disk
                os.truncate(self._store.path / self._name, len(self._rows) * self._dtype.itemsize)
            reason = error.strerror or error
            logger.warning(
                "%s: vectors not saved, the next start reads the store: %s",
                self._store.path,
                reason,
            )

    def sweep(self) -> None:
        """Remove the files of others: of builds that were replaced or died."""
        if self._store.replaced:
            return
        for file in self._store.path.glob("vectors-*.f16"):
            if file.name != self._name and _NAME.fullmatch(file.name):
                with contextlib.suppress(OSError):
                    file.unlink()

    def _records(self, ids: np.ndarray) -> np.ndarray:
        """Records in the shape of the ids."""
        places = ids - self._first
        if self._steps is not None:
            places = np.searchsorted(self._steps, places.astype(self._steps.dtype))
        mapped = len(self._rows)
        if mapped == self._count or not places.size or places.max() < mapped:
            return self._rows.take(places)  # of the fields by themselves it takes half more
        found = np.empty(ids.shape, self._dtype)
        here = places < mapped
        found[here] = self._rows.take(places[here])
        found[~here] = self._tail.take(places[~here] - mapped)
        return found

    def _hold(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take new rows, the vectors float32 as they are stored."""
        start = self.unsaved
        if start + len(ids) > len(self._tail):  # doubled: few copies
            self._tail = grown(self._tail, max(start + len(ids), 2 * len(self._tail)))
        rows = self._tail[start : start + len(ids)]
        rows["id"], rows["vector"] = ids, vectors
        rows["length"] = np.sqrt(np.vecdot(vectors, vectors))
        self._know(ids)
        self._number = self._last

    def _know(self, ids: np.ndarray) -> None:
        """Count rows with these ids, ascending, behind the others."""
        if not len(ids):
            return
        if not self._count:
            self._first = int(ids[0])
        before, self._last = self._count, int(ids[-1])
        self._count += len(ids)
        most = self._last - self._first
        if self._steps is not None or most >= self._count:
            steps = np.arange(before) if self._steps is None else self._steps
            kind = np.uint32 if most < 1 << 32 else np.int64
            self._steps = np.concatenate([steps, ids - self._first], dtype=kind, casting="unsafe")

    def _append(self) -> int:
        """Write the tail behind the rows of the file; returns the file's CRC-32 then."""
        content = self._tail[: self.unsaved].view(np.uint8)
        if not len(content):
            return self._crc
        with open(self._store.path / self._name, "r+b" if len(self._rows) else "wb") as file:
            file.seek(len(self._rows) * self._dtype.itemsize)
            file.write(content)
            _sync(file)
        return zlib.crc32(content, self._crc)

    def _stamp(self, crc: int) -> None:
        file = self._store.path / STAMP_FILE
        fresh = Path(f"{file}.new")
        stamp = {
            "catalog_id": self._store.meta.catalog_id,
            "number": self._number,
            "file": self._name,
            "rows": self._count,
            "crc32": crc,
        }
        with open(fresh, "w", encoding="utf-8") as opened:
            json.dump(stamp | {_CHECK: _own_crc(stamp)}, opened)
            _sync(opened)
        os.replace(fresh, file)
        fsync_directory(file.parent)

    def _load(self) -> None:
        """Map the rows that the stamp vouches for; nothing where there is no usable file."""
        try:
            stamp = _read_stamp(self._store)
            rows, number = self._mapped(stamp["file"], stamp["rows"]), stamp["number"]
            if zlib.crc32(rows) != stamp["crc32"]:
                raise ValueError("their checksum is wrong")
            if number > self._store.number:
                rows = self._older(rows)
                number = int(rows["id"][-1]) if len(rows) else 0
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("%s: vectors are read from the store: %s", self._store.path, error)
            return
        self._name, self._rows = stamp["file"], rows
        self._number, self._crc = number, stamp["crc32"]

    def _older(self, rows: np.ndarray) -> np.ndarray:
        """Of rows that a writer has saved after the snapshot, those that the snapshot knows.

        Raises:
            ValueError: they are of a fresh file, without items that were removed after it.
        """
        if self._writes:
            raise NewerError(_NEWER)
        known = rows[: np.searchsorted(rows["id"], self._store.number, "right")]
        held, ids = known["id"], self._store.ids()
        ids = ids[: np.searchsorted(ids, held[-1], "right")] if len(held) else held
        if not (held[np.searchsorted(held, ids)] == ids).all():
            raise ValueError("another process has replaced their file")
        return known

    def _mapped(self, name: str, rows: int) -> np.ndarray:
        if not rows:
            return np.zeros(0, self._dtype)
        path = self._store.path / name
        if os.path.getsize(path) < rows * self._dtype.itemsize:
            raise ValueError("they are truncated")
        # as a plain array: every access to a memmap costs microseconds
        return np.asarray(np.memmap(path, self._dtype, "r", shape=(rows,)))


def remove_vectors(folder: Path) -> None:
    """Remove the stamp and all files, where no index uses them any more."""
    for file in (folder / STAMP_FILE, *folder.glob("vectors-*.f16")):
        if file.name == STAMP_FILE or _NAME.fullmatch(file.name):
            with contextlib.suppress(OSError):
                file.unlink()


def discard_newer_vectors(store: Store) -> None:
    """See `derived.discard_newer`."""

    def read() -> None:
        if _read_stamp(store)["number"] > store.number:
            raise NewerError(_NEWER)

    discard_newer(store.path / STAMP_FILE, read)


def copy_vectors(source: Path, target: Path) -> None:
    """Copy the stamp and its file from one directory to another, if they are there."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # none, replaced by others, damaged
        content = (source / STAMP_FILE).read_text()
        name = _checked_stamp(content)["file"]
        shutil.copyfile(source / name, target / name)
        (target / STAMP_FILE).write_text(content)


def check_vectors(store: Store) -> list[str]:
    """What is wrong with the vectors file, or differs there from the store: a line each."""
    try:
        name = _read_stamp(store)["file"]
        with open(store.path / name, "rb"):
            pass
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"vectors: {error}; the next start reads the store"]
    rows = VectorRows(store)
    if rows.unsaved == len(rows):
        return [f"{name}: damaged; the next start reads the store"] if len(rows) else []
    wrong: list[int] = []
    for ids, vectors in store.vectors_since(0):
        halves = vectors.astype(np.float16)
        wrong += ids[(rows.stored(ids) != halves).any(axis=1)].tolist()
    if not wrong:
        return []
    return [
        f"{len(wrong)} vectors differ in the store and in {name}, such as that of id {wrong[0]}"
    ]


def _read_stamp(store: Store) -> dict[str, Any]:
    """The stamp of this store's vectors; ValueError if it is not."""
    if store.replaced:
        raise ValueError("their directory holds another catalogue by now")
    stamp = _checked_stamp((store.path / STAMP_FILE).read_text())
    if stamp["catalog_id"] != store.meta.catalog_id:
        raise ValueError("they belong to another catalogue")
    return stamp


def _checked_stamp(content: str) -> dict[str, Any]:
    try:
        stamp = json.loads(content)
        check = stamp.pop(_CHECK)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        stamp = check = None
    if stamp is None or check != _own_crc(stamp):
        raise ValueError(f"{STAMP_FILE} is damaged, or another version of tigerfg wrote it")
    if not _NAME.fullmatch(stamp["file"]):
        raise ValueError(f"{stamp['file']!r} is no name of vectors")
    return stamp


def _own_crc(stamp: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(stamp, sort_keys=True).encode())


def grown(values: np.ndarray, size: int) -> np.ndarray:
    """A longer copy, zero behind the values."""
    longer = np.zeros(size, values.dtype)
    longer[: len(values)] = values
    return longer


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
