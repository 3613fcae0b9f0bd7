"""Retrieval and grounding metrics, in numpy.

Ground truth is one-to-many: a query may have several correct items. Ties are broken
*pessimistically*: among equal scores, wrong items rank before correct ones, so that a model which
gives every item the same score gets the worst value and not a lucky one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Box = Sequence[float]


def relevant_ranks(scores: np.ndarray, relevant: Sequence[Iterable[int]]) -> list[np.ndarray]:
    """Ranks of the correct items of every query.

    Args:
        scores: (Q, G) float, higher is better; all values finite.
        relevant: per query the column numbers of its correct items, at least one; repeats count
            once.

    Returns:
        Per query an int64 array (R,), ascending, of 1-based ranks; ties are pessimistic.

    Raises:
        ValueError: shapes do not agree, a score is not finite, a query has no correct item, or a
            column number is outside the gallery.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(relevant):
        raise ValueError(
            f"scores must be (queries, items) with {len(relevant)} rows: {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinity")
    ranks = []
    for row, columns in zip(scores, relevant, strict=True):
        own = np.unique(np.fromiter(columns, dtype=np.int64))
        if own.size == 0:
            raise ValueError("every query needs at least one correct item")
        if own[0] < 0 or own[-1] >= row.size:
            raise ValueError(f"correct item {own[-1]} is outside the gallery of {row.size}")
        wrong = np.sort(np.delete(row, own))
        correct = np.sort(row[own])[::-1]
        # wrong items with score >= the correct one stand before it
        before = wrong.size - np.searchsorted(wrong, correct, side="left")
        ranks.append(before + np.arange(1, own.size + 1))
    return ranks


def recall_at_k(ranks: Sequence[np.ndarray], k: int) -> float:
    """Share of queries with a correct item among the first ``k``; NaN without queries."""
    if k < 1:
        raise ValueError(f"k must be at least 1: {k}")
    return float(np.mean([r[0] <= k for r in ranks])) if len(ranks) else float("nan")


def average_precision(ranks: np.ndarray) -> float:
    """Average precision of one query from the ascending ranks of *all* its correct items."""
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def mean_average_precision(ranks: Sequence[np.ndarray]) -> float:
    """Mean of :func:`average_precision` over queries, whole ranking; NaN without queries."""
    return float(np.mean([average_precision(r) for r in ranks])) if len(ranks) else float("nan")


def cell_side(grid_shape: tuple[int, int], image_size: tuple[int, int]) -> float:
    """Side in image pixels of one cell of a grounding map.

    The picture is letterboxed by its longer side, which the grid covers completely, while the last
    row or column of the shorter side may be cut off by up to half a cell.

    Args:
        grid_shape: (h, w) of the map. image_size: (width, height) of the picture.
    """
    return max(image_size) / max(grid_shape)


def box_share(box: Box, image_size: tuple[int, int]) -> float:
    """Share of the picture's area inside ``box`` (x0, y0, x1, y1 in pixels, clipped): the chance
    level of both :func:`points_inside` and :func:`mass_inside`."""
    width, height = image_size
    x0, y0, x1, y1 = _clip(box, image_size)
    return (x1 - x0) * (y1 - y0) / (width * height)


def points_inside(grid: np.ndarray, box: Box, image_size: tuple[int, int]) -> bool:
    """Whether the centre of the strongest cell of a grounding map lies inside ``box``.

    Of several equally strong cells the first in reading order counts.

    Args:
        grid: (h, w) float map. box: x0, y0, x1, y1 in image pixels. image_size: (width, height).
    """
    row, column = np.unravel_index(int(np.argmax(grid)), grid.shape)
    side = cell_side(grid.shape, image_size)
    x, y = (column + 0.5) * side, (row + 0.5) * side
    x0, y0, x1, y1 = _clip(box, image_size)
    return bool(x0 <= x <= x1 and y0 <= y <= y1)


def mass_inside(grid: np.ndarray, box: Box, image_size: tuple[int, int]) -> float:
    """Share of a grounding map's mass inside ``box``; a cell counts by its overlap with the box.

    Args:
        grid: (h, w) float map, non-negative with a positive sum.
        box: x0, y0, x1, y1 in image pixels. image_size: (width, height).
    """
    side = cell_side(grid.shape, image_size)
    x0, y0, x1, y1 = _clip(box, image_size)
    overlap_x = _overlap(grid.shape[1], side, x0, x1, image_size[0])
    overlap_y = _overlap(grid.shape[0], side, y0, y1, image_size[1])
    grid = grid.astype(np.float64)
    return float(overlap_y @ grid @ overlap_x / grid.sum())


def _clip(box: Box, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = image_size
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def _overlap(cells: int, side: float, low: float, high: float, length: int) -> np.ndarray:
    """Share of every cell that lies in [low, high], (cells,); cells end with the picture."""
    edges = np.minimum(np.arange(cells + 1) * side, length)
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.clip(inside, 0.0, None) / np.diff(edges)
