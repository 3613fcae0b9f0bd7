"""How many lists a server is to probe: measured, as `build` does for faiss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.index.least_nprobe import least_nprobe
from tigerfg.index.ranking import NEAREST

if TYPE_CHECKING:
    from tigerfg.index.collection import Match

TIMED = 32  # queries sent one at a time
Search = Callable[[np.ndarray, int, int], "list[list[Match]]"]  # (embeddings, k, nprobe)


def measure(search: Search, queries: np.ndarray, lists: int, target: float) -> dict[str, Any]:
    """The least nprobe, of the powers of two, that reaches the target recall; and the curve.

    Args:
        queries: (Q, E), at least one.
        lists: inverted lists. target: share of the 10 nearest to be found.

    Returns:
        nprobe, recall, ms (a query, one at a time) and the curve, a list of the same three.
    """

    def scores(nprobe: int) -> list[list[float]]:
        return [[match.score for match in line] for line in search(queries, NEAREST, nprobe)]

    curve: list[dict[str, Any]] = []
    for nprobe, recall in least_nprobe(scores, lists, target):
        times = []
        for vector in queries[:TIMED]:
            started = time.perf_counter()
            search(vector[None], NEAREST, nprobe)
            times.append(time.perf_counter() - started)
        ms = 1000 * float(np.median(times))
        curve.append({"nprobe": nprobe, "factor": None, "recall": recall, "ms": ms})
    best = curve[-1]
    return {**{name: best[name] for name in ("nprobe", "recall", "ms")}, "curve": curve}
