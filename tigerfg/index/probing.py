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

MOST = 4  # times nprobe: lists of one query
# Asking for more than one centre in so many, a graph of them takes longer than comparing them all
# (and does not find all).
SCANNED = 32
WIDER = 1.5  # a search of the graph keeps so many times the centres, lest it miss the last ones


class Probing:
    """Chooses the lists of an IVF index of faiss.

    Args:
        margins: pairs of nprobe and the margin for it, as `measured_margins` gives them.
    """

    def __init__(self, faiss: Any, ivf: Any, margins: Sequence[tuple[int, float]]) -> None:
        self._faiss, self._ivf = faiss, ivf
        self._wide: dict[int, Any] = {}  # parameters of a search of the graph, by centres
        self._centres = faiss.downcast_index(ivf.quantizer)
        self._all = centres_behind(faiss, ivf)
        self._matrix = _matrix(faiss, ivf, self._centres if self._all is None else self._all)
        self._steps = tuple(np.array(column, np.float64) for column in zip(*margins, strict=True))

    def choose(self, queries: np.ndarray, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """Lists int64 (B, L), nearest first, -1 where fewer than L are probed, and their scores.

        Args:
            queries: float32 (B, D), as the lists have them (behind a linear transform).
            nprobe: lists a query on average of those that the margins were measured with; all
                lists are probed where it is their number.
        """
        count = self._ivf.nlist
        most = min(MOST * nprobe, count)
        if self._all is None:
            scores, lists = self._centres.search(queries, most)
        elif most > count // SCANNED:
            scores, lists = self._all.search(queries, most)
        else:
            if most not in self._wide:
                wide = math.ceil(WIDER * most)
                self._wide[most] = self._faiss.SearchParametersHNSW(efSearch=wide)
            scores, lists = self._centres.search(queries, most, params=self._wide[most])
        if nprobe < count:
            lists[away(scores) > np.interp(nprobe, *self._steps)] = -1
        return lists, scores

    def scores(self, queries: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
        """Scores of all centres, float32 (B, nlist); -inf for lists that hold nothing.

        Args:
            held: whether a list holds something, bool (nlist,).
        """
        scores = queries @ self._matrix.T
        if held is not None:
            scores[:, ~held] = -np.inf
        return scores

    def least(self, scores: np.ndarray, nprobe: int) -> np.ndarray:
        """The scores (B,) from which on `choose` would take lists of these (B, nlist).

        Where scores tie, these may be more lists than `choose` takes.
        """
        count = int(np.isfinite(scores[0]).sum())
        most = min(MOST * nprobe, count)
        last = -np.partition(-scores, most - 1, axis=1)[:, most - 1]
        if nprobe >= count:
            return last
        return np.maximum(last, scores.max(axis=1) - np.float32(np.interp(nprobe, *self._steps)))


def from_score(scores: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists (B, L) with at least these scores (B,), and their scores; -1 in lines with fewer."""
    lines, lists = np.nonzero(scores >= least[:, None])
    counts = np.bincount(lines, minlength=len(scores))
    places = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.full((len(scores), counts.max()), -1, np.int64)
    chosen[lines, places] = lists
    values = np.zeros(chosen.shape, np.float32)
    values[lines, places] = scores[lines, lists]
    return chosen, values


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


def _matrix(faiss: Any, ivf: Any, centres: Any) -> np.ndarray:
    """The centres, float32 (nlist, D); not copied from a flat index."""
    if not isinstance(centres, faiss.IndexFlat):
        return centres.reconstruct_n(0, ivf.nlist)
    return faiss.rev_swig_ptr(centres.get_xb(), ivf.nlist * ivf.d).reshape(ivf.nlist, ivf.d)
