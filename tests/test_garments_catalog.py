"""The catalogue of clothes: garments keep their shape, show what records tell, and are worn."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))  # scripts beside the package

import garments_catalog
import people
from objects_catalog import coloured, main_colour

from tigerfg.benchmark.render.wording import COLOURS
from tigerfg.training.photos import photo_pool

SHAPES = {0: (4, 24), 1: (9, 19), 8: (2, 26)}  # label: columns that a garment fills; the rest wide


def stored(label: int, value: int) -> np.ndarray:
    """A garment as Fashion-MNIST stores it: background 0, the border half background."""
    picture = np.zeros((28, 28), np.uint8)
    left, right = SHAPES.get(label, (3, 25))
    picture[2:26, left:right] = value
    picture[2:26, [left, right - 1]] = value // 2
    return picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight garments of every class, and two tops without sleeves."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    labels = np.repeat(np.arange(10, dtype=np.uint8), 8)
    pictures = np.stack([stored(label, 90 + 10 * (n % 8)) for n, label in enumerate(labels)])
    pictures[:2] = stored(1, 120)
    for name, header, array in (("images-idx3", 16, pictures), ("labels-idx1", 8, labels)):
        with gzip.open(folder / f"train-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + array.tobytes())
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = tuple(dataclasses.replace(kind, count=2) for kind in garments_catalog.KINDS)
    monkeypatch.setattr(garments_catalog, "KINDS", kinds)


def test_an_enlarged_garment_keeps_its_shape_and_none_of_the_background() -> None:
    cut = garments_catalog.enlarged(stored(1, 200), np.random.default_rng(0))
    assert abs(cut.width - 8 * 10) <= 8
    assert abs(cut.height - 8 * 24) <= 8
    pixels = np.asarray(cut).astype(float)
    solid = pixels[..., 3] > 250
    assert solid.mean() > 0.9
    # the stored border is half as dark; shown, a white seam would be up to 0.3 lighter
    light = pixels[..., 0][solid] / 255
    assert abs(light.mean() - garments_catalog.MEAN) < 0.02
    assert light.max() - light.min() < 10 * max(garments_catalog.WEAVES)


def test_a_handle_stays_open_and_a_print_is_filled() -> None:
    mask = np.zeros((28, 28), bool)
    mask[2:26, 2:26] = True
    mask[4:10, 8:20] = False  # 72 pixels: see-through
    mask[15:18, 10:13] = False  # 9: a white print
    shown = garments_catalog.filled(mask)
    assert not shown[4:10, 8:20].any()
    assert shown[15:18, 10:13].all()


@pytest.mark.parametrize("worn", ["upper", "lower", "whole"])
def test_people_wear_the_garment_and_the_crop_is_of_its_place(worn: str) -> None:
    tall = (100, 160) if worn == "whole" else (100, 130)
    target = Image.new("RGBA", tall, (0, 255, 0, 255))
    other = Image.new("RGBA", (60, 200), (0, 255, 255, 255))
    others = 0
    for seed in range(8):
        picture = people.dressed(target, other, worn, np.random.default_rng(seed))
        again = people.dressed(target, other, worn, np.random.default_rng(seed))
        assert picture.tobytes() == again.tobytes()
        red, green, blue, alpha = np.moveaxis(np.asarray(picture).astype(int), -1, 0)
        seen = alpha > people.SEEN
        borders = (seen[0], seen[-1], seen[:, 0], seen[:, -1])
        assert all(border.any() for border in borders)  # cropped to what is seen
        shown = seen & (green > 150) & (red < 50) & (blue < 50)
        assert shown.sum() > 0.12 * seen.sum()
        skin = seen & (red > green + 10) & (green > blue)
        assert skin.sum() > 0.02 * seen.sum()
        beside = seen & (green > 150) & (red < 50) & (blue > 150)
        others += bool(beside.any())
    assert others == 0 if worn == "whole" else others >= 2  # of 8: some are hidden or cropped


def test_shorts_are_not_of_trousers_that_are_shown(data: Path, few: None) -> None:
    pictures, labels = garments_catalog.read(data)
    assert (*pictures.shape, *labels.shape) == (80, 28, 28, 80)
    rows = {k.name: garments_catalog.chosen(k, pictures, labels) for k in garments_catalog.KINDS}
    assert all(len(chosen) == 2 for chosen in rows.values())
    assert not set(rows["pants"]) & set(rows["shorts"])
    assert (rows["tank"], rows["tee"]) == ([0, 1], [2, 3])
    assert all(labels[row] == k.label for k in garments_catalog.KINDS for row in rows[k.name])


def test_pictures_are_in_the_colours_told_and_can_be_trained_on(
    data: Path, few: None, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("once", "again")]
    for out in outs:
        garments_catalog.main(data, out)
    texts = [(out / "items.jsonl").read_text() for out in outs]
    assert texts[0] == texts[1]
    records = [json.loads(line) for line in texts[0].splitlines()]
    for record in records:
        pictures = [(out / record["image"]).read_bytes() for out in outs]
        assert pictures[0] == pictures[1]
    by_view = {record["item_id"]: record for record in records}
    worn = {kind.name: kind.worn for kind in garments_catalog.KINDS}
    for item_id, record in by_view.items():
        kind, _, name, view = item_id.split("-")
        colour = name.replace("_", " ")
        assert record["attributes"]["color"] in COLOURS[colour][1]
        assert (f"{item_id[:-1]}1" in by_view) == bool(worn[kind])
        with Image.open(outs[0] / record["image"]) as picture:
            assert record["target_box"] == [0, 0, *picture.size]
            if view == "0":
                grey = {"white", "grey", "beige", "black"}
                found = main_colour(picture.convert("RGBA"))
                assert found == colour or {found, colour} <= grey
    pool = photo_pool(outs[0], "train", 32, 64, crops_per_photo=1, collages=4)
    assert pool.products == len({record["product_id"] for record in records})
    assert not pool.skipped


def test_a_garment_coloured_anew_keeps_its_outline() -> None:
    grey = garments_catalog.enlarged(stored(8, 150), np.random.default_rng(1))
    red = coloured(grey, "red")
    assert red.getchannel("A").tobytes() == grey.getchannel("A").tobytes()


def test_more_garments_in_one_colour_each(data: Path, few: None, tmp_path: Path) -> None:
    garments_catalog.main(data, tmp_path, times=2, colours=1)
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    products = {json.loads(line)["product_id"] for line in lines}
    garments = [product.rsplit("-", 1)[0] for product in products]
    kinds = [garment.split("-")[0] for garment in garments]
    assert len(set(garments)) == len(garments)
    # all that there are of tanks, two; of all others twice two
    assert all(
        kinds.count(kind.name) == 4 for kind in garments_catalog.KINDS if kind.name != "tank"
    )
    assert kinds.count("tank") == 2
