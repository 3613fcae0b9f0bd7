"""Search on GPUs: a copy of the stored vectors there, beside the index on the CPU.

The copy has lists of the float16 vectors as they are stored, so that its scores, divided by their
lengths, are exact; where these do not fit, product codes, whose candidates are ranked again by the
stored vectors. faiss cannot remove from an index on a GPU nor filter there: removed items and those
that a filter leaves out are asked for besides, and dropped. What that does not answer (a filter
that leaves few items, a line that came short) the CPU's index does, so results keep their meaning:
k of them wherever k items match.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from tigerfg.index.build import tuning_queries
from tigerfg.index.flat import FlatIndex
from tigerfg.index.gpu import (
    MOST,
    DeviceIndex,
    GpuError,
    Gpus,
    code_bytes,
    gpu_errors,
    reason_of,
)
from tigerfg.index.halves import widened
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.least_nprobe import least_nprobe
from tigerfg.index.plan import list_count
from tigerfg.index.ranking import NEAREST, ranked
from tigerfg.index.refine import refined
from tigerfg.index.store import Store
from tigerfg.index.vectors import BLOCK, VectorRows

ADDED = 4 * BLOCK  # at once: faiss visits most lists in every call
TRAINED_ON = 64  # vectors a list
SAMPLE = 256  # stored vectors of which queries are made to tune nprobe with
FACTOR = 20  # candidates a result, of product codes
PAIRS = 1 << 25  # candidates of all probed lists at once: faiss has 12 bytes for each
SPARE = 1.5  # asked for beyond the expected number, where some are dropped
MOST_DEAD, MOST_GROWN = 0.2, 2.0  # then the copy is made anew
SEED = 7

logger = logging.getLogger("tigerfg")


class GpuIndex:
    """The stored vectors on all GPUs. Not thread-safe; use it inside one ``store.snapshot()``.

    Args:
        cpu: the index on the CPU, at the store's state, whose results these are but for recall.
        target_recall: for which nprobe is chosen.
        replicate: see `GpuSettings`.
        rows: the stored vectors, where they are not read from the CPU's index or the store.

    Attributes:
        kind: "IVF<lists>,SQfp16" or "IVF<lists>,PQ<codes>". nprobe, recall: as tuned.

    Raises:
        GpuError: the vectors do not fit, or a GPU refuses; also raised by `sync` and `search`.
    """

    def __init__(
        self,
        gpus: Gpus,
        store: Store,
        cpu: FlatIndex | IvfIndex,
        target_recall: float,
        replicate: bool = False,
        rows: VectorRows | None = None,
    ) -> None:
        started = time.perf_counter()
        self._gpus, self._store, self._replicate = gpus, store, replicate
        self._cpu, self._own_rows = cpu, not isinstance(cpu, IvfIndex)
        self._rows = rows or (VectorRows(store) if self._own_rows else cpu.rows)
        self._number = store.number
        ids = store.ids()
        self._held = self._count = self._made_of = len(ids)
        self._live = np.zeros(0, bool)  # by internal id
        self._lengths = np.ones(0, np.float32)
        self.lists = list_count(-(-len(ids) // (1 if replicate else gpus.count)))
        self._parts: list[DeviceIndex] = []
        self._pool = ThreadPoolExecutor(gpus.count, "tigerfg-gpu")
        sample = np.random.default_rng(SEED).permutation(ids)
        with self._whole():
            exact = self._fill(ids, np.sort(sample[: TRAINED_ON * self.lists]))
            codes = code_bytes(store.meta.embedding_dim)
            self.kind = f"IVF{self.lists},{'SQfp16' if exact else f'PQ{codes}'}"
            self._factor = 1 if exact else FACTOR
            self.nprobe, self.recall = self._tuned(np.sort(sample[:SAMPLE]), target_recall)
        logger.info(
            "%s: %d items on %d GPU(s) as %s, recall@10 %.3f at nprobe %d, in %.1f s",
            store.path,
            len(ids),
            gpus.count,
            self.kind,
            self.recall,
            self.nprobe,
            time.perf_counter() - started,
        )

    def __len__(self) -> int:
        return self._count

    @property
    def notes(self) -> dict[str, Any]:
        """What it is and what was measured, for people."""
        return {"gpus": self._gpus.count, "kind": self.kind, "nprobe": self.nprobe} | {
            "recall": self.recall,
            "replicated": self._replicate,
        }

    @property
    def outdated(self) -> bool:
        """Whether the copy should be made anew: many items removed, or added."""
        dead = self._held - self._count
        return dead > MOST_DEAD * self._held or self._held > MOST_GROWN * max(self._made_of, 1)

    def sync(self, cpu: FlatIndex | IvfIndex) -> None:
        """Catch up with the store, as the CPU's index, perhaps a new one, has; where that fails,
        the copy is closed."""
        self._cpu = cpu
        if isinstance(cpu, IvfIndex):
            self._rows, self._own_rows = cpu.rows, False
        number = self._store.number
        if number == self._number:
            return
        with self._whole():
            self._follow()
        self._number = number

    def _follow(self) -> None:
        """`sync` with what was written."""
        if self._own_rows:
            self._rows.sync()
        removed = self._store.removed_since(self._number, self._ids)
        removed = removed[removed < len(self._live)]
        removed = removed[self._live[removed]]
        self._live[removed] = False
        self._count -= len(removed)
        for ids, vectors in self._store.vectors_since(self._number):
            with gpu_errors(self._store.path):
                self._add(vectors, ids)
            self._held += len(ids)
            self._count += len(ids)
            self._number = int(ids[-1])

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the k best, their scores exact; arguments and result as `FlatIndex.search`."""
        total = self._count if allowed is None else len(allowed)
        k = min(k, total)
        if not k or not len(queries):
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        queries = np.ascontiguousarray(queries, np.float32)
        whole = allowed is None and self._held == self._count
        wanted, nprobe = k * self._factor, self.nprobe
        if not whole:  # as many vectors that may come back are looked at as without
            nprobe = min(math.ceil(nprobe * self._held / total), self.lists, MOST)
            wanted = math.ceil(SPARE * wanted * self._held / total) + NEAREST
        if wanted > MOST:
            return self._cpu.search(queries, k, allowed)
        mask = self._live
        if allowed is not None:
            mask = np.zeros_like(self._live)
            mask[allowed] = True
        scores, ids = self._ask(queries, wanted, nprobe)
        kept = ids >= 0
        kept &= mask[np.where(kept, ids, 0)]
        ids = np.where(kept, ids, -1)
        if self._factor > 1:
            scores, ids = refined(self._rows, queries, -np.sort(-ids, axis=1), k)
        else:
            scores = np.where(kept, scores, -np.inf).astype(np.float32) / self._lengths[ids]
            scores, ids = ranked(scores, ids, k)
        short = np.flatnonzero((ids < 0).any(axis=1))
        if len(short):
            scores[short], ids[short] = self._cpu.search(queries[short], k, allowed)
        return scores, ids

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Close the copy if this fails: half of it may be done."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _ids(self) -> np.ndarray:
        return np.flatnonzero(self._live)

    def _fill(self, ids: np.ndarray, sample: np.ndarray) -> bool:
        """Make the parts; returns whether they hold float16 vectors."""
        reasons = []
        for make in (self._gpus.lists, self._gpus.codes):
            try:
                self._parts = self._made(make, sample)
                for start in range(0, len(ids), ADDED):
                    part = ids[start : start + ADDED]
                    self._add(widened(self._rows.stored(part)), part)
                return make == self._gpus.lists
            except (RuntimeError, MemoryError) as error:  # faiss's, for memory either
                reasons.append(reason_of(error))
                self._parts = []
        raise GpuError(f"{self._store.path} cannot be searched on a GPU: {reasons[-1]}")

    def _made(
        self, make: Callable[[int, int, int, int], DeviceIndex], sample: np.ndarray
    ) -> list[DeviceIndex]:
        dim, count = self._store.meta.embedding_dim, self._gpus.count
        items = self._held if self._replicate else -(-self._held // count)
        parts = [make(device, dim, self.lists, items) for device in range(count)]
        vectors = self._rows.get(sample)
        for part in parts:
            part.train(vectors)
        return parts

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        more = int(ids[-1]) + 1 - len(self._live)
        if more > 0:
            more = max(more, len(self._live))  # doubled: few copies
            self._live = np.concatenate([self._live, np.zeros(more, bool)])
            self._lengths = np.concatenate([self._lengths, np.ones(more, np.float32)])
        self._live[ids] = True
        self._lengths[ids] = np.linalg.norm(vectors, axis=1)
        count = len(self._parts)
        for number, part in enumerate(self._parts):
            own = slice(None) if self._replicate else ids % count == number
            if len(ids[own]):
                part.add_with_ids(np.ascontiguousarray(vectors[own]), ids[own])

    def _ask(self, queries: np.ndarray, wanted: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """The best ``wanted`` of all parts, -1 where they have fewer, best first."""
        with gpu_errors(self._store.path):
            return self._asked(queries, wanted, nprobe)

    def _asked(
        self, queries: np.ndarray, wanted: int, nprobe: int
    ) -> tuple[np.ndarray, np.ndarray]:

        def one(part: DeviceIndex, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            part.nprobe = nprobe
            step = max(1, PAIRS // (nprobe * wanted))
            if len(own) <= step:
                return part.search(own, wanted)
            starts = range(0, len(own), step)
            found = [part.search(own[start : start + step], wanted) for start in starts]
            scores, ids = (np.concatenate(column) for column in zip(*found, strict=True))
            return scores, ids

        if len(self._parts) == 1:
            return one(self._parts[0], queries)
        if self._replicate:
            shares = np.array_split(queries, len(self._parts))
            found = list(self._pool.map(one, self._parts, shares))
            scores, ids = (np.concatenate(column) for column in zip(*found, strict=True))
            return scores, ids
        found = list(self._pool.map(lambda part: one(part, queries), self._parts))
        scores, ids = (np.concatenate(column, axis=1) for column in zip(*found, strict=True))
        scores = np.where(ids >= 0, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def _tuned(self, sample: np.ndarray, target: float) -> tuple[int, float]:
        """The least power of two that reaches the target, beside the most that faiss can probe."""
        most = min(self.lists, MOST)
        if not len(sample):
            return most, 1.0
        queries = tuning_queries(self._store.queries(), self._rows, sample)
        wanted = min(NEAREST * self._factor, MOST)

        def found(nprobe: int) -> list[list[float]]:
            scores, ids = self._ask(queries, wanted, nprobe)
            if self._factor > 1:
                scores, ids = refined(self._rows, queries, ids, NEAREST)
            return [line[own >= 0].tolist() for line, own in zip(scores, ids, strict=True)]

        *_, best = least_nprobe(found, most, target)
        return best

    def close(self) -> None:
        """Give the GPUs' memory back."""
        self._parts = []
        self._pool.shutdown()
