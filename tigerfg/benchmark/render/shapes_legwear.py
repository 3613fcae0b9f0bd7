"""Silhouettes of trousers, skirts, socks and shoes."""

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


def _legs(c: Canvas, waist: float, hip: float, hem: float, spread: float, length: float) -> None:
    """Two legs hanging from one waistband in the secondary colour."""
    top = 0.08
    for s in (-1, 1):
        c.poly(
            [
                (0.5, top + 0.03),
                (0.5 + s * waist, top + 0.03),
                (0.5 + s * hip, top + 0.22),
                (0.5 + s * (spread + hem), top + length),
                (0.5 + s * (spread - hem), top + length),
                (0.5, top + 0.26),
            ],
            BODY,
            1.0 if s < 0 else 0.93,
        )
    c.crease([(0.5, top + 0.05), (0.5, top + 0.26)], 0.6)
    c.rect(0.5 - waist, top, 0.5 + waist, top + 0.05, SECOND)


@kind(
    "trousers",
    "Clothing > Bottoms > Trousers",
    "trousers|pants|jeans",
    "waist|leg width|spread|length",
    "side stripe|rolled hem|belt",
    "denim|cotton|corduroy",
)
def draw_trousers(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    waist, hem = lerp(0.14, 0.19, p[0]), lerp(0.045, 0.12, p[1])
    spread, length = lerp(0.13, 0.21, p[2]), lerp(0.66, 0.88, p[3])
    hip = waist + 0.045
    _legs(c, waist, hip, hem, spread, length)
    for s in (-1, 1):
        if "side stripe" in parts:
            c.line(
                [(0.5 + s * (hip - 0.02), 0.31), (0.5 + s * (spread + hem - 0.02), 0.06 + length)],
                0.026,
                ACCENT,
            )
        if "rolled hem" in parts:
            c.rect(
                0.5 + s * spread - hem,
                0.03 + length,
                0.5 + s * spread + hem,
                0.08 + length,
                SECOND,
                1.05,
            )
        c.crease([(0.5 + s * waist * 0.5, 0.14), (0.5 + s * (hip - 0.01), 0.22)], 0.6)
    if "belt" in parts:
        c.rect(0.5 - waist, 0.09, 0.5 + waist, 0.115, DARK)
        c.rect(0.47, 0.075, 0.53, 0.13, METAL, 1.1)
    return Form((0.5 - spread * 0.85, 0.42, 0.06), "cloth")


@kind(
    "shorts",
    "Clothing > Bottoms > Shorts",
    "shorts|bermudas|swim shorts",
    "waist|leg width|length",
    "side stripe|drawcord",
    "cotton|polyester|linen",
)
def draw_shorts(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    waist, hem, length = lerp(0.22, 0.29, p[0]), lerp(0.13, 0.18, p[1]), lerp(0.36, 0.62, p[2])
    _legs(c, waist, waist + 0.06, hem, 0.19, length)
    for s in (-1, 1):
        if "side stripe" in parts:
            c.line(
                [(0.5 + s * (waist + 0.01), 0.14), (0.5 + s * (0.15 + hem), 0.05 + length)],
                0.04,
                SECOND,
            )
    if "drawcord" in parts:
        for s in (-1, 1):
            c.line([(0.5, 0.11), (0.5 + s * 0.04, 0.27)], 0.016, LIGHT)
    return Form((0.3, 0.34, 0.075), "cloth")


@kind(
    "skirt",
    "Clothing > Bottoms > Skirts",
    "skirt|midi skirt|flared skirt",
    "waist|flare|length",
    "pleats|hem band",
    "cotton|silk|denim|wool",
)
def draw_skirt(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    waist, hem, length = lerp(0.13, 0.2, p[0]), lerp(0.2, 0.45, p[1]), lerp(0.4, 0.8, p[2])
    bottom = [
        (0.5 - hem + 2 * hem * t, 0.1 + length + 0.05 * np.sin(np.pi * t))
        for t in np.linspace(1, 0, 12)
    ]
    c.poly([(0.5 - waist, 0.1), (0.5 + waist, 0.1), *bottom], BODY)
    folds = 9 if "pleats" in parts else 4
    for t in np.linspace(-0.8, 0.8, folds):
        c.crease([(0.5 + waist * t, 0.14), (0.5 + hem * t, 0.1 + length)], 0.7)
    if "hem band" in parts:
        c.line([(x, y - 0.025) for x, y in bottom[1:-1]], 0.045, SECOND)
    c.rect(0.5 - waist, 0.07, 0.5 + waist, 0.13, SECOND)
    return Form((0.5, 0.12 + length * 0.5, 0.09), "cloth")


@kind(
    "sock",
    "Clothing > Socks",
    "sock|crew sock|sports sock",
    "shaft|width|foot",
    "cuff bands",
    "cotton|wool",
)
def draw_sock(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    top, w, foot = lerp(0.36, 0.05, p[0]), lerp(0.1, 0.15, p[1]), lerp(0.3, 0.5, p[2])
    x = 0.34
    heel, toe = (x - w * 0.2, 0.84), (x + w + foot, 0.86)
    c.poly(
        [
            (x - w, top),
            (x + w, top),
            (x + w, 0.6),
            (x + w + 0.05, 0.66),
            (toe[0] - 0.04, 0.7),
            (toe[0] + 0.02, 0.77),
            toe,
            (toe[0] - 0.06, 0.92),
            (x + 0.02, 0.92),
            (x - w, 0.84),
            (x - w * 1.03, 0.7),
        ],
        BODY,
    )
    c.poly(
        smooth(
            [
                (toe[0] - 0.12, 0.69),
                (toe[0], 0.7),
                (toe[0] + 0.03, 0.8),
                (toe[0] - 0.03, 0.92),
                (toe[0] - 0.12, 0.92),
            ]
        ),
        SECOND,
    )
    c.poly(
        smooth(
            [
                (x - w * 1.05, 0.7),
                (heel[0] + 0.1, heel[1] - 0.03),
                (x + 0.03, 0.93),
                (x - w * 0.8, 0.92),
            ]
        ),
        SECOND,
    )
    c.rect(x - w * 1.04, top - 0.02, x + w * 1.04, top + 0.07, SECOND)
    if "cuff bands" in parts:
        for y in (top + 0.1, top + 0.15):
            c.rect(x - w, y, x + w, y + 0.025, ACCENT)
    return Form((x, (top + 0.68) / 2 + 0.02, w * 0.7), "cloth")


@kind(
    "sneaker",
    "Shoes > Sneakers",
    "sneaker|trainer|running shoe",
    "collar height|sole|toe",
    "heel tab|laces|toe cap",
    "leather|canvas|mesh|suede",
)
def draw_sneaker(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    top, sole, toe = lerp(0.46, 0.26, p[0]), lerp(0.05, 0.12, p[1]), lerp(0.58, 0.68, p[2])
    base = 0.82 - sole
    c.poly(
        smooth(
            [
                (0.08, base),
                (0.06, top + 0.1),
                (0.1, top),
                (0.3, top + 0.03),
                (0.4, top + 0.1),
                (0.62, 0.54),
                (0.8, toe),
                (0.94, toe + 0.06),
                (0.96, base + 0.02),
            ],
            1,
        ),
        BODY,
    )
    c.poly(arc(0.2, top + 0.03, 0.12, 0.05, 0, 360), DARK, 0.8)
    if "toe cap" in parts:
        c.poly(smooth([(0.76, toe - 0.01), (0.9, toe + 0.01), (0.97, base), (0.74, base)]), SECOND)
    if "heel tab" in parts:
        c.poly([(0.06, top + 0.06), (0.15, top + 0.1), (0.17, base), (0.07, base)], SECOND)
    if "laces" in parts:
        for t in np.linspace(0, 1, 5):
            x, y = lerp(0.36, 0.64, t), lerp(top + 0.09, 0.56, t)
            c.line([(x - 0.03, y + 0.07), (x + 0.03, y)], 0.02, LIGHT)
    c.rect(0.05, base, 0.97, 0.82, SECOND, 1.0, sole * 0.45)
    c.crease([(0.07, 0.82 - sole * 0.4), (0.95, 0.82 - sole * 0.4)], 0.7)
    return Form((0.36, (top + base) / 2 + 0.09, 0.09), "cloth")


@kind(
    "boot",
    "Shoes > Boots",
    "boot|ankle boot|rain boot",
    "shaft height|shaft width|heel",
    "buckle|contrast shaft",
    "leather|rubber|suede",
)
def draw_boot(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    top, w, heel = lerp(0.36, 0.05, p[0]), lerp(0.3, 0.42, p[1]), lerp(0.03, 0.13, p[2])
    base = 0.92 - heel
    c.poly(
        [
            (0.14, top),
            (0.14 + w, top - 0.02),
            (0.13 + w, 0.52),
            (0.66, 0.6),
            (0.84, 0.68),
            (0.88, base),
            (0.16, base),
        ],
        BODY,
    )
    if "contrast shaft" in parts:
        c.poly(
            [(0.14, top), (0.14 + w, top - 0.02), (0.14 + w, top + 0.14), (0.14, top + 0.15)],
            SECOND,
        )
    if "buckle" in parts:
        c.line([(0.15, 0.6), (0.13 + w, 0.54)], 0.04, DARK)
        c.rect(0.1 + w * 0.6, 0.53, 0.18 + w * 0.6, 0.61, METAL, 1.1)
    c.poly(
        [
            (0.14, base - 0.03),
            (0.89, base - 0.03),
            (0.9, base + 0.02),
            (0.46, base + 0.02),
            (0.4, 0.93),
            (0.14, 0.93),
        ],
        SECOND,
    )
    c.crease([(0.2, 0.62), (0.4, 0.66), (0.62, 0.62)], 0.75)
    return Form((0.14 + w / 2, max(top + 0.24, 0.4), 0.09), "cloth")
