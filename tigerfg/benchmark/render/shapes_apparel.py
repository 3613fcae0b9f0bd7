"""Silhouettes of tops and dresses."""

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
    mirrored,
    smooth,
)


def _torso(
    c: Canvas,
    width: float,
    length: float,
    sleeve: float,
    angle: float,
    neck: float,
    depth: float,
    flare: float,
    cuff: bool,
) -> None:
    """Body, two sleeves and the neck opening. ``angle`` in degrees below the horizontal."""
    top, w = 0.14, width / 2
    a = np.radians(angle)
    dx, dy = float(np.cos(a)), float(np.sin(a))
    shoulder, armpit = (0.5 + w, top + 0.05), (0.5 + w * 0.96, top + 0.24)
    outer = (shoulder[0] + sleeve * dx, shoulder[1] + sleeve * dy)
    inner = (outer[0] - 0.13 * dy, outer[1] + 0.13 * dx)
    for side in (1, -1):

        def at(x: float, y: float, side: int = side) -> tuple[float, float]:
            return 0.5 + side * (x - 0.5), y

        c.poly([at(*shoulder), at(*outer), at(*inner), at(*armpit)], BODY, 0.9)
        if cuff:
            k = 0.05
            c.poly(
                [
                    at(*outer),
                    at(*inner),
                    at(inner[0] - k * dx, inner[1] - k * dy),
                    at(outer[0] - k * dx, outer[1] - k * dy),
                ],
                SECOND,
            )
    right = [
        (0.5 + neck, top),
        shoulder,
        armpit,
        (0.5 + w * flare, top + length),
        (0.5 + w * flare * 0.5, top + length + 0.015),
    ]
    c.poly(mirrored(right), BODY)
    c.poly(arc(0.5, top - 0.005, neck, depth, 0, 180), SECOND, 0.55)
    c.line(arc(0.5, top - 0.005, neck, depth, 0, 180), 0.022, SECOND)
    for side in (1, -1):
        c.crease([(0.5 + side * w * 0.97, top + 0.07), (0.5 + side * w * 0.9, top + 0.26)], 0.8)


