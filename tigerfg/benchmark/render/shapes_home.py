"""Silhouettes of household goods and furniture."""

from __future__ import annotations

from collections.abc import Sequence

from .shapes import (
    ACCENT,
    BODY,
    DARK,
    METAL,
    SECOND,
    Canvas,
    Form,
    arc,
    kind,
    lerp,
    mirrored,
    smooth,
)


@kind(
    "mug",
    "Home > Kitchen > Mugs",
    "mug|coffee mug|cup",
    "width|height|taper|handle",
    "rim band|base band",
    "ceramic|stoneware|enamel",
)
def draw_mug(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, taper, ear = (
        lerp(0.2, 0.3, p[0]),
        lerp(0.46, 0.74, p[1]),
        lerp(0.7, 1.05, p[2]),
        lerp(0.12, 0.22, p[3]),
    )
    x, top = 0.42, 0.9 - h
    c.line(arc(x + w * 0.92, top + h * 0.48, ear, h * 0.3, -100, 100, 30), 0.05, SECOND, 0.95)
    c.poly(
        [(x - w, top), (x + w, top), (x + w * taper, 0.88), *arc(x, 0.88, w * taper, 0.04, 0, 180)],
        BODY,
    )
    if "base band" in parts:
        k = lerp(1, taper, 0.86)
        c.poly(
            [
                (x - w * k, top + h * 0.84),
                (x + w * k, top + h * 0.84),
                (x + w * taper, 0.88),
                *arc(x, 0.88, w * taper, 0.04, 0, 180),
            ],
            SECOND,
        )
    if "rim band" in parts:
        c.rect(x - w, top, x + w, top + 0.08, SECOND)
    c.ellipse(x, top, w, 0.05, SECOND, 0.55)
    c.line(arc(x, top, w, 0.05, 0, 360, 40), 0.012, SECOND, 1.05)
    return Form((x, top + h * 0.52, 0.12), "cylinder")


@kind(
    "bottle",
    "Home > Kitchen > Water Bottles",
    "water bottle|flask|drinking bottle",
    "width|height|neck|shoulder",
    "carry loop|sleeve|label",
    "steel|plastic|glass",
)
def draw_bottle(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, neck, sh = (
        lerp(0.11, 0.2, p[0]),
        lerp(0.62, 0.84, p[1]),
        lerp(0.35, 0.75, p[2]),
        lerp(0.1, 0.3, p[3]),
    )
    top, b = 0.96 - h, 0.96
    if "carry loop" in parts:
        c.line(arc(0.5, top + 0.02, w * 0.6, 0.09, 180, 360), 0.028, ACCENT)
    right = [
        (0.5 + w * neck, top + 0.08),
        (0.5 + w * neck, top + 0.12),
        (0.5 + w, top + 0.12 + sh),
        (0.5 + w, b - 0.03),
        (0.5 + w * 0.8, b),
    ]
    c.poly(mirrored(right), BODY)
    if "sleeve" in parts:
        c.rect(0.5 - w * 1.02, b - h * 0.3, 0.5 + w * 1.02, b - 0.03, SECOND)
    if "label" in parts:
        c.rect(0.5 - w, b - h * 0.52, 0.5 + w, b - h * 0.34, SECOND, 1.0)
    c.rect(0.5 - w * (neck + 0.08), top, 0.5 + w * (neck + 0.08), top + 0.09, SECOND, 1.0, 0.015)
    return Form((0.5, b - h * 0.4, w * 0.62), "cylinder")


@kind(
    "vase",
    "Home > Decor > Vases",
    "vase|flower vase",
    "belly|belly height|neck|lip",
    "foot|twin handles",
    "ceramic|glass|porcelain",
)
def draw_vase(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    belly, by, neck, lip = (
        lerp(0.16, 0.36, p[0]),
        lerp(0.4, 0.72, p[1]),
        lerp(0.05, 0.14, p[2]),
        lerp(0.08, 0.22, p[3]),
    )
    if "twin handles" in parts:
        for s in (1, -1):
            handle = arc(0.5 + neck, 0.3, 0.16, 0.13, -90, 90)
            c.line([(0.5 + s * (x - 0.5), y) for x, y in handle], 0.03, SECOND)
    right = [
        (0.5 + lip, 0.08),
        (0.5 + neck, 0.16),
        (0.5 + neck, 0.28),
        (0.5 + belly, by - 0.1),
        (0.5 + belly, by + 0.08),
        (0.5 + belly * 0.55, 0.9),
        (0.5 + belly * 0.5, 0.94),
    ]
    c.poly(smooth(mirrored(right), 2), BODY)
    c.ellipse(0.5, 0.105, lip * 0.85, 0.025, SECOND, 0.6)
    if "foot" in parts:
        c.rect(0.5 - belly * 0.6, 0.9, 0.5 + belly * 0.6, 0.96, SECOND)
    return Form((0.5, by, belly * 0.45), "cylinder")


@kind(
    "lamp",
    "Home > Lighting > Table Lamps",
    "table lamp|desk lamp|lamp",
    "shade width|shade taper|shade height|base",
    "pull cord|trim",
    "fabric|ceramic|brass",
)
def draw_lamp(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, taper, h, base = (
        lerp(0.24, 0.42, p[0]),
        lerp(0.35, 0.95, p[1]),
        lerp(0.28, 0.46, p[2]),
        lerp(0.05, 0.18, p[3]),
    )
    y = 0.06 + h
    c.line([(0.5, y - 0.02), (0.5, 0.9)], 0.03, METAL)
    c.poly(
        smooth(
            mirrored([(0.52, y + 0.06), (0.5 + base, (y + 0.9) / 2), (0.5 + base * 0.6, 0.9)]), 2
        ),
        SECOND,
    )
    c.rect(0.5 - base - 0.08, 0.89, 0.5 + base + 0.08, 0.94, SECOND, 0.8, 0.02)
    if "pull cord" in parts:
        c.line([(0.5 + w * 0.6, y - 0.02), (0.5 + w * 0.6, y + 0.16)], 0.01, DARK)
        c.ellipse(0.5 + w * 0.6, y + 0.17, 0.02, 0.02, ACCENT)
    c.poly(
        [(0.5 - w * taper, 0.06), (0.5 + w * taper, 0.06), (0.5 + w, y), (0.5 - w, y)], BODY, 1.06
    )
    if "trim" in parts:
        c.line([(0.5 - w * 0.97, y - 0.02), (0.5 + w * 0.97, y - 0.02)], 0.035, ACCENT)
    return Form((0.5, 0.06 + h * 0.55, 0.09), "cylinder")


@kind(
    "chair",
    "Home > Furniture > Chairs",
    "chair|dining chair|kitchen chair",
    "back height|width|leg length|back gap",
    "arm rests|cushion",
    "wood|metal|plastic",
)
def draw_chair(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    back, w, legs, gap = (
        lerp(0.26, 0.46, p[0]),
        lerp(0.2, 0.3, p[1]),
        lerp(0.26, 0.42, p[2]),
        lerp(0.02, 0.14, p[3]),
    )
    seat = 0.96 - legs
    for s in (1, -1):
        c.line([(0.5 + s * w * 0.8, seat), (0.5 + s * w * 0.75, 0.9)], 0.035, SECOND, 0.7)
        c.line([(0.5 + s * w * 0.85, seat - back), (0.5 + s * w * 0.85, seat)], 0.04, SECOND, 0.85)
    c.rect(0.5 - w, seat - back - 0.03, 0.5 + w, seat - gap, BODY, 1.0, 0.05)
    c.poly(
        [
            (0.5 - w * 0.95, seat - 0.06),
            (0.5 + w * 0.95, seat - 0.06),
            (0.5 + w * 1.12, seat + 0.05),
            (0.5 - w * 1.12, seat + 0.05),
        ],
        BODY,
        0.84,
    )
    if "cushion" in parts:
        c.poly(
            smooth(
                [
                    (0.5 - w * 0.9, seat - 0.1),
                    (0.5 + w * 0.9, seat - 0.1),
                    (0.5 + w, seat + 0.02),
                    (0.5 - w, seat + 0.02),
                ],
                2,
            ),
            ACCENT,
        )
    for s in (1, -1):
        c.line([(0.5 + s * w * 1.05, seat + 0.05), (0.5 + s * w * 1.12, 0.96)], 0.04, SECOND)
        if "arm rests" in parts:
            c.line(
                [
                    (0.5 + s * w, seat - 0.18),
                    (0.5 + s * w * 1.2, seat - 0.16),
                    (0.5 + s * w * 1.15, seat + 0.02),
                ],
                0.035,
                SECOND,
            )
    return Form((0.5, seat - (back + gap) / 2 - 0.02, 0.08), "flat")


@kind(
    "cushion",
    "Home > Textiles > Cushions",
    "cushion|pillow|throw pillow",
    "width|height|puff",
    "piping|tassels|button",
    "cotton|velvet|linen",
    uses_secondary=False,
)
def draw_cushion(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, puff = lerp(0.3, 0.42, p[0]), lerp(0.22, 0.42, p[1]), lerp(0.0, 0.07, p[2])
    q = 1 - puff * 2.2
    right = [
        (0.5, 0.5 - h * q),
        (0.5 + w * 0.5, 0.5 - h * q),
        (0.5 + w, 0.5 - h),
        (0.5 + w * q, 0.5),
        (0.5 + w, 0.5 + h),
        (0.5 + w * 0.5, 0.5 + h * q),
    ]
    outline = smooth(mirrored(right), 1)
    if "tassels" in parts:
        for sx in (1, -1):
            for sy in (1, -1):
                c.line(
                    [
                        (0.5 + sx * w * 0.92, 0.5 + sy * h * 0.92),
                        (0.5 + sx * w * 1.1, 0.5 + sy * h * 1.1),
                    ],
                    0.045,
                    ACCENT,
                )
    c.poly(outline, BODY)
    if "piping" in parts:
        c.line([*outline, outline[0]], 0.026, SECOND)
    if "button" in parts:
        c.ellipse(0.5, 0.5, 0.045, 0.045, SECOND, 0.95)
    c.crease([(0.5 - w * 0.8, 0.5 - h * 0.85), (0.5 - w * 0.5, 0.5 - h * 0.4)], 0.8)
    c.crease([(0.5 + w * 0.8, 0.5 + h * 0.85), (0.5 + w * 0.5, 0.5 + h * 0.4)], 0.8)
    return Form((0.5, 0.5, 0.15), "ball")


@kind(
    "teapot",
    "Home > Kitchen > Teapots",
    "teapot|tea pot",
    "belly|height|spout|lid",
    "foot ring|band",
    "ceramic|cast iron|porcelain",
)
def draw_teapot(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, spout, lid = (
        lerp(0.22, 0.31, p[0]),
        lerp(0.17, 0.28, p[1]),
        lerp(0.0, 0.2, p[2]),
        lerp(0.04, 0.12, p[3]),
    )
    x, y = 0.48, 0.6
    c.line(arc(x - w * 0.9, y - 0.02, 0.15, h * 0.75, 90, 270, 30), 0.045, SECOND)
    c.poly(
        smooth(
            [
                (x + w * 0.7, y + 0.1),
                (x + w + 0.12, y - 0.1 - spout),
                (x + w + 0.19, y - 0.12 - spout),
                (x + w + 0.12, y + 0.02),
                (x + w * 0.7, y + h * 0.8),
            ],
            1,
        ),
        BODY,
        0.92,
    )
    c.ellipse(x, y, w, h, BODY)
    if "foot ring" in parts:
        c.rect(x - w * 0.55, y + h * 0.88, x + w * 0.55, y + h + 0.04, SECOND)
    if "band" in parts:
        c.rect(x - w * 0.99, y - 0.03, x + w * 0.99, y + 0.03, ACCENT)
    c.poly(arc(x, y - h * 0.82, w * 0.6, lid, 180, 360), SECOND)
    c.ellipse(x, y - h * 0.85 - lid, 0.035, 0.03, SECOND, 1.05)
    return Form((x, y + 0.03, h * 0.5), "ball")
