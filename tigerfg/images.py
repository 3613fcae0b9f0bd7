"""Images in, model pixels out: boxes, decoding, letterbox and normalisation for every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tigerfg.boxes import check_box
from tigerfg.decoding import INTERPOLATIONS, MAX_PIXELS, ImageSource, load_image
from tigerfg.errors import InputError

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "Preprocessing",
    "check_box",
    "crop_map",
    "letterbox",
    "load_image",
    "patch_mask",
    "preprocess",
]


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pixels.

    Attributes:
        query_size, item_size: side of the square input in pixels, a multiple of ``patch``.
        patch: side of a patch in pixels.
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: "bilinear", "bicubic" or "lanczos", each with antialiasing.
    """

    query_size: int
    item_size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for field in ("query_size", "item_size", "patch"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"preprocessing.{field} {value!r} is not a positive integer")
        for field in ("query_size", "item_size"):
            if getattr(self, field) % self.patch:
                raise InputError(
                    f"preprocessing.{field} {getattr(self, field)} is no multiple of the patch "
                    f"size {self.patch}"
                )
        for field in ("mean", "std"):
            try:
                values = tuple(float(value) for value in getattr(self, field))
            except (TypeError, ValueError):
                values = ()
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise InputError(f"preprocessing.{field} must be three finite numbers")
            object.__setattr__(self, field, values)
        if min(self.std) <= 0:
            raise InputError("preprocessing.std must be positive")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"preprocessing.interpolation {self.interpolation!r} is not one of "
                f"{', '.join(INTERPOLATIONS)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`; unknown or missing fields raise InputError."""
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"preprocessing: {error}") from error


def letterbox(
    image: ImageSource, size: int, interpolation: str = "bilinear"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize an image so that its longer side is ``size``, placed at the top left corner.

    Returns:
        uint8 array (size, size, 3), zero outside the picture, and the picture's extent
        ``(width, height)`` in it.
    """
    resized = load_image(image, target_size=size, interpolation=interpolation)
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[: resized.height, : resized.width] = np.asarray(resized)
    return pixels, resized.size


def preprocess(
    images: Sequence[ImageSource], size: int, spec: Preprocessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letterbox and normalise images for a tower whose input side is ``size`` pixels.

    Outside the picture the result is 0, that is the mean colour.

    Args:
        images: B image sources. To decode, crop and resize in parallel, pass what
            ``load_image(source, box, target_size=size, interpolation=spec.interpolation)`` returns.
        size: ``spec.query_size`` or ``spec.item_size``.

    Returns:
        pixels float32 (B, 3, size, size), C-contiguous; patch mask bool (B, (size // patch)**2),
        row by row; extents int64 (B, 2), each ``(width, height)`` of the picture in pixels.
    """
    pixels = np.zeros((len(images), 3, size, size), np.float32)
    extents = np.zeros((len(images), 2), np.int64)
    scale = (1 / (255 * np.asarray(spec.std))).astype(np.float32)
    shift = (np.asarray(spec.mean) / np.asarray(spec.std)).astype(np.float32)
    for index, source in enumerate(images):
        resized = load_image(source, target_size=size, interpolation=spec.interpolation)
        width, height = extents[index] = resized.size
        for channel, band in enumerate(resized.split()):
            out = pixels[index, channel, :height, :width]
            np.multiply(np.asarray(band), scale[channel], out=out, dtype=np.float32)
            out -= shift[channel]
    return pixels, patch_mask(extents, size, spec.patch), extents


def patch_mask(extents: np.ndarray, size: int, patch: int) -> np.ndarray:
    """Which patches show the picture: those whose centre lies inside, at least one a direction.

    Args:
        extents: int (B, 2), ``(width, height)`` of the pictures in pixels.

    Returns:
        bool (B, (size // patch)**2), row by row; patch 0 is always True.
    """
    if size < patch or size % patch:
        raise InputError(f"size {size} is no multiple of the patch size {patch}")
    centres = (np.arange(size // patch) + 0.5) * patch
    valid = centres < np.asarray(extents)[:, :, None]  # (B, 2, side)
    valid[:, :, 0] = True
    return (valid[:, 1, :, None] & valid[:, 0, None, :]).reshape(len(valid), centres.size**2)


def crop_map(values: np.ndarray, extent: Sequence[int], size: int, patch: int) -> np.ndarray:
    """The part of a per-patch map that shows the picture, as a grid.

    What lies outside counts for the last row and column: an item tower of two levels spreads the
    share of a coarse patch over the four fine patches that it covers, of which the lower or right
    ones may lie beyond the picture's edge. So a map's sum is kept.

    Args:
        values: (N,), one value per patch of the (size // patch)**2 patches, row by row.
        extent: ``(width, height)`` of the picture in pixels, as `preprocess` returns it.

    Returns:
        float32 (rows, columns).
    """
    side = size // patch
    if np.shape(values) != (side * side,):
        raise InputError(f"map of shape {np.shape(values)}: expected ({side * side},)")
    mask = patch_mask(np.asarray(extent)[None], size, patch).reshape(side, side)
    rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
    grid = np.asarray(values, np.float32).reshape(side, side)
    inside = grid[:rows].copy()
    inside[-1] += grid[rows:].sum(axis=0)
    shown = inside[:, :columns].copy()
    shown[:, -1] += inside[:, columns:].sum(axis=1)
    return shown
