"""Photo pools from any catalogue, and what happens to records that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tigerfg.errors import InputError
from tigerfg.training import photo_reader, photos
from tigerfg.training.photos import near_twins, photo_pool
from tigerfg.training.pool import ARRAYS, Pool

Record = dict[str, Any]
MakeImage = Callable[..., Image.Image]


def write(folder: Path, items: list[Record | str], queries: list[Record] | None = None) -> None:
    """items.jsonl and queries.jsonl; a string is a line as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("items", items), ("queries", queries)):
        if records is not None:
            lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def item(item_id: str, image: str, **fields: Any) -> Record:
    return {"item_id": item_id, "image": image, "title": f"red mug {item_id}", **fields}


@pytest.fixture
def shop(tmp_path: Path, make_image: MakeImage) -> Path:
    """A folder with pictures a.png .. f.png of 60 x 40 px, and packshot.png on white."""
    for number, name in enumerate("abcdef"):
        make_image(60, 40, seed=number).save(tmp_path / f"{name}.png")
    packshot = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(packshot).rectangle((20, 10, 59, 49), fill=(200, 30, 30))
    packshot.save(tmp_path / "packshot.png")
    return tmp_path


def test_any_catalogue_without_product_ids_or_splits(shop: Path) -> None:
    items = [
        item("m1", "a.png", target_box=[10, 5, 50, 35], category="Kitchen > Mugs"),
        item("m2", "b.png"),
        item("m3", "packshot.png"),
    ]
    queries = [
        {"query_id": "q1", "image": "c.png", "item_ids": ["m1"]},
        {"query_id": "q2", "image": "d.png", "item_ids": ["gone", "m2"], "box": [0, 0, 30, 40]},
    ]
    write(shop, items, queries)
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=2, collages=5)
    assert pool.products == 3
    assert not pool.skipped
    assert pool.one_view == 1
    assert [texts[0] for texts in pool.texts] == [
        "red mug m1 . Kitchen > Mugs", "red mug m2", "red mug m3",
    ]  # fmt: skip
    assert np.bincount(pool.crop_products).tolist() == [4, 4, 2]
    # Own picture and query photo each; then the collages.
    assert pool.scene_products[:5].tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_allclose(
        pool.scene_boxes[:5],
        [
            [10 * 64 / 60, 5 * 64 / 60, 50 * 64 / 60, 35 * 43 / 40],  # 60 x 40 becomes 64 x 43
            [0, 0, 64, 43],
            [0, 0, 0, 0],  # nobody said where it is
            [0, 0, 48, 64],
            [0, 0, 0, 0],
        ],
        rtol=0.02,  # letterboxed sides are whole pixels
    )
    assert pool.cluttered.tolist() == [True, False, True, False, True] + [True] * 5
    assert (pool.other_boxes[5:, 2] > pool.other_boxes[5:, 0]).all()
    assert pool.other_products[:5].tolist() == [-1] * 5
    assert set(pool.other_products[5:]) <= {0, 1, 2}
    assert (pool.other_products[5:] != pool.scene_products[5:]).all()
    rows = pool.draw(3, np.random.default_rng(0))
    assert not np.array_equal(rows.crops()[0], rows.crops()[0])


def test_standard_and_cluttered_layouts_share_products(shop: Path) -> None:
    own = {"product_id": "p", "split": "train"}
    objects = [
        {"product_id": "p", "box": [0, 0, 20, 20]},
        {"product_id": "x", "box": [30, 0, 60, 20]},
    ]
    write(
        shop / "standard",
        [
            item("i1", "a.png", **own),
            item("i2", "packshot.png", target_box=[20, 10, 60, 50], **own),
            item("i3", "b.png", product_id="p", split="test"),
        ],
        [{"query_id": "q", "image": "c.png", "item_ids": ["i1"], **own}],
    )
    write(
        shop / "cluttered",
        [item("i1", "d.png", target_box=[0, 0, 20, 20], objects=objects, **own)],
        [{"query_id": "q", "image": "c.png", "item_ids": ["i1"], **own}],
    )
    pool = photo_pool(shop, "train", 32, 60, crops_per_photo=1, collages=9)
    assert pool.products == 1
    assert not pool.skipped
    assert len(pool.crops) == 3  # two item pictures and the query, which stands in both folders
    assert len(pool.scenes) == 4  # no collage of a single product
    assert pool.cluttered.tolist() == [False, False, True, False]
    assert pool.scene_boxes[0].tolist() == [0, 0, 60, 40]  # alone: all target
    assert pool.other_boxes[2].tolist() == [30, 0, 60, 20]
    assert pool.other_products.tolist() == [-1] * 4  # no record of the product x can be used


