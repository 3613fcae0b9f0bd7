"""The stored vectors again, as rows that can be read without SQLite: for refinement, and to build.

`vectors.f16` holds records (internal id, float16 vector) in the order of storing and is only ever
appended to; `vectors.json`, replaced as a whole, says how many of them count, and their CRC-32.
Rows are mapped, not read: what a search touches is in the page cache, the process keeps the ids and
what the store holds beyond the file. Derived like the index files, never the truth.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from tigerfg.index.database import fsync_directory
from tigerfg.index.store import Store

VECTORS_FILE, STAMP_FILE = "vectors.f16", "vectors.json"
BLOCK = 16_384  # rows read at once

logger = logging.getLogger("tigerfg")


class VectorRows:
    """Float16 vectors by internal id; ids of removed items stay until `save(compact=True)`.

    Not thread-safe; create it and call `sync` inside one ``store.snapshot()``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.path / VECTORS_FILE
        self._dtype = np.dtype([("id", "<i8"), ("vector", "<f2", (store.meta.embedding_dim,))])
        self._number, self._rows, self._crc = 0, np.zeros(0, self._dtype), 0
        self._tail: list[np.ndarray] = []
        self._load()
        self._ids = np.array(self._rows["id"])
        self.sync()

    def __len__(self) -> int:
        """Rows, those of removed items among them."""
        return len(self._ids)

    def attach(self, store: Store) -> None:
        """Follow another connection to the same catalogue from now on."""
        self._store = store

    def sync(self) -> None:
        """Catch up with the store."""
        number = self._store.number
        if number == self._number:
            return
        ids = [self._ids]
        for new, vectors in self._store.vectors_since(int(self._ids[-1]) if len(self) else 0):
            rows = np.empty(len(new), self._dtype)
            rows["id"], rows["vector"] = new, vectors
            self._tail.append(rows)
            ids.append(new)
        self._ids, self._number = np.concatenate(ids), number

    def get(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of unit length, float32 (n, E), of internal ids int64 (n,) that are here."""
        found = self._stored(ids).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def _stored(self, ids: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self._ids, ids)
        mapped = len(self._rows)
        here = places < mapped
        if here.all():
            return self._rows["vector"][places]
        if len(self._tail) > 1:
            self._tail = [np.concatenate(self._tail)]
        found = np.empty((len(ids), self._store.meta.embedding_dim), "<f2")
        found[here] = self._rows["vector"][places[here]]
        found[~here] = self._tail[0]["vector"][places[~here] - mapped]
        return found

    def blocks(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """These ids, ascending, and their vectors, block by block."""
        for start in range(0, len(ids), BLOCK):
            part = ids[start : start + BLOCK]
            yield part, self.get(part)

    def save(self, live: np.ndarray | None = None) -> None:
        """Append what the file lacks, or write it anew; a failure is logged, never raised.

        Args:
            live: ids to keep, ascending: the file is written anew with nothing else. None: append.
        """
        try:
            if live is not None:
                self._rewrite(live)
            elif self._tail:
                with open(self._path, "r+b" if len(self._rows) else "wb") as file:
                    file.seek(len(self._rows) * self._dtype.itemsize)
                    for rows in self._tail:
                        self._crc = zlib.crc32(rows.tobytes(), self._crc)
                        file.write(rows.tobytes())
                    _sync(file)
            self._stamp(len(self._ids))
            self._rows, self._tail = self._mapped(len(self._ids)), []
        except OSError as error:
            logger.warning("%s not saved, the next start reads the store: %s", self._path, error)

    def _rewrite(self, live: np.ndarray) -> None:
        fresh, crc = Path(f"{self._path}.new"), 0
        with open(fresh, "wb") as file:
            for start in range(0, len(live), BLOCK):
                ids = live[start : start + BLOCK]
                rows = np.empty(len(ids), self._dtype)
                rows["id"], rows["vector"] = ids, self._stored(ids)
                crc = zlib.crc32(rows.tobytes(), crc)
                file.write(rows.tobytes())
            _sync(file)
        # The old stamp would not fit the new rows: without one the next start reads the store.
        (self._store.path / STAMP_FILE).unlink(missing_ok=True)
        os.replace(fresh, self._path)
        self._ids, self._crc = np.array(live, np.int64), crc

    def _stamp(self, rows: int) -> None:
        file = self._store.path / STAMP_FILE
        fresh = Path(f"{file}.new")
        stamp = {
            "catalog_id": self._store.meta.catalog_id,
            "number": self._number,
            "rows": rows,
            "crc32": self._crc,
        }
        with open(fresh, "w", encoding="utf-8") as opened:
            json.dump(stamp, opened)
            _sync(opened)
        os.replace(fresh, file)
        fsync_directory(file.parent)

    def _load(self) -> None:
        """Map the rows that the stamp vouches for; nothing where there is no usable file."""
        file = self._store.path / STAMP_FILE
        try:
            stamp = json.loads(file.read_text())
            if stamp["catalog_id"] != self._store.meta.catalog_id:
                raise ValueError("it belongs to another catalogue")
            if stamp["number"] > self._store.number:
                raise ValueError("it is newer than the store")
            rows = self._mapped(stamp["rows"])
            if zlib.crc32(rows) != stamp["crc32"]:
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is read from the store: %s", self._path, error)
            return
        self._number, self._rows, self._crc = stamp["number"], rows, stamp["crc32"]

    def _mapped(self, rows: int) -> np.ndarray:
        if not rows:
            return np.zeros(0, self._dtype)
        if os.path.getsize(self._path) < rows * self._dtype.itemsize:
            raise ValueError("it is truncated")
        return np.memmap(self._path, self._dtype, "r", shape=(rows,))


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
