"""Drawn people who wear given garments, for `garments_catalog.py`.

A figure of flat shapes (head, hair, trunk, arms, legs, shoes) behind cut-outs of garments, shaded
and softened. No likeness is meant: a model is to learn that a garment is one part of a picture
which has skin, hair and other garments in it, as in the pictures of a shop.
"""

from __future__ import annotations

import numpy as np
from cut_outs import visible
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

SKINS = (
    *((244, 210, 184), (232, 188, 152), (214, 162, 120)),
    *((174, 122, 84), (128, 84, 56), (88, 58, 42)),
)
HAIRS = ((30, 24, 22), (58, 40, 30), (96, 64, 40), (150, 110, 64), (206, 172, 112), (120, 120, 122))
SHOES = ((245, 245, 245), (40, 40, 44), (30, 50, 120), (150, 40, 40), (120, 90, 60))
WIDTH, HEIGHT = 420, 760  # px of the canvas
CENTRE = WIDTH / 2  # px, across; from above:
NECK, SHOULDERS, ELBOWS, HIPS, FEET = 110, 150, 255, 345, 690
BROADEST = 260  # px, of a garment
SOFT = 1.2  # px
SEEN = 64  # alpha

Point = tuple[float, float]


def dressed(
    target: Image.Image, other: Image.Image, worn: str, rng: np.random.Generator
) -> Image.Image:
    """A person in a garment, cropped as shops do: RGBA, transparent around the person.

    Args:
        target: cut-out of the garment that the picture is about. worn: "upper", "lower" or "whole".
        other: what is worn on the other half of the body; unused with "whole".
    """
    figure = _Figure(rng)
    figure.draw_body()
    if worn == "whole":
        height = rng.uniform(0.62, 0.85) * (FEET - SHOULDERS)
        figure.put(_fitted(target, height, 125, rng), SHOULDERS)
    else:
        upper, lower = (target, other) if worn == "upper" else (other, target)
        short = lower.width > 0.62 * lower.height
        length = rng.uniform(0.35, 0.55) if short else rng.uniform(0.86, 1.0)
        figure.put(_fitted(lower, length * (FEET - HIPS), 115, rng), HIPS - 22)
        if worn == "upper" or rng.random() < 0.5:
            height = HIPS - SHOULDERS + rng.uniform(5, 45)
            figure.put(_fitted(upper, height, 125, rng), SHOULDERS)
    figure.draw_head()
    above, below = 0.0, float(HEIGHT)
    if worn == "upper":
        below = HIPS + rng.uniform(20, 130)
    if worn == "lower":
        above = HIPS - rng.uniform(30, 110)
    elif rng.random() < 0.25:  # without the face
        above = SHOULDERS - rng.uniform(5, 60)
    return visible(figure.finished().crop((0, round(above), WIDTH, round(below))), SEEN)


def _fitted(
    garment: Image.Image, height: float, narrowest: float, rng: np.random.Generator
) -> Image.Image:
    """A garment in px, hardly out of its proportions, but not too narrow for a body."""
    width = garment.width / garment.height * height * rng.uniform(0.95, 1.12)
    size = round(float(np.clip(width, max(narrowest, 0.2 * height), BROADEST))), round(height)
    return garment.resize(size, Image.Resampling.BICUBIC)