@pytest.mark.parametrize("spoilt", [False, True])
def test_product_beside_the_target_has_its_number_where_it_is_of_the_pool(
    shop: Path, spoilt: bool
) -> None:
    objects = [{"product_id": p, "box": [x, 0, x + 20, 20]} for p, x in (("b", 0), ("c", 30))]
    items = [
        item("0", "text.png" if spoilt else "a.png", product_id="a"),  # no picture: not kept
        item("1", "b.png", product_id="b", target_box=[0, 0, 20, 20], objects=objects),
        item("2", "c.png", product_id="c", target_box=[0, 0, 20, 20], objects=objects[:1]),
        item("3", "d.png", product_id="d", objects=[objects[0], {"box": [0, 0, 9, 9]}]),
    ]
    (shop / "text.png").write_text("no picture")
    write(shop, items)
    pool = photo_pool(shop, "train", 32, 60, crops_per_photo=1, collages=0)
    others = dict(zip(pool.scene_products.tolist(), pool.other_products.tolist(), strict=True))
    b, c, d = range(3) if spoilt else range(1, 4)
    assert (others[b], others[c], others[d]) == (c, -1, -1)
    assert pool.skipped[photo_reader.NO_PICTURE] == spoilt


HOSTILE: dict[str, tuple[Record | str, str]] = {
    "no JSON": ("{", photo_reader.BAD_RECORD),
    "no id": ({"image": "a.png", "title": "mug"}, photo_reader.BAD_RECORD),
    "title of the wrong type": (item("x", "a.png", title=7), photo_reader.BAD_RECORD),
    "NaN in the box": (
        '{"item_id": "x", "image": "a.png", "title": "mug", "target_box": [NaN, 0, 9, 9]}',
        photo_reader.BAD_BOX,
    ),
    "NaN elsewhere": (
        '{"item_id": "x", "image": "a.png", "title": NaN}',
        photo_reader.BAD_RECORD,  # which JSON does not have
    ),
    "infinite box": (
        '{"item_id": "x", "image": "a.png", "title": "mug", "target_box": [0, 0, 9, 1e999]}',
        photo_reader.BAD_BOX,
    ),
    "box without area": (item("x", "a.png", target_box=[5, 5, 5, 9]), photo_reader.BAD_BOX),
    "inverted box": (item("mailbox", "a.png", target_box=[9, 5, 5, 9]), photo_reader.BAD_BOX),
    "box of three": (item("x", "a.png", target_box=[5, 5, 9]), photo_reader.BAD_BOX),
    "box outside": (item("x", "a.png", target_box=[60, 0, 90, 40]), photo_reader.BAD_BOX),
    "turned picture": (item("x", "turned.jpg", target_box=[0, 0, 9, 9]), photo_reader.TURNED_BOX),
    "no file": (item("x", "none.png"), photo_reader.MISSING),
    "truncated": (item("x", "cut.jpg"), photo_reader.BAD_PICTURE),
    "empty file": (item("x", "empty.png"), photo_reader.BAD_PICTURE),
    "not a picture": (item("x", "text.png"), photo_reader.BAD_PICTURE),
    "no text": ({"item_id": "x", "image": "a.png"}, photo_reader.NO_TEXT),
    "blank text": (item("x", "a.png", title=" ", attributes={"color": None}), photo_reader.NO_TEXT),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_item_is_counted_and_costs_the_others_nothing(
    shop: Path, name: str, make_image: MakeImage
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(60, 40).save(shop / "turned.jpg", exif=exif)
    (shop / "cut.jpg").write_bytes((shop / "turned.jpg").read_bytes()[:500])
    (shop / "empty.png").touch()
    (shop / "text.png").write_text("no picture")
    record, reason = HOSTILE[name]
    good = [item("m1", "a.png"), item("m2", "b.png")]
    write(
        shop, [good[0], record, good[1]], [{"query_id": "q", "image": "c.png", "item_ids": ["m1"]}]
    )
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=1, collages=2)
    assert pool.products == 2
    assert pool.skipped[reason] == 1
    assert set(pool.skipped) <= {reason, photo_reader.NO_PICTURE}
    for array in (pool.scene_boxes, pool.other_boxes, pool.scene_extents, pool.crop_extents):
        assert np.isfinite(array).all()


def test_bad_queries_are_counted(shop: Path) -> None:
    queries: list[Record] = [
        {"query_id": "q1", "image": "c.png", "item_ids": ["m1"]},
        {"query_id": "q2", "image": "c.png", "item_ids": ["nobody"]},
        {"query_id": "q3", "image": "c.png"},
        {"query_id": "q4", "image": "none.png", "item_ids": ["m1"]},
        {"query_id": "q5", "image": "c.png", "item_ids": ["m1"], "box": [70, 0, 80, 9]},
        {"query_id": "q6", "image": "c.png", "item_ids": ["m1"], "box": [3, 3, 3, 3]},
        {"query_id": "q1", "image": "c.png", "item_ids": ["m1"]},
    ]
    write(shop, [item("m1", "a.png")], queries)
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=1)
    assert pool.skipped == {
        photo_reader.STRAY_QUERY: 2,
        photo_reader.MISSING: 1,
        photo_reader.BAD_BOX: 2,
        photo_reader.BAD_RECORD: 1,
    }
    assert len(pool.crops) == 2


