"""Amazon Berkeley Objects (ABO): 147,702 listings in many languages, 398,212 catalogue pictures.

Collins et al.: "ABO: Dataset and Benchmarks for Real-World 3D Object Understanding", CVPR 2022.
``abo-listings.tar`` and ``abo-images-small.tar`` (pictures of at most 256 pixels; or
``abo-images-original.tar``) come from amazon-berkeley-objects.s3.amazonaws.com. The licence is
CC BY-NC 4.0 in the first README, CC BY 4.0 in later ones: read the one that you unpack.

Layout, from the README of the release::

    listings/metadata/listings_0.json.gz ... f.json.gz    one JSON object a line
    images/metadata/images.csv.gz     image_id,height,width,path
    images/small/14/14fe8812.jpg ...  or images/original/

A listing has ``item_id``, ``domain_name``, ``main_image_id``, ``other_image_id`` (a list), and text
fields (``item_name``, ``brand``, ``bullet_point``, ...) as lists of {"language_tag", "value"}. Also
read: the same files unpacked (without .gz).

Protocol: ours, there is no standard one for this task (the paper's multi-view retrieval renders 3D
models). A product's main picture with its text is the item; every other picture is a query, for
the products that show it. Listings of one item_id in several marketplaces are one item, with the
text of the first English listing, else of the first. Products with the same main picture cannot be
told apart by it, so all of them are right; a picture that is some product's main picture is no
query.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerfg.benchmark.datasets.source import EvalSet, Source
from tigerfg.errors import InputError
from tigerfg.records import Item, Query
from tigerfg.rows import parse_object

SPLITS = ("all",)
ATTRIBUTES = ("brand", "color", "material", "fabric_type", "finish_type", "pattern", "style")
DOWNLOAD = (
    "unpack abo-listings.tar and abo-images-small.tar of Amazon Berkeley Objects "
    "(amazon-berkeley-objects.s3.amazonaws.com) here"
)
IMAGES = ("images/metadata/images.csv.gz", "images/metadata/images.csv")


@dataclass
class _Product:
    """What the listings of one item_id say, and where the first of them stands."""

    file: Path
    line: int
    main: str
    others: dict[str, None]  # a set that keeps its order
    english: bool
    text: dict[str, Any]


def read(directory: Path, split: str) -> EvalSet:
    """Main pictures with text as items, the other pictures as queries."""
    source = Source(directory, IMAGES, ("", "abo"), DOWNLOAD)
    paths = _image_paths(source)
    products = _products(source)
    items: list[Item] = []
    for item_id, product in products.items():
        with source.row(product.file, product.line, item_id):
            image = _picture(source, product.main, paths)
            item = Item(item_id, image, extra={"main_image_id": product.main}, **product.text)
            source.check(item)
            items.append(item)
    queries = _queries(source, items, products, paths)
    foreign = sum(not products[item.item_id].english for item in items)
    source.notes += [
        "no standard protocol: main pictures with text are items, other pictures are queries",
        f"{foreign} of {len(items)} items have no English text",
    ]
    return source.evaluation_set(
        "abo", split, items, queries, "products that show the picture, or share such a one's main"
    )


def _image_paths(source: Source) -> dict[str, str]:
    """Path below images/small by image id."""
    file = source.file(*IMAGES)
    rows = source.csv(file, ("image_id", "path"))
    return {row["image_id"]: row["path"] for _, row in rows}


def _picture(source: Source, image_id: str, paths: Mapping[str, str]) -> str:
    if image_id not in paths:
        raise InputError(f"image_id {image_id!r} is not in images.csv")
    return source.picture(paths[image_id], "images/small", "images/original")


def _products(source: Source) -> dict[str, _Product]:
    """The listings of all files, one entry an item_id."""
    folder = source.directory / "listings" / "metadata"
    files = sorted(folder.glob("listings_*.json.gz")) or sorted(folder.glob("listings_*.json"))
    if not files:
        raise InputError(f"{folder}: no listings_*.json.gz there: {source.download}")
    products: dict[str, _Product] = {}
    for file in files:
        for line, text in source.lines(file):
            with source.row(file, line):
                _add(products, _listing(text), file, line)
    return products


def _listing(text: str) -> dict[str, Any]:
    listing = parse_object(text)
    if isinstance(listing, str):
        raise InputError(listing)
    for key in ("item_id", "main_image_id"):
        if not isinstance(listing.get(key), str) or not listing[key]:
            raise InputError(f"{key} is missing: the listing has no picture or no id")
    others = listing.get("other_image_id") or []
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise InputError("other_image_id is not a list of ids")
    return listing


def _add(products: dict[str, _Product], listing: dict[str, Any], file: Path, line: int) -> None:
    item_id, main = listing["item_id"], listing["main_image_id"]
    others = dict.fromkeys(listing.get("other_image_id") or [])
    english, text = _text(listing)
    known = products.setdefault(item_id, _Product(file, line, main, others, english, text))
    known.others |= others
    if main != known.main:
        known.others[main] = None
    if english and not known.english:
        known.english, known.text = True, text


def _text(listing: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether the name is English, and the text as keyword arguments of an item."""
    english, names = _values(listing.get("item_name"))
    attributes = {}
    for key in ATTRIBUTES:
        values = _values(listing.get(key))[1]
        if values:
            attributes[key] = values[0] if len(values) == 1 else values
    kind = _values(listing.get("product_type"))[1]
    bullets = _values(listing.get("bullet_point"))[1]
    return english, {
        "title": names[0] if names else "",
        "category": kind[0].replace("_", " ").lower() if kind else "",
        "attributes": attributes,
        "description": " ".join(bullets or _values(listing.get("product_description"))[1]),
    }


def _values(entries: Any) -> tuple[bool, list[str]]:
    """The values of a field in English, else in its first language, without repeats; whether they
    are English. What has no such form gives no value."""
    by_language: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("value"), str):
            language = str(entry.get("language_tag") or "").partition("_")[0]
            by_language[language][" ".join(entry["value"].split())] = None
    if not by_language:
        return False, []
    language = "en" if "en" in by_language else next(iter(by_language))
    return language == "en", list(by_language[language])


def _queries(
    source: Source, items: list[Item], products: Mapping[str, _Product], paths: Mapping[str, str]
) -> list[Query]:
    """One query a picture that is no item's main picture."""
    with_main: defaultdict[str, list[str]] = defaultdict(list)
    showing: defaultdict[str, list[_Product]] = defaultdict(list)
    for item in items:
        product = products[item.item_id]
        with_main[product.main].append(item.item_id)
        for other in product.others:
            showing[other].append(product)
    queries: list[Query] = []
    mains = 0
    for image_id, shown_by in showing.items():
        if image_id in with_main:
            mains += 1
            continue
        first = shown_by[0]
        with source.row(first.file, first.line, image_id):
            right = dict.fromkeys(
                item_id for product in shown_by for item_id in with_main[product.main]
            )
            query = Query(image_id, _picture(source, image_id, paths), item_ids=tuple(right))
            source.check(query)
            queries.append(query)
    source.notes.append(f"{mains} other pictures are some product's main picture and no queries")
    return queries
