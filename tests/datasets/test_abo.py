"""Amazon Berkeley Objects."""

from __future__ import annotations

import gzip
import json

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

IMAGES = """image_id,height,width,path
mainA,106,106,14/14fe8812.jpg
sideA,122,122,da/daab0cad.jpg
mainB,111,111,ba/ba12.jpg
both,111,111,ba/ba13.jpg
mainC,111,111,cc/cc.jpg
hostile,1,1,../../../../outside.jpg
gone,1,1,gg/gone.jpg
"""
PATHS = ["14/14fe8812.jpg", "da/daab0cad.jpg", "ba/ba12.jpg", "ba/ba13.jpg", "cc/cc.jpg"]


def said(*values, language="en_US"):
    return [{"language_tag": language, "value": value} for value in values]


def listing(item_id, main, others=(), **fields):
    return {"item_id": item_id, "main_image_id": main, "other_image_id": list(others), **fields}


SHOE = listing(
    "B0A",
    "mainA",
    ["sideA", "both", "sideA", "mainB"],
    domain_name="amazon.com",
    item_name=said("Schuh", language="de_DE") + said('Shoe, "red"', language="en_GB"),
    brand=said("find."),
    color=[{"language_tag": "en_US", "standardized_values": ["Red"], "value": "Dark  Red"}],
    material=said("Leather", "Rubber", "Leather"),
    product_type=[{"value": "SHOES"}],
    bullet_point=said("Laces", "Soft") + said("Weich", language="de_DE"),
    node=[{"node_id": 1, "node_name": "/Categories/Shoes"}],
)
CASE = listing("B0B", "mainB", ["both"], item_name=said("ケース", language="ja_JP"))
CASE |= {"product_type": [{"value": "CELLULAR_PHONE_CASE"}]}
TWIN = listing("B0C", "mainB", item_name=said("Case, other model"))


@pytest.fixture
def layout(root, jpegs):
    jpegs(*(f"images/small/{path}" for path in PATHS))

    def make(*listings, packed=True, images=IMAGES):
        folder = root / "listings" / "metadata"
        folder.mkdir(parents=True, exist_ok=True)
        (root / "images" / "metadata").mkdir(parents=True, exist_ok=True)
        lines = [x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in listings]
        parts = {"listings_0.json": lines[:1], "listings_1.json": lines[1:]}
        texts = {folder / name: "\n".join(part) + "\n" for name, part in parts.items()}
        texts[root / "images" / "metadata" / "images.csv"] = images
        for path, text in texts.items():
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
            else:
                path.write_bytes(text.encode())

    return make


@pytest.mark.parametrize("packed", [True, False])
def test_items_texts_and_queries(root, layout, packed):
    layout(SHOE, CASE, TWIN, packed=packed)
    found = load_dataset("abo", root)
    assert (found.split, found.rejected) == ("all", [])
    shoe, case, twin = found.items
    assert (shoe.item_id, shoe.title, shoe.category) == ("B0A", 'Shoe, "red"', "shoes")
    assert shoe.attributes == {
        "brand": "find.",
        "color": "Dark Red",
        "material": ["Leather", "Rubber"],
    }
    assert shoe.description == "Laces Soft"
    assert shoe.image == str(root / "images/small/14/14fe8812.jpg")
    assert (case.title, case.category) == ("ケース", "cellular phone case")
    # both is shown by the shoe and the case, and the twin has the case's main picture;
    # mainB is the main picture of an item and no query
    assert {query.query_id: query.item_ids for query in found.queries} == {
        "sideA": ("B0A",),
        "both": ("B0A", "B0B", "B0C"),
    }
    assert twin.image == case.image
    assert "1 other pictures are some product's main picture and no queries" in found.notes
    assert "1 of 3 items have no English text" in found.notes


def test_one_product_in_several_marketplaces_is_one_item(root, layout):
    german = listing("B0A", "mainA", ["both"], item_name=said("Schuh", language="de_DE"))
    english = listing("B0A", "mainC", ["sideA"], item_name=said("Shoe"))
    layout(german, english)
    found = load_dataset("abo", root)
    (item,) = found.items
    assert (item.title, item.image) == ("Shoe", str(root / "images/small/14/14fe8812.jpg"))
    assert [query.query_id for query in found.queries] == ["both", "sideA", "mainC"]
    assert all(query.item_ids == ("B0A",) for query in found.queries)


def test_original_pictures_serve_as_well(root, layout):
    layout(SHOE)
    (root / "images" / "small").rename(root / "images" / "original")
    assert "/images/original/" in load_dataset("abo", root).items[0].image


def test_a_product_with_one_picture_is_a_distractor(root, layout):
    layout(SHOE, listing("B0D", "mainC"))
    found = load_dataset("abo", root)
    assert [item.item_id for item in found.items] == ["B0A", "B0D"]
    assert not any("B0D" in query.item_ids for query in found.queries)
    layout(listing("B0D", "mainC"))
    with pytest.raises(InputError, match="split all has no query with a right item"):
        load_dataset("abo", root)


def test_bad_listings(root, layout):
    layout(
        SHOE,
        '{"item_id": "B1"',
        '{"item_id": "B1", "main_image_id": "mainC", "x": NaN}',
        "[1]",
        "[" * 100_000,
        {"item_id": "B1"},
        listing("B1", 7),
        {**listing("B1", "mainC"), "other_image_id": "sideA"},
        {**listing("B1", "mainC"), "other_image_id": [1]},
        listing("B1", "unknown"),
        listing("B2", "hostile"),
        listing("B3", "gone"),
        listing("B4", "mainC", ["hostile", "gone", "unknown"], item_name=7, brand=[None, {"v": 1}]),
    )
    found = load_dataset("abo", root)
    assert [item.item_id for item in found.items] == ["B0A", "B4"]
    assert (found.items[1].title, found.items[1].attributes) == ("", {})
    lines = [(reject.item_id, reject.line) for reject in found.rejected]
    assert lines == [*((None, n) for n in range(1, 9)), ("B1", 9), ("B2", 10), ("B3", 11),
                     ("hostile", 12), ("gone", 12), ("unknown", 12)]  # fmt: skip
    reasons = ["not valid JSON", "not valid JSON", "not a JSON object", "not valid JSON"]
    reasons += ["main_image_id is missing"] * 2 + ["other_image_id is not a list"] * 2
    reasons += ["'unknown' is not in images.csv", "no path inside", "listed but not in"]
    reasons += ["no path inside", "listed but not in", "'unknown' is not in images.csv"]
    for reject, reason in zip(found.rejected, reasons, strict=True):
        assert reason in reject.reason


def test_a_damaged_archive_gives_what_is_readable(root, layout):
    many = [
        listing(f"B{n:04}", "mainA", ["sideA"], note=f"{n * 7919 % 10007}") for n in range(3000)
    ]
    layout(SHOE, *many)
    path = root / "listings/metadata/listings_1.json.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = load_dataset("abo", root)
    assert 1 < len(found.items) < 3001
    assert any("get it again" in reject.reason for reject in found.rejected)
    path.write_bytes(b"no gzip at all")
    found = load_dataset("abo", root)
    assert [item.item_id for item in found.items] == ["B0A"]
    (reject,) = found.rejected
    assert (reject.line, reject.source) == (1, str(path))


def test_no_listings(root, layout):
    layout(SHOE)
    for path in (root / "listings" / "metadata").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no listings_\*\.json\.gz there: unpack abo-listings"):
        load_dataset("abo", root)
