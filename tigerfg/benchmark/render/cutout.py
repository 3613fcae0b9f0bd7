"""A product as an RGBA cut-out: colours, pattern, mark and light, seen from some view."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from .marks import draw_mark
from .patterns import HIGH, LOW, pattern_levels
from .products import Product
from .shapes import ACCENT, BODY, DARK, LEAF, LIGHT, METAL, SECOND, SKIN, WOOD, Canvas, load_kinds

_LEVELS = (64, 96, 128, 192, 256, 384, 512)  # resolutions of the canonical drawing
_OVERSAMPLING = 1.5
_FIXED = {
    DARK: (44, 42, 46),
    LIGHT: (236, 234, 228),
    METAL: (176, 180, 186),
    WOOD: (146, 100, 58),
    SKIN: (224, 180, 150),
    LEAF: (64, 140, 52),
}
_SOLID = [255 if alpha > 64 else 0 for alpha in range(256)]  # what counts as visible
_OFFSETS = {
    "centre": (0.0, 0.0),
    "upper left": (-0.5, -0.4),
    "upper right": (0.5, -0.4),
    "lower left": (-0.5, 0.4),
    "lower right": (0.5, 0.4),
}


def _palette(product: Product) -> np.ndarray:
    """Colour of every label and pattern level, float32 (256, 3)."""
    table = np.zeros((256, 3), np.float32)
    first, second = np.array(product.primary_rgb), np.array(product.secondary_rgb)
    blend = np.linspace(0, 1, HIGH - LOW + 1, dtype=np.float32)[:, None]
    table[LOW:] = first + blend * (second - first)
    table[SECOND], table[ACCENT] = second, product.accent_rgb
    for role, rgb in _FIXED.items():
        table[role] = rgb
    return table


def _light(shading: str, finish: str, n: int) -> np.ndarray:
    """Brightness factor of form and finish, float32 (n, n)."""
    t = (np.arange(n, dtype=np.float32) + 0.5) / n
    x, y = t[None, :], t[:, None]
    if shading == "cylinder":
        light = np.broadcast_to(1.12 - 2.2 * (x - 0.44) ** 2 * 2, (n, n))
    elif shading == "ball":
        light = 1.15 - 1.3 * ((x - 0.42) ** 2 + (y - 0.38) ** 2)
    elif shading == "cloth":
        light = 1.02 + 0.05 * np.sin(13 * x + 5 * y) + 0.04 * np.sin(9 * y - 17 * x)
    else:
        light = 1.06 - 0.12 * y + 0 * x
    if finish == "metallic":
        light = light * (1 + 0.22 * np.sin(11 * x + 2.5 * y))
    elif finish == "woven":
        light = light * (1 + 0.07 * np.sign(np.sin(150 * x) * np.sin(150 * y)))
    return np.maximum(light, 0.35).astype(np.float32)


@lru_cache(maxsize=192)
def _canonical(product: Product, n: int) -> Image.Image:
    """The product drawn straight on at ``n`` px per unit, cropped, with a 2 px clear border."""
    kind = load_kinds()[product.kind]
    canvas = Canvas(n)
    form = kind.draw(canvas, product.shape, frozenset(product.parts))
    if product.mark is not None:
        cx, cy, r = form.mark
        dx, dy = _OFFSETS[product.mark_position]
        small = 1.2 if product.mark_position == "centre" else 0.95
        draw_mark(canvas, product.mark, cx + dx * r, cy + dy * r, r * small, ACCENT)
    x0, y0, x1, y1 = canvas.label.getbbox()
    window = np.s_[y0:y1, x0:x1]
    label = np.asarray(canvas.label)[window]
    levels = pattern_levels(product.pattern, n, product.pattern_scale, product.texture_seed)[window]
    shade = np.asarray(canvas.lum)[window] * np.float32(1 / 128)
    shade *= _light(form.shading, product.finish, n)[window]
    colour = _palette(product).take(np.where(label == BODY, levels, label), axis=0)
    colour *= shade[..., None]
    if product.finish == "glossy":
        t = (np.arange(n, dtype=np.float32) + 0.5) / n
        spot = np.exp(-(((t[:, None] - 0.42) / 0.3) ** 2)) * np.exp(-(((t - 0.36) / 0.05) ** 2))
        colour += (95 * spot[window])[..., None]
    rgba = np.zeros((y1 - y0 + 4, x1 - x0 + 4, 4), np.uint8)
    rgba[2:-2, 2:-2, :3] = np.minimum(colour, 255, out=colour)
    rgba[2:-2, 2:-2, 3] = (label > 0) * np.uint8(255)
    return Image.fromarray(rgba)


def fit(image: Image.Image, size: int) -> Image.Image:
    """``image`` cropped to what is not transparent, its longest side resized to ``size``."""
    alpha = image.getchannel("A").point(_SOLID)
    image = image.crop(alpha.getbbox() or (0, 0, *image.size))
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize(
        (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    )


def _homography(rng: np.random.Generator, w: int, h: int) -> np.ndarray:
    """Random view of a ``w`` x ``h`` picture about its centre, float64 (3, 3)."""
    wide = rng.random() < 0.12
    angle = np.radians(rng.uniform(-60, 60) if wide else rng.uniform(-20, 20))
    cos, sin = np.cos(angle), np.sin(angle)
    squeeze = np.diag([np.exp(rng.uniform(-0.2, 0.12)), np.exp(rng.uniform(-0.12, 0.12)), 1.0])
    shear = np.array(
        [[1, rng.uniform(-0.12, 0.12), 0], [rng.uniform(-0.06, 0.06), 1, 0], [0, 0, 1]]
    )
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-0.22, 0.22, 2) / max(w, h)
    flip = np.diag([-1.0 if rng.random() < 0.3 else 1.0, 1.0, 1.0])
    return tilt @ turn @ shear @ squeeze @ flip


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = np.concatenate([points, np.ones((*points.shape[:-1], 1))], axis=-1) @ matrix.T
    return mapped[..., :2] / mapped[..., 2:]


def _warp(image: Image.Image, rng: np.random.Generator, longest: int) -> Image.Image:
    """Perspective view plus a gentle non-rigid bend; about ``longest`` px on the longest side."""
    w, h = image.size
    matrix = _homography(rng, w, h)
    corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]], dtype=np.float64) / 2
    seen = _apply(matrix, corners)
    low, high = seen.min(axis=0), seen.max(axis=0)
    pad = 0.04 * float((high - low).max())
    low, high = low - pad, high + pad
    scale = longest / float((high - low).max())
    size = np.maximum(np.rint((high - low) * scale), 2).astype(int)
    cells = 3
    grid = np.stack(np.meshgrid(*(np.rint(np.linspace(0, side, cells + 1)) for side in size)), -1)
    source = _apply(np.linalg.inv(matrix), grid / scale + low) + np.array([w, h]) / 2
    bend = 0.025 * max(w, h) * rng.uniform(0, 1)
    phase = rng.uniform(0, 2 * np.pi, 2)
    source = source + bend * np.sin(source[..., ::-1] * (4.5 / max(w, h)) + phase)
    mesh = []
    for i in range(cells):
        for j in range(cells):
            (x0, y0), (x1, y1) = grid[i, j], grid[i + 1, j + 1]
            quad = (source[i, j], source[i + 1, j], source[i + 1, j + 1], source[i, j + 1])
            mesh.append(
                ((int(x0), int(y0), int(x1), int(y1)), tuple(float(v) for q in quad for v in q))
            )
    return image.transform(
        (int(size[0]), int(size[1])), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
    )


def relight(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """RGBA picture under a random directional light with soft folds; alpha is kept."""
    rgba = np.asarray(image).copy()
    h, w = rgba.shape[:2]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    gx, gy = rng.uniform(-0.16, 0.16, 2).astype(np.float32)
    fx, fy, phase = (np.float32(v) for v in rng.uniform((-4, -4, 0), (4, 4, 6.28)))
    folds = np.float32(rng.uniform(0, 0.08))
    field = (
        np.float32(rng.uniform(0.9, 1.06))
        + gx * x
        + gy * y
        + folds * np.sin(fx * x + fy * y + phase)
    )
    rgba[..., :3] = np.minimum(rgba[..., :3] * field[..., None], 255)
    return Image.fromarray(rgba)


def render_cutout(product: Product, size: int, view_seed: int | None) -> Image.Image:
    """The product as RGBA, tight around what is visible, longest side exactly ``size`` px (>= 1).

    ``view_seed`` chooses pose (rotation, perspective, flip, bend) and light; None is the canonical
    straight view. The same arguments always give the same bytes.
    """
    if size < 1:
        raise ValueError(f"render_cutout: size must be at least 1 px, got {size}")
    level = next((n for n in _LEVELS if n >= _OVERSAMPLING * size), _LEVELS[-1])
    image = _canonical(product, level)
    if view_seed is None:
        return fit(image, size)
    return pose(image, size, view_seed)


def pose(image: Image.Image, size: int, view_seed: int) -> Image.Image:
    """An RGBA cut-out of anything in a pose and light chosen by ``view_seed``; the same arguments
    always give the same bytes.

    ``size``: the longest side of the result in px, >= 1. The picture should have 1.5 times that.
    """
    rng = np.random.default_rng((view_seed, 0xC07))
    longest = min(_LEVELS[-1], round(_OVERSAMPLING * size))
    return relight(fit(_warp(image, rng, max(8, longest)), size), rng)
