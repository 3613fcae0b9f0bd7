"""Logo glyphs drawn on a product: shapes, letters and digits as strokes."""

from __future__ import annotations

import numpy as np

from .shapes import Canvas, arc

_STROKES: dict[str, str] = {  # points on a 3 x 5 grid, "xy xy / xy xy": pen up at the slash
    "A": "04 10 24 / 12 22",
    "E": "20 00 04 24 / 02 12",
    "H": "00 04 / 20 24 / 02 22",
    "K": "00 04 / 20 02 24",
    "L": "00 04 24",
    "M": "04 00 12 20 24",
    "N": "04 00 24 20",
    "T": "00 20 / 10 14",
    "V": "00 14 20",
    "X": "00 24 / 20 04",
    "Z": "00 20 04 24",
    "1": "01 10 14",
    "2": "00 20 22 02 04 24",
    "3": "00 20 24 04 / 02 22",
    "4": "00 02 22 / 20 24",
    "5": "20 00 02 22 24 04",
    "7": "00 20 14",
    "8": "00 20 24 04 00 / 02 22",
    "9": "22 02 00 20 24",
}

SHAPES = (
    "star",
    "ring",
    "stripe",
    "crown",
    "heart",
    "triangle",
    "cross",
    "diamond",
    "bolt",
    "moon",
    "double bar",
    "hexagon",
    "arrow",
    "target",
)
MARKS: tuple[str, ...] = (
    *SHAPES,
    *(f"{'number' if key.isdigit() else 'letter'} {key}" for key in _STROKES),
)

_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "crown": [(-1, 0.7), (-1, -0.6), (-0.5, 0), (0, -0.8), (0.5, 0), (1, -0.6), (1, 0.7)],
    "triangle": [(0, -0.9), (0.95, 0.75), (-0.95, 0.75)],
    "cross": [
        (-0.3, -1),
        (0.3, -1),
        (0.3, -0.3),
        (1, -0.3),
        (1, 0.3),
        (0.3, 0.3),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, 0.3),
        (-1, 0.3),
        (-1, -0.3),
        (-0.3, -0.3),
    ],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "bolt": [(0.3, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.2), (0.05, -0.2)],
    "arrow": [(-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)],
    "stripe": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
    "heart": [
        (0, 0.95),
        (-0.95, 0),
        (-0.95, -0.5),
        (-0.6, -0.85),
        (-0.25, -0.8),
        (0, -0.45),
        (0.25, -0.8),
        (0.6, -0.85),
        (0.95, -0.5),
        (0.95, 0),
    ],
}


def draw_mark(c: Canvas, mark: str, cx: float, cy: float, r: float, role: int) -> None:
    """Draw ``mark`` centred at (cx, cy) with half-size ``r``. KeyError for an unknown mark."""

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(cx + r * x, cy + r * y) for x, y in points]

    if mark == "star":
        angles = np.radians(np.arange(10) * 36 - 90)
        radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.45)
        c.poly(
            at(
                [
                    (float(k * np.cos(a)), float(k * np.sin(a)))
                    for a, k in zip(angles, radii, strict=True)
                ]
            ),
            role,
        )
    elif mark in ("ring", "target"):
        c.line(arc(cx, cy, r * 0.8, r * 0.8, 0, 360, 40), r * 0.38, role)
        if mark == "target":
            c.ellipse(cx, cy, r * 0.32, r * 0.32, role)
    elif mark == "moon":
        outer = arc(0, 0, 0.95, 0.95, 50, 310, 24)
        inner = arc(0.35, 0, 0.8, 0.8, 295, 65, 24)
        c.poly(at([*outer, *inner]), role)
    elif mark == "hexagon":
        c.poly(arc(cx, cy, r, r, 0, 300, 6), role)
    elif mark == "double bar":
        for y in (-0.5, 0.5):
            c.poly(at([(-1, y - 0.25), (1, y - 0.25), (1, y + 0.25), (-1, y + 0.25)]), role)
    elif mark in _OUTLINES:
        c.poly(at(_OUTLINES[mark]), role)
    else:
        for stroke in _STROKES[mark.split()[-1]].split(" / "):
            points = [((int(q[0]) - 1) * 0.7, (int(q[1]) - 2) * 0.48) for q in stroke.split()]
            c.line(at(points), r * 0.36, role)
