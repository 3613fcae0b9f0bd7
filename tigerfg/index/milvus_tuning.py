"""How many lists a server is to probe: measured, as `build` does for faiss."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tigerfg.index.collection import Match

NEAREST = 10
TIMED = 32  # queries sent one at a time
Search = Callable[[np.ndarray, int, int], "list[list[Match]]"]  # (embeddings, k, nprobe)


def measure(
    search: Search, queries: np.ndarray, own: Sequence[str | None], lists: int, target: float
) -> dict[str, Any]:
    """The least nprobe, of the powers of two, that reaches the target recall; and the curve.

    The truth are the neighbours found when all lists are probed. An item is no neighbour of its
    own.

    Args:
        queries: (Q, E), at least one. own: the item that each of them is, or None.
        lists: inverted lists. target: share of the 10 nearest to be found.

    Returns:
        nprobe, recall, ms (a query, one at a time) and the curve, a list of the same three.
    """

    def neighbours(nprobe: int) -> list[set[str]]:
        found = search(queries, NEAREST + 1, nprobe)
        ids = [[match.document["item_id"] for match in line] for line in found]
        return [
            set([name for name in line if name != item][:NEAREST])
            for line, item in zip(ids, own, strict=True)
        ]

    truth = neighbours(lists)
    most = sum(map(len, truth))
    curve: list[dict[str, Any]] = []
    nprobe = 1
    while True:
        nprobe = min(nprobe, lists)
        hits = sum(len(a & b) for a, b in zip(truth, neighbours(nprobe), strict=True))
        times = []
        for vector in queries[:TIMED]:
            started = time.perf_counter()
            search(vector[None], NEAREST, nprobe)
            times.append(time.perf_counter() - started)
        recall = hits / most if most else 1.0
        ms = 1000 * float(np.median(times))
        curve.append({"nprobe": nprobe, "factor": None, "recall": recall, "ms": ms})
        if recall >= target or nprobe == lists:
            best = curve[-1]
            return {**{name: best[name] for name in ("nprobe", "recall", "ms")}, "curve": curve}
        nprobe *= 2
