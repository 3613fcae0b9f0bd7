"""Candidates of an approximate index, ranked again by exact scores of the stored vectors."""

from __future__ import annotations

import numpy as np

from tigerfg.index.vectors import VectorRows

AT_ONCE = 1 << 22  # values of vectors in memory


def refined(
    rows: VectorRows, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates of every query, best first, equal scores by id.

    Args:
        queries: float32 (B, E), unit length.
        candidates: internal ids int64 (B, C), C >= k; -1 is none, the others are in `rows`.

    Returns:
        scores float32 (B, k) and ids int64 (B, k); -inf and -1 where there are fewer.
    """
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    step = max(1, AT_ONCE // (candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores[part], ids[part] = _ranked(rows, queries[part], candidates[part], k)
    return scores, ids


def _ranked(
    rows: VectorRows, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    missing = candidates < 0
    some = missing.any()
    known = np.where(missing, candidates.max(), candidates) if some else candidates
    if known[0, 0] < 0:  # nothing at all
        return np.full((len(queries), k), -np.inf, np.float32), known[:, :k]
    vectors = rows.stored(known.ravel()).reshape(*known.shape, -1)
    # not BLAS, which adds up a row in an order of its own: equal vectors get equal scores
    scores = np.einsum("bce,be->bc", vectors, queries)
    scores /= np.sqrt(np.einsum("bce,bce->bc", vectors, vectors))
    if some:
        scores[missing] = -np.inf
    lines, order = np.arange(len(queries))[:, None], np.lexsort((candidates, -scores))[:, :k]
    return scores[lines, order], candidates[lines, order]
