"""Make training pools: rendered products, and real photos of a catalogue directory."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tigerfg.benchmark.render import compose_scene, make_products, render_item, render_query
from tigerfg.catalog import Item, read_items, read_queries
from tigerfg.errors import InputError
from tigerfg.images import check_box, letterbox, load_image
from tigerfg.training.pool import ARRAYS, Pool
from tigerfg.training.texts import anchor_words, text_variants

TWIN_WINDOW = 400


@dataclasses.dataclass
class _Builder:
    """Collects pictures for a Pool."""

    query_size: int
    item_size: int
    rows: dict[str, list[Any]] = dataclasses.field(
        default_factory=lambda: {name: [] for name in ARRAYS}
    )

    def crop(self, product: int, image: Image.Image) -> None:
        pixels, extent = letterbox(image, self.query_size, "bilinear")
        self.rows["crops"].append(pixels)
        self.rows["crop_extents"].append(extent)
        self.rows["crop_products"].append(product)

    def scene(
        self, product: int, image: Image.Image, box: Sequence[float], other: Sequence[float] | None
    ) -> None:
        pixels, extent = letterbox(image, self.item_size, "bilinear")
        scale = self.item_size / max(image.size)
        self.rows["scenes"].append(pixels)
        self.rows["scene_extents"].append(extent)
        self.rows["scene_products"].append(product)
        self.rows["scene_boxes"].append(np.asarray(box) * scale)
        self.rows["other_boxes"].append(np.asarray(other if other else (0, 0, 0, 0)) * scale)

    def pool(self, texts: list[list[str]], anchors: list[list[str]], twins: Sequence[int]) -> Pool:
        rows, q, s = self.rows, self.query_size, self.item_size
        return Pool(
            crops=np.asarray(rows["crops"], np.uint8).reshape(-1, q, q, 3),
            crop_extents=np.asarray(rows["crop_extents"], np.float32).reshape(-1, 2),
            crop_products=np.asarray(rows["crop_products"], np.int32),
            scenes=np.asarray(rows["scenes"], np.uint8).reshape(-1, s, s, 3),
            scene_extents=np.asarray(rows["scene_extents"], np.float32).reshape(-1, 2),
            scene_products=np.asarray(rows["scene_products"], np.int32),
            scene_boxes=np.asarray(rows["scene_boxes"], np.float32).reshape(-1, 4),
            other_boxes=np.asarray(rows["other_boxes"], np.float32).reshape(-1, 4),
            twins=np.asarray(twins, np.int32),
            texts=texts,
            anchors=anchors,
        )


def rendered_pool(
    n: int,
    seed: int,
    query_size: int,
    item_size: int,
    *,
    views: int = 3,
    cluttered: int = 2,
    workers: int = 1,
) -> Pool:
    """Render n products: `views` query crops, one standard and `cluttered` cluttered pictures each.

    Deterministic by seed, whatever the number of workers.
    """
    products = make_products(n, seed)
    index = {product.product_id: i for i, product in enumerate(products)}
    chunks = [range(start, min(start + 200, n)) for start in range(0, n, 200)]
    work = partial(
        _render_chunk,
        n=n,
        seed=seed,
        sizes=(query_size, item_size),
        views=views,
        cluttered=cluttered,
    )
    builder = _Builder(query_size, item_size)
    # Spawned, not forked: the caller may already have started torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) if workers > 1 else nullcontext() as pool:
        for rows in (pool.map if pool else map)(work, chunks):
            for name, values in rows.items():
                builder.rows[name].extend(values)
    rng = np.random.default_rng((seed, 3))
    items = [
        Item(
            item_id=product.product_id,
            image="",
            title=product.title,
            category=product.category,
            attributes=product.attributes,
            description=product.description,
        )
        for product in products
    ]
    texts = [text_variants(item, rng) for item in items]
    twins = [index.get(p.twin_of, -1) for p in products]
    return builder.pool(texts, [anchor_words(item) for item in items], twins)


def _render_chunk(
    chunk: range, *, n: int, seed: int, sizes: tuple[int, int], views: int, cluttered: int
) -> dict[str, list[Any]]:
    products = make_products(n, seed)
    builder = _Builder(*sizes)
    for i in chunk:
        rng = np.random.default_rng((seed, 4, i))
        for _ in range(views):
            view = int(rng.integers(1 << 31))
            builder.crop(i, render_query(products[i], view, sizes[0]))
        for layout in ["standard"] + ["cluttered"] * cluttered:
            others = _others(products, i, rng) if layout == "cluttered" else []
            view = int(rng.integers(1 << 31))
            scene = render_item(products[i], layout, others, view, sizes[1])
            rest = [box for _, box in scene.objects[1:]]
            other = rest[int(rng.integers(len(rest)))] if rest else None
            builder.scene(i, scene.image, scene.target_box, other)
    return builder.rows


def _others(products: list[Any], i: int, rng: np.random.Generator) -> list[Any]:
    """2-5 distractors: a near-twin or a product of the same category for four in ten."""
    near = [
        j
        for j in range(max(0, i - TWIN_WINDOW), min(len(products), i + TWIN_WINDOW))
        if j != i
        and (
            products[j].category == products[i].category
            or products[j].twin_of == products[i].product_id
        )
    ]
    count = int(rng.integers(2, 6))
    chosen: list[int] = []
    while len(chosen) < min(count, len(products) - 1):
        similar = near and rng.random() < 0.4
        j = int(rng.choice(near)) if similar else int(rng.integers(len(products)))
        if j != i and j not in chosen:
            chosen.append(j)
        elif similar:
            near = [k for k in near if k != j]
    return [products[j] for j in chosen]


def photo_pool(
    directory: str | Path,
    split: str,
    query_size: int,
    item_size: int,
    *,
    seed: int = 0,
    crops_per_photo: int = 5,
    collages: int = 3000,
) -> Pool:
    """Real photos as training pictures.

    Args:
        directory: holds standard/ and cluttered/ with items.jsonl and queries.jsonl, like
            a `tigerfg render --layout both` directory.
        split: only rows whose `split` field is this.
        crops_per_photo: random resized crops kept of every query photo and every item photo.
        collages: pictures composed of 3-6 of the photos' cut-outs, beside those of cluttered/.
    """
    directory = Path(directory)
    rng = np.random.default_rng((seed, 5))
    items = list(_split_items(directory / "standard", split))
    queries = [q for q in read_queries(directory / "standard") if q.extra.get("split") == split]
    if not items or not queries:
        raise InputError(f"split: {directory} has no items and queries of split {split!r}")
    names = sorted({str(item.extra["product_id"]) for item in items})
    index = {name: i for i, name in enumerate(names)}
    builder = _Builder(query_size, item_size)
    photos: list[tuple[int, Image.Image]] = []
    sprites: list[tuple[int, Image.Image]] = []
    for query in queries:
        photos.append((index[str(query.extra["product_id"])], load_image(query.image)))
    for item in items:
        product, image = index[str(item.extra["product_id"])], load_image(item.image)
        if item.target_box is None:
            photos.append((product, image))
        else:
            sprites.append((product, _cut_out(image, item.target_box)))
            builder.scene(product, image, check_box(item.target_box, image.size), None)
            for _ in range(crops_per_photo):
                builder.crop(product, _random_crop(image.crop(item.target_box), rng, 0.6))
    for product, image in photos:
        builder.scene(product, image, (0, 0, *image.size), None)
        for _ in range(crops_per_photo):
            builder.crop(product, _random_crop(image, rng, 0.35))
    _add_cluttered(builder, directory, split, index)
    _add_collages(builder, photos, sprites, collages, rng, item_size)
    texts: list[list[str]] = [[] for _ in names]
    anchors: list[list[str]] = [[] for _ in names]
    for item in items:
        product = index[str(item.extra["product_id"])]
        if not texts[product]:
            texts[product], anchors[product] = text_variants(item, rng), anchor_words(item)
    return builder.pool(texts, anchors, [-1] * len(names))


def _add_cluttered(builder: _Builder, directory: Path, split: str, index: dict[str, int]) -> None:
    for item in _split_items(directory / "cluttered", split):
        image = load_image(item.image)
        rest = [o["box"] for o in item.extra.get("objects", [])[1:]]
        box = check_box(item.target_box, image.size)
        builder.scene(index[str(item.extra["product_id"])], image, box, rest[0] if rest else None)


def _split_items(directory: Path, split: str) -> Iterable[Item]:
    return (item for item in read_items(directory) if item.extra.get("split") == split)


def _add_collages(
    builder: _Builder,
    photos: list[tuple[int, Image.Image]],
    sprites: list[tuple[int, Image.Image]],
    count: int,
    rng: np.random.Generator,
    size: int,
) -> None:
    for _ in range(count):
        chosen: list[tuple[int, Image.Image]] = []
        wanted = int(rng.integers(3, 7))
        while len(chosen) < wanted:
            if sprites and rng.random() < 0.35:
                product, sprite = sprites[int(rng.integers(len(sprites)))]
            else:
                product, photo = photos[int(rng.integers(len(photos)))]
                sprite = _random_crop(photo, rng, 0.5).convert("RGBA")
            if all(product != other for other, _ in chosen):
                chosen.append((product, sprite))
        image, boxes = compose_scene([sprite for _, sprite in chosen], rng, size, "cluttered")
        builder.scene(chosen[0][0], image, boxes[0], boxes[int(rng.integers(1, len(boxes)))])


def _random_crop(image: Image.Image, rng: np.random.Generator, smallest: float) -> Image.Image:
    """Crop `smallest`..1 of the area with aspect 3/4..4/3, mirrored half of the time."""
    width, height = image.size
    area = float(rng.uniform(smallest, 1.0)) * width * height
    aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    w = int(np.clip(round((area * aspect) ** 0.5), 8, width)) if width > 8 else width
    h = int(np.clip(round((area / aspect) ** 0.5), 8, height)) if height > 8 else height
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    crop = image.crop((x, y, x + w, y + h))
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


def _cut_out(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The product of a packshot as RGBA: its box, near-white made transparent."""
    crop = image.crop(tuple(int(v) for v in box)).convert("RGBA")
    pixels = np.array(crop)
    pixels[..., 3] = np.where(pixels[..., :3].min(axis=-1) > 244, 0, 255)
    return Image.fromarray(pixels, "RGBA")
