"""Candidates of an approximate index, ranked again by exact scores of the stored vectors."""

from __future__ import annotations

import numpy as np

from tigerfg.index.ranking import ranked
from tigerfg.index.vectors import VectorRows

AT_ONCE = 1 << 22  # values of vectors in memory


def refined(
    rows: VectorRows, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of every query, best first, equal scores by id.

    Args:
        queries: float32 (B, E), unit length.
        candidates: internal ids int64 (B, C), C >= k, all of them in `rows`; behind the last of a
            line -1.

    Returns:
        scores float32 (B, k) and ids int64 (B, k); -inf and -1 where there are fewer.
    """
    step = max(1, AT_ONCE // (candidates.shape[1] * queries.shape[1]))
    if 0 < len(queries) <= step:
        return _ranked(rows, queries, candidates, k)
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores[part], ids[part] = _ranked(rows, queries[part], candidates[part], k)
    return scores, ids


def _ranked(
    rows: VectorRows, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    some, known = min(candidates[:, -1].tolist()) < 0, candidates
    if some:
        if (highest := candidates.max()) < 0:  # nothing at all
            return np.full((len(queries), k), -np.inf, np.float32), candidates[:, :k]
        known = np.where(candidates < 0, highest, candidates)
    scores = rows.scores(queries, known)
    if some:
        scores[candidates < 0] = -np.inf
    return ranked(scores, candidates, k)
