"""The drawing canvas, the role codes of its label map, and the registry of product kinds.

A kind draws itself into two single-channel images: ``label`` says which colour role every pixel
has (0 = transparent), ``lum`` how light it is (128 = neutral). Colours, pattern, mark and light
come later (:mod:`.cutout`), so one silhouette serves every product of its kind. All coordinates
are in the unit square, x right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

# Role codes of the label map. BODY takes the product's pattern, the others one flat colour.
CLEAR, BODY, SECOND, ACCENT, DARK, LIGHT, METAL, WOOD, SKIN, LEAF = range(10)

Points = Sequence[tuple[float, float]]


class Form(NamedTuple):
    """What a kind says about its drawing.

    mark: centre x, centre y and half-size of the area that may carry a logo.
    shading: "cloth", "cylinder", "ball" or "flat".
    """

    mark: tuple[float, float, float]
    shading: str


def lerp(low: float, high: float, t: float) -> float:
    """Linear interpolation from ``low`` (t = 0) to ``high`` (t = 1)."""
    return low + (high - low) * t


def smooth(points: Points, rounds: int = 2) -> list[tuple[float, float]]:
    """Closed polygon with its corners cut ``rounds`` times (Chaikin)."""
    pts = np.asarray(points, dtype=np.float64)
    for _ in range(rounds):
        nxt = np.roll(pts, -1, axis=0)
        pts = np.stack([0.75 * pts + 0.25 * nxt, 0.25 * pts + 0.75 * nxt], axis=1).reshape(-1, 2)
    return [(float(x), float(y)) for x, y in pts]


def mirrored(right: Points) -> list[tuple[float, float]]:
    """Closed outline from its right half, given from top to bottom."""
    return [*right, *((1.0 - x, y) for x, y in reversed(right))]


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float, end: float, steps: int = 20
) -> list[tuple[float, float]]:
    """Points of an elliptic arc; angles in degrees, 0 = right, 90 = down."""
    angles = np.radians(np.linspace(start, end, steps))
    return [(float(cx + rx * np.cos(a)), float(cy + ry * np.sin(a))) for a in angles]


class Canvas:
    """Label and luminance images of ``n`` x ``n`` pixels over the unit square."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.label = Image.new("L", (n, n), CLEAR)
        self.lum = Image.new("L", (n, n), 128)
        self._label = ImageDraw.Draw(self.label)
        self._lum = ImageDraw.Draw(self.lum)

    def _px(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.n, y * self.n) for x, y in points]

    def poly(self, points: Points, role: int, lum: float = 1.0, edge: float = 0.62) -> None:
        """Filled polygon; ``edge`` < 1 draws a darker contour (1 draws none)."""
        px = self._px(points)
        self._label.polygon(px, fill=role)
        self._lum.polygon(px, fill=round(128 * lum))
        if edge < 1 and role != CLEAR:
            width = max(1, round(0.009 * self.n))
            self._lum.line([*px, px[0]], fill=round(128 * lum * edge), width=width)

    def ellipse(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        role: int,
        lum: float = 1.0,
        edge: float = 0.62,
    ) -> None:
        """Filled axis-parallel ellipse."""
        self.poly(arc(cx, cy, rx, ry, 0, 360, 48), role, lum, edge)

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        role: int,
        lum: float = 1.0,
        radius: float = 0.0,
        edge: float = 0.62,
    ) -> None:
        """Filled rectangle with corners of ``radius``."""
        radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
        if radius <= 0:
            self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], role, lum, edge)
            return
        corners = [
            (x1 - radius, y0 + radius, -90),
            (x1 - radius, y1 - radius, 0),
            (x0 + radius, y1 - radius, 90),
            (x0 + radius, y0 + radius, 180),
        ]
        points: list[tuple[float, float]] = []
        for cx, cy, start in corners:
            points += arc(cx, cy, radius, radius, start, start + 90, 7)
        self.poly(points, role, lum, edge)

    def line(self, points: Points, width: float, role: int, lum: float = 1.0) -> None:
        """Stroke of ``width`` with round joints and a slightly darker lower edge."""
        px = self._px(points)
        wide = max(1, round(width * self.n))
        for draw, fill in ((self._label, role), (self._lum, round(128 * lum))):
            draw.line(px, fill=fill, width=wide, joint="curve")
            if wide > 3:
                for x, y in (px[0], px[-1]):
                    r = wide / 2 - 0.5
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def crease(self, points: Points, lum: float = 0.72, width: float = 0.008) -> None:
        """Darker (or lighter) line on what is drawn already: seams, folds, zips."""
        self._lum.line(
            self._px(points),
            fill=round(128 * lum),
            width=max(1, round(width * self.n)),
            joint="curve",
        )


Draw = Callable[[Canvas, Sequence[float], frozenset[str]], Form]


@dataclass(frozen=True)
class Kind:
    """One product category: how it is called, drawn, and what it may be made of.

    draw(canvas, shape, parts) draws shape parameters in [0, 1]; ``shape_names`` names them.
    uses_secondary: the drawing itself has parts in the secondary colour, whatever the pattern.
    """

    name: str
    category: str
    nouns: tuple[str, ...]
    shape_names: tuple[str, ...]
    parts: tuple[str, ...]
    materials: tuple[str, ...]
    uses_secondary: bool
    draw: Draw


KINDS: dict[str, Kind] = {}


def kind(
    name: str,
    category: str,
    nouns: str,
    shape_names: str,
    parts: str = "",
    materials: str = "fabric",
    uses_secondary: bool = True,
) -> Callable[[Draw], Draw]:
    """Register the decorated drawing function; lists are written as "a|b|c"."""

    def register(draw: Draw) -> Draw:
        split = [
            tuple(x for x in s.split("|") if x) for s in (nouns, shape_names, parts, materials)
        ]
        KINDS[name] = Kind(name, category, *split, uses_secondary, draw)  # type: ignore[arg-type]
        return draw

    return register


@cache
def load_kinds() -> dict[str, Kind]:
    """All kinds by name, sorted, so that seeds do not depend on the order of imports."""
    from . import (  # noqa: F401
        shapes_accessories,
        shapes_apparel,
        shapes_home,
        shapes_legwear,
        shapes_leisure,
        shapes_pantry,
    )

    return dict(sorted(KINDS.items()))