@pytest.mark.parametrize(
    "beside", ["no object", {}, {"box": None}, {"box": "x"}, {"box": {}}, {"box": [0, 0, 0, 0]}]
)
def test_what_stands_beside_the_target_may_be_anything(shop: Path, beside: object) -> None:
    write(shop, [item("m1", "a.png", target_box=[0, 0, 20, 20], objects=[{}, beside])])
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=1, collages=0)
    assert not pool.other_boxes.any()
    assert not pool.skipped


def test_what_is_left_out_is_named(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    items: list[Record | str] = [item("m1", "a.png"), "{", {"item_id": "bare", "image": "b.png"}]
    items += [item(f"gone{n}", "none.png") for n in range(13)]
    queries: list[Record] = [
        {"query_id": "stray", "image": "c.png", "item_ids": ["nobody"]},
        {"query_id": "flat", "image": "c.png", "item_ids": ["m1"], "box": [3, 3, 3, 3]},
        {"query_id": "outside", "image": "c.png", "item_ids": ["m1"], "box": [70, 0, 80, 9]},
    ]
    write(shop, items, queries)
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=1)
    assert pool.skipped[photo_reader.MISSING] == 13
    told = [message for message in caplog.messages if message.startswith(f"{shop}: ")]
    for what, reason in (
        ("items.jsonl:2: not valid JSON", photo_reader.BAD_RECORD),
        ("item_id 'bare'", photo_reader.NO_TEXT),
        ("query_id 'stray'", photo_reader.STRAY_QUERY),
        ("queries.jsonl:2: query_id 'flat'", photo_reader.BAD_BOX),
        ("query_id 'outside'", photo_reader.BAD_BOX),
        ("product 'gone0'", photo_reader.NO_PICTURE),
    ):
        assert any(what in line and line.endswith(f" left out: {reason}") for line in told), what
    missing = [line for line in told if photo_reader.MISSING in line]
    assert missing == [
        *(f"{shop}: item_id 'gone{n}' left out: {photo_reader.MISSING}" for n in range(10)),
        f"{shop}: more left out are only counted: {photo_reader.MISSING}",
        f"{shop}: 13 × {photo_reader.MISSING}, 3 more than named",
    ]


def test_one_view_is_kept_and_counted_apart(shop: Path, tmp_path: Path) -> None:
    write(shop, [item("m1", "a.png")])
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=3, collages=10)
    assert pool.products == 1
    assert not pool.skipped
    pool.save(tmp_path / "pool")
    assert Pool.load(tmp_path / "pool").one_view == 1
    rows = pool.draw(1, np.random.default_rng(0))
    assert not np.array_equal(rows.crops()[0], rows.crops()[0])  # two crops of the one photo


def test_a_product_only_in_clutter_is_cropped_by_its_box(shop: Path) -> None:
    write(shop, [item("m1", "a.png", layout="cluttered", target_box=[10, 5, 50, 35])])
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=2)
    assert len(pool.crops) == 2
    assert pool.cluttered.tolist() == [True]
    write(shop, [item("m1", "a.png", layout="cluttered")])
    with pytest.raises(InputError, match="no usable product"):
        photo_pool(shop, "train", 32, 64)


