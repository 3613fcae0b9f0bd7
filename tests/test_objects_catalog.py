"""The catalogue of everyday things: the colours that its records tell are those of its pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))  # scripts beside the package

import objects_catalog

from tigerfg.benchmark.render.wording import COLOURS
from tigerfg.training.photos import photo_pool


def shaded(rgb: tuple[int, int, int], side: int = 64) -> Image.Image:
    """A cut-out of one colour, darker to the right, with a transparent border."""
    pixels = np.zeros((side, side, 4), np.uint8)
    light = np.linspace(1.0, 0.75, side - 8)[None, :, None]
    pixels[4:-4, 4:-4, :3] = np.array(rgb) * light
    pixels[4:-4, 4:-4, 3] = 255
    return Image.fromarray(pixels, "RGBA")


@pytest.mark.parametrize("name", COLOURS)
def test_a_thing_is_called_by_its_colour_and_by_the_one_it_was_given(name: str) -> None:
    assert objects_catalog.main_colour(shaded(COLOURS[name][0])) == name
    # what it had shines through a little
    near = {name, "white", "grey", "beige"} if name in ("white", "grey") else {name}
    assert objects_catalog.main_colour(objects_catalog.coloured(shaded((128,) * 3), name)) in near


def test_many_colours_are_none() -> None:
    parts = [shaded(COLOURS[name][0]) for name in ("red", "green", "blue", "yellow")]
    picture = Image.new("RGBA", (256, 64))
    for number, part in enumerate(parts):
        picture.paste(part, (64 * number, 0))
    assert objects_catalog.main_colour(picture) is None


def test_a_catalogue_can_be_trained_on(tmp_path: Path) -> None:
    views, emoji, names = (tmp_path / name for name in ("views", "emoji", "names"))
    for folder in (views, emoji / "assets", names / "en", names / "meta"):
        folder.mkdir(parents=True)
    told = [
        {"id": "lib-1", "name": "Sofa 2", "category": "Living room", "tags": "Seat, Blend Swap"}
    ]
    (views / "objects.json").write_text(json.dumps(told))
    for number in range(6):
        shaded(COLOURS["red"][0]).save(views / f"lib-1_{number}.webp", quality=92)
    shaded(COLOURS["green"][0]).save(emoji / "assets" / "1f34f.webp", quality=92)
    groups = {"groups": {"4": "food-drink"}, "subgroups": {"42": "food-fruit"}}
    (names / "meta" / "groups.json").write_text(json.dumps(groups))
    apple = {"hexcode": "1F34F", "label": "green apple", "tags": ["fruit"], "group": 4}
    faces = {"hexcode": "1F600", "label": "grinning face", "group": 0, "subgroup": 0}
    (names / "en" / "data.json").write_text(json.dumps([{**apple, "subgroup": 42}, faces]))
    objects_catalog.main(views, emoji, names, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").open()]
    assert len(records) == 6 + 2 * 4 + 2
    assert records[0]["attributes"]["tags"] == "Seat"
    assert records[0]["attributes"]["color"] in COLOURS["red"][1]
    assert records[0]["category"] == "Living room > Sofa"
    pool = photo_pool(tmp_path / "out", "train", 32, 64, crops_per_photo=1, collages=4)
    assert (pool.products, len(pool.scenes), sum(pool.skipped.values())) == (5, 16 + 4, 0)
