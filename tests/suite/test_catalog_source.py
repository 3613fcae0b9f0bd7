"""A user's catalogue as a source: three formats, bad rows left out and counted, cut-outs exact."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from small_suites import pairs_of, small, tree

from tigerfg.benchmark.suite import Manifest, build, verify
from tigerfg.benchmark.suite.catalog_source import CatalogSource
from tigerfg.benchmark.suite.cutouts import cut_out, prepare, rejected
from tigerfg.catalog import Item, read_items
from tigerfg.errors import InputError

COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "brown", "navy")
GOOD = 24


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def product_picture(number: int, style: str) -> Image.Image:
    """A coloured rectangle of 30 x 40 px at (10, 20) of 80 x 90, on no, white or dark ground."""
    mode, ground = {
        "alpha": ("RGBA", (0, 0, 0, 0)),
        "white": ("RGB", (255, 255, 255)),
        "dark": ("RGB", (40, 40, 40)),
    }[style]
    picture = Image.new(mode, (80, 90), ground)
    picture.paste(Image.new(mode, (30, 40), COLOURS[number % len(COLOURS)]), (10, 20))
    return picture


def records() -> list[dict]:
    """Good rows in all three styles, two views of one product, and rows that cannot be used."""
    rows = []
    for number in range(GOOD):
        style = ("alpha", "white", "dark")[number % 3]
        rows.append(
            {
                "item_id": f"i{number}",
                "image": png(product_picture(number, style)),
                "title": f"{COLOURS[number % len(COLOURS)]} box {number}",
                "category": f"Boxes > {'Big' if number % 2 else 'Small'}",
                "attributes": {"color": COLOURS[number % len(COLOURS)]},
                "description": "",
                "target_box": [10, 20, 40, 60] if style == "dark" else None,
                "product_id": "i0" if number == 3 else f"i{number}",
            }
        )
    good = rows[0]
    flaws = {
        "truncated": {"image": good["image"][:60]},
        "text": {"image": b"no picture at all"},
        "empty": {"image": png(Image.new("RGBA", (50, 50)))},
        "blank": {"image": png(Image.new("RGB", (50, 50), "white"))},
        "scene": {"image": png(product_picture(0, "dark"))},
        "outside": {"target_box": [200, 200, 300, 300]},
        "inverted": {"target_box": [40, 20, 10, 60]},
        "tiny": {"image": png(Image.new("RGBA", (9, 8), "red")), "target_box": [0, 0, 9, 8]},
    }
    return rows + [{**good, "item_id": key, "product_id": key, **v} for key, v in flaws.items()]


def as_parquet(folder: Path) -> Path:
    rows = [
        {
            **row,
            "attributes": json.dumps(row["attributes"]),
            "target_box": json.dumps(row["target_box"]) if row["target_box"] else None,
        }
        for row in records()
    ]
    path = folder / "items.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_jsonl(folder: Path) -> Path:
    lines = []
    for row in records():
        (folder / f"{row['item_id']}.png").write_bytes(row["image"])
        lines.append(json.dumps({**row, "image": f"{row['item_id']}.png"}))
    lines += ["{broken", json.dumps({"item_id": "i1", "image": "i1.png"}), '{"image": "i1.png"}']
    lines.append(json.dumps({"item_id": "gone", "image": "gone.png"}))
    path = folder / "items.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def as_folder(folder: Path) -> Path:
    for row in records():
        (folder / f"{row['item_id']}.png").write_bytes(row["image"])
    return folder


FORMATS = {"parquet": as_parquet, "jsonl": as_jsonl, "folder": as_folder}
SAME = small(70, 4, shard_pairs=64, wrong_text=0.2)


@pytest.fixture
def catalog(tmp_path) -> Path:
    (tmp_path / "catalog").mkdir()
    return as_jsonl(tmp_path / "catalog")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_suite_from_a_catalogue(kind, tmp_path):
    (tmp_path / "catalog").mkdir()
    path = FORMATS[kind](tmp_path / "catalog")
    report = build(tmp_path / "out", SAME, catalog=path, workers=1)
    assert report.pairs == 70
    reasons = {reason: count for reason, (count, _) in report.rejected.items()}
    total = sum(reasons.values())
    if kind == "folder":  # it has no boxes: pictures on a dark ground fall out
        assert total == 6 + 8
        assert report.products == GOOD - 8 + 2  # "outside" and "inverted" have good pictures
    else:
        assert total == 8 + (4 if kind == "jsonl" else 0)
        assert report.products == GOOD - 1  # i3 is a view of i0
    assert any(reason.startswith("no target_box, no alpha channel") for reason in reasons)
    assert any("smaller than" in reason for reason in reasons) == (kind != "folder")
    assert sum(count for why, count in reasons.items() if why.startswith("nothing is visible")) == 2
    assert Manifest.load(tmp_path / "out").rejected == reasons
    training = {pair.product_id for pair in pairs_of(tmp_path / "out")}
    for layout in ("standard", "cluttered"):
        items = list(read_items(tmp_path / "out" / layout))
        assert len(items) == 4
        for item in items:
            assert not training & {entry["product_id"] for entry in item.extra["objects"]}
    assert verify(tmp_path / "out") == []


def test_the_same_bytes_for_any_workers_and_after_a_stop(catalog, tmp_path):
    build(tmp_path / "one", SAME, catalog=catalog, workers=1)
    build(tmp_path / "two", SAME, catalog=catalog, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")

    def stop(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # in the cut-outs, then right before the evaluation
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "three", SAME, catalog=catalog, workers=1, progress=stop)
    build(tmp_path / "three", SAME, catalog=catalog, workers=1)
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_another_catalogue_is_refused(catalog, tmp_path):
    build(tmp_path / "out", SAME, catalog=catalog, workers=1)
    with pytest.raises(InputError, match="made with source"):
        build(tmp_path / "out", SAME, workers=1)
    with open(catalog, "a") as stream:
        stream.write(json.dumps({"item_id": "new", "image": "i1.png"}) + "\n")
    with pytest.raises(InputError, match="made with another catalog"):
        build(tmp_path / "out", SAME, catalog=catalog, workers=1)


def test_too_few_products_are_told(catalog, tmp_path):
    for products, message in ((24, "has 23 usable products"), (22, "leaves 1 for training")):
        with pytest.raises(InputError, match=message):
            build(tmp_path / str(products), small(64, products), catalog=catalog, workers=1)


def test_every_product_is_used_and_views_are_views(catalog, tmp_path):
    settings = small(64 * 6, 3)
    build(tmp_path / "out", settings, catalog=catalog, workers=1)
    source = CatalogSource.open(tmp_path / "out" / "cutouts.sqlite")
    assert source.products(settings) == GOOD - 1
    unseen = {listing.number for listing in source.evaluation(settings).listings}
    assert unseen == {-1}
    numbers = [
        {listing.number for listing in source.shard(settings, shard).listings} for shard in range(6)
    ]
    assert all(len(chosen) == 8 for chosen in numbers)
    assert len(set.union(*numbers)) == GOOD - 1 - 3
    group = source.shard(settings, 0)
    for i, listing in enumerate(group.listings):
        for twin in group.distractors.twins(i):
            assert group.listings[twin].category == listing.category


def test_views_of_a_product_are_its_pictures(catalog, tmp_path):
    prepare(catalog, tmp_path / "store", 36, map)
    group = CatalogSource.open(tmp_path / "store").shard(small(64 * 8, 0, shard_pairs=512), 0)
    i = [listing.product_id for listing in group.listings].index("i0")
    assert group.listings[i].title == "red box 0"  # the first one's text
    greens = [np.asarray(group.cutout(i, 40, seed))[..., 1].max() for seed in range(4)]
    assert [green > 90 for green in greens] == [False, True] * 2  # red i0 and orange i3


def item(image, box=None) -> Item:
    return Item("a", image, target_box=box)


@pytest.mark.parametrize("style", ["alpha", "white", "dark"])
def test_cut_outs_are_exactly_the_product(style):
    box = (10, 20, 40, 60) if style == "dark" else None
    for source in (product_picture(0, style), png(product_picture(0, style))):
        made = cut_out(item(source, box))
        assert made.mode == "RGBA"
        assert made.size == (30, 40)
        assert made.getcolors() == [(30 * 40, (255, 0, 0, 255))]


def test_near_white_in_a_box_becomes_transparent():
    picture = product_picture(0, "white")
    made = cut_out(item(picture, (5, 15, 60, 70)))  # a wider box: tightened to what is seen
    assert made.size == (30, 40)
    partly = cut_out(item(product_picture(1, "alpha"), (25, 0, 80, 90)))  # the box cuts it
    assert partly.size == (15, 40)


def test_orientation_is_applied_to_transparent_pictures_too():
    picture = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 30, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turned by 90 degrees for display
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    assert cut_out(item(buffer.getvalue())).size == (16, 30)


@pytest.mark.parametrize(
    ("image", "box", "message"),
    [
        (np.zeros((20, 20, 3), np.uint8), None, "no target_box"),
        (Image.new("RGB", (20, 20), "white"), None, "nothing is visible"),
        (Image.new("RGBA", (20, 20)), (0, 0, 5, 5), "nothing is visible"),
        (Image.new("RGB", (20, 20), "red"), (30, 30, 40, 40), "outside"),
        (Image.new("RGB", (20, 20), "red"), (0, 0, 10, 12), "smaller than 16 px"),
        (b"", None, "no data"),
    ],
)
def test_unusable_pictures_say_why(image, box, message):
    with pytest.raises(InputError, match=message):
        cut_out(item(image, box))


def test_an_empty_catalogue(tmp_path):
    (tmp_path / "items.jsonl").write_text("")
    prepare(tmp_path / "items.jsonl", tmp_path / "store", 36, map)
    assert rejected(tmp_path / "store") == {}
    assert CatalogSource.open(tmp_path / "store").products(small()) == 0
    with pytest.raises(InputError, match="no such file"):
        prepare(tmp_path / "none.jsonl", tmp_path / "other", 36, map)


def test_an_unfinished_store_is_not_opened(catalog, tmp_path):
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(catalog, tmp_path / "store", 36, partial(map), stop)
    with pytest.raises(InputError, match="not complete"):
        CatalogSource.open(tmp_path / "store")
