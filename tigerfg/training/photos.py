"""Training pools of real photos: any catalogue directory, its bad records named and left out."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tigerfg.benchmark.pictures import stored_picture
from tigerfg.benchmark.render import Distractors, compose_scene
from tigerfg.benchmark.suite.cutouts import cut_out
from tigerfg.catalog import (
    Item,
    Query,
    Rejected,
    picture_files,
    read_items,
    read_queries,
    record_file,
)
from tigerfg.decoding import ImageSource
from tigerfg.errors import InputError
from tigerfg.files import sha256_file
from tigerfg.images import check_box, load_image
from tigerfg.text import item_text
from tigerfg.training.left_out import NAMED, name_left_out
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import PoolBuilder, make_pool
from tigerfg.training.texts import anchor_words, text_variants

log = logging.getLogger("tigerfg")

Box = tuple[float, float, float, float]
_Other = tuple[str, Box]  # the name of a product, and where it is

# Why something was left out: the keys of `Pool.skipped`.
BAD_RECORD = "record that cannot be read"
BAD_BOX = "box with NaN, without area, or outside its picture"
TURNED_BOX = "box in a picture that EXIF turns"
MISSING = "missing picture file"
BAD_PICTURE = "picture that cannot be decoded"
NO_TEXT = "item without text"
STRAY_QUERY = "query of no known item"
NO_PICTURE = "product without a usable picture"

_WHOLE, _TIGHT = 0.35, 0.6  # least share of a photo, and of a target box, in a random crop
_SPRITE = 0.35  # probability that a collage shows a cut-out where there is one


@dataclass
class _Product:
    """What was found of one product, pictures shrunk to what the pool needs.

    Attributes:
        name: what tells it from others. item: the first usable record of it.
        views: number of pictures taken of it.
        crops: what random crops are taken of, and the least share of the area.
        spare: target boxes of cluttered pictures; crops where there are no better ones.
        photos, sprites: for collages, RGB and cut out (RGBA).
        scenes: item pictures with target box (None: unknown), another product's name and box, and
            whether there may be other products in them.
    """

    name: str
    item: Item
    views: int = 0
    crops: list[tuple[Image.Image, float]] = field(default_factory=list)
    spare: list[tuple[Image.Image, float]] = field(default_factory=list)
    photos: list[Image.Image] = field(default_factory=list)
    sprites: list[Image.Image] = field(default_factory=list)
    scenes: list[tuple[Image.Image, Box | None, _Other | None, bool]] = field(default_factory=list)


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

    A product is a `product_id` of the records or, without that field, an item; a query belongs to
    its `product_id`, or to the product of its first known item of `item_ids`. Photos can be used
    from the first stage on: each gives several strong random crops, which are each other's
    positives. A record that cannot be used is left out and counted in the pool's `skipped`; the log
    names the first of every reason.

    Args:
        directory: a catalogue directory (items.* and perhaps queries.*, see `read_items`), or one
            that holds such directories standard/ (one product a picture) and cluttered/.
            In standard/ a picture without `target_box` is all target; elsewhere the target's place
            is unknown, and the picture is trained on as such (`Scenes.boxed`).
        split: only rows whose `split` field is this, and rows without that field.
        crops_per_photo: random resized crops kept of every photo.
        collages: pictures composed of 3-6 of the photos and cut-outs, the others often of the
            target's category; none where there is only one product.

    Raises:
        InputError: nothing can be used.
    """
    reader = _Reader(Path(directory), split, max(2 * query_size, item_size))
    products = reader.products()
    rng = np.random.default_rng((seed, 5))
    builder = PoolBuilder(query_size, item_size)
    kept = []
    for product in products:
        if product.crops or product.spare:
            kept.append(product)
        else:
            reader.skip(f"product {product.name!r}", NO_PICTURE)
    numbers = {product.name: number for number, product in enumerate(kept)}
    for number, product in enumerate(kept):
        for image, box, beside, cluttered in product.scenes:
            other = beside and (numbers.get(beside[0], -1), beside[1])
            builder.scene(number, image, box, other, cluttered=cluttered)
        for image, smallest in product.crops or product.spare:
            for _ in range(crops_per_photo):
                builder.crop(number, _random_crop(image, rng, smallest))
    for reason, count in sorted(reader.skipped.items()):
        more = f", {count - NAMED} more than named" if count > NAMED else ""
        log.warning("%s: %d × %s%s", directory, count, reason, more)
    one_view = sum(product.views == 1 for product in kept)
    if one_view:
        log.info("%s: %d × product with one view: its pairs are crops of that", directory, one_view)
    if not kept:
        raise InputError(f"photos: {directory} has no usable product of split {split!r}")
    _add_collages(builder, kept, collages, rng)
    texts = [text_variants(product.item, rng) for product in kept]
    anchors = [anchor_words(product.item) for product in kept]
    twins = [-1] * len(kept)
    return make_pool([builder.arrays()], texts, anchors, twins, reader.skipped, one_view)


