"""Training pools of real photos: any catalogue directory, its bad records named and left out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tigerfg.benchmark.render import Distractors, compose_scene
from tigerfg.catalog import picture_files, record_file
from tigerfg.errors import InputError
from tigerfg.files import sha256_file
from tigerfg.images import load_image
from tigerfg.training.left_out import NAMED
from tigerfg.training.photo_reader import NO_PICTURE, Photo, PhotoReader, Product, layouts
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import Arrays, PoolBuilder, make_pool
from tigerfg.training.texts import anchor_words, text_variants

log = logging.getLogger("tigerfg")

_WHOLE, _TIGHT = 0.35, 0.6  # least share of a photo, and of a target box, in a random crop
_SPRITE = 0.35  # probability that a collage shows a cut-out where there is a photo as well
_PART = 1000  # pictures that are held in memory while a pool is made


def photo_pool(
    directory: str | Path,
    split: str,
    query_size: int,
    item_size: int,
    *,
    seed: int = 0,
    crops_per_photo: int = 5,
    collages: int = 3000,
    scratch: Path | None = None,
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
        scratch: as of `make_pool`, which the pictures go through: they are not held in memory.

    Raises:
        InputError: nothing can be used.
    """
    reader = PhotoReader(Path(directory), split, max(2 * query_size, item_size))
    kept = []
    for product in reader.products():
        if product.views or any(photo.target for photo in product.photos):
            kept.append(product)
        else:
            reader.skip(f"product {product.name!r}", NO_PICTURE)
    for reason, count in sorted(reader.skipped.items()):
        more = f", {count - NAMED} more than named" if count > NAMED else ""
        log.warning("%s: %d × %s%s", directory, count, reason, more)
    one_view = sum(len(product.views) == 1 for product in kept)
    if one_view:
        log.info("%s: %d × product with one view: its pairs are crops of that", directory, one_view)
    if not kept:
        raise InputError(f"photos: {directory} has no usable product of split {split!r}")
    rng = np.random.default_rng((seed, 5))
    texts = [text_variants(product.item, rng) for product in kept]
    anchors = [anchor_words(product.item) for product in kept]
    builder = PoolBuilder(query_size, item_size)
    parts = _parts(builder, kept, crops_per_photo, collages, rng)
    twins = near_twins([product.item.category for product in kept], [own[0] for own in texts])
    return make_pool(parts, texts, anchors, twins, reader.skipped, one_view, scratch)


def near_twins(kinds: Sequence[str | None], texts: Sequence[str]) -> list[int]:
    """For every product another one of its kind, which it often shares a batch with, or -1.

    Args:
        kinds: categories; where there is none, there is no twin.
        texts: a product's twin has another text: by what should one tell them apart else?
    """
    alike: dict[str, dict[str, list[int]]] = {}
    for number in sorted(range(len(kinds)), key=lambda number: texts[number]):
        if kinds[number]:
            alike.setdefault(kinds[number], {}).setdefault(texts[number], []).append(number)
    twins = [-1] * len(kinds)
    for group in alike.values():
        told = list(group.values())
        for place, numbers in enumerate(told if len(told) > 1 else ()):
            others = told[(place + (len(told) + 1) // 2) % len(told)]
            for count, number in enumerate(numbers):
                twins[number] = others[count % len(others)]
    return twins


def photos_digest(directory: Path) -> str:
    """Short digest of what `photo_pool` reads: the records' files in full, and the names and sizes
    of their pictures. A directory keeps it when it is moved or copied with its pictures.

    Raises:
        InputError: there is nothing to read.
    """
    digest = hashlib.sha256()
    for layout, folder in layouts(directory).items():
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


def _parts(
    builder: PoolBuilder,
    products: list[Product],
    crops_per_photo: int,
    collages: int,
    rng: np.random.Generator,
) -> Iterator[Arrays]:
    """The pictures of the products, and collages of them."""
    numbers = {product.name: number for number, product in enumerate(products)}
    for number, product in enumerate(products):
        views = product.views
        for photo in product.photos:
            if builder.pictures >= _PART:
                yield builder.arrays()
            image = photo.load()
            box = photo.target
            if box is None and not photo.cluttered:
                box = (0.0, 0.0, *map(float, image.size))
            other = photo.other and (numbers.get(photo.other[0], -1), photo.other[1])
            builder.scene(number, image, box, other, cluttered=photo.cluttered)
            if photo.kind == "scene" and (views or photo.target is None):
                continue
            smallest = _WHOLE if photo.target is None else _TIGHT
            cropped = load_image(image, photo.target)
            for _ in range(crops_per_photo):
                builder.crop(number, _random_crop(cropped, rng, smallest))
    shown = [number for number, product in enumerate(products) if product.views]
    if len(shown) > 1:
        kinds = [products[number].item.category for number in shown]
        distractors = Distractors(kinds, [-1] * len(shown))
        for _ in range(collages):
            target = int(rng.integers(len(shown)))
            chosen = [shown[k] for k in (target, *distractors.choose(target, rng))]
            if builder.pictures >= _PART:
                yield builder.arrays()
            _add_collage(builder, {number: products[number] for number in chosen}, rng)
    yield builder.arrays()


def _add_collage(
    builder: PoolBuilder, products: dict[int, Product], rng: np.random.Generator
) -> None:
    """A picture of the first product and the others, by number; none if it cannot be cut out."""
    sprites = {number: _sprite(product, rng) for number, product in products.items()}
    target = next(iter(products))
    shown = [number for number, sprite in sprites.items() if sprite is not None]
    if sprites[target] is None or len(shown) < 2:
        return
    image, boxes = compose_scene(
        [sprites[number] for number in shown], rng, builder.item_size, "cluttered"
    )
    other = int(rng.integers(1, len(boxes)))
    builder.scene(target, image, boxes[0], (shown[other], boxes[other]), cluttered=True)


def _sprite(product: Product, rng: np.random.Generator) -> Image.Image | None:
    """A cut-out of the product, or a random crop of a photo; None if there is neither."""
    packshots = [photo for photo in product.views if photo.kind == "item"]
    photos = [photo for photo in product.views if photo.target is None]
    if packshots and (not photos or rng.random() < _SPRITE):
        with suppress(InputError):  # nothing to see, or no way to tell it from its background
            return _one_of(packshots, rng).cut_out()
    if not photos:
        return None
    return _random_crop(_one_of(photos, rng).load(), rng, 0.5).convert("RGBA")


def _one_of(photos: list[Photo], rng: np.random.Generator) -> Photo:
    return photos[int(rng.integers(len(photos)))]


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
