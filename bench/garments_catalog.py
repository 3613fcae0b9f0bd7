"""The catalogue of clothes that `lite` is trained on: packshots, and people who wear them.

python bench/garments_catalog.py FASHION_MNIST OUT [TIMES COLOURS]
(make runs/garments/items.jsonl runs/more-garments/items.jsonl)

FASHION_MNIST: the files of that data set (Zalando Research, MIT) as the Debian package
`dataset-fashion-mnist` brings them: grey pictures of real clothes, shoes and bags, 28 x 28. OUT: a
catalogue directory, see `tigerfg.training.photos.photo_pool`. A garment is enlarged, gets a weave
and COLOURS colours (2), each a product, and is shown by itself and worn (`people.py`). Of each kind
`count` garments are taken, TIMES (1) as many.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from cut_outs import visible, write_items, write_views
from objects_catalog import NAMES, coloured
from people import dressed
from PIL import Image
from scipy import ndimage

from tigerfg.benchmark.render.wording import BRANDS, COLOURS, STYLES
from tigerfg.benchmark.workers import Workers
from tigerfg.training.texts import pseudo_word

STORED, SIDE = 28, 224  # px of a stored and of an enlarged picture
LARGEST_HOLE = 12  # stored pixels that are filled: a white print, not the inside of a handle
SMALLEST = 60  # stored pixels of a garment that is used
MEAN = 0.62  # lightness of a garment before it is coloured
WEAVES = (0.008, 0.02, 0.045)
PEOPLE = 2  # who wear a garment of a colour
TANK = 0.66  # width by height of what has no sleeves


@dataclass(frozen=True)
class Kind:
    """What garments of a class of Fashion-MNIST, or of a part of one, are called.

    Attributes:
        name: of the kind. label: the class. count: garments that are taken of it, times TIMES.
        worn: "upper", "lower", "whole" (of the body), or "" for what is shown by itself only.
        group, leaves: the last two levels of its category, the last as one of several.
        nouns: what sellers call it.
    """

    name: str
    label: int
    count: int
    worn: str
    group: str
    leaves: tuple[str, ...]
    nouns: tuple[str, ...]


_TROUSERS = ("pants", "pant", "trousers", "jeans", "leggings", "joggers")
_SWEATERS = ("pullover", "sweatshirt", "sweater", "hoodie", "jumper")
_JACKETS = ("jacket", "coat", "parka", "windbreaker", "shell")
_TEES = ("tee", "T-shirt", "top", "short-sleeve top")
_BAGS = ("bag", "handbag", "tote", "purse", "shoulder bag")
KINDS = (
    Kind("tee", 0, 255, "upper", "Tops", ("Tees", "T-Shirts"), _TEES),
    Kind("tank", 0, 135, "upper", "Tops", ("Tanks",), ("tank", "tank top", "singlet", "cami")),
    Kind("pants", 1, 285, "lower", "Bottoms", ("Pants", "Trousers"), _TROUSERS),
    Kind("shorts", 1, 195, "lower", "Bottoms", ("Shorts",), ("shorts", "short", "board shorts")),
    Kind("sweater", 2, 285, "upper", "Tops", ("Hoodies & Sweatshirts", "Sweaters"), _SWEATERS),
    Kind("dress", 3, 165, "whole", "Clothing", ("Dresses",), ("dress", "summer dress")),
    Kind("jacket", 4, 285, "upper", "Tops", ("Jackets", "Coats"), _JACKETS),
    Kind("sandals", 5, 75, "", "Shoes", ("Sandals",), ("sandals", "sandal")),
    Kind("shirt", 6, 150, "upper", "Tops", ("Shirts", "Blouses"), ("shirt", "blouse")),
    Kind("sneakers", 7, 120, "", "Shoes", ("Sneakers",), ("sneakers", "trainers", "running shoes")),
    Kind("bag", 8, 165, "", "Gear", ("Bags", "Handbags"), _BAGS),
    Kind("boots", 9, 90, "", "Shoes", ("Boots",), ("ankle boots", "boots")),
)
GENDERS = ("Men", "Women", "Unisex", "Girls", "Boys")
MATERIALS = ("cotton", "polyester", "fleece", "wool", "nylon", "denim", "linen", "jersey")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) and labels (N,) of the 60,000 of part "train", uint8."""
    arrays = []
    for name, header in (("train-images-idx3", 16), ("train-labels-idx1", 8)):
        with gzip.open(folder / f"{name}-ubyte.gz") as file:
            arrays.append(np.frombuffer(file.read(), np.uint8, offset=header))
    return arrays[0].reshape(-1, STORED, STORED), arrays[1]


def chosen(kind: Kind, pictures: np.ndarray, labels: np.ndarray, times: int = 1) -> list[int]:
    """Rows of the pictures of a kind, the first or the last of its class."""
    # shorts are made of other trousers than those that are shown whole
    order = -1 if kind.name == "shorts" else 1
    rows = np.flatnonzero(labels == kind.label)[::order]
    fitting = (int(row) for row in rows if _fits(kind, pictures[row]))
    return list(islice(fitting, times * kind.count))[::order]


def _fits(kind: Kind, stored: np.ndarray) -> bool:
    """Whether a picture of the kind's class is large enough, and of this part of the class."""
    inside = filled(stored > 0)
    if inside.sum() < SMALLEST:
        return False
    down, across = (np.ptp(places) + 1 for places in np.nonzero(inside))
    return kind.label != 0 or (across < TANK * down) == (kind.name == "tank")


