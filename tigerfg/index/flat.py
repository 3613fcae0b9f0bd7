"""Exact search: a flat inner-product index of faiss that follows the store.

The index lives in memory and catches up with the store by write number. Its file only shortens the
next start (see `derived`).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tigerfg.index.derived import Loaded, import_faiss, load_index, save_index
from tigerfg.index.ranking import ranked
from tigerfg.index.store import Store
from tigerfg.index.vectors import remove_vectors

INDEX_FILE = "flat.index"

logger = logging.getLogger("tigerfg")


class FlatIndex:
    """Every stored vector, normalised, float32, under its internal id.

    Not thread-safe; create it and call `sync` and `search` inside one ``store.snapshot()``.

    Args:
        store: the catalogue; the index opens at its state.
    """

    def __init__(self, store: Store) -> None:
        self._faiss = import_faiss()
        self._store = store
        self._path = store.path / INDEX_FILE
        found = load_index(self._path, store)
        self._index, self._number = (found.index, found.number) if found else (self._empty(), 0)
        self.sync()
        if len(self) != len(store):
            logger.warning("%s does not agree with the store: rebuilt", self._path)
            self._index, self._number = self._empty(), 0
            self.sync()

    def __len__(self) -> int:
        return self._index.ntotal

    def sync(self) -> None:
        """Catch up with the store; `IndexKeeper` drops an index that was interrupted in this."""
        number = self._store.number
        if number == self._number:
            return
        removed = self._store.removed_since(self._number, self._ids)
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
        return ranked(scores, ids, k)

    def save(self) -> bool:
        """Write the index file; returns whether it was written, a failure is logged."""
        return save_index(self._path, self._store, Loaded(self._index, self._number, {}))

    def sweep(self) -> None:
        """Remove vectors files: of an index before this one, or of a build that died."""
        remove_vectors(self._store.path)

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Which of these internal ids are in the index, bool (N,)."""
        own = self._ids()  # ascending
        return own.take(np.searchsorted(own, ids), mode="clip") == ids if len(own) else ids < 0

    def _ids(self) -> np.ndarray:
        return self._faiss.vector_to_array(self._index.id_map)

    def _empty(self) -> Any:
        return self._faiss.IndexIDMap(self._faiss.IndexFlatIP(self._store.meta.embedding_dim))

    def _selection(self, allowed: np.ndarray) -> Any:
        bits = np.zeros((int(allowed[-1]) // 8 + 1) * 8, np.uint8)
        bits[allowed] = 1
        selector = self._faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        return self._faiss.SearchParameters(sel=selector)
