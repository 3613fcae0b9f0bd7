"""Silhouettes of electronics, instruments, books, sports and beauty goods."""

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
    WOOD,
    Canvas,
    Form,
    arc,
    kind,
    lerp,
    mirrored,
    smooth,
)


@kind(
    "headphones",
    "Electronics > Audio > Headphones",
    "headphones|over-ear headphones|headset",
    "band height|cup width|cup height",
    "microphone|cushioned band",
    "plastic|leather|metal",
)
def draw_headphones(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    h, cw, ch = lerp(0.36, 0.52, p[0]), lerp(0.08, 0.14, p[1]), lerp(0.14, 0.22, p[2])
    y, w = 0.66, 0.32
    c.line(arc(0.5, y, w, h, 180, 360, 40), 0.055, SECOND)
    if "cushioned band" in parts:
        c.line(arc(0.5, y + 0.03, w - 0.02, h - 0.03, 230, 310, 24), 0.07, DARK)
    for s in (1, -1):
        x = 0.5 + s * w
        c.rect(
            x - s * 0.07 - cw * 0.8,
            y - ch * 0.85,
            x - s * 0.07 + cw * 0.8,
            y + ch * 0.85,
            DARK,
            0.9,
            0.05,
        )
        c.rect(x - cw, y - ch, x + cw, y + ch, BODY, 1.0, min(cw, 0.1))
        c.ellipse(x, y, cw * 0.72, ch * 0.62, SECOND, 0.95)
    if "microphone" in parts:
        c.line([(0.5 - w, y + ch * 0.8), (0.5 - w * 0.6, 0.93), (0.5 - 0.03, 0.94)], 0.02, DARK)
        c.ellipse(0.48, 0.94, 0.035, 0.025, SECOND)
    return Form((0.5 + w, y, cw * 0.6), "flat")


@kind(
    "guitar",
    "Music > Guitars",
    "guitar|acoustic guitar|electric guitar",
    "upper bout|lower bout|waist|neck",
    "pickguard|pickups",
    "wood|maple|mahogany",
)
def draw_guitar(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    up, low, waist = lerp(0.13, 0.19, p[0]), lerp(0.2, 0.28, p[1]), lerp(0.5, 0.8, p[2])
    neck = lerp(0.3, 0.42, p[3])
    top = neck + 0.06
    c.rect(0.475, 0.08, 0.525, top + 0.2, DARK, 1.3)
    for y in np.linspace(0.13, top, 7):
        c.crease([(0.475, float(y)), (0.525, float(y))], 1.9, 0.006)
    c.poly([(0.455, 0.02), (0.545, 0.02), (0.53, 0.11), (0.47, 0.11)], SECOND)
    for s in (1, -1):
        for y in (0.035, 0.06, 0.085):
            c.ellipse(0.5 + s * 0.06, y, 0.014, 0.01, METAL)
    span = 0.97 - top
    right = [
        (0.52, top),
        (0.5 + up, top + 0.04),
        (0.5 + up, top + span * 0.28),
        (0.5 + up * waist, top + span * 0.42),
        (0.5 + low, top + span * 0.62),
        (0.5 + low, top + span * 0.88),
        (0.5 + low * 0.5, 0.97),
    ]
    c.poly(smooth(mirrored(right), 2), BODY)
    if "pickguard" in parts:
        c.poly(
            smooth(
                [
                    (0.55, top + span * 0.35),
                    (0.5 + low * 0.75, top + span * 0.55),
                    (0.5 + low * 0.6, top + span * 0.8),
                    (0.54, top + span * 0.6),
                ]
            ),
            SECOND,
        )
    if "pickups" in parts:
        for t in (0.36, 0.55):
            c.rect(0.43, top + span * t, 0.57, top + span * t + 0.035, METAL)
    else:
        c.ellipse(0.5, top + span * 0.42, 0.065, 0.065, DARK, 0.7)
        c.line(arc(0.5, top + span * 0.42, 0.07, 0.07, 0, 360), 0.012, SECOND)
    c.rect(0.43, top + span * 0.74, 0.57, top + span * 0.78, SECOND, 0.7)
    c.rect(0.475, 0.1, 0.525, top + span * 0.24, DARK, 1.3)
    return Form((0.5 - low * 0.52, top + span * 0.72, 0.075), "flat")


@kind(
    "book",
    "Books > Hardcover",
    "book|hardcover book|novel",
    "width|height|thickness|panel",
    "ribbon|spine band",
    "paper|cloth|leather",
)
def draw_book(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, t, panel = (
        lerp(0.24, 0.38, p[0]),
        lerp(0.34, 0.44, p[1]),
        lerp(0.03, 0.11, p[2]),
        lerp(0.1, 0.24, p[3]),
    )
    x0, x1, y0, y1 = 0.5 - w, 0.5 + w - t, 0.5 - h + t * 0.6, 0.5 + h
    if "ribbon" in parts:
        c.line([(x1 - 0.1, y1), (x1 - 0.1, y1 + 0.06)], 0.025, ACCENT)
    c.poly([(x0, y0), (x0 + t, y0 - t * 0.6), (x1 + t, y0 - t * 0.6), (x1, y0)], LIGHT, 0.95)
    c.poly([(x1, y0), (x1 + t, y0 - t * 0.6), (x1 + t, y1 - t * 0.6), (x1, y1)], LIGHT, 0.82)
    c.rect(x0, y0, x1, y1, BODY)
    c.rect(x0, y0, x0 + 0.05, y1, SECOND if "spine band" in parts else BODY, 0.82)
    c.rect(x0 + 0.09, y0 + 0.07, x1 - 0.05, y0 + 0.07 + panel, SECOND)
    for i, frac in enumerate((0.8, 0.55)):
        y = y0 + 0.07 + panel * (0.3 + 0.34 * i)
        mid, half = (x0 + x1 + 0.04) / 2, (x1 - x0 - 0.14) / 2 * frac
        c.line([(mid - half, y), (mid + half, y)], 0.022, ACCENT)
    return Form(((x0 + x1) / 2 + 0.02, y1 - (y1 - y0 - panel) * 0.4, 0.13), "flat")


@kind(
    "ball",
    "Sports > Balls",
    "ball|sports ball|football",
    "panel size|seam tilt",
    "centre panel|seams",
    "rubber|leather",
    False,
)
def draw_ball(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    size, tilt = lerp(0.1, 0.24, p[0]), lerp(-60, 60, p[1])
    c.ellipse(0.5, 0.5, 0.43, 0.43, BODY)
    if "centre panel" in parts:
        c.poly(arc(0.5, 0.5, size, size, tilt, tilt + 288, 5), SECOND)
    for a in np.radians(tilt + 72 * np.arange(5)):
        reach = 0.42
        c.poly(
            arc(
                0.5 + reach * 0.8 * float(np.cos(a)),
                0.5 + reach * 0.8 * float(np.sin(a)),
                size * 0.4,
                size * 0.4,
                0,
                360,
                5,
            ),
            ACCENT,
        )
        if "seams" in parts:
            c.crease(
                [(0.5, 0.5), (0.5 + reach * float(np.cos(a)), 0.5 + reach * float(np.sin(a)))],
                0.4,
                0.014,
            )
    return Form((0.5, 0.5, 0.12), "ball")


@kind(
    "brush",
    "Beauty > Hair Brushes",
    "hair brush|brush|paddle brush",
    "head width|head length|handle",
    "ring|bristle pad",
    "wood|plastic",
)
def draw_brush(c: Canvas, p: Sequence[float], parts: frozenset[str]) -> Form:
    w, h, grip = lerp(0.12, 0.24, p[0]), lerp(0.18, 0.28, p[1]), lerp(0.03, 0.06, p[2])
    y = 0.04 + h
    c.line([(0.5, y + h * 0.8), (0.5, 0.94)], grip * 2, WOOD if "ring" in parts else SECOND)
    c.rect(0.5 - w, y - h, 0.5 + w, y + h, BODY, 1.0, min(w, 0.13))
    if "bristle pad" in parts:
        c.rect(0.5 - w * 0.75, y - h * 0.8, 0.5 + w * 0.75, y + h * 0.4, SECOND, 0.9, 0.08)
    if "ring" in parts:
        c.rect(0.5 - grip * 1.25, y + h + 0.02, 0.5 + grip * 1.25, y + h + 0.06, METAL)
    return Form((0.5, y + h * 0.1, w * 0.6), "flat")
