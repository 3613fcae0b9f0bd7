"""Which inverted lists a query probes: those whose centres are about as near as the nearest.

A query in the middle of a cluster needs one list, one between clusters many. So nprobe is the
average: a query probes the lists whose centres score within a margin of its best, and at most
`MOST` times nprobe of them. faiss itself probes as many for every query.

What a filter leaves may be far from the query, where all centres are about as far. There, the
lists are those that hold something and whose centres score not much less than the last result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tigerfg.index.factory import transformed, transforms_of

MOST = 4  # times nprobe: lists of one query
# Asking for more than one centre in so many, a graph of them takes longer than comparing them all
# (and does not find all).
SCANNED = 32
WIDER = 1.5  # a search of the graph keeps so many times the centres, lest it miss the last ones
Chosen = tuple[np.ndarray, np.ndarray]  # lists int64 (B, L), -1 for none, and their scores float32


class Centres:
    """The centres of an IVF index of faiss, and their scores (inner products); not without it.

    Queries are given as the lists have them, float32 (B, D).
    """

    def __init__(self, faiss: Any, ivf: Any) -> None:
        self.count = ivf.nlist
        self._ivf = ivf  # with what Python keeps of it
        self._faiss = faiss
        self._transforms = transforms_of(ivf.quantizer)
        index = faiss.downcast_index(ivf.quantizer)
        if isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        self.graph = index if isinstance(index, faiss.IndexHNSW) else None
        rows = index.reconstruct_n(0, self.count)
        self._columns = np.ascontiguousarray(rows.T)  # for one query a third quicker than rows
        self._wide: dict[int, Any] = {}  # parameters of a search of the graph, by centres

    def scores(self, queries: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
        """Of all centres, float32 (B, count); -inf for lists that hold nothing.

        Args:
            held: whether a list holds something, bool (count,).
        """
        scores = transformed(self._transforms, queries) @ self._columns
        if held is not None:
            scores[:, ~held] = -np.inf
        return scores

    def nearest(self, queries: np.ndarray, most: int) -> Chosen:
        """So many by the graph, the nearest first."""
        assert self.graph is not None
        if most not in self._wide:
            wide = math.ceil(WIDER * most)
            self._wide[most] = self._faiss.SearchParametersHNSW(efSearch=wide)
        inner = transformed(self._transforms, queries)
        scores, lists = self.graph.search(inner, most, params=self._wide[most])
        return lists, scores


class Probing:
    """Chooses the lists of an IVF index of faiss.

    Args:
        margins: pairs of nprobe and the margin for it, as `measured_margins` gives them.
    """

    def __init__(self, centres: Centres, margins: Sequence[tuple[int, float]]) -> None:
        self.centres = centres
        self._steps = tuple(np.array(column, np.float64) for column in zip(*margins, strict=True))
        self._margins: dict[int, np.float32] = {}  # between the steps as well

    def choose(self, queries: np.ndarray, nprobe: int) -> Chosen:
        """Lists int64 (B, L), -1 where fewer than L are probed, and their scores.

        Args:
            queries: float32 (B, D), as the lists have them (behind a linear transform).
            nprobe: lists a query on average of those that the margins were measured with; all
                lists are probed where it is their number.
        """
        count = self.centres.count
        if self.centres.graph is not None and MOST * nprobe <= count // SCANNED:
            lists, scores = self.centres.nearest(queries, MOST * nprobe)
            lists[scores[:, :1] - scores > self._margin(nprobe)] = -1
            return lists, scores
        scores = self.centres.scores(queries)
        if nprobe < count:  # as `least` has it, but for the lines that are looked at once more
            best = np.maximum.reduce(scores, 1)  # for one query, `max` takes twice as long
            chosen = from_score(scores, best - self._margin(nprobe))
            if chosen[0].shape[1] <= MOST * nprobe:
                return chosen
        return from_score(scores, self.least(scores, nprobe, count))

    def least(self, scores: np.ndarray, nprobe: int, held: int) -> np.ndarray:
        """The scores (B,) from which on lists of these (B, count) are probed.

        Where scores tie, these may be more lists than `MOST` times nprobe.

        Args:
            held: lists that hold something: so many scores of a line are finite.
        """
        if nprobe >= held:
            return np.where(np.isfinite(scores), scores, np.inf).min(axis=1)
        least = scores.max(axis=1) - self._margin(nprobe)
        most = MOST * nprobe
        if most < held:
            lines = np.flatnonzero(scores >= least[:, None]) // scores.shape[1]
            crowded = np.flatnonzero(np.bincount(lines, minlength=len(scores)) > most)
            if len(crowded):
                least[crowded] = -np.partition(-scores[crowded], most - 1, axis=1)[:, most - 1]
        return least

    def _margin(self, nprobe: int) -> np.float32:
        if nprobe not in self._margins:
            self._margins[nprobe] = np.float32(np.interp(nprobe, *self._steps))
        return self._margins[nprobe]


def from_score(scores: np.ndarray, least: np.ndarray) -> Chosen:
    """Lists (B, L) with at least these scores (B,), and their scores; -1 in lines with fewer."""
    if len(scores) == 1:
        found = (scores[0] >= least).nonzero()[0]
        return found[None], scores.take(found)[None]
    found = np.flatnonzero(scores >= least[:, None])
    lines, lists = np.divmod(found, scores.shape[1])
    counts = np.bincount(lines, minlength=len(scores))
    places = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.full((len(scores), counts.max()), -1, np.int64)
    chosen[lines, places] = lists
    values = np.zeros(chosen.shape, np.float32)
    values[lines, places] = scores.ravel()[found]
    return chosen, values


def measured_margins(centres: Centres, queries: np.ndarray) -> list[tuple[int, float]]:
    """Margins with which these queries probe 1, 2, 4, ... lists on average, up to all.

    Args:
        queries: float32 (Q, D), at least one, as the lists have them.
    """
    count = centres.count
    scores = -np.sort(-centres.scores(queries), axis=1)
    away = scores[:, :1] - scores
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count] + [count]
    margins = []
    for nprobe in steps:
        near = away[:, : MOST * nprobe].ravel()
        place = nprobe * len(queries) - 1
        margins.append((nprobe, float(np.partition(near, place)[place])))
    return margins
