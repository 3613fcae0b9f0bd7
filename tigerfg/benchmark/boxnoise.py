"""Boxes as a detector of a stated quality would give them: random, at an exact IoU."""

from __future__ import annotations

import hashlib

import numpy as np

from tigerfg.benchmark.metrics import Box, box_iou
from tigerfg.boxes import check_box
from tigerfg.errors import InputError

TRIES = 64  # directions; a shrunken box is the answer where none leads to the wanted IoU
BISECTIONS = 60  # halvings: to the last bits of a float64


def noisy_box(
    box: Box, image_size: tuple[int, int], iou: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random box inside the picture whose IoU with ``box`` is exactly ``iou``.

    A random direction of shift (normal, in units of the box's sides) and of scale (log-normal, each
    side on its own, half as strong) is followed until the box, cut at the picture's edges, has lost
    the right amount; bisection finds the place.

    Args:
        box: x0, y0, x1, y1 in pixels; clipped to the picture first, as the IoU is.
        image_size: (width, height). iou: in (0, 1].

    Raises:
        InputError: the box is unusable or ``iou`` is out of range.
    """
    check_iou(iou)
    true = check_box(box, image_size)
    if iou == 1:
        return true
    for _ in range(TRIES):
        shift, scale = rng.normal(0.0, 1.0, 2), rng.normal(0.0, 0.5, 2)
        far = 1.0
        while far < 64 and box_iou(_moved(true, shift, scale, far, image_size), true) > iou:
            far *= 2
        if far >= 64:
            continue  # the picture's edges hold the box: another direction
        near = 0.0
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            if box_iou(_moved(true, shift, scale, middle, image_size), true) > iou:
                near = middle
            else:
                far = middle
        found = _moved(true, shift, scale, near, image_size)
        if abs(box_iou(found, true) - iou) < 1e-6:
            return found
    return _shrunk(true, iou, rng)


def check_iou(iou: float) -> None:
    """Raise InputError where ``iou`` is not in (0, 1]."""
    if not 0 < iou <= 1:
        raise InputError(f"box IoU {iou}: give a number above 0, at most 1")


def noise_of(item_id: str, seed: int) -> np.random.Generator:
    """The generator of one item's noise: the same whatever other items there are."""
    digest = hashlib.blake2b(f"{seed}:{item_id}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _moved(
    box: Box, shift: np.ndarray, scale: np.ndarray, amount: float, image_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    sides = np.array([box[2] - box[0], box[3] - box[1]])
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2 + amount * shift * sides
    half = sides * np.exp(np.clip(amount * scale, -30.0, 30.0)) / 2
    low = np.clip(centre - half, 0.0, image_size)
    high = np.clip(centre + half, 0.0, image_size)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _shrunk(box: Box, iou: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of the same shape and ``iou`` times the area, somewhere inside."""
    x0, y0, x1, y1 = box
    width, height = (x1 - x0) * iou**0.5, (y1 - y0) * iou**0.5
    left = x0 + rng.random() * (x1 - x0 - width)
    top = y0 + rng.random() * (y1 - y0 - height)
    return left, top, left + width, top + height
