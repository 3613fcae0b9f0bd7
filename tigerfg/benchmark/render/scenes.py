"""Photos of products: shoppers' crops, studio pictures and cluttered scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .backgrounds import background, expose, sensor
from .cutout import render_cutout
from .products import Product

Box = tuple[int, int, int, int]
Cutout = Callable[[Product, int, int], Image.Image]
LAYOUTS = ("standard", "cluttered")
SHADOWS = 0.6  # share of scenes whose products cast one
MIN_VISIBLE = 0.7  # share of the first sprite's area that others may not cover


@dataclass(frozen=True)
class Scene:
    """An item picture. Boxes are [x0, y0, x1, y1) in pixels; objects include the target."""

    image: Image.Image
    target_box: Box
    objects: list[tuple[str, Box]]


def _frame(rng: np.random.Generator, size: int, stretch: float) -> tuple[int, int]:
    """Width and height with longest side ``size`` and a random aspect up to ``stretch``."""
    short = max(1, round(size / float(np.exp(rng.uniform(0, np.log(stretch))))))
    return (size, short) if rng.random() < 0.5 else (short, size)


def _scaled(sprite: Image.Image, longest: float) -> Image.Image:
    scale = longest / max(sprite.size)
    if abs(scale - 1) < 1e-6:
        return sprite
    w, h = (max(1, round(side * scale)) for side in sprite.size)
    return sprite.resize((w, h), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)


def _clip(x: int, y: int, sprite: Image.Image, w: int, h: int) -> Box:
    return max(0, x), max(0, y), min(w, x + sprite.width), min(h, y + sprite.height)


def _shadow(
    image: Image.Image, sprite: Image.Image, x: int, y: int, rng: np.random.Generator
) -> None:
    """Soft shadow of ``sprite``, which is going to be pasted at (x, y)."""
    radius = 1 + 0.04 * max(sprite.size)
    pad = int(2 * radius)
    dark = Image.new("L", (sprite.width + 2 * pad, sprite.height + 2 * pad))
    depth = float(rng.uniform(0.25, 0.6))
    fainter = (np.arange(256) * depth).astype(int).tolist()
    dark.paste(sprite.getchannel("A").point(fainter), (pad, pad))
    dark = dark.filter(ImageFilter.BoxBlur(radius))
    dx, dy = rng.uniform(-0.06, 0.06), rng.uniform(0.0, 0.07)
    at = (x - pad + int(dx * sprite.width), y - pad + int(dy * sprite.height))
    image.paste((0, 0, 0), at, dark)


def _cover(base: Image.Image, bx: int, by: int, sprite: Image.Image, x: int, y: int) -> Image.Image:
    """Alpha mask ``base``, placed at (bx, by), without what ``sprite`` at (x, y) hides."""
    hidden = Image.new("L", base.size)
    hidden.paste(sprite.getchannel("A"), (x - bx, y - by))
    return ImageChops.multiply(base, ImageChops.invert(hidden))


def _area(mask: Image.Image) -> int:
    """Sum of an alpha mask's values."""
    return int(np.asarray(mask).sum(dtype=np.int64))


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / max(1, min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])))


