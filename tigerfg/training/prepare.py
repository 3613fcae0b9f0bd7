"""Make training pools: the builder that letterboxes pictures, and pools of rendered products."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from tigerfg.benchmark.render import (
    Distractors,
    Product,
    make_products,
    render_cutout,
    render_item,
    render_query,
)
from tigerfg.benchmark.workers import Workers, check_stop
from tigerfg.catalog import Item
from tigerfg.errors import InputError
from tigerfg.images import letterbox
from tigerfg.training.pool import ARRAYS, Pool
from tigerfg.training.texts import anchor_words, text_variants

CHUNK = 200  # products that are rendered together
_PICTURES = ("crops", "scenes")
POSES = 4  # in cluttered pictures of a chunk a product has as many cut-outs, used again


Arrays = dict[str, np.ndarray]  # those of a Pool but for `twins`


class PoolBuilder:
    """Collects letterboxed pictures for a Pool.

    Args:
        query_size, item_size: side of the stored crops and item pictures in pixels.
    """

    def __init__(self, query_size: int, item_size: int) -> None:
        self.query_size, self.item_size = query_size, item_size
        self._rows: dict[str, list] = {name: [] for name in ARRAYS if name != "twins"}

    def crop(self, product: int, image: Image.Image) -> None:
        """Add a query-side picture of a product."""
        pixels, extent = letterbox(image, self.query_size, "bilinear")
        self._rows["crops"].append(pixels)
        self._rows["crop_extents"].append(extent)
        self._rows["crop_products"].append(product)

    def scene(
        self,
        product: int,
        image: Image.Image,
        box: Sequence[float] | None,
        other: tuple[int, Sequence[float]] | None = None,
        *,
        cluttered: bool,
    ) -> None:
        """Add an item picture.

        Args:
            box: the target's, checked, in pixels of `image`; None if unknown.
            other: number (-1 if it is not of the pool) and box of another product.
            cluttered: whether there are, or may be, other products.
        """
        pixels, extent = letterbox(image, self.item_size, "bilinear")
        scale = np.array(extent * 2) / (image.size * 2)
        self._rows["scenes"].append(pixels)
        self._rows["scene_extents"].append(extent)
        self._rows["scene_products"].append(product)
        self._rows["scene_boxes"].append(np.asarray(box or (0, 0, 0, 0)) * scale)
        number, other_box = other or (-1, (0, 0, 0, 0))
        self._rows["other_boxes"].append(np.asarray(other_box) * scale)
        self._rows["other_products"].append(number)
        self._rows["cluttered"].append(cluttered)

    @property
    def pictures(self) -> int:
        """How many are there."""
        return len(self._rows["crops"]) + len(self._rows["scenes"])

    def arrays(self) -> Arrays:
        """What was added, as the arrays of a Pool but for `twins`; the builder is empty then."""
        rows, q, s = self._rows, self.query_size, self.item_size
        self._rows = {name: [] for name in rows}
        return {
            "crops": np.asarray(rows["crops"], np.uint8).reshape(-1, q, q, 3),
            "crop_extents": np.asarray(rows["crop_extents"], np.float32).reshape(-1, 2),
            "crop_products": np.asarray(rows["crop_products"], np.int32),
            "scenes": np.asarray(rows["scenes"], np.uint8).reshape(-1, s, s, 3),
            "scene_extents": np.asarray(rows["scene_extents"], np.float32).reshape(-1, 2),
            "scene_products": np.asarray(rows["scene_products"], np.int32),
            "scene_boxes": np.asarray(rows["scene_boxes"], np.float32).reshape(-1, 4),
            "other_boxes": np.asarray(rows["other_boxes"], np.float32).reshape(-1, 4),
            "other_products": np.asarray(rows["other_products"], np.int32),
            "cluttered": np.asarray(rows["cluttered"], np.bool_),
        }


def make_pool(
    parts: Iterable[Arrays],
    texts: list[list[str]],
    anchors: list[list[str]],
    twins: Sequence[int],
    skipped: Counter[str] | None = None,
    one_view: int = 0,
    scratch: Path | None = None,
) -> Pool:
    """A pool of what builders collected, in their order.

    Args:
        parts: taken one after the other; their pictures, which may be more than fits in memory, go
            to a file each and are mapped from there.
        scratch: the directory of these files, which have no name; None: the system's for temporary
            files.
    """
    columns: dict[str, list[np.ndarray]] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for part in parts:
            for name, values in part.items():
                if name in _PICTURES:
                    if name not in files:
                        files[name] = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
                    files[name].write(values.data)
                    values = values[:0]
                columns.setdefault(name, []).append(values)
        arrays = {name: np.concatenate(column) for name, column in columns.items()}
        for name, file in files.items():
            arrays[name] = _mapped(file, arrays[name].shape[1:])
    return Pool(
        **arrays,
        twins=np.asarray(twins, np.int32),
        texts=texts,
        anchors=anchors,
        skipped=skipped or Counter(),
        one_view=one_view,
    )


def _mapped(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """The pictures of a shape that a file holds; it may be closed then."""
    count = file.tell() // math.prod(shape)
    file.flush()
    if not count:
        return np.empty((0, *shape), np.uint8)
    return np.memmap(file, np.uint8, "r", shape=(count, *shape))


def rendered_pool(
    n: int,
    seed: int,
    query_size: int,
    item_size: int,
    *,
    views: int = 3,
    cluttered: int = 2,
    workers: int = 1,
    chunk: int = CHUNK,
    scratch: Path | None = None,
) -> Pool:
    """Render n products: `views` query crops, one standard and `cluttered` cluttered pictures each.

    Deterministic by seed, whatever the number of workers.

    Args:
        chunk: products that one process renders together; those beside a product in its cluttered
            pictures come from the same chunk.
        scratch: as of `make_pool`.

    Raises:
        InputError: n or views is below 1.
    """
    if n < 1 or views < 1:
        raise InputError(f"products: {n} rendered products of {views} views; give at least 1 each")
    products = _products(n, seed)
    index = {product.product_id: i for i, product in enumerate(products)}
    count = -(-n // chunk)
    chunks = [range(n * k // count, n * (k + 1) // count) for k in range(count)]
    work = partial(
        _render_chunk,
        n=n,
        seed=seed,
        sizes=(query_size, item_size),
        views=views,
        cluttered=cluttered,
    )
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
    anchors = [anchor_words(item) for item in items]
    twins = [index.get(p.twin_of, -1) for p in products]
    with Workers(workers) as processes:
        parts = processes.map(work, chunks, chunk=1)
        return make_pool(parts, texts, anchors, twins, scratch=scratch)


@lru_cache(maxsize=1)
def _products(n: int, seed: int) -> list[Product]:
    """Made once a process: 10,000 take seconds, as long as rendering a chunk."""
    return make_products(n, seed)


def _render_chunk(
    chunk: range, *, n: int, seed: int, sizes: tuple[int, int], views: int, cluttered: int
) -> Arrays:
    products = _products(n, seed)[chunk.start : chunk.stop]
    distractors = Distractors.of(products)
    builder = PoolBuilder(*sizes)
    numbers = {product.product_id: i for i, product in zip(chunk, products, strict=True)}

    @cache
    def posed(product: Product, size: int, pose: int) -> Image.Image:
        return render_cutout(product, size, pose)

    def cutout(product: Product, size: int, view_seed: int) -> Image.Image:
        return posed(product, size, view_seed % POSES)

    for k, i in enumerate(chunk):
        check_stop()
        rng = np.random.default_rng((seed, 4, i))
        for _ in range(views):
            view = int(rng.integers(1 << 31))
            builder.crop(i, render_query(products[k], view, sizes[0]))
        view = int(rng.integers(1 << 31))
        scene = render_item(products[k], "standard", [], view, sizes[1])
        builder.scene(i, scene.image, scene.target_box, cluttered=False)
        for _ in range(cluttered):
            others = [products[j] for j in distractors.choose(k, rng)]
            view = int(rng.integers(1 << 31))
            scene = render_item(products[k], "cluttered", others, view, sizes[1], cutout)
            rest = [(numbers[product_id], box) for product_id, box in scene.objects[1:]]
            other = rest[int(rng.integers(len(rest)))] if rest else None
            builder.scene(i, scene.image, scene.target_box, other, cluttered=True)
    return builder.arrays()
