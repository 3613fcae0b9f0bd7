"""Retrieval and grounding metrics, in numpy.

Ground truth is one-to-many: a query may have several correct items. Ties are broken
*pessimistically*: among equal scores, wrong items rank before correct ones, so that a model which
gives every item the same score gets the worst value and not a lucky one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Box = Sequence[float]


def relevant_ranks(
    scores: np.ndarray,
    relevant: Sequence[Iterable[int]],
    excluded: Sequence[Iterable[int]] | None = None,
) -> list[np.ndarray]:
    """Ranks of the correct items of every query.

    Args:
        scores: (Q, G) float, higher is better; all values finite.
        relevant: per query the column numbers of its correct items, at least one; repeats count
            once.
        excluded: per query the column numbers of items that it does not search, such as its own
            picture when pictures are searched among themselves.

    Returns:
        Per query an int64 array (R,), ascending, of 1-based ranks; ties are pessimistic.

    Raises:
        ValueError: shapes do not agree, a score is not finite, a query has no correct item, a
            correct item is excluded, or a column number is outside the gallery.
    """
    scores = np.asarray(scores)
    excluded = [()] * len(relevant) if excluded is None else excluded
    if scores.ndim != 2 or len(scores) != len(relevant) or len(scores) != len(excluded):
        raise ValueError(
            f"scores must be (queries, items) with {len(relevant)} rows: {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinity")
    ranks = []
    for row, columns, left_out in zip(scores, relevant, excluded, strict=True):
        own, out = _columns(columns, row.size), _columns(left_out, row.size)
        if own.size == 0:
            raise ValueError("every query needs at least one correct item")
        if np.isin(own, out).any():
            raise ValueError("a correct item is excluded")
        levels = np.sort(row[own])
        wrong = np.delete(row, np.concatenate([own, out]))
        # wrong items with a score >= a correct item's stand before it
        reached = np.bincount(np.searchsorted(levels, wrong, side="right"), minlength=own.size + 1)
        before = np.cumsum(reached[:0:-1])
        ranks.append(before + np.arange(1, own.size + 1))
    return ranks


def distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of some vectors, which are compared once for all that are equal.

    A product of matrices adds up its columns in different orders: equal vectors get scores that
    differ in the last bit, and ties would be broken by chance.

    Args:
        vectors: (G, E).

    Returns:
        Vectors (U, E), and the row among them of each of the given ones, int64 (G,).
    """
    known: dict[bytes, int] = {}
    rows = (row.tobytes() for row in vectors + 0.0)  # no -0.0
    places = np.fromiter((known.setdefault(row, len(known)) for row in rows), np.int64)
    return vectors[np.unique(places, return_index=True)[1]], places


def _columns(numbers: Iterable[int], items: int) -> np.ndarray:
    columns = np.unique(np.fromiter(numbers, dtype=np.int64))
    if columns.size and (columns[0] < 0 or columns[-1] >= items):
        raise ValueError(f"item {columns[-1]} is outside the gallery of {items}")
    return columns


def average_precision(ranks: np.ndarray) -> float:
    """Average precision of one query from the ascending ranks of *all* its correct items."""
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


def precision_at_r(ranks: np.ndarray) -> float:
    """Average precision cut at R, of one query with R correct items.

    ``1/R * sum over i = 1..R of precision(i) * [item i is correct]`` (mAP@R when averaged over
    queries, Musgrave et al. 2020, "A Metric Learning Reality Check"): 1 only if the R correct items
    stand before all others.

    Args:
        ranks: ascending ranks of *all* correct items.
    """
    within = ranks <= len(ranks)
    return float(np.sum(np.arange(1, len(ranks) + 1)[within] / ranks[within]) / len(ranks))


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
    x0, y0, x1, y1 = clipped(box, image_size)
    return (x1 - x0) * (y1 - y0) / (width * height)


