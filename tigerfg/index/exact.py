"""Exact search among some stored items: all of them are compared."""

from __future__ import annotations

import numpy as np

from tigerfg.index.ranking import ROUNDING, ranked
from tigerfg.index.vectors import VectorRows

SPARE = 16  # candidates of a block beside the best, so that few ties need another look


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
        near, columns = _best(vectors, queries, k)
        scores, found = ranked(
            np.concatenate([scores, near], axis=1),
            np.concatenate([found, part[columns]], axis=1),
            k,
        )
    return scores, found


def _best(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (B, C) and places (B, C) among these vectors (N, E): the k best, and others.

    A product of matrices, which may add up every row in another order, says which are near. The
    scores are those of `VectorRows.scores`: equal vectors have equal ones.
    """
    most = k + SPARE
    if len(vectors) <= most:
        scores = np.vecdot(vectors, queries[:, None])
        return scores, np.broadcast_to(np.arange(len(vectors)), scores.shape)
    rough = queries @ vectors.T
    places = np.argpartition(-rough, most - 1, axis=1)[:, :most]
    near = -np.sort(-np.take_along_axis(rough, places, 1), axis=1)
    ties = near[:, k - 1] - near[:, -1] < 2 * ROUNDING  # perhaps more of them than are spared
    scores = np.empty(places.shape, np.float32)
    for line, query in enumerate(queries):
        if ties[line]:
            own = np.vecdot(vectors, query)
            places[line] = np.argsort(-own, kind="stable")[:most]
            scores[line] = own[places[line]]
        else:
            scores[line] = np.vecdot(vectors[places[line]], query)
    return scores, places
