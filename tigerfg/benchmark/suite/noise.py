"""What is wrong in real catalogues: another product's text, a wrong box, missing attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tigerfg.benchmark.metrics import box_iou

from .schema import Box
from .settings import Settings
from .sources import Listing

WORST_OVERLAP = 0.5  # a moved box has at most this IoU with the true one
_TRIES = 20


@dataclass(frozen=True)
class Noise:
    """Which noise an item has."""

    wrong_text: bool = False
    wrong_box: bool = False
    missing_attributes: bool = False


def draw_noise(settings: Settings, part: str, rng: np.random.Generator) -> Noise:
    """The noise of one item of part "train" or "eval"; always takes three numbers of ``rng``."""
    chances = (settings.wrong_text, settings.wrong_box, settings.missing_attributes)
    hits = rng.random(3) < chances
    if settings.noise_in not in (part, "both"):
        return Noise()
    return Noise(*(bool(hit) for hit in hits))


def noisy_listing(
    listings: Sequence[Listing], i: int, noise: Noise, rng: np.random.Generator
) -> tuple[Listing, Noise]:
    """The text of product ``i`` with its noise, and the noise that really happened.

    A wrong text is that of another product of a group of two or more; a listing that has no
    attributes cannot lose them.
    """
    listing = listings[i]
    if noise.wrong_text:
        others = [j for j in range(len(listings)) if listings[j].product_id != listing.product_id]
        other = listings[others[int(rng.integers(len(others)))]] if others else listing
        noise = replace(noise, wrong_text=bool(others))
        listing = replace(
            listing,
            title=other.title,
            category=other.category,
            attributes=other.attributes,
            description=other.description,
        )
    if noise.missing_attributes:
        noise = replace(noise, missing_attributes=bool(listing.attributes))
        listing = replace(listing, attributes={})
    return listing, noise


def noisy_box(
    boxes: Sequence[Box], size: tuple[int, int], noise: Noise, rng: np.random.Generator
) -> tuple[Box, Noise]:
    """The target box with its noise: for half the cluttered pictures that of another object,
    else the true one (the first) moved and resized, and the noise that really happened.

    Args:
        boxes: [x0, y0, x1, y1) of all objects in a picture of ``size`` (width, height) px.
    """
    if not noise.wrong_box:
        return boxes[0], noise
    if len(boxes) > 1 and rng.random() < 0.5:
        other = boxes[int(rng.integers(1, len(boxes)))]
        if box_iou(other, boxes[0]) <= WORST_OVERLAP:
            return other, noise
    x0, y0, x1, y1 = boxes[0]
    for _ in range(_TRIES):
        dx, dy = rng.uniform(-0.6, 0.6, 2) * (x1 - x0, y1 - y0)
        wide, high = np.exp(rng.uniform(-0.5, 0.5, 2)) * (x1 - x0, y1 - y0)
        cx, cy = (x0 + x1) / 2 + dx, (y0 + y1) / 2 + dy
        moved = (
            max(0, round(cx - wide / 2)),
            max(0, round(cy - high / 2)),
            min(size[0], round(cx + wide / 2)),
            min(size[1], round(cy + high / 2)),
        )
        inside = moved[0] < moved[2] and moved[1] < moved[3]
        if inside and box_iou(moved, boxes[0]) <= WORST_OVERLAP:
            return moved, noise
    return boxes[0], replace(noise, wrong_box=False)
