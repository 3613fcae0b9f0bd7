"""Boxes: ``(x0, y0, x1, y1)`` in pixels of the image as stored, x right, y down."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

from tigerfg.errors import InputError


def parse_box(box: Sequence[float], field: str = "box") -> tuple[float, float, float, float]:
    """Four finite numbers with ``x0 < x1`` and ``y0 < y1`` as floats, or InputError."""
    values = box.tolist() if hasattr(box, "tolist") else box
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 4
        or not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)
    ):
        raise InputError(f"{field} {_show(box)} is not four numbers [x0, y0, x1, y1]")
    try:
        x0, y0, x1, y1 = (float(v) for v in values)
    except OverflowError:
        x0 = y0 = x1 = y1 = math.inf
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise InputError(f"{field} {_show(box)} holds a number that is not finite")
    if x0 >= x1 or y0 >= y1:
        raise InputError(f"{field} {_show(box)} is inverted or empty: give x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def check_box(
    box: Sequence[float], size: tuple[int, int], field: str = "box"
) -> tuple[float, float, float, float]:
    """Check a box ``(x0, y0, x1, y1)`` in pixels, x right, y down, and clip it to the image.

    Args:
        box: four finite numbers with ``x0 < x1`` and ``y0 < y1``.
        size: ``(width, height)`` of the image in pixels.
        field: name of the field in error messages.

    Returns:
        The box as floats, clipped to ``[0, width] x [0, height]``.

    Raises:
        InputError: not four finite numbers, inverted or empty, or wholly outside the image.
    """
    x0, y0, x1, y1 = parse_box(box, field)
    width, height = size
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise InputError(
            f"{field} {_show(box)} lies outside the image of {width} x {height} pixels: "
            "boxes are pixels of the image as stored"
        )
    return clipped


def _show(box: object) -> str:
    text = " ".join(repr(box).split())
    return text if len(text) <= 80 else text[:77] + "..."
