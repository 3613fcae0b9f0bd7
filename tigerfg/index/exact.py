"""Exact search among some stored items: all of them are compared."""

from __future__ import annotations

import numpy as np

from tigerfg.index.vectors import VectorRows

_BELOW_SIGN = np.int32(0x7FFFFFFF)


def exact(
    rows: VectorRows, queries: np.ndarray, ids: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of these items for every query, best first, equal scores by id.

    Args:
        queries: float32 (B, E), unit length.
        ids: internal ids int64 (N,), ascending, all of them in `rows`.

    Returns:
        scores float32 (B, k) and ids int64 (B, k); -inf and -1 where there are fewer.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full(scores.shape, -1, np.int64)
    for part, vectors in rows.blocks(ids):
        near = np.concatenate([scores, queries @ vectors.T], axis=1)
        columns = best_columns(near, k)
        scores = np.take_along_axis(near, columns, 1)
        known = np.take_along_axis(found, np.minimum(columns, k - 1), 1)
        found = np.where(columns < k, known, part[np.maximum(columns - k, 0)])
    return scores, found


def best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns int64 (B, k) of the k largest float32 of every row, the largest first, equal ones by
    column.

    By a partition of whole numbers in the same order, the column in their lower half: sorting all
    takes ten times as long.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # of -0 those of 0
    ranks = (bits ^ (bits >> 31 & _BELOW_SIGN)).astype(np.int64) << 32
    ranks -= np.arange(scores.shape[1])
    place = scores.shape[1] - k
    top = np.partition(ranks, place, axis=1)[:, place:]
    top.sort(axis=1)
    return -top[:, ::-1] & 0xFFFFFFFF
