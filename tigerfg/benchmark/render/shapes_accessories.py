"""Silhouettes of bags, headwear and worn or carried accessories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .shapes import (
    ACCENT,
    BODY,
    DARK,
    LIGHT,
    METAL,
    SECOND,
    Canvas,
    Form,
    arc,
    kind,
    lerp,
    smooth,
)


@kind(
    "cap",
    "Accessories > Headwear > Caps",
    "cap|baseball cap",
    "crown height|visor|crown width",
    "front panel|vent holes",
    "cotton|canvas|denim",
)
def draw_cap(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    h, visor, w = lerp(0.3, 0.48, p[0]), lerp(0.2, 0.36, p[1]), lerp(0.26, 0.34, p[2])
    x, y = 0.36, 0.66
    c.poly([*arc(x, y, w, h, 180, 360, 30), (x + w, y + 0.03), (x - w, y + 0.03)], BODY)
    c.poly(
        smooth(
            [
                (x + w * 0.2, y - 0.03),
                (x + w, y - 0.05),
                (x + w + visor, y + 0.05),
                (x + w + visor, y + 0.1),
                (x + w * 0.7, y + 0.06),
                (x, y + 0.05),
            ]
        ),
        SECOND,
    )
    if "front panel" in parts:
        c.poly(
            [*arc(x + w * 0.1, y, w * 0.88, h * 0.94, 290, 358, 16), (x + w * 0.4, y - 0.03)],
            SECOND,
        )
    c.crease(arc(x, y, w * 0.3, h, 180, 360), 0.7)
    if "vent holes" in parts:
        for dx in (-0.55, -0.15):
            c.ellipse(x + w * dx, y - h * 0.55, 0.018, 0.018, DARK)
    c.ellipse(x, y - h, 0.03, 0.02, SECOND)
    return Form((x + 0.02, y - h * 0.42, 0.1), "ball")


@kind(
    "beanie",
    "Accessories > Headwear > Beanies",
    "beanie|knitted hat|winter hat",
    "height|width|brim",
    "pompom",
    "wool|acrylic|cashmere",
)
def draw_beanie(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    h, w, brim = lerp(0.36, 0.58, p[0]), lerp(0.27, 0.38, p[1]), lerp(0.1, 0.22, p[2])
    y = 0.82
    c.poly([*arc(0.5, y - brim, w, h, 180, 360, 30)], BODY)
    for t in np.linspace(-0.75, 0.75, 7):
        c.crease([(0.5 + w * t * 0.35, y - brim - h * 0.95), (0.5 + w * t, y - brim)], 0.8)
    c.rect(0.5 - w * 1.06, y - brim, 0.5 + w * 1.06, y, SECOND, 1.0, 0.03)
    for t in np.linspace(-0.95, 0.95, 14):
        c.crease([(0.5 + w * t, y - brim + 0.02), (0.5 + w * t, y - 0.02)], 0.78)
    if "pompom" in parts:
        c.ellipse(0.5, y - brim - h, 0.1, 0.09, ACCENT)
    return Form((0.5, y - brim - h * 0.38, 0.1), "ball")


@kind(
    "backpack",
    "Bags > Backpacks",
    "backpack|rucksack|daypack",
    "width|height|roundness|pocket",
    "side pockets|straps|buckles",
    "nylon|canvas|leather",
)
def draw_backpack(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, r, pocket = (
        lerp(0.23, 0.33, p[0]),
        lerp(0.58, 0.78, p[1]),
        lerp(0.06, 0.22, p[2]),
        lerp(0.22, 0.42, p[3]),
    )
    top, bottom = 0.92 - h, 0.94
    c.line(arc(0.5, top + 0.02, 0.08, 0.1, 180, 360), 0.03, DARK)
    if "straps" in parts:
        for s in (1, -1):
            c.line(
                [
                    (0.5 + s * w * 0.7, top + 0.08),
                    (0.5 + s * (w + 0.08), top + h * 0.45),
                    (0.5 + s * (w + 0.02), bottom - 0.05),
                ],
                0.05,
                SECOND,
                0.8,
            )
    if "side pockets" in parts:
        for s in (1, -1):
            x = 0.5 + s * w
            c.rect(x - 0.06, bottom - h * 0.42, x + 0.06, bottom - 0.03, SECOND, 0.85, 0.04)
    c.rect(0.5 - w, top, 0.5 + w, bottom, BODY, 1.0, r)
    c.crease(arc(0.5, top + h * 0.3, w * 0.9, h * 0.2, 190, 350), 0.5, 0.014)
    y = bottom - pocket
    c.rect(0.5 - w * 0.78, y, 0.5 + w * 0.78, bottom - 0.05, SECOND, 1.0, 0.05)
    c.crease([(0.5 - w * 0.7, y + 0.05), (0.5 + w * 0.7, y + 0.05)], 0.5, 0.014)
    if "buckles" in parts:
        for s in (1, -1):
            c.line(
                [(0.5 + s * w * 0.45, top + h * 0.2), (0.5 + s * w * 0.45, y + 0.08)], 0.03, DARK
            )
            c.rect(
                0.5 + s * w * 0.45 - 0.03, y + 0.02, 0.5 + s * w * 0.45 + 0.03, y + 0.08, METAL, 1.1
            )
    return Form((0.5, (top + 0.14 + y) / 2, 0.085), "cloth")


@kind(
    "tote",
    "Bags > Tote Bags",
    "tote bag|shopper|carrier bag",
    "width|height|taper|handle",
    "base panel|inner lining",
    "cotton|canvas|jute|leather",
)
def draw_tote(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, taper, handle = (
        lerp(0.28, 0.42, p[0]),
        lerp(0.42, 0.62, p[1]),
        lerp(0.78, 1.12, p[2]),
        lerp(0.14, 0.3, p[3]),
    )
    top, bottom = 0.95 - h, 0.95
    c.line(arc(0.5, top + 0.02, w * 0.5, handle, 180, 360), 0.03, SECOND, 0.7)
    c.poly(
        [(0.5 - w, top), (0.5 + w, top), (0.5 + w * taper, bottom), (0.5 - w * taper, bottom)], BODY
    )
    if "base panel" in parts:
        k = 0.28
        c.poly(
            [
                (0.5 - w * lerp(taper, 1, k), bottom - h * k),
                (0.5 + w * lerp(taper, 1, k), bottom - h * k),
                (0.5 + w * taper, bottom),
                (0.5 - w * taper, bottom),
            ],
            SECOND,
        )
    if "inner lining" in parts:
        c.poly(arc(0.5, top, w * 0.96, 0.035, 0, 360), DARK, 0.8)
    c.line(arc(0.5, top + 0.05, w * 0.5, handle, 180, 360), 0.03, SECOND)
    return Form((0.5, top + h * 0.42, 0.13), "cloth")


@kind(
    "handbag",
    "Bags > Handbags",
    "handbag|shoulder bag|purse",
    "width|height|flap|handle",
    "chain|clasp|tassel",
    "leather|suede|velvet",
)
def draw_handbag(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, flap, handle = (
        lerp(0.28, 0.44, p[0]),
        lerp(0.3, 0.5, p[1]),
        lerp(0.35, 0.75, p[2]),
        lerp(0.16, 0.36, p[3]),
    )
    top, bottom = 0.9 - h, 0.9
    c.line(
        arc(0.5, top + 0.03, w * 0.75, handle, 180, 360, 40),
        0.028,
        METAL if "chain" in parts else SECOND,
    )
    c.poly(
        smooth(
            [
                (0.5 - w * 0.85, top),
                (0.5 + w * 0.85, top),
                (0.5 + w, bottom - 0.04),
                (0.5 + w * 0.85, bottom),
                (0.5 - w * 0.85, bottom),
                (0.5 - w, bottom - 0.04),
            ],
            2,
        ),
        BODY,
    )
    c.poly(
        smooth(
            [
                (0.5 - w * 0.9, top - 0.01),
                (0.5 + w * 0.9, top - 0.01),
                (0.5 + w * 0.75, top + h * flap),
                (0.5 - w * 0.75, top + h * flap),
            ],
            2,
        ),
        SECOND,
    )
    if "clasp" in parts:
        c.rect(0.46, top + h * flap - 0.04, 0.54, top + h * flap + 0.03, METAL, 1.2, 0.02)
    if "tassel" in parts:
        c.poly(
            [
                (0.5 + w * 0.7, top + 0.04),
                (0.5 + w * 0.78, top + 0.26),
                (0.5 + w * 0.62, top + 0.26),
            ],
            ACCENT,
        )
    return Form((0.5 - w * 0.45, bottom - h * 0.2, 0.06), "cloth")


@kind(
    "watch",
    "Accessories > Watches",
    "watch|wristwatch",
    "case size|strap width|squareness",
    "chronograph|crown|numerals",
    "leather|steel|rubber",
)
def draw_watch(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    r, strap, square = lerp(0.15, 0.24, p[0]), lerp(0.07, 0.13, p[1]), p[2] > 0.5
    strap = min(strap, r * 0.75)
    for y0, y1 in ((0.03, 0.5), (0.5, 0.97)):
        far, near = (y0, y1) if y0 < 0.1 else (y1, y0)
        c.poly(
            [
                (0.5 - strap * 0.75, far),
                (0.5 + strap * 0.75, far),
                (0.5 + strap, near),
                (0.5 - strap, near),
            ],
            BODY,
        )
    for y in (0.84, 0.89, 0.94):
        c.ellipse(0.5, y, 0.014, 0.01, DARK)
    if "crown" in parts:
        c.rect(0.5 + r - 0.01, 0.47, 0.5 + r + 0.045, 0.53, METAL)
    if square:
        c.rect(0.5 - r, 0.5 - r, 0.5 + r, 0.5 + r, METAL, 1.05, 0.04)
        c.rect(0.5 - r * 0.82, 0.5 - r * 0.82, 0.5 + r * 0.82, 0.5 + r * 0.82, SECOND, 1.0, 0.03)
    else:
        c.ellipse(0.5, 0.5, r, r, METAL, 1.05)
        c.ellipse(0.5, 0.5, r * 0.82, r * 0.82, SECOND)
    if "numerals" in parts:
        for x, y in arc(0.5, 0.5, r * 0.66, r * 0.66, 0, 330, 12):
            c.ellipse(x, y, 0.012, 0.012, ACCENT, 1.0, 1.0)
    if "chronograph" in parts:
        for dx, dy in ((-0.35, 0.0), (0.35, 0.0), (0.0, 0.38)):
            c.ellipse(0.5 + r * dx, 0.5 + r * dy, r * 0.2, r * 0.2, LIGHT)
    c.line([(0.5, 0.5), (0.5 + r * 0.35, 0.5 - r * 0.3)], 0.018, ACCENT)
    c.line([(0.5, 0.5), (0.5 - r * 0.2, 0.5 - r * 0.6)], 0.012, ACCENT)
    return Form((0.5, 0.5 - r - 0.1, strap * 0.6), "flat")


@kind(
    "sunglasses",
    "Accessories > Eyewear > Sunglasses",
    "sunglasses|shades",
    "lens width|lens height|roundness|bridge",
    "double bridge|side arms",
    "acetate|metal",
)
def draw_sunglasses(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h = lerp(0.15, 0.2, p[0]), lerp(0.09, 0.18, p[1])
    r, gap = lerp(0.03, 0.17, p[2]), lerp(0.03, 0.07, p[3])
    if "side arms" in parts:
        for s in (1, -1):
            x = 0.5 + s * (gap + 2 * w)
            c.line(
                [(x, 0.5 - h * 0.4), (x + s * 0.04, 0.42 - h), (x - s * 0.05, 0.3 - h)], 0.03, BODY
            )
    for s in (1, -1):
        x = 0.5 + s * (gap + w)
        c.rect(x - w, 0.5 - h, x + w, 0.5 + h, BODY, 1.0, r)
        c.rect(x - w + 0.03, 0.53 - h, x + w - 0.03, 0.47 + h, SECOND, 0.7, max(r - 0.03, 0.01))
        c.crease([(x - w * 0.4, 0.5 + h * 0.4), (x + w * 0.3, 0.5 - h * 0.5)], 1.1, 0.025)
    c.line([(0.5 - gap - 0.02, 0.47), (0.5, 0.45), (0.5 + gap + 0.02, 0.47)], 0.035, BODY)
    if "double bridge" in parts:
        c.line([(0.5 - gap - 0.05, 0.51 - h), (0.5 + gap + 0.05, 0.51 - h)], 0.025, ACCENT)
    return Form((0.5 + gap + w, 0.5, min(w, h) * 0.45), "flat")


@kind(
    "umbrella",
    "Accessories > Umbrellas",
    "umbrella|rain umbrella",
    "width|dome|handle",
    "ruffled edge|ferrule",
    "nylon|polyester",
)
def draw_umbrella(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, handle = lerp(0.34, 0.47, p[0]), lerp(0.24, 0.42, p[1]), lerp(0.78, 0.94, p[2])
    y = 0.5
    c.line([(0.5, 0.2), (0.5, handle)], 0.022, METAL)
    c.line(arc(0.545, handle, 0.045, 0.05, 180, 0), 0.03, SECOND)
    bays = 4
    edge: list[tuple[float, float]] = []
    for i in range(bays):
        x0, x1 = 0.5 + w * (1 - 2 * i / bays), 0.5 + w * (1 - 2 * (i + 1) / bays)
        edge += arc((x0 + x1) / 2, y, (x0 - x1) / 2, 0.05, 360, 180, 9)
    c.poly([*arc(0.5, y, w, h, 180, 360, 40), *edge], BODY)
    for t in (-0.5, 0.0, 0.5):
        c.crease([(0.5, y - h), (0.5 + w * t * 0.75, y - h * 0.5), (0.5 + w * t, y)], 0.6)
    if "ruffled edge" in parts:
        c.line([(x, min(yy, y)) for x, yy in edge], 0.035, SECOND)
    if "ferrule" in parts:
        c.line([(0.5, y - h - 0.06), (0.5, y - h)], 0.025, SECOND)
    return Form((0.5 - w * 0.22, y - h * 0.4, 0.09), "ball")