@kind(
    "tshirt",
    "Clothing > Tops > T-Shirts",
    "t-shirt|tee|short-sleeved shirt",
    "width|length|sleeve|neckline",
    "chest pocket|contrast cuffs",
    "cotton|jersey|linen",
)
def draw_tshirt(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    width = lerp(0.34, 0.5, p[0])
    _torso(
        c,
        width,
        lerp(0.48, 0.72, p[1]),
        lerp(0.1, 0.24, p[2]),
        42,
        0.1,
        lerp(0.04, 0.17, p[3]),
        1.0,
        "contrast cuffs" in parts,
    )
    if "chest pocket" in parts:
        c.rect(0.53, 0.36, 0.63, 0.48, SECOND, radius=0.015)
    return Form((0.5, 0.47, 0.12), "cloth")


@kind(
    "longsleeve",
    "Clothing > Tops > Sweaters",
    "sweater|pullover|long-sleeved top",
    "width|length|arm angle|neckline",
    "striped hem|elbow patches",
    "wool|cotton|cashmere",
)
def draw_longsleeve(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    width, length, angle = lerp(0.32, 0.46, p[0]), lerp(0.46, 0.66, p[1]), lerp(48, 78, p[2])
    _torso(c, width, length, 0.52, angle, 0.09, lerp(0.03, 0.15, p[3]), 0.98, True)
    c.rect(0.5 - width * 0.49, 0.09 + length, 0.5 + width * 0.49, 0.15 + length, SECOND, 0.95)
    if "striped hem" in parts:
        c.rect(0.5 - width * 0.49, 0.02 + length, 0.5 + width * 0.49, 0.05 + length, ACCENT)
    if "elbow patches" in parts:
        for s in (1, -1):
            a = np.radians(angle)
            x, y = width / 2 + 0.27 * np.cos(a) - 0.06 * np.sin(a), 0.19 + 0.27 * np.sin(a) + 0.05
            c.ellipse(0.5 + s * float(x), float(y), 0.04, 0.06, ACCENT)
    return Form((0.5, 0.45, 0.12), "cloth")


@kind(
    "hoodie",
    "Clothing > Tops > Hoodies",
    "hoodie|hooded sweatshirt",
    "width|length|hood",
    "zip|drawstrings",
    "fleece|cotton",
)
def draw_hoodie(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    width, length, hood = lerp(0.36, 0.5, p[0]), lerp(0.5, 0.68, p[1]), lerp(0.12, 0.2, p[2])
    c.poly(
        smooth(
            [
                (0.5, 0.02),
                (0.5 + hood, 0.06),
                (0.5 + hood, 0.22),
                (0.5, 0.3),
                (0.5 - hood, 0.22),
                (0.5 - hood, 0.06),
            ]
        ),
        BODY,
        0.85,
    )
    _torso(c, width, length, 0.5, 66, 0.1, 0.07, 0.98, True)
    c.ellipse(0.5, 0.15, hood * 0.72, 0.1, SECOND, 0.7)
    c.rect(0.5 - width * 0.49, 0.09 + length, 0.5 + width * 0.49, 0.15 + length, SECOND, 0.9)
    y = length - 0.02
    c.poly(
        [
            (0.42, y - 0.12),
            (0.58, y - 0.12),
            (0.64, y),
            (0.64, y + 0.05),
            (0.36, y + 0.05),
            (0.36, y),
        ],
        BODY,
        0.86,
    )
    if "zip" in parts:
        c.line([(0.5, 0.24), (0.5, 0.14 + length)], 0.016, METAL)
    if "drawstrings" in parts:
        for s in (1, -1):
            c.line([(0.5 + s * 0.05, 0.23), (0.5 + s * 0.06, 0.4)], 0.014, LIGHT)
    return Form((0.5, 0.39, 0.1), "cloth")


@kind(
    "jacket",
    "Clothing > Outerwear > Jackets",
    "jacket|coat|blazer",
    "width|length|collar",
    "buttons|belt|flap pockets",
    "wool|nylon|leather|denim",
)
def draw_jacket(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    width, length, collar = lerp(0.34, 0.48, p[0]), lerp(0.46, 0.76, p[1]), lerp(0.12, 0.3, p[2])
    _torso(c, width, length, 0.5, 68, 0.1, 0.05, 1.06, True)
    for s in (1, -1):
        c.poly(
            [
                (0.5 + s * 0.11, 0.12),
                (0.5 + s * 0.17, 0.19),
                (0.5 + s * 0.02, 0.15 + collar),
                (0.5, 0.13 + collar),
            ],
            SECOND,
        )
    c.crease([(0.5, 0.13 + collar), (0.5, 0.15 + length)], 0.45, 0.012)
    if "buttons" in parts:
        for y in np.linspace(0.2 + collar, 0.08 + length, 4):
            c.ellipse(0.53, float(y), 0.016, 0.016, ACCENT)
    if "flap pockets" in parts:
        for s in (1, -1):
            x, y = 0.5 + s * width * 0.27, length - 0.04
            c.rect(x - 0.055, y, x + 0.055, y + 0.06, SECOND, 0.9, 0.01)
    if "belt" in parts:
        c.rect(0.5 - width / 2, length * 0.62, 0.5 + width / 2, length * 0.62 + 0.05, DARK)
        c.rect(0.47, length * 0.62 - 0.01, 0.53, length * 0.62 + 0.06, METAL, 1.1)
    return Form((0.5 + width * 0.27, 0.36, 0.065), "cloth")


@kind(
    "dress",
    "Clothing > Dresses",
    "dress|summer dress|gown",
    "bodice|flare|length|waist height",
    "straps|sash",
    "cotton|silk|chiffon|linen",
)
def draw_dress(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    bust, hem, length = lerp(0.13, 0.19, p[0]), lerp(0.18, 0.4, p[1]), lerp(0.62, 0.86, p[2])
    waist_y = lerp(0.3, 0.46, p[3])
    if "straps" in parts:
        for s in (1, -1):
            c.line([(0.5 + s * bust * 0.7, 0.06), (0.5 + s * bust * 0.75, 0.18)], 0.025, SECOND)
        top = 0.16
    else:
        top = 0.08
        for s in (1, -1):
            c.poly(
                [
                    (0.5 + s * bust * 0.8, top),
                    (0.5 + s * (bust + 0.13), top + 0.14),
                    (0.5 + s * (bust + 0.06), top + 0.21),
                    (0.5 + s * bust, top + 0.17),
                ],
                BODY,
                0.9,
            )
    right = [
        (0.5 + bust * 0.8, top),
        (0.5 + bust, top + 0.13),
        (0.5 + bust * 0.8, waist_y),
        (0.5 + hem, 0.08 + length),
        (0.5 + hem * 0.5, 0.11 + length),
    ]
    c.poly(mirrored(right), BODY)
    c.poly(arc(0.5, top - 0.004, bust * 0.6, 0.07, 0, 180), SECOND, 0.6)
    for t in (-0.6, -0.2, 0.25, 0.65):
        c.crease([(0.5 + bust * t, waist_y + 0.03), (0.5 + hem * t, 0.07 + length)], 0.74)
    if "sash" in parts:
        c.rect(0.5 - bust * 0.85, waist_y - 0.03, 0.5 + bust * 0.85, waist_y + 0.03, SECOND)
        c.line([(0.5 + bust * 0.5, waist_y), (0.5 + bust * 0.9, waist_y + 0.2)], 0.03, SECOND, 0.85)
    return Form((0.5, waist_y + 0.2, 0.08), "cloth")
