"""Exact search: a flat inner-product index of faiss that follows the store.

The index lives in memory and catches up with the store by write number. Its file only shortens
the next start: it is a faiss index with a trailer (catalogue, write number, length, CRC-32),
replaced as a whole and rarely, and whatever is wrong with it, the index is rebuilt from the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tigerfg.errors import MissingExtraError
from tigerfg.index.database import fsync_directory
from tigerfg.index.store import Store

INDEX_FILE = "flat.index"

_TRAILER = struct.Struct("<8s16sQQI")  # magic, catalogue id, write number, faiss bytes, their CRC
_MAGIC = b"tigerfg1"
_BLOCK = 1 << 20
BAD_CHECKSUM = "its checksum is wrong"

logger = logging.getLogger("tigerfg")


class FlatIndex:
    """Every stored vector, normalised, float32, under its internal id.

    Not thread-safe; create it and call `sync` and `search` inside one ``store.snapshot()``.

    Args:
        store: the catalogue; the index opens at its state.
    """

    def __init__(self, store: Store) -> None:
        self._faiss = _import_faiss()
        self._store = store
        self._path = store.path / INDEX_FILE
        self._index, self._number = self._load()
        self.sync()
        if len(self) != len(store):
            logger.warning("%s does not agree with the store: rebuilt", self._path)
            self._index, self._number = self._empty(), 0
            self.sync()

    def __len__(self) -> int:
        return self._index.ntotal

    def sync(self) -> None:
        """Catch up with the store; interrupted, it goes on where it was at the next call."""
        number = self._store.number
        if number == self._number:
            return
        removed = self._store.removed_since(self._number)
        if len(self) and len(removed):
            self._index.remove_ids(removed)
        for ids, vectors in self._store.vectors_since(self._number):
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            self._index.add_with_ids(vectors, ids)
            self._number = int(ids[-1])
        self._number = number

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the indexed vectors, exactly; equal scores in the order of storing.

        Args:
            queries: float32 (B, E), unit length.
            k: how many, at least 1; fewer come back when fewer are there.
            allowed: internal ids int64 to choose from, ascending, all of them in the index.

        Returns:
            scores float32 (B, n), descending, and internal ids int64 (B, n), n <= k.
        """
        total = len(self) if allowed is None else len(allowed)
        k = min(k, total)
        if not k or not len(queries):
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        parameters = None if allowed is None else self._selection(allowed)
        queries = np.ascontiguousarray(queries, np.float32)
        wanted = min(k + 1, total)
        while True:
            scores, ids = self._index.search(queries, wanted, params=parameters)
            # A tie across the k-th place is complete only when something lower has been seen.
            if wanted == total or (scores[:, -1] < scores[:, k - 1]).all():
                break
            wanted = min(4 * wanted, total)
        order = np.lexsort((ids, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def save(self) -> None:
        """Write the index file. It is only derived, so a failure is logged, never raised."""
        fresh = Path(f"{self._path}.new")
        try:
            with open(fresh, "wb") as file:
                crc = 0

                def write(block: bytes) -> int:
                    nonlocal crc
                    crc = zlib.crc32(block, crc)
                    return file.write(block)

                self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(write, _BLOCK))
                catalog = bytes.fromhex(self._store.meta.catalog_id)
                file.write(_TRAILER.pack(_MAGIC, catalog, self._number, file.tell(), crc))
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
            fsync_directory(self._path.parent)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            logger.warning("%s not saved, the next start rebuilds it: %s", self._path, reason)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def _empty(self) -> Any:
        return self._faiss.IndexIDMap(self._faiss.IndexFlatIP(self._store.meta.embedding_dim))

    def _selection(self, allowed: np.ndarray) -> Any:
        bits = np.zeros((int(allowed[-1]) // 8 + 1) * 8, np.uint8)
        bits[allowed] = 1
        selector = self._faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        return self._faiss.SearchParameters(sel=selector)

    def _load(self) -> tuple[Any, int]:
        """The file's index and its write number; an empty one when there is no usable file."""
        try:
            with open(self._path, "rb") as file:
                number, length, crc = _trailer(file, self._store)
                if _crc32(file, length) != crc:
                    raise ValueError(BAD_CHECKSUM)
            return self._faiss.read_index(str(self._path)), number
        except FileNotFoundError:
            pass
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError is what faiss raises
            reason = " ".join(str(error).split())
            logger.warning("%s is rebuilt from the store: %s", self._path, reason)
        return self._empty(), 0


def index_file_is_stale(store: Store) -> bool:
    """Whether catching up from the index file would read over a twentieth of the vectors."""
    try:
        with open(store.path / INDEX_FILE, "rb") as file:
            saved = _trailer(file, store)[0]
    except (OSError, ValueError):
        saved = 0
    return store.number - saved > len(store) // 20


def check_index_file(store: Store) -> list[str]:
    """What is wrong with the index file: one line, or none; a missing file is not wrong."""
    path = store.path / INDEX_FILE
    try:
        with open(path, "rb") as file:
            _, length, crc = _trailer(file, store)
            if _crc32(file, length) != crc:
                raise ValueError(BAD_CHECKSUM)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return [f"{INDEX_FILE}: {error}; the next start rebuilds it from the store"]
    return []


def _trailer(file: BinaryIO, store: Store) -> tuple[int, int, int]:
    """Write number, length and CRC-32 of an index file; ValueError if it is not of this store."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TRAILER.size))
    trailer = file.read(_TRAILER.size)
    if len(trailer) < _TRAILER.size:
        raise ValueError("it is truncated")
    magic, catalog, number, length, crc = _TRAILER.unpack(trailer)
    if magic != _MAGIC or length != size - _TRAILER.size:
        raise ValueError("it is truncated or damaged")
    if catalog.hex() != store.meta.catalog_id:
        raise ValueError("it belongs to another catalogue")
    if number > store.number:
        raise ValueError("it is newer than the store")
    return number, length, crc


def _crc32(file: BinaryIO, length: int) -> int:
    """CRC-32 of a file's first ``length`` bytes."""
    file.seek(0)
    crc = 0
    while length > 0 and (block := file.read(min(_BLOCK, length))):
        crc = zlib.crc32(block, crc)
        length -= len(block)
    return crc


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("the vector index", "faiss-cpu", "cpu") from error
    return faiss
