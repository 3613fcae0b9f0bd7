"""The catalogue of everyday things that `lite` is trained on: 3D objects and emoji.

python bench/objects_catalog.py VIEWS EMOJI NAMES OUT      (make runs/objects/items.jsonl)

VIEWS: what `objects_views.py` wrote. EMOJI: the npm package @lobehub/fluent-emoji-3d (Microsoft's
Fluent emoji, MIT). NAMES: the npm package emojibase-data (MIT). OUT: a catalogue directory, see
`tigerfg.training.photos.photo_pool`. Every thing is there in the colours that it has and in one or
two others, so that the words of colours are learnt on shaded and textured things.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cut_outs import visible, write_items, write_views
from PIL import Image

from tigerfg.benchmark.render.wording import COLOURS

NAMES = list(COLOURS)
PALETTE = np.array([COLOURS[name][0] for name in NAMES], float)
GROUPS = (3, 4, 5, 6, 7)  # of emoji: animals, food, places, activities, objects; no faces, no flags
MAIN = 0.45  # share of a thing's pixels that gives it a colour's name
LIGHTNESS = 0.35  # weight beside the two axes of colour: shading changes it
KEPT = 0.15  # of the old colour, in a thing that is coloured anew
LEAST_LONG, LEAST_SHORT = 40, 6  # px, sides of a picture


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 (..., 3) -> CIE L*a*b* at D65."""
    x = np.asarray(rgb, float) / 255
    x = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    y = x @ np.array(to_xyz).T / np.array([0.9505, 1, 1.089])
    f = np.where(y > 0.008856, np.cbrt(y), 7.787 * y + 16 / 116)
    red, blue = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.stack([116 * f[..., 1] - 16, red, blue], axis=-1)


def main_colour(picture: Image.Image) -> str | None:
    """The palette's name of what most of a cut-out's pixels are; None if it has many colours."""
    pixels = np.asarray(picture.resize((48, 48)))
    seen = pixels[pixels[..., 3] > 128][:, :3]
    if len(seen) < 20:
        return None
    apart = (lab(seen)[:, None] - lab(PALETTE)[None]) ** 2 @ np.array([LIGHTNESS, 1, 1])
    shares = np.bincount(apart.argmin(axis=1), minlength=len(NAMES)) / len(seen)
    return NAMES[int(shares.argmax())] if shares.max() > MAIN else None


def coloured(picture: Image.Image, colour: str) -> Image.Image:
    """The cut-out in another colour, its lights and shadows kept."""
    pixels = np.asarray(picture).astype(float)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255
    seen = pixels[..., 3] > 64
    mean = max(light[seen].mean(), 0.05) if seen.any() else 0.5
    relative = np.clip(light / mean, 0, 2.2)[..., None]
    target = np.array(COLOURS[colour][0], float)
    bright = 255 - (255 - target) * np.clip(2 - relative, 0, 1)
    changed = np.where(relative <= 1, target * relative, bright)
    pixels[..., :3] = np.clip((1 - KEPT) * changed + KEPT * pixels[..., :3], 0, 255)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


class Catalogue:
    """Writes pictures and collects their records."""

    def __init__(self, out: Path) -> None:
        self.out, self.records = out, []
        self.rng = np.random.default_rng(0)
        (out / "images").mkdir(parents=True, exist_ok=True)

    def add(
        self,
        product: str,
        views: Sequence[Image.Image | None],
        name: str,
        category: str,
        tags: Sequence[str],
        colour: str | None = None,
    ) -> None:
        """A thing as it is, or in another colour; views: cut-outs, None for what is too small."""
        pictures = [view for view in views if view is not None]
        if not pictures:
            return
        told = colour
        if colour is not None:
            pictures = [coloured(picture, colour) for picture in pictures]
            product = f"{product}-{colour.replace(' ', '_')}"
        else:
            told = main_colour(pictures[0])
        attributes = {}
        if told is not None:
            words = COLOURS[told][1]
            attributes["color"] = words[int(self.rng.integers(len(words)))]
        if tags:
            attributes["tags"] = ", ".join(tags)
        title = name
        if told is not None and self.rng.random() < 0.5:
            title = f"{attributes['color'].capitalize()} {name.lower()}"
        about = {"title": title, "category": category, "attributes": attributes}
        self.records += write_views(self.out, product, pictures, about)

    def add_objects(self, folder: Path) -> None:
        for entry in json.loads((folder / "objects.json").read_text()):
            views = [_cut_out(file) for file in sorted(folder.glob(f"{entry['id']}_*.webp"))]
            if not views:
                continue
            name = re.sub(r"\s*\d+$", "", entry["name"])
            tags = [tag.strip() for tag in entry["tags"].split(",")]
            tags = [tag for tag in tags if tag and tag != "Blend Swap"]  # that is a place
            about = (name, f"{entry['category']} > {name}", tags)
            self.add(entry["id"], views, *about)
            for colour in self.rng.choice(NAMES, 2, replace=False):
                chosen = [views[i] for i in self.rng.permutation(len(views))[:4]]
                self.add(entry["id"], chosen, *about, str(colour))

    def add_emoji(self, pictures: Path, names: Path) -> None:
        told = json.loads((names / "meta" / "groups.json").read_text())
        for emoji in json.loads((names / "en" / "data.json").read_text()):
            code = emoji["hexcode"].lower()
            files = [pictures / "assets" / f"{code}{end}.webp" for end in ("", "-fe0f")]
            files = [file for file in files if file.exists()]
            if emoji.get("group") not in GROUPS or not files:
                continue
            group, kind = (
                told[level][str(emoji[level[:-1]])].replace("-", " ").title()
                for level in ("groups", "subgroups")
            )
            tags = [t for t in emoji.get("tags", []) if t != emoji["label"] and len(t) > 2][:3]
            about = (emoji["label"].capitalize(), f"{group} > {kind}", tags)
            views = [_cut_out(files[0])]
            self.add(f"em-{code}", views, *about)
            self.add(f"em-{code}", views, *about, str(self.rng.choice(NAMES)))


def _cut_out(file: Path) -> Image.Image | None:
    """What is visible of a picture. `tigerfg.benchmark.suite.cutouts.cut_out` begins at a higher
    alpha: of one picture in seven it takes fewer pixels than `lite` was trained on."""
    picture = visible(Image.open(file).convert("RGBA"), 40)
    if picture is None:
        return None
    large = max(picture.size) >= LEAST_LONG and min(picture.size) >= LEAST_SHORT
    return picture if large else None


def main(views: Path, emoji: Path, names: Path, out: Path) -> None:
    catalogue = Catalogue(out)
    catalogue.add_objects(views)
    catalogue.add_emoji(emoji, names)
    write_items(out, catalogue.records)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
