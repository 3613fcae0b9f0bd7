"""Attention crop: a second look at the part of an item's picture that its grounding map chose.

In a picture of several things the map leaks: its peak lies in the product more often than most of
its weight does. So the patches around the peak are cut out of the picture and embedded by the query
tower, which sees them as it sees a shopper's crop, and the item's embedding is

    l2norm(z_item + weight * z_query(crop)).

No detector and no training take part in it; an item costs one run of the query tower more.
"Attention cropping" is of WS-DAN (Hu et al., arXiv 1901.09891), where a classifier averages both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from tigerfg.errors import InputError
from tigerfg.settings import Checked, Limit, build_at

if TYPE_CHECKING:
    from PIL import Image

Part = Annotated[float, Limit("a number above 0, at most 1", lambda x: 0 < x <= 1)]


class Window(NamedTuple):
    """A part of a picture in its pixels; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class AttentionCrop(Checked):
    """How items are looked at again.

    It suits models whose maps cover the product. Where they are a few sharp patches the window is
    too small: a low threshold and weight then, or none.

    Attributes:
        threshold: patches at least this part as strong as the peak of the smoothed map, and joined
            to it by others that are, belong to the product.
        weight: of the crop's embedding beside the item's own, which counts 1.
    """

    threshold: Part
    weight: Part

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AttentionCrop:
        """From a manifest's values; one that is missing, unknown or wrong raises InputError."""
        if not isinstance(values, dict):
            raise InputError(
                f"attention_crop: {values!r} is no object; give one with threshold and weight"
            )
        return build_at("attention_crop", cls, values)

    def __str__(self) -> str:
        return f"threshold {self.threshold:g}, weight {self.weight:g}"

    def window(self, grid: np.ndarray, size: tuple[int, int], patch: int) -> Window:
        """The smallest rectangle around the patches of the product.

        Args:
            grid: (rows, columns), the map's patches that show the picture, as of
                `tigerfg.images.crop_map`.
            size: ``(width, height)`` of the picture as the item tower sees it, in pixels.
            patch: side of a patch in pixels.
        """
        inside = _around_peak(_smoothed(grid), self.threshold)
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        # What lies behind the last patch shows in it: see `crop_map`.
        ends = [
            length if found[-1] == count - 1 else min(length, int(found[-1] + 1) * patch)
            for length, found, count in zip(size, (columns, rows), grid.shape[::-1], strict=True)
        ]
        return Window(int(columns[0]) * patch, int(rows[0]) * patch, *ends)

    def cut(self, picture: Image.Image, grid: np.ndarray, patch: int) -> Image.Image:
        """The part of an item's picture, resized as the item tower sees it, in `window`."""
        return picture.crop(self.window(grid, picture.size, patch))

    def join(self, items: np.ndarray, crops: np.ndarray) -> np.ndarray:
        """Embeddings of the item tower, and of the query tower on the crops -> those of the items.

        All float32 (..., E) and of unit length; two that are opposite, at weight 1, have no
        direction and give 0.
        """
        both = items + np.float32(self.weight) * crops
        return both / np.maximum(np.linalg.norm(both, axis=-1, keepdims=True), np.float32(1e-6))


def _smoothed(grid: np.ndarray) -> np.ndarray:
    """Each patch with its neighbours, weighted 1 2 1 in both directions; the edges are repeated."""
    grid = np.pad(grid, 1, mode="edge")
    grid = grid[:-2] + 2 * grid[1:-1] + grid[2:]
    return grid[:, :-2] + 2 * grid[:, 1:-1] + grid[:, 2:]


def _around_peak(grid: np.ndarray, threshold: float) -> np.ndarray:
    """Which patches (rows, columns) are strong and joined to the strongest one, side by side."""
    strong = grid >= threshold * grid.max()
    inside = np.zeros(grid.shape, bool)
    inside.flat[grid.argmax()] = True
    while True:
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        grown &= strong | inside
        if np.array_equal(grown, inside):
            return inside
        inside = grown