def compose(
    canvas: Image.Image,
    sprites: Sequence[Image.Image],
    places: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> list[Box]:
    """Paste RGBA ``sprites`` with their top left corners at ``places`` onto RGB ``canvas``.

    The order is random, but at least ``MIN_VISIBLE`` of the first sprite stays uncovered. Returns
    the boxes in sprite order, clipped to the canvas.
    """
    order = [int(i) for i in rng.permutation(len(sprites))]
    first = order.index(0)
    above = order[first + 1 :]
    mask = full = sprites[0].getchannel("A")
    for i in above:
        mask = _cover(mask, *places[0], sprites[i], *places[i])
    if above and _area(mask) < MIN_VISIBLE * _area(full):
        order.append(order.pop(first))
    shade = rng.random() < SHADOWS
    for i in order:
        if shade:
            _shadow(canvas, sprites[i], *places[i], rng)
        canvas.paste(sprites[i], places[i], sprites[i])
    return [_clip(x, y, s, *canvas.size) for s, (x, y) in zip(sprites, places, strict=True)]


def _single(
    sprite: Image.Image, rng: np.random.Generator, w: int, h: int
) -> tuple[list[Image.Image], list[tuple[int, int]]]:
    """One sprite that fills 45-95 % of the picture, fully inside."""
    fill = float(rng.uniform(0.45, 0.95))
    scale = fill * min(w / sprite.width, h / sprite.height)
    sprite = _scaled(sprite, max(sprite.size) * scale)
    x = round((w - sprite.width) * float(rng.beta(4, 4)))
    y = round((h - sprite.height) * float(rng.beta(4, 4)))
    return [sprite], [(x, y)]


def _free(
    sprites: Sequence[Image.Image], rng: np.random.Generator, w: int, h: int
) -> tuple[list[Image.Image], list[tuple[int, int]]]:
    """Free composition: varying scales, moderate overlaps, the first sprite fully inside."""
    size = max(w, h)
    out: list[Image.Image] = []
    places: list[tuple[int, int]] = []
    boxes: list[Box] = []
    for i, sprite in enumerate(sprites):
        share = rng.uniform(0.25, 0.55) if i == 0 else rng.uniform(0.22, 0.6)
        longest = min(share * size, share * size * 0.95 * min(w / size, h / size) / 0.55)
        sprite = _scaled(sprite, max(2.0, longest) if i == 0 else max(2.0, share * size))
        slack = 0.0 if i == 0 else 0.35
        best: tuple[float, int, int] | None = None
        for _ in range(10):
            fx, fy = rng.uniform(-slack, 1 + slack, 2) if i else rng.uniform(0, 1, 2)
            x = min(
                max(round((w - sprite.width) * fx), -sprite.width // 3), w - 2 * sprite.width // 3
            )
            y = min(
                max(round((h - sprite.height) * fy), -sprite.height // 3),
                h - 2 * sprite.height // 3,
            )
            box = _clip(x, y, sprite, w, h)
            crowd = max((_overlap(box, other) for other in boxes), default=0.0)
            if best is None or crowd < best[0]:
                best = (crowd, x, y)
            if best[0] < 0.3:
                break
        assert best is not None
        out.append(sprite)
        places.append(best[1:])
        boxes.append(_clip(*best[1:], sprite, w, h))
    return out, places


def _grid(
    canvas: Image.Image, sprites: Sequence[Image.Image], rng: np.random.Generator
) -> tuple[list[Image.Image], list[tuple[int, int]]]:
    """Collage: one tile per sprite in random order, each tile with its own background."""
    w, h = canvas.size
    cols = 2 if len(sprites) <= 4 else 3
    rows = -(-len(sprites) // cols)
    if h > w:
        cols, rows = rows, cols
    tw, th = w // cols, h // rows
    gap = max(0, round(float(rng.uniform(0, 0.02)) * max(w, h)))
    same = rng.random() < 0.5
    cells = rng.permutation(cols * rows)[: len(sprites)]
    out: list[Image.Image] = []
    places: list[tuple[int, int]] = []
    for sprite, cell in zip(sprites, cells, strict=True):
        x0, y0 = int(cell) % cols * tw, int(cell) // cols * th
        inner = (max(1, tw - 2 * gap), max(1, th - 2 * gap))
        if not same:
            canvas.paste(background(rng, *inner, studio=0.7), (x0 + gap, y0 + gap))
        fill = float(rng.uniform(0.7, 0.96))
        scale = fill * min(inner[0] / sprite.width, inner[1] / sprite.height)
        sprite = _scaled(sprite, max(2.0, max(sprite.size) * scale))
        out.append(sprite)
        places.append((x0 + (tw - sprite.width) // 2, y0 + (th - sprite.height) // 2))
    return out, places


def compose_scene(
    sprites: Sequence[Image.Image], rng: np.random.Generator, size: int, layout: str
) -> tuple[Image.Image, list[Box]]:
    """Picture of tight RGBA ``sprites`` (rendered or cut from photos), the first the target.

    Layout "standard" takes one sprite, "cluttered" one or more: a free scene, or a grid collage for
    three and more. Returns the RGB picture, longest side ``size``, and the boxes in sprite order.
    Sprites are scaled as the layout needs; about half of ``size`` is a good resolution for clutter.
    """
    if layout not in LAYOUTS or not sprites or (layout == "standard" and len(sprites) != 1):
        raise ValueError(
            f"compose_scene: layout must be one of {LAYOUTS} with at least one sprite (exactly one "
            f"for standard), got {layout!r} with {len(sprites)}"
        )
    w, h = _frame(rng, size, 1.4)
    if layout == "standard":
        canvas = background(rng, w, h, studio=0.65)
        placed, places = _single(sprites[0], rng, w, h)
    elif len(sprites) >= 3 and rng.random() < 0.35:
        canvas = background(rng, w, h, studio=0.8)
        placed, places = _grid(canvas, sprites, rng)
    else:
        canvas = background(rng, w, h, studio=0.1)
        placed, places = _free(sprites, rng, w, h)
    boxes = compose(canvas, placed, places, rng)
    return sensor(expose(canvas, rng, 0.4), rng, 0.3), boxes


def render_item(
    product: Product,
    layout: str,
    others: Sequence[Product],
    view_seed: int,
    size: int,
    cutout: Cutout | None = None,
) -> Scene:
    """Item picture of ``product``; ``others`` appear beside it in the cluttered layout.

    ``cutout(product, size, view_seed)`` supplies the RGBA sprites (default: ``render_cutout``), so
    that a training loop can pass a cache.
    """
    cutout = cutout or render_cutout
    rng = np.random.default_rng((view_seed, 0x17E4))
    shown = [product, *(others if layout == "cluttered" else ())]
    longest = size if layout == "standard" else max(1, size // 2)
    seeds = rng.integers(2**31, size=len(shown))
    sprites = [cutout(p, longest, int(seed)) for p, seed in zip(shown, seeds, strict=True)]
    image, boxes = compose_scene(sprites, rng, size, layout)
    objects = [(p.product_id, box) for p, box in zip(shown, boxes, strict=True)]
    return Scene(image, boxes[0], objects)


def compose_query(sprite: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """A shopper's crop of a tight RGBA ``sprite``: RGB, longest side ``size``.

    The product fills 60-100 % of the frame and may be cut off slightly at the border.
    """
    aspect = sprite.width / sprite.height * float(np.exp(rng.uniform(-0.25, 0.25)))
    w, h = (
        (size, max(1, round(size / aspect))) if aspect > 1 else (max(1, round(size * aspect)), size)
    )
    w, h = max(w, size // 4, 1), max(h, size // 4, 1)
    fill = float(rng.uniform(0.6, 1.08))
    sprite = _scaled(sprite, max(sprite.size) * fill * min(w / sprite.width, h / sprite.height))
    canvas = background(rng, w, h, studio=0.25)
    x, y = (
        round((a - b) * float(rng.uniform(0.1, 0.9)))
        for a, b in ((w, sprite.width), (h, sprite.height))
    )
    compose(canvas, [sprite], [(x, y)], rng)
    return sensor(expose(canvas, rng, 1.0), rng, 1.0)


def render_query(product: Product, view_seed: int, size: int) -> Image.Image:
    """A shopper's cropped photo of ``product``: RGB, longest side ``size`` px."""
    rng = np.random.default_rng((view_seed, 0x9E4))
    return compose_query(render_cutout(product, size, int(rng.integers(2**31))), rng, size)
