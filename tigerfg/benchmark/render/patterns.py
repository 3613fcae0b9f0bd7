"""Surface patterns as level maps.

A level map is uint8 (n, n): 16..255 blends the primary (16) into the secondary colour (255), and
ACCENT (3) is the accent colour. The palette of :mod:`.cutout` turns levels into colours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .shapes import ACCENT

LOW, HIGH = 16, 255

Pattern = Callable[[int, float, np.random.Generator], np.ndarray]


def _axes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the unit square: x (1, n) and y (n, 1), float32."""
    t = (np.arange(n, dtype=np.float32) + 0.5) / n
    return t[None, :], t[:, None]


def _two(mask: np.ndarray, n: int) -> np.ndarray:
    return np.broadcast_to(np.where(mask, np.uint8(HIGH), np.uint8(LOW)), (n, n))


def _triangle(t: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs((t % 1.0) * 2 - 1)


def plain(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    return np.full((n, n), LOW, np.uint8)


def horizontal_stripes(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    _, y = _axes(n)
    return _two((y * f) % 1 < 0.5, n)


def vertical_stripes(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, _ = _axes(n)
    return _two((x * f) % 1 < 0.5, n)


def diagonal_stripes(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    return _two(((x + y) * f * 0.8) % 1 < 0.5, n)


def pinstripes(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, _ = _axes(n)
    return _two((x * f * 1.5) % 1 < 0.2, n)


def dots(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    u, v = x * f, y * f
    shifted = u + 0.5 * (np.floor(v) % 2)
    return _two(((shifted % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.085, n)


def checks(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    return _two((np.floor(x * f) + np.floor(y * f)) % 2 == 0, n)


def plaid(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    u, v = (x * f * 0.7) % 1, (y * f * 0.7) % 1
    level = (LOW + 119 * ((u < 0.45).astype(np.int16) + (v < 0.45))).astype(np.uint8)
    level[(np.abs(u - 0.72) < 0.05) | (np.abs(v - 0.72) < 0.05)] = ACCENT
    return level


def chevron(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    return _two((y * f + 0.9 * _triangle(x * f * 0.6)) % 1 < 0.5, n)


def waves(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    return _two((y * f + 0.35 * np.sin(x * (2 * np.pi) * f * 0.5)) % 1 < 0.4, n)


def zigzag_band(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    middle = 0.45 + 0.14 * (_triangle(x * f * 0.8) - 0.5)
    return _two(np.abs(y - middle) < 0.07, n)


def argyle(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    u, v = x * f * 0.7, y * f * 0.45
    level = _two(_triangle(u) + _triangle(v) < 1.0, n).copy()
    level[np.abs(((u + v) % 1) - 0.5) < 0.05] = ACCENT
    return level


def floral(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (n, n), LOW)
    draw = ImageDraw.Draw(image)
    cells = max(3, round(f * 0.8))
    r = 0.17 * n / cells
    for i in range(cells):
        for j in range(cells):
            x = (i + 0.5 * (j % 2) + rng.uniform(0.25, 0.75)) * n / cells
            y = (j + rng.uniform(0.25, 0.75)) * n / cells
            turn = rng.uniform(0, 2 * np.pi)
            for a in turn + np.arange(5) * (2 * np.pi / 5):
                px, py = x + 1.3 * r * np.cos(a), y + 1.3 * r * np.sin(a)
                draw.ellipse((px - r, py - r, px + r, py + r), fill=HIGH)
            draw.ellipse((x - 0.8 * r, y - 0.8 * r, x + 0.8 * r, y + 0.8 * r), fill=ACCENT)
    return np.asarray(image)


def _noise(n: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0..255, uint8 (n, n), from a coarse random grid."""
    grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.BICUBIC))


def camouflage(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    a, b = _noise(n, round(f) + 3, rng), _noise(n, round(f) + 3, rng)
    level = np.where(a > 128, np.uint8(HIGH), np.uint8(LOW))
    level[b > 160] = 130
    level[(b < 85) & (a < 150)] = ACCENT
    return level


def marble(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    wave = np.sin((x + 0.6 * y) * 2 * np.pi * f * 0.3 + _noise(n, 5, rng).astype(np.float32) / 26)
    return (LOW + 239 * np.clip(1.5 * np.abs(wave) - 0.5, 0, 1)).astype(np.uint8)


def speckled(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    cells = round(f * 5)
    grid = (rng.random((cells, cells)) < 0.22).astype(np.uint8) * 239 + LOW
    return np.asarray(Image.fromarray(grid).resize((n, n), Image.Resampling.NEAREST))


def gradient(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    _, y = _axes(n)
    ramp = LOW + 239 * np.clip((y - 0.15) / 0.7, 0, 1)
    return np.broadcast_to(ramp.astype(np.uint8), (n, n))


def colour_block(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    _, y = _axes(n)
    return _two(y > 0.35 + 0.03 * f, n)


def half_and_half(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    x, y = _axes(n)
    return _two(x + 0.06 * (f - 6) * (y - 0.5) > 0.5, n)


def text_lines(n: int, f: float, rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (n, n), LOW)
    draw = ImageDraw.Draw(image)
    rows = round(f * 1.6)
    for row in range(rows):
        x, y = 0.1 * n, (row + 0.3) * n / rows
        while x < 0.95 * n:
            w = rng.uniform(0.04, 0.16) * n
            draw.rectangle((x, y, x + w, y + 0.38 * n / rows), fill=HIGH)
            x += w + 0.03 * n
    return np.asarray(image)


PATTERNS: dict[str, Pattern] = {
    "plain": plain,
    "horizontal stripes": horizontal_stripes,
    "vertical stripes": vertical_stripes,
    "diagonal stripes": diagonal_stripes,
    "pinstripes": pinstripes,
    "polka dots": dots,
    "checks": checks,
    "plaid": plaid,
    "chevron": chevron,
    "waves": waves,
    "zigzag band": zigzag_band,
    "argyle": argyle,
    "floral": floral,
    "camouflage": camouflage,
    "marble": marble,
    "speckled": speckled,
    "gradient": gradient,
    "colour block": colour_block,
    "half and half": half_and_half,
    "lettering": text_lines,
}


def pattern_levels(name: str, n: int, scale: float, seed: int) -> np.ndarray:
    """Level map of a named pattern, uint8 (n, n); ``scale`` in [0, 1], 0 = coarse, 1 = fine.

    The same seed gives the same layout at every ``n``. Raises KeyError for unknown names.
    """
    rng = np.random.default_rng((seed, 0x9A77))
    return PATTERNS[name](n, 4.0 + 7.0 * scale, rng)