def test_odd_pictures_give_finite_pools(tmp_path: Path) -> None:
    """One pixel, a line, transparent, white all over: nothing here may crash or give NaN."""
    sizes = {"dot": (1, 1), "line": (300, 1), "column": (1, 300)}
    for name, size in sizes.items():
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / f"{name}.png")
    Image.new("RGBA", (20, 30), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (20, 30), 255).save(tmp_path / "white.png")
    names = [*sizes, "clear", "white"]
    write(tmp_path / "standard", [item(name, f"../{name}.png") for name in names])
    pool = photo_pool(tmp_path, "train", 32, 64, crops_per_photo=1, collages=10)
    assert pool.products == 5
    assert len(pool.scenes) == 15
    assert (pool.scene_boxes[:, 2:] > pool.scene_boxes[:, :2]).all()
    assert np.isfinite(pool.scene_boxes).all()


def test_pictures_go_through_a_file_in_parts_of_any_size(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item(name, f"{name}.png", target_box=[5, 5, 55, 35]) for name in "abcdef"]
    write(shop, items, [{"query_id": "q", "image": "a.png", "item_ids": ["b"]}])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pools = []
    for size in (1, 4, 1000):
        monkeypatch.setattr(photos, "_PART", size)
        pools.append(photo_pool(shop, "train", 32, 64, collages=6, scratch=scratch))
    assert not list(scratch.iterdir())
    assert isinstance(pools[0].scenes, np.memmap)
    for pool in pools[1:]:
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(pool, name), getattr(pools[0], name))
        assert (pool.texts, pool.anchors) == (pools[0].texts, pools[0].anchors)
    with pytest.raises(FileNotFoundError):
        photo_pool(shop, "train", 32, 64, scratch=tmp_path / "none")


def test_a_white_product_on_transparent_ground_has_no_holes_in_collages(shop: Path) -> None:
    white = Image.new("RGBA", (80, 60))
    ImageDraw.Draw(white).ellipse((10, 5, 69, 54), fill=(255, 255, 255, 255))
    white.save(shop / "white.png")
    box = (10.0, 5.0, 70.0, 55.0)
    photo = photo_reader.Photo("item", str(shop / "white.png"), 30, box, None, None, False)
    sprite = photo.cut_out()
    assert sprite.size == (30, 25)
    alpha = np.asarray(sprite.getchannel("A"))
    assert alpha[12, 15] == 255
    assert alpha[0, 0] < 128


def test_photo_pools_are_deterministic(shop: Path) -> None:
    write(shop, [item("m1", "a.png"), item("m2", "packshot.png"), item("m3", "c.png")])
    one, two, other = (
        photo_pool(shop, "train", 32, 64, seed=seed, collages=6) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.crops, two.crops)
    assert np.array_equal(one.scenes, two.scenes)
    assert one.texts == two.texts
    assert not np.array_equal(one.crops, other.crops)


def test_a_twin_is_another_product_of_the_category_with_another_text(shop: Path) -> None:
    told = [("red", "Mugs"), ("blue", "Mugs"), ("red", "Mugs"), ("red", "Cups"), ("red", None)]
    items = [
        {"item_id": f"m{number}", "image": "a.png", "title": title, "category": category}
        for number, (title, category) in enumerate(told)
    ]
    write(shop, items)
    pool = photo_pool(shop, "train", 32, 64, crops_per_photo=1, collages=0)
    assert pool.twins.tolist() == [1, 0, 1, -1, -1]


@pytest.mark.parametrize("products", [2, 3, 4, 7])
def test_twins_go_through_all_of_a_category(products: int) -> None:
    twins = near_twins(["Mugs"] * products, [f"mug {number}" for number in range(products)])
    assert sorted(twins) == list(range(products))
    assert all(twin != number for number, twin in enumerate(twins))


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "standard", [], [])
    with pytest.raises(InputError, match="split 'train'"):
        photo_pool(tmp_path, "train", 32, 64)


@pytest.mark.data
@pytest.mark.slow
def test_grocery_pool_holds_only_its_split(shared_data: Path) -> None:
    pool = photo_pool(shared_data / "grocery", "train", 32, 64, crops_per_photo=1, collages=20)
    assert pool.products == 81
    assert not pool.skipped
    assert all(texts and texts[0] for texts in pool.texts)
    assert len(pool.crops) == 972 + 243 + 81
    assert len(pool.scenes) == 972 + 243 + 81 + 324 + 20
    assert (pool.scene_boxes[:, 2:] > pool.scene_boxes[:, :2]).all()
