"""Reads what training needs of a catalogue directory; names and counts what cannot be used."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from tigerfg.benchmark.pictures import stored_picture
from tigerfg.benchmark.suite.cutouts import cut_out
from tigerfg.catalog import Item, Query, Rejected, read_items, read_queries, record_file
from tigerfg.decoding import ImageSource
from tigerfg.errors import InputError
from tigerfg.images import check_box, load_image
from tigerfg.text import item_text
from tigerfg.training.left_out import name_left_out

Box = tuple[float, float, float, float]
Other = tuple[str, Box]  # the name of a product, and where it is

# Why something was left out: the keys of `Pool.skipped`.
BAD_RECORD = "record that cannot be read"
BAD_BOX = "box with NaN, without area, or outside its picture"
TURNED_BOX = "box in a picture that EXIF turns"
MISSING = "missing picture file"
BAD_PICTURE = "picture that cannot be decoded"
NO_TEXT = "item without text"
STRAY_QUERY = "query of no known item"
NO_PICTURE = "product without a usable picture"


@dataclass(frozen=True)
class Photo:
    """A picture that was decoded once, and can be again: thousands are not kept in memory.

    Attributes:
        kind: "item" shows, as far as is known, one product; "scene" several; "query" is a photo of
            the product, or the part of one that shows it.
        source: where it is. side: px of the longer side once loaded.
        stored_box: of a query what of the picture is shown, else where the product is, in pixels as
            stored; None: all, or unknown.
        target: where the product is in pixels as loaded; None: unknown.
        other: another product of the picture. cluttered: whether there may be others.
    """

    kind: Literal["item", "query", "scene"]
    source: ImageSource
    side: int
    stored_box: Box | None
    target: Box | None
    other: Other | None
    cluttered: bool

    def load(self) -> Image.Image:
        """The picture upright, RGB; of a query what is shown."""
        box = self.stored_box if self.kind == "query" else None
        return load_image(self.source, box, target_size=self.side)

    def cut_out(self) -> Image.Image:
        """The product as RGBA. InputError if it cannot be told from its background."""
        item = Item("", self.source, target_box=self.stored_box)
        return cut_out(item, self.side)


@dataclass
class Product:
    """What was found of one product.

    Attributes:
        name: what tells it from others. item: the first usable record of it.
    """

    name: str
    item: Item
    photos: list[Photo] = field(default_factory=list)

    @property
    def views(self) -> list[Photo]:
        """Those that show it alone, as far as is known."""
        return [photo for photo in self.photos if photo.kind != "scene"]


def layouts(directory: Path) -> dict[str, Path]:
    """Layout -> its catalogue directory; "" where the directory itself is one."""
    parts = {layout: directory / layout for layout in ("standard", "cluttered")}
    return {layout: path for layout, path in parts.items() if path.is_dir()} or {"": directory}


class PhotoReader:
    """Reads the records and pictures of a directory; counts and names what cannot be used."""

    def __init__(self, directory: Path, split: str, longest: int) -> None:
        self.skipped: Counter[str] = Counter()
        self._directory, self._split, self._longest = directory, split, longest
        self._folders = layouts(directory)
        self._products: dict[str, Product] = {}
        self._product_of: dict[str, Product] = {}  # by item id

    def products(self) -> list[Product]:
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
        product = self._products.setdefault(name, Product(name, item))
        self._product_of.setdefault(item.item_id, product)
        cluttered = layout != "standard"
        objects = item.extra.get("objects") if cluttered else None
        kind = "scene" if layout == "cluttered" else "item"
        self._add_photo(product, what, item.image, item.target_box, kind, objects, cluttered)

    def _add_query(self, query: Query) -> None:
        what = f"query_id {query.query_id!r}"
        product = self._products.get(str(query.extra.get("product_id")))
        known = (self._product_of[i] for i in query.item_ids if i in self._product_of)
        product = product or next(known, None)
        if product is None:
            self.skip(what, STRAY_QUERY)
            return
        self._add_photo(product, what, query.image, query.box, "query", None, False)

    def _add_photo(
        self,
        product: Product,
        what: str,
        source: ImageSource,
        box: Box | None,
        kind: Literal["item", "query", "scene"],
        objects: object,
        cluttered: bool,
    ) -> None:
        """Take a picture that can be decoded, with a box that is in it; else it is counted.

        Args:
            objects: what the record says of all products in the picture, the target first.
        """
        stored = stored_picture(source)
        try:
            size = stored.size if stored is not None else (1, 1)
            side = min(self._longest, max(size))
            shown = load_image(source, target_size=side).size
        except InputError:
            gone = isinstance(source, (str, os.PathLike)) and not os.path.exists(source)
            self.skip(what, MISSING if gone else BAD_PICTURE)
            return
        target = None
        if box is not None:
            if stored is None or not stored.upright:
                self.skip(what, TURNED_BOX)
                return
            try:
                box = check_box(box, size)
            except InputError:
                self.skip(what, BAD_BOX)
                return
            if kind == "query":
                side = min(self._longest, math.ceil(max(box[2] - box[0], box[3] - box[1])))
            else:
                target = _scaled(box, size, shown)
        other = _beside(objects, size) if stored is not None and stored.upright else None
        if other is not None:
            other = (other[0], _scaled(other[1], size, shown))
        product.photos.append(Photo(kind, source, side, box, target, other, cluttered))

    def _reject(self, rejected: Rejected) -> None:
        about_box = re.search(r"(^|: )(target_)?box ", rejected.reason)
        self.skip(str(rejected), BAD_BOX if about_box else BAD_RECORD)


def _beside(objects: object, size: tuple[int, int]) -> Other | None:
    """The first product beside the target, if its box is given, in pixels as stored."""
    beside = objects[1] if isinstance(objects, list) and len(objects) > 1 else None
    if not isinstance(beside, dict):
        return None
    try:
        return str(beside.get("product_id")), check_box(beside.get("box"), size)
    except InputError:  # a guide to hard negatives, not needed
        return None


def _scaled(box: Box, size: tuple[int, int], shrunk: tuple[int, int]) -> Box:
    across, down = shrunk[0] / size[0], shrunk[1] / size[1]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down
