"""Silhouettes of groceries: packages, tins, jars and fruit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .shapes import (
    ACCENT,
    BODY,
    DARK,
    LEAF,
    LIGHT,
    METAL,
    SECOND,
    WOOD,
    Canvas,
    Form,
    arc,
    kind,
    lerp,
    mirrored,
    smooth,
)


def _print_lines(c: Canvas, x0: float, x1: float, y: float, rows: int, role: int) -> None:
    """Short lines like small print between x0 and x1, from y downwards."""
    for i in range(rows):
        end = lerp(x0, x1, (1.0, 0.7, 0.85)[i % 3])
        c.line([(x0, y + 0.035 * i), (end, y + 0.035 * i)], 0.013, role)


@kind(
    "carton",
    "Groceries > Packaged Food > Boxes",
    "cereal box|carton|box of crackers",
    "width|height|depth|panel",
    "window|ribbon|small print",
    "cardboard",
)
def draw_carton(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, d, panel = (
        lerp(0.22, 0.34, p[0]),
        lerp(0.28, 0.42, p[1]),
        lerp(0.06, 0.2, p[2]),
        lerp(0.14, 0.32, p[3]),
    )
    x0, x1, y0, y1 = 0.46 - w, 0.46 + w - d / 2, 0.54 - h, 0.54 + h
    k = d * 0.35
    c.poly([(x0, y0), (x0 + d, y0 - k), (x1 + d, y0 - k), (x1, y0)], BODY, 1.18)
    c.poly([(x1, y0), (x1 + d, y0 - k), (x1 + d, y1 - k), (x1, y1)], SECOND, 0.72)
    c.rect(x0, y0, x1, y1, BODY)
    c.rect(x0, y0 + 0.06, x1, y0 + 0.06 + panel, SECOND)
    c.line(
        [(x0 + 0.05, y0 + 0.06 + panel * 0.4), (x1 - 0.05, y0 + 0.06 + panel * 0.4)], 0.04, ACCENT
    )
    c.line(
        [(x0 + 0.1, y0 + 0.06 + panel * 0.75), (x1 - 0.1, y0 + 0.06 + panel * 0.75)], 0.02, LIGHT
    )
    if "window" in parts:
        c.ellipse((x0 + x1) / 2, y1 - 0.15, 0.12, 0.09, WOOD, 1.15)
    if "small print" in parts:
        _print_lines(c, x0 + 0.05, (x0 + x1) / 2, y1 - 0.1, 3, DARK)
    if "ribbon" in parts:
        c.poly([(x1 - 0.14, y0), (x1, y0 + 0.14), (x1, y0 + 0.22), (x1 - 0.22, y0)], ACCENT)
    return Form(((x0 + x1) / 2, (y0 + 0.06 + panel + y1) / 2, 0.1), "flat")


@kind(
    "milk",
    "Groceries > Dairy > Milk",
    "milk carton|juice carton|oat drink",
    "width|height|gable",
    "screw cap|panel|small print",
    "cardboard",
)
def draw_milk(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, top, gable = lerp(0.15, 0.24, p[0]), lerp(0.34, 0.2, p[1]), lerp(0.1, 0.17, p[2])
    x0, x1, d = 0.46 - w, 0.46 + w, w * 0.7
    c.poly([(x1, top), (x1 + d, top - 0.04), (x1 + d, 0.9), (x1, 0.95)], BODY, 0.7)
    c.poly([(x1, top), (x1 + d, top - 0.04), (x1 + d * 0.5, top - gable)], SECOND, 0.6)
    c.poly(
        [(x0, top), (x1, top), (x1 + d * 0.5, top - gable), (x0 + d * 0.5, top - gable)],
        SECOND,
        1.05,
    )
    c.poly(
        [
            (x0 + d * 0.5, top - gable - 0.05),
            (x1 + d * 0.5, top - gable - 0.05),
            (x1 + d * 0.5, top - gable),
            (x0 + d * 0.5, top - gable),
        ],
        SECOND,
        0.9,
    )
    c.rect(x0, top, x1, 0.95, BODY)
    if "panel" in parts:
        c.rect(x0 + 0.03, top + 0.07, x1 - 0.03, top + 0.24, SECOND, 1.0, 0.02)
        c.line([(x0 + 0.07, top + 0.15), (x1 - 0.07, top + 0.15)], 0.035, ACCENT)
    if "screw cap" in parts:
        c.ellipse(0.46 + d * 0.25, top - gable * 0.5, 0.055, 0.045, ACCENT)
    if "small print" in parts:
        _print_lines(c, x0 + 0.04, x1 - 0.06, 0.84, 3, DARK)
    return Form((0.46, 0.64, w * 0.6), "flat")


@kind(
    "can",
    "Groceries > Canned Food",
    "can|tin|canned food",
    "width|height|label height",
    "pull tab|label stripe|small print",
    "tin|aluminium",
    uses_secondary=False,
)
def draw_can(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, lab = lerp(0.2, 0.36, p[0]), lerp(0.32, 0.8, p[1]), lerp(0.03, 0.12, p[2])
    top, b = 0.5 - h / 2, 0.5 + h / 2
    c.poly([(0.5 - w, top), (0.5 + w, top), *arc(0.5, b, w, 0.06, 0, 180)], METAL)
    c.poly([*arc(0.5, top + lab, w, 0.06, 180, 0), *arc(0.5, b - lab, w, 0.06, 0, 180)], BODY)
    if "label stripe" in parts:
        y = b - lab - h * 0.2
        c.poly([*arc(0.5, y, w, 0.06, 180, 0), *arc(0.5, y + h * 0.13, w, 0.06, 0, 180)], SECOND)
    if "small print" in parts:
        _print_lines(c, 0.5 + w * 0.35, 0.5 + w * 0.8, 0.5, 4, LIGHT)
    c.ellipse(0.5, top, w, 0.06, METAL, 1.15)
    c.ellipse(0.5, top, w * 0.86, 0.048, METAL, 0.85)
    if "pull tab" in parts:
        c.line([(0.5, top), (0.5 + w * 0.5, top + 0.01)], 0.03, DARK, 1.6)
    return Form((0.5, 0.5, min(w * 0.6, h * 0.24)), "cylinder")


@kind(
    "jar",
    "Groceries > Spreads > Jars",
    "jar|jam jar|preserving jar",
    "width|height|lid|label",
    "cloth lid|label frame",
    "glass",
)
def draw_jar(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, lid, lab = (
        lerp(0.2, 0.33, p[0]),
        lerp(0.42, 0.66, p[1]),
        lerp(0.68, 0.95, p[2]),
        lerp(0.18, 0.36, p[3]),
    )
    top, b = 0.95 - h, 0.95
    c.poly(
        smooth(
            mirrored(
                [
                    (0.5 + w * 0.7, top - 0.02),
                    (0.5 + w, top + 0.1),
                    (0.5 + w, b - 0.02),
                    (0.5 + w * 0.8, b),
                ]
            ),
            2,
        ),
        BODY,
    )
    y = top + h * 0.52
    c.rect(0.5 - w * 0.85, y - lab / 2, 0.5 + w * 0.85, y + lab / 2, LIGHT, 1.0, 0.02)
    if "label frame" in parts:
        for dy in (-0.42, 0.42):
            c.line([(0.5 - w * 0.75, y + lab * dy), (0.5 + w * 0.75, y + lab * dy)], 0.018, ACCENT)
    if "cloth lid" in parts:
        c.poly(
            [
                (0.5 - w * lid, top - 0.12),
                (0.5 + w * lid, top - 0.12),
                (0.5 + w * 1.1, top + 0.05),
                *[
                    (0.5 + w * 1.1 * t, top + (0.05 if i % 2 else 0.02))
                    for i, t in enumerate(np.linspace(0.9, -1, 9))
                ],
            ],
            SECOND,
        )
    else:
        c.rect(0.5 - w * lid, top - 0.13, 0.5 + w * lid, top, SECOND, 1.0, 0.02)
        for t in np.linspace(-0.9, 0.9, 13):
            c.crease([(0.5 + w * lid * t, top - 0.11), (0.5 + w * lid * t, top - 0.02)], 0.8)
    return Form((0.5, y, min(lab * 0.42, w * 0.6)), "cylinder")


@kind(
    "fruit",
    "Groceries > Fruit",
    "fruit|fresh fruit|orchard fruit",
    "width|height|pear shape",
    "leaf|stem|sticker",
    "organic",
    False,
)
def draw_fruit(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, pear = lerp(0.28, 0.42, p[0]), lerp(0.28, 0.42, p[1]), lerp(1.0, 0.42, p[2])
    right = [
        (0.53, 0.54 - h * 0.9),
        (0.5 + w * 0.75 * pear, 0.54 - h),
        (0.5 + w * pear, 0.54 - h * 0.4),
        (0.5 + w, 0.54 + h * 0.25),
        (0.5 + w * 0.8, 0.54 + h),
        (0.53, 0.54 + h * 0.95),
    ]
    c.poly(smooth(mirrored(right), 3), BODY)
    c.ellipse(0.5, 0.545 - h * 0.88, 0.05 * pear + 0.02, 0.015, DARK, 0.9, 1.0)
    if "stem" in parts:
        c.line([(0.5, 0.55 - h * 0.88), (0.53, 0.44 - h * 0.9)], 0.03, WOOD, 0.7)
    if "leaf" in parts:
        c.poly(
            smooth(
                [
                    (0.52, 0.5 - h * 0.88),
                    (0.6, 0.39 - h * 0.85),
                    (0.74, 0.4 - h * 0.85),
                    (0.64, 0.5 - h * 0.88),
                ],
                2,
            ),
            LEAF,
        )
    if "sticker" in parts:
        c.ellipse(0.5 + w * 0.35, 0.5, 0.06, 0.05, ACCENT)
    return Form((0.5 - w * 0.15, 0.62, 0.09), "ball")


@kind(
    "banana",
    "Groceries > Fruit > Long Fruit",
    "banana|plantain|long fruit",
    "bend|thickness|length",
    "dark tips|sticker",
    "organic",
    False,
)
def draw_banana(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    bend, thick, length = lerp(0.08, 0.36, p[0]), lerp(0.06, 0.12, p[1]), lerp(0.32, 0.46, p[2])
    t = np.linspace(-1, 1, 25)
    x, y = 0.5 + length * t, 0.62 + bend * (0.4 - t**2)
    half = thick * np.sqrt(np.clip(1.04 - t**4, 0.02, 1))
    c.poly([*zip(x, y - half, strict=True), *zip(x[::-1], (y + half)[::-1], strict=True)], BODY)
    c.crease([*zip(x[2:-2], (y + half * 0.35)[2:-2], strict=True)], 0.8, 0.012)
    tip = WOOD if "dark tips" not in parts else DARK
    c.line([(x[-1] - 0.01, y[-1]), (x[-1] + 0.05, y[-1] - 0.07)], 0.05, tip, 0.8)
    c.ellipse(float(x[0]), float(y[0]), 0.025, 0.025, tip, 0.7)
    if "sticker" in parts:
        c.ellipse(0.6, float(y[15]), 0.05, 0.045, ACCENT)
    return Form((0.44, float(y[11]), thick * 0.7), "ball")


@kind(
    "pouch",
    "Groceries > Snacks > Bags",
    "bag of chips|snack bag|coffee bag",
    "width|height|bulge|panel",
    "window|zip seal|small print",
    "foil|paper",
)
def draw_pouch(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, bulge, panel = (
        lerp(0.24, 0.36, p[0]),
        lerp(0.34, 0.46, p[1]),
        lerp(0.9, 1.14, p[2]),
        lerp(0.16, 0.34, p[3]),
    )
    top, b = 0.5 - h, 0.5 + h
    zig = [
        (0.5 + w * t, top - (0.015 if i % 2 else 0)) for i, t in enumerate(np.linspace(-1, 1, 17))
    ]
    right = [(0.5 + w, top + 0.07), (0.5 + w * bulge, 0.5), (0.5 + w * 0.97, b)]
    c.poly([*zig, *right, *((1 - x, y) for x, y in reversed(right))], BODY)
    c.rect(0.5 - w, top, 0.5 + w, top + 0.06, SECOND, 0.95)
    y = top + h * 0.36
    c.rect(0.5 - w * 0.8, y, 0.5 + w * 0.8, y + panel, SECOND, 1.0, 0.05)
    c.line([(0.5 - w * 0.6, y + panel * 0.4), (0.5 + w * 0.6, y + panel * 0.4)], 0.045, ACCENT)
    c.line([(0.5 - w * 0.4, y + panel * 0.75), (0.5 + w * 0.4, y + panel * 0.75)], 0.02, LIGHT)
    if "window" in parts:
        c.ellipse(0.5, b - 0.16, w * 0.5, 0.1, WOOD, 1.1)
    if "zip seal" in parts:
        c.crease([(0.5 - w * 0.95, top + 0.1), (0.5 + w * 0.95, top + 0.1)], 0.5, 0.018)
    if "small print" in parts:
        _print_lines(c, 0.5 - w * 0.7, 0.5 + w * 0.1, b - 0.11, 3, DARK)
    return Form((0.5, (y + panel + b) / 2, 0.09), "flat")
