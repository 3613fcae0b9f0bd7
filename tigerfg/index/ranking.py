"""The order of results, best first, equal scores by id; and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

NEAREST = 10  # results for which recall is measured
ROUNDING = np.float32(1e-6)  # of scores of vectors of unit length, added up in another order


def hits(scores: Iterable[float], nearest: Collection[float]) -> int:
    """How many of the nearest, given by their true scores, are among results with these scores.

    By scores, not ids: of equal vectors it does not matter which are found.
    """
    least = min(nearest, default=math.inf) - ROUNDING
    return min(len(nearest), sum(score >= least for score in scores))


def share_found(scores: Iterable[float], nearest: np.ndarray) -> float:
    """Recall of one query: the share of its nearest that `hits` counts.

    Args:
        nearest: their true scores, -inf where there are fewer.
    """
    known = nearest[np.isfinite(nearest)]
    return hits(scores, known) / max(1, len(known))


def ranked(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of every row of scores float32 (B, C) and their ids int64, both (B, k); C >= k."""
    places = np.lexsort((ids, -scores))[:, :k]
    if len(scores) > 1:
        places += np.arange(0, ids.size, ids.shape[1])[:, None]
    return scores.take(places), ids.take(places)