def photos_digest(directory: Path) -> str:
    """Short digest of what `photo_pool` reads: the records' files in full, and the names and sizes
    of their pictures. A directory keeps it when it is moved or copied with its pictures.

    Raises:
        InputError: there is nothing to read.
    """
    digest = hashlib.sha256()
    for layout, folder in _layouts(directory).items():
        for stem in ("items", "queries"):
            file = record_file(folder, stem)
            if file is not None:
                digest.update(f"{layout} {stem} {sha256_file(file)}\n".encode())
            elif stem == "queries":
                continue  # a folder needs none; that without a file of items is one of pictures
            for picture in picture_files(folder, stem):
                told = f"{os.path.basename(picture)} {_size(picture)}\n"
                digest.update(told.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def _size(file: str) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
        return os.path.getsize(file)
    except (OSError, ValueError):  # the name may be one that no file can have
        return -1


def _layouts(directory: Path) -> dict[str, Path]:
    """Layout -> its catalogue directory; "" where the directory itself is one."""
    parts = {layout: directory / layout for layout in ("standard", "cluttered")}
    return {layout: path for layout, path in parts.items() if path.is_dir()} or {"": directory}


class _Reader:
    """Reads the records and pictures of a directory; counts and names what cannot be used."""

    def __init__(self, directory: Path, split: str, longest: int) -> None:
        self.skipped: Counter[str] = Counter()
        self._directory, self._split, self._longest = directory, split, longest
        self._folders = _layouts(directory)
        self._products: dict[str, _Product] = {}
        self._product_of: dict[str, _Product] = {}  # by item id

    def products(self) -> list[_Product]:
        """Every product that has a usable record, by name."""
        for layout, folder in self._folders.items():
            for item in read_items(folder, self._reject):
                if self._wanted(item):
                    self._add_item(item, layout or item.extra.get("layout"))
        for query in self._queries():
            self._add_query(query)
        return [product for _, product in sorted(self._products.items())]

    def skip(self, what: str, reason: str) -> None:
        """Note that something is left out."""
        self.skipped[reason] += 1
        name_left_out(self._directory, what, reason, self.skipped[reason])

    def _wanted(self, record: Item | Query) -> bool:
        return record.extra.get("split", self._split) == self._split

    def _queries(self) -> Iterator[Query]:
        """Queries of all layouts; the same query may stand beside each of them."""
        seen: set[str] = set()
        for folder in self._folders.values():
            if record_file(folder, "queries") is None:
                continue
            for query in read_queries(folder, self._reject):
                if query.query_id not in seen and self._wanted(query):
                    yield query
                seen.add(query.query_id)

    def _add_item(self, item: Item, layout: object) -> None:
        what = f"item_id {item.item_id!r}"
        if not item_text(item):
            self.skip(what, NO_TEXT)
            return
        name = str(item.extra.get("product_id") or item.item_id)
        product = self._products.setdefault(name, _Product(name, item))
        self._product_of.setdefault(item.item_id, product)
        found = self._picture(what, item.image, item.target_box)
        if found is None:
            return
        image, box = found
        if box is None and layout == "standard":
            box = (0.0, 0.0, *map(float, image.size))
        cluttered = layout != "standard"
        product.scenes.append(
            (image, box, self._other(item, image) if cluttered else None, cluttered)
        )
        if layout == "cluttered":
            if box is not None:
                product.spare.append((_inside(image, box), _TIGHT))
            return
        product.views += 1
        with suppress(InputError):  # nothing to see, or no way to tell it from its background
            product.sprites.append(cut_out(Item(item.item_id, image, target_box=found[1])))
        if found[1] is None:
            product.photos.append(image)
            product.crops.append((image, _WHOLE))
        else:
            product.crops.append((_inside(image, found[1]), _TIGHT))

    def _add_query(self, query: Query) -> None:
        what = f"query_id {query.query_id!r}"
        product = self._products.get(str(query.extra.get("product_id")))
        known = (self._product_of[i] for i in query.item_ids if i in self._product_of)
        product = product or next(known, None)
        if product is None:
            self.skip(what, STRAY_QUERY)
            return
        found = self._picture(what, query.image, query.box)
        if found is None:
            return
        image = found[0] if found[1] is None else _inside(*found)
        product.views += 1
        product.photos.append(image)
        product.crops.append((image, _WHOLE))
        product.scenes.append((image, (0.0, 0.0, *map(float, image.size)), None, False))

    def _picture(
        self, what: str, source: ImageSource, box: Box | None
    ) -> tuple[Image.Image, Box | None] | None:
        """The picture upright, shrunk, and the box in its pixels; None, counted, if that fails."""
        stored = stored_picture(source)
        try:
            size = stored.size if stored is not None else (1, 1)
            image = load_image(source, target_size=min(self._longest, max(size)))
        except InputError:
            gone = isinstance(source, (str, os.PathLike)) and not os.path.exists(source)
            self.skip(what, MISSING if gone else BAD_PICTURE)
            return None
        if box is None:
            return image, None
        if stored is None or not stored.upright:
            self.skip(what, TURNED_BOX)
            return None
        try:
            return image, _scaled(check_box(box, size), size, image.size)
        except InputError:
            self.skip(what, BAD_BOX)
            return None

    def _other(self, item: Item, image: Image.Image) -> _Other | None:
        """Another product of the picture, where the record gives its box."""
        objects = item.extra.get("objects")
        stored = stored_picture(item.image)
        beside = objects[1] if isinstance(objects, list) and len(objects) > 1 else None
        if not isinstance(beside, dict) or stored is None or not stored.upright:
            return None
        try:
            box = check_box(beside.get("box"), stored.size)
        except InputError:  # a guide to hard negatives, not needed
            return None
        return str(beside.get("product_id")), _scaled(box, stored.size, image.size)

    def _reject(self, rejected: Rejected) -> None:
        about_box = re.search(r"(^|: )(target_)?box ", rejected.reason)
        self.skip(str(rejected), BAD_BOX if about_box else BAD_RECORD)


def _add_collages(
    builder: PoolBuilder, products: list[_Product], count: int, rng: np.random.Generator
) -> None:
    numbers = [i for i, product in enumerate(products) if product.photos or product.sprites]
    if len(numbers) < 2:
        return
    distractors = Distractors([products[i].item.category for i in numbers], [-1] * len(numbers))
    for _ in range(count):
        target = int(rng.integers(len(numbers)))
        chosen = [numbers[k] for k in (target, *distractors.choose(target, rng))]
        sprites = [_sprite(products[i], rng) for i in chosen]
        image, boxes = compose_scene(sprites, rng, builder.item_size, "cluttered")
        other = int(rng.integers(1, len(boxes)))
        builder.scene(chosen[0], image, boxes[0], (chosen[other], boxes[other]), cluttered=True)


def _sprite(product: _Product, rng: np.random.Generator) -> Image.Image:
    """A cut-out of the product, or a random crop of a photo."""
    if product.sprites and (not product.photos or rng.random() < _SPRITE):
        return product.sprites[int(rng.integers(len(product.sprites)))]
    photo = product.photos[int(rng.integers(len(product.photos)))]
    return _random_crop(photo, rng, 0.5).convert("RGBA")


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


def _scaled(box: Box, size: tuple[int, int], shrunk: tuple[int, int]) -> Box:
    across, down = shrunk[0] / size[0], shrunk[1] / size[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _inside(image: Image.Image, box: Box) -> Image.Image:
    """The box's pixels, whole ones, at least one."""
    x0, y0, x1, y1 = box
    return image.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
