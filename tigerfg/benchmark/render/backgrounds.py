"""Backgrounds and camera effects of rendered photos; everything drawn from one generator."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_BICUBIC = Image.Resampling.BICUBIC


def _rgb(rng: np.random.Generator) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in rng.integers(30, 240, 3))
    return r, g, b


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    """A household colour: a grey with some hue in it."""
    base = rng.integers(70, 235)
    r, g, b = (int(v) for v in np.clip(base + rng.normal(0, 22, 3), 10, 250))
    return r, g, b


def _coarse(rng: np.random.Generator, w: int, h: int, cells: int, spread: float) -> Image.Image:
    """Muted colour with smooth spatial variation."""
    grid = np.array(_muted(rng)) + rng.normal(0, spread, (cells, cells, 3))
    image = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return image.resize((w, h), _BICUBIC)


def _studio(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    top, bottom = rng.integers(215, 256), rng.integers(195, 256)
    tint = rng.normal(0, 4, 3)
    column = np.linspace(top, bottom, 16)[:, None, None] + tint
    return Image.fromarray(np.clip(column, 0, 255).astype(np.uint8)).resize((w, h), _BICUBIC)


def _flat(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    return _coarse(rng, w, h, 2, 6)


def _blobs(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    cells = int(rng.integers(3, 8))
    grid = np.array(_muted(rng)) + rng.normal(0, rng.uniform(15, 60), (cells, cells, 3))
    return Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8)).resize((w, h), _BICUBIC)


def _fabric(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    noise = rng.normal(0, rng.uniform(5, 22), (h // 2 + 1, w // 2 + 1, 1))
    array = np.asarray(_coarse(rng, w // 2 + 1, h // 2 + 1, 4, 10)) + noise
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)).resize((w, h), _BICUBIC)


def _wood(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    boards = int(rng.integers(3, 9))
    tone = np.array([150, 104, 62]) * rng.uniform(0.5, 1.45)
    rows = boards * 8
    grid = (
        tone + rng.normal(0, 9, (rows, 6, 1)) + np.repeat(rng.normal(0, 12, (boards, 1, 1)), 8, 0)
    )
    grid[::8] *= 0.6
    image = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8)).resize((w, h), _BICUBIC)
    return (
        image if rng.random() < 0.6 else image.transpose(Image.Transpose.ROTATE_90).resize((w, h))
    )


def _tiles(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    image = _coarse(rng, w, h, 4, 8)
    draw = ImageDraw.Draw(image)
    step, line = max(4, int(max(w, h) / rng.uniform(3, 9))), _muted(rng)
    x0, y0 = rng.integers(0, step, 2)
    for x in range(int(x0), w, step):
        draw.line((x, 0, x, h), fill=line, width=max(1, w // 90))
    for y in range(int(y0), h, step):
        draw.line((0, y, w, y), fill=line, width=max(1, w // 90))
    return image


def _room(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    """Wall above, floor below, with some rectangles like shelves and frames."""
    image = _coarse(rng, w, h, 3, 8)
    horizon = int(h * rng.uniform(0.45, 0.85))
    image.paste(_wood(rng, w, h - horizon + 1), (0, horizon))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        x, y = int(rng.integers(0, w)), int(rng.integers(0, max(1, horizon)))
        draw.rectangle(
            (x, y, x + int(w * rng.uniform(0.05, 0.4)), y + int(h * rng.uniform(0.02, 0.3))),
            fill=_rgb(rng),
        )
    return image


def _busy(rng: np.random.Generator, w: int, h: int) -> Image.Image:
    """Overlapping shapes in many colours, out of focus: a shop or a full shelf."""
    image = _coarse(rng, w, h, 4, 20)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(6, 20))):
        x, y = rng.uniform(-0.1, 1, 2) * (w, h)
        dx, dy = rng.uniform(0.05, 0.35, 2) * (w, h)
        shape = draw.ellipse if rng.random() < 0.4 else draw.rectangle
        shape((float(x), float(y), float(x + dx), float(y + dy)), fill=_rgb(rng))
    return image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.005, 0.03) * max(w, h))))


_STUDIO = (_studio, _flat)
_LIFESTYLE = (_flat, _blobs, _fabric, _wood, _tiles, _room, _busy)


def background(rng: np.random.Generator, width: int, height: int, studio: float) -> Image.Image:
    """RGB background; with probability ``studio`` a plain one, otherwise a lifestyle one."""
    options = _STUDIO if rng.random() < studio else _LIFESTYLE
    return options[int(rng.integers(len(options)))](rng, width, height)


def expose(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Colour cast, brightness, contrast, gamma, vignette; ``strength`` 0 (none) to 1 (strong)."""
    v = np.arange(256, dtype=np.float64) / 255
    gamma = np.exp(rng.normal(0, 0.22) * strength)
    contrast = np.exp(rng.normal(0, 0.18) * strength)
    shift = rng.normal(0, 0.05) * strength
    tables = []
    for cast in np.exp(rng.normal(0, 0.08, 3) * strength):
        tables.append(np.clip((v**gamma - 0.5) * contrast + 0.5 + shift, 0, 1) * cast * 255)
    image = image.point(np.clip(np.concatenate(tables), 0, 255).astype(int).tolist())
    if rng.random() < 0.5 * strength:
        array = np.asarray(image)
        h, w = array.shape[:2]
        cx, cy, depth = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.35)
        x = (np.linspace(-1, 1, w, dtype=np.float32) - np.float32(cx))[None, :]
        y = (np.linspace(-1, 1, h, dtype=np.float32) - np.float32(cy))[:, None]
        array = array * (1 - np.float32(depth * 0.5) * (x * x + y * y)).clip(0.3, 1)[..., None]
        image = Image.fromarray(array.astype(np.uint8))
    return image


def sensor(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blur, sensor noise and JPEG artefacts; ``strength`` 0 (none) to 1 (strong)."""
    if rng.random() < 0.6 * strength:
        radius = rng.uniform(0, 0.009) * max(image.size)
        image = image.filter(ImageFilter.GaussianBlur(float(radius)))
    if rng.random() < 0.7 * strength:
        sigma = np.float32(rng.uniform(0, 11))
        noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32)
        noisy = noise * sigma + np.asarray(image)
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.6 * strength:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(35, 92)))
        with Image.open(buffer) as stored:
            image = stored.convert("RGB")
    return image
