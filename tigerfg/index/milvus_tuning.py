"""How many lists a server is to probe: measured on stored items, as `build` does for faiss."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.index.store import Sampled

if TYPE_CHECKING:
    from tigerfg.index.collection import Match

NEAREST = 10
TIMED = 32  # queries sent one at a time
Search = Callable[[np.ndarray, int, int], "list[list[Match]]"]  # (embeddings, k, nprobe)


def measure(search: Search, sample: Sequence[Sampled], lists: int, target: float) -> dict[str, Any]:
    """The least nprobe, of the powers of two, that reaches the target recall; and the curve.

    The truth are the neighbours found when all lists are probed. An item is no neighbour of its
    own.

    Args:
        sample: stored items, whose vectors are the queries; at least one.
        lists: inverted lists. target: share of the 10 nearest to be found.

    Returns:
        nprobe, recall, ms (a query, one at a time) and the curve, a list of the same three.
    """
    vectors = np.stack([item.vector for item in sample])
    own = [item.document["item_id"] for item in sample]

    def neighbours(nprobe: int) -> list[set[str]]:
        found = search(vectors, NEAREST + 1, nprobe)
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
        for vector in vectors[:TIMED]:
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
