"""Which inverted lists a query probes: those whose centres are about as near as the nearest.

A query in the middle of a cluster needs one list, one between clusters many. So nprobe is the
average: a query probes the lists whose centres score within a margin of its best, and at most
`MOST` times nprobe of them. faiss itself probes as many for every query. Behind a filter, only the
lists that hold something it leaves are counted: those may be far from the query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MOST = 4  # times nprobe: lists of one query
# Asking for more than one centre in so many, a graph of them takes longer than comparing them all
# (and does not find all).
SCANNED = 32
WIDER = (
    1.5  # centres that a search of the graph keeps beyond those asked for, lest it miss the last
)


class Holding(NamedTuple):
    """The lists that hold something: how many, and what restricts a search of the centres."""

    count: int
    parameters: Any


class Probing:
    """Chooses the lists of an IVF index of faiss.

    Args:
        margins: pairs of nprobe and the margin for it, as `measured_margins` gives them.
    """

    def __init__(self, faiss: Any, ivf: Any, margins: Sequence[tuple[int, float]]) -> None:
        self._faiss, self._ivf = faiss, ivf
        self._centres = faiss.downcast_index(ivf.quantizer)
        self._all = centres_behind(faiss, ivf)
        self._steps = tuple(np.array(column, np.float64) for column in zip(*margins, strict=True))

    def holding(self, held: np.ndarray) -> Holding | None:
        """Of the lists with this many items (nlist,), those with any; None for all lists."""
        flat = self._centres if self._all is None else self._all
        some = held > 0
        if some.all() or not isinstance(flat, self._faiss.IndexFlat):
            return None
        selector = self._faiss.IDSelectorBitmap(np.packbits(some, bitorder="little"))
        return Holding(int(some.sum()), self._faiss.SearchParameters(sel=selector))

    def choose(
        self, queries: np.ndarray, nprobe: float, among: Holding | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists int64 (B, L), nearest first, -1 where fewer than L are probed, and their scores.

        Args:
            queries: float32 (B, D), as the lists have them (behind a linear transform).
            nprobe: lists a query on average of those that the margins were measured with; all
                lists are probed where it is their number.
            among: lists to choose among; None: all.
        """
        count = self._ivf.nlist if among is None else among.count
        most = min(math.ceil(MOST * nprobe), count)
        flat = self._centres if self._all is None else self._all
        if among is not None:
            scores, lists = flat.search(queries, most, params=among.parameters)
        elif self._all is None or most > count // SCANNED:
            scores, lists = flat.search(queries, most)
        else:
            self._centres.hnsw.efSearch = math.ceil(WIDER * most)
            scores, lists = self._centres.search(queries, most)
        if nprobe < count:
            lists[away(scores) > np.interp(nprobe, *self._steps)] = -1
        return lists, scores


def measured_margins(faiss: Any, ivf: Any, queries: np.ndarray) -> list[tuple[int, float]]:
    """Margins with which these queries probe 1, 2, 4, ... lists on average, up to all.

    Args:
        queries: float32 (Q, D), at least one, as the lists have them.
    """
    count = ivf.nlist
    behind = centres_behind(faiss, ivf)
    centres = ivf.quantizer if behind is None else behind
    distances = away(centres.search(queries, count)[0])
    distances = distances[:, np.isfinite(distances).all(axis=0)]
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count] + [count]
    margins = []
    for nprobe in steps:
        near = distances[:, : MOST * nprobe].ravel()
        place = min(nprobe * len(queries), near.size) - 1
        margins.append((nprobe, float(np.partition(near, place)[place])))
    return margins


def away(scores: np.ndarray) -> np.ndarray:
    """How much worse a centre is than the query's best, whether scores or distances are given."""
    return np.abs(scores - scores[:, :1])


def centres_behind(faiss: Any, ivf: Any) -> Any:
    """The flat index of the centres behind a graph of them; None where there is no graph."""
    centres = faiss.downcast_index(ivf.quantizer)
    return faiss.downcast_index(centres.storage) if isinstance(centres, faiss.IndexHNSW) else None