def filled(inside: np.ndarray) -> np.ndarray:
    """A mask (H, W) with its small holes filled."""
    holes, count = ndimage.label(ndimage.binary_fill_holes(inside) & ~inside)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    return inside | ((holes > 0) & (sizes <= LARGEST_HOLE)[holes])


def enlarged(stored: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A grey cut-out (RGBA, sides of at most SIDE) of a stored picture, where 0 is background."""
    inside = filled(stored > 10)
    # the background shines into the border as stored, and may not do so further when enlarged
    inner = ndimage.binary_erosion(inside)
    outer = ~inner if inner.any() else ~inside
    nearest = ndimage.distance_transform_edt(outer, return_distances=False, return_indices=True)
    light = _larger((255 - stored[tuple(nearest)].astype(float)) / 255)
    alpha = _larger(ndimage.gaussian_filter(inside.astype(float), 0.6))
    alpha = np.clip((alpha - 0.5) * 6 + 0.5, 0, 1)
    light = MEAN + 0.8 * (light - light[alpha > 0.5].mean())
    fine, coarse = rng.normal(size=(2, SIDE, SIDE))
    light += (fine + 5 * ndimage.gaussian_filter(coarse, 2)) * rng.choice(WEAVES)
    pixels = np.stack([np.clip(light, 0.02, 1) * 255] * 3 + [alpha * 255], axis=-1)
    cut = Image.fromarray(pixels.astype(np.uint8), "RGBA")
    return visible(cut)


def _larger(values: np.ndarray) -> np.ndarray:
    small = Image.fromarray(values.astype(np.float32))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def garment(kind: Kind, stored: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """The grey cut-out of a kind: shorts are the upper part of trousers."""
    cut = enlarged(stored, rng)
    if kind.name != "shorts":
        return cut
    return visible(cut.crop((0, 0, cut.width, round(rng.uniform(0.33, 0.5) * cut.height))))


def told(kind: Kind, colour: str, rng: np.random.Generator) -> dict[str, Any]:
    """Title, category, attributes and description, as one shop or another writes them."""
    noun, leaf = str(rng.choice(kind.nouns)), str(rng.choice(kind.leaves))
    word, gender = str(rng.choice(COLOURS[colour][1])), str(rng.choice(GENDERS))
    names = (pseudo_word(rng).title(), str(rng.choice(BRANDS)), str(rng.choice(STYLES)))
    title = [name for name in names if rng.random() < 0.5]
    title += [word] * (rng.random() < 0.4)
    attributes = {"color": word}
    if rng.random() < 0.5:
        attributes["material"] = ", ".join(rng.choice(MATERIALS, 2, replace=False))
    if rng.random() < 0.4:
        attributes["gender"] = gender
    if rng.random() < 0.4:
        attributes["sizes"] = "S, M, L, XL"
    sentences = (
        f"{word.capitalize()} {noun}.",
        f"{str(rng.choice(STYLES)).capitalize()} {noun} for every day.",
        f"Soft, breathable {rng.choice(MATERIALS)}.",
        "Machine wash/dry.",
    )
    path = (gender, kind.group, leaf)[int(rng.integers(3)) :]
    name = " ".join([*title, noun])
    return {
        "title": name[0].upper() + name[1:],
        "category": " > ".join(path),
        "attributes": attributes,
        "description": " ".join(line for line in sentences if rng.random() < 0.4),
    }


def add(
    task: tuple[Kind, int, np.ndarray, tuple[Kind, np.ndarray]], out: Path, colours: int
) -> list[dict[str, Any]]:
    """Write the pictures of a garment; its records. The task: kind, number, stored picture, and
    kind and stored picture of what is worn with it."""
    kind, number, stored, (other_kind, other) = task
    rng = np.random.default_rng(zlib.crc32(f"{kind.name}-{number}".encode()))
    grey, other_grey = garment(kind, stored, rng), garment(other_kind, other, rng)
    records = []
    for colour in rng.choice(NAMES, colours, replace=False):
        product = f"{kind.name}-{number}-{colour.replace(' ', '_')}"
        shown = coloured(grey, str(colour))
        views = [shown]
        for _ in range(PEOPLE if kind.worn else 0):
            beside = coloured(other_grey, str(rng.choice(NAMES)))
            views.append(dressed(shown, beside, kind.worn, rng))
        records += write_views(out, product, views, told(kind, str(colour), rng))
    return records


def main(folder: Path, out: Path, times: int = 1, colours: int = 2) -> None:
    pictures, labels = read(folder)
    rows = {kind: chosen(kind, pictures, labels, times) for kind in KINDS}
    rng = np.random.default_rng(0)
    parts = {worn: [kind for kind in KINDS if kind.worn == worn] for worn in ("upper", "lower")}
    tasks = []
    for kind in KINDS:
        for number, row in enumerate(rows[kind]):
            others = parts["lower" if kind.worn == "upper" else "upper"]
            other = others[rng.integers(len(others))]
            beside = pictures[rng.choice(rows[other])]
            tasks.append((kind, number, pictures[row], (other, beside)))
    (out / "images").mkdir(parents=True, exist_ok=True)
    with Workers(os.cpu_count() or 1) as workers:
        made = workers.map(partial(add, out=out, colours=colours), tasks, chunk=16)
        write_items(out, (record for part in made for record in part))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:5]))