def peak(grid: np.ndarray, image_size: tuple[int, int]) -> tuple[float, float]:
    """x, y in image pixels of the centre of the strongest cell, the first in reading order of
    several equally strong ones; in a picture that is thinner than half a cell, its middle.

    Args:
        grid: (h, w) float map. image_size: (width, height).
    """
    row, column = np.unravel_index(int(np.argmax(grid)), grid.shape)
    side = cell_side(grid.shape, image_size)
    centre = ((column + 0.5) * side, (row + 0.5) * side)
    x, y = (c if c < end else end / 2 for c, end in zip(centre, image_size, strict=True))
    return float(x), float(y)


def points_inside(grid: np.ndarray, box: Box, image_size: tuple[int, int]) -> bool:
    """Whether the centre of the strongest cell of a grounding map lies inside ``box``, see `peak`.

    Args:
        grid: (h, w) float map. box: x0, y0, x1, y1 in image pixels. image_size: (width, height).
    """
    x, y = peak(grid, image_size)
    x0, y0, x1, y1 = clipped(box, image_size)
    return bool(x0 <= x <= x1 and y0 <= y <= y1)


def mass_inside(grid: np.ndarray, box: Box, image_size: tuple[int, int]) -> float:
    """Share of a grounding map's mass inside ``box``; a cell counts by its overlap with the box.

    Args:
        grid: (h, w) float map, non-negative with a positive sum.
        box: x0, y0, x1, y1 in image pixels. image_size: (width, height).
    """
    side = cell_side(grid.shape, image_size)
    x0, y0, x1, y1 = clipped(box, image_size)
    overlap_x = _overlap(grid.shape[1], side, x0, x1, image_size[0])
    overlap_y = _overlap(grid.shape[0], side, y0, y1, image_size[1])
    grid = grid.astype(np.float64)
    return float(overlap_y @ grid @ overlap_x / grid.sum())


# what a cell needs of the strongest cell's weight to belong to the map's box; 20 % as for class
# activation maps (Zhou et al. 2016, "Learning Deep Features for Discriminative Localization")
PEAK_SHARE = 0.2


def map_box(grid: np.ndarray, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box that a grounding map suggests, tight around all cells of a fifth of its peak or more.

    Args:
        grid: (h, w) float map, non-negative with a positive sum. image_size: (width, height).

    Returns:
        x0, y0, x1, y1 in image pixels, edges of cells, within the picture.
    """
    rows, columns = np.nonzero(grid >= PEAK_SHARE * grid.max())
    side = cell_side(grid.shape, image_size)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return clipped([float(edge * side) for edge in box], image_size)


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1; 0 where both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - common
    return common / union if union > 0 else 0.0


class MapScore(NamedTuple):
    """How well one grounding map finds a box: `points_inside`, `mass_inside`, IoU of `map_box` with
    the box, and `box_share` as chance."""

    hit: bool
    mass: float
    iou: float
    chance: float


def score_map(grid: np.ndarray, box: Box, image_size: tuple[int, int]) -> MapScore:
    """Score a map (h, w); one of zeros or with NaN has found nothing."""
    chance = box_share(box, image_size)
    if not (np.isfinite(grid).all() and grid.sum() > 0):
        return MapScore(False, 0.0, 0.0, chance)
    return MapScore(
        points_inside(grid, box, image_size),
        mass_inside(grid, box, image_size),
        box_iou(map_box(grid, image_size), clipped(box, image_size)),
        chance,
    )


def clipped(box: Box, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a box in the picture; of no area if there is none."""
    width, height = image_size
    x0, x1 = (min(max(float(x), 0.0), float(width)) for x in (box[0], box[2]))
    y0, y1 = (min(max(float(y), 0.0), float(height)) for y in (box[1], box[3]))
    return x0, y0, x1, y1


def _overlap(cells: int, side: float, low: float, high: float, length: int) -> np.ndarray:
    """Share of every cell that lies in [low, high], (cells,); cells end with the picture."""
    edges = np.minimum(np.arange(cells + 1) * side, length)
    inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.clip(inside, 0.0, None) / np.diff(edges)