class _Figure:
    """One person on a transparent canvas, drawn from the back to the front."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._canvas = Image.new("RGBA", (WIDTH, HEIGHT))
        self._draw = ImageDraw.Draw(self._canvas)
        tone = np.array(SKINS[rng.integers(len(SKINS))]) + rng.integers(-10, 11, 3)
        self._skin = tuple(int(value) for value in np.clip(tone, 0, 255))
        self._hair = HAIRS[rng.integers(len(HAIRS))]
        self._shoes = SHOES[rng.integers(len(SHOES))]
        self._broad = rng.uniform(48, 62)  # half of the shoulders
        self._long_hair = rng.random() < 0.5

    def draw_body(self) -> None:
        """All that garments may cover: trunk, legs, shoes, arms, long hair."""
        broad, rng = self._broad, self._rng
        if self._long_hair:
            self._oval((CENTRE, 105), 42, 85, self._hair)
        trunk = [(14, SHOULDERS - 14), (broad, SHOULDERS + 10)]
        trunk += [(0.72 * broad, HIPS - 50), (0.9 * broad, HIPS + 25)]
        right = [(CENTRE + across, down) for across, down in trunk]
        left = [(CENTRE - across, down) for across, down in reversed(trunk)]
        self._draw.polygon(right + left, fill=self._skin)
        for side in (-1, 1):
            hip, foot = CENTRE + side * 0.45 * broad, CENTRE + side * rng.uniform(18, 52)
            knee = ((hip + foot) / 2, (HIPS + FEET) / 2)
            self._limb([(hip, HIPS), knee, (foot, FEET)], (46, 32))
            self._oval((foot, FEET + 5), 22, 19, self._shoes)
            on_hip = rng.random() < 0.3
            elbow = CENTRE + side * (rng.uniform(95, 125) if on_hip else rng.uniform(68, 92))
            hand = CENTRE + side * (52 if on_hip else rng.uniform(66, 100))
            low = HIPS + (-10 if on_hip else rng.uniform(0, 40))
            shoulder = (CENTRE + side * (broad - 6), SHOULDERS + 22)
            self._limb([shoulder, (elbow, ELBOWS), (hand, low)], (30, 24))
            self._oval((hand, low + 9), 13, 17, self._skin)

    def put(self, garment: Image.Image, above: float) -> None:
        """A garment on the middle, its upper edge at `above`."""
        across = CENTRE - garment.width / 2 + self._rng.uniform(-4, 4)
        self._canvas.alpha_composite(garment, (round(across), round(above)))

    def draw_head(self) -> None:
        """Neck, hair and face, in front of the garments."""
        x, y = CENTRE + self._rng.uniform(-6, 6), SHOULDERS - 72
        self._draw.line([(CENTRE, NECK), (CENTRE, SHOULDERS + 6)], fill=self._skin, width=30)
        self._oval((x, y - 10), 36, 40, self._hair)
        self._oval((x, y + 4), 30, 40, self._skin)
        for side in (-1, 1):
            self._oval((x + side * 12, y - 1), 4, 3, (50, 36, 32))
            brow = [(x + side * 18, y - 12), (x + side * 7, y - 12)]
            self._draw.line(brow, fill=self._hair, width=3)
        self._draw.arc((x - 12, y + 8, x + 12, y + 28), 20, 160, fill=(170, 80, 76), width=4)

    def finished(self) -> Image.Image:
        """The canvas softened, with uneven light from a side."""
        picture = self._canvas.filter(ImageFilter.GaussianBlur(SOFT))
        pixels = np.asarray(picture).astype(np.float32)
        noise = self._rng.normal(size=(HEIGHT // 10, WIDTH // 10)).astype(np.float32)
        uneven = ndimage.gaussian_filter(noise, 4)
        uneven = Image.fromarray(uneven / np.abs(uneven).max()).resize((WIDTH, HEIGHT))
        slope = np.linspace(-1, 1, WIDTH) * self._rng.uniform(-0.12, 0.12)
        pixels[..., :3] *= (1 + slope + 0.1 * np.asarray(uneven))[..., None]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")

    def _limb(self, joints: list[Point], widths: tuple[int, int]) -> None:
        for start, end, width in zip(joints, joints[1:], widths, strict=False):
            self._draw.line([start, end], fill=self._skin, width=width)
            self._oval(end, width / 2, width / 2, self._skin)

    def _oval(self, middle: Point, across: float, down: float, colour: tuple[int, ...]) -> None:
        x, y = middle
        self._draw.ellipse((x - across, y - down, x + across, y + down), fill=colour)
