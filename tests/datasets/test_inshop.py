"""DeepFashion In-shop."""

from __future__ import annotations

import json

import pytest

from tigerfg.benchmark.datasets import load_dataset
from tigerfg.errors import InputError

DRESS, TEE, TRAIN = (
    "img/WOMEN/Dresses/id_00000002",
    "img/MEN/Tees_Tanks/id_00000008",
    "img/WOMEN/Skirts/id_00000001",
)
PARTITION = f"""6
image_name item_id evaluation_status
{TRAIN}/02_1_front.jpg                       id_00000001 train
{DRESS}/02_1_front.jpg                       id_00000002 query
{DRESS}/02_2_side.jpg                        id_00000002 gallery
{DRESS}/02_4_full.jpg                        id_00000002 gallery
{TEE}/01_1_front.jpg                         id_00000008 query
{TEE}/01_3_back.jpg                          id_00000008 gallery
"""
BOXES = f"""3
image_name clothes_type pose_type x_1 y_1 x_2 y_2
{DRESS}/02_1_front.jpg   3 1 050 049 208 216
{DRESS}/02_2_side.jpg    3 2 119 048 136 300
{TEE}/01_3_back.jpg      1 3 070 064 187 224
"""
PICTURES = [line.split()[0] for line in PARTITION.splitlines()[3:]]  # none of train
TEXTS = [
    {"item": "id_00000002", "color": "Black-white", "description": ["A dress", " , lined. "]},
    {"item": "id_00000008", "color": "Navy", "description": []},
]


@pytest.fixture
def layout(write, jpegs):
    write("Eval/list_eval_partition.txt", PARTITION)
    write("Anno/list_bbox_inshop.txt", BOXES)
    write("Anno/list_description_inshop.json", json.dumps(TEXTS))
    jpegs(*PICTURES)


def test_partition_boxes_and_texts(root, layout):
    found = load_dataset("inshop", root)
    assert found.rejected == []
    assert [item.item_id for item in found.items] == [
        "WOMEN/Dresses/id_00000002/02_2_side",
        "WOMEN/Dresses/id_00000002/02_4_full",
        "MEN/Tees_Tanks/id_00000008/01_3_back",
    ]
    side, full, back = found.items
    assert side.image == str(root / DRESS / "02_2_side.jpg")
    assert (side.category, back.category) == ("WOMEN > Dresses", "MEN > Tees Tanks")
    assert (side.description, back.description) == ("A dress , lined.", "")
    assert (side.attributes, back.attributes) == ({"color": "Black-white"}, {"color": "Navy"})
    assert side.target_box == (119, 48, 136, 256)  # cut at the picture's edge
    assert (full.target_box, back.target_box) == (None, (70, 64, 187, 224))
    front, tee = found.queries
    assert front.query_id == "WOMEN/Dresses/id_00000002/02_1_front"
    assert front.item_ids == (side.item_id, full.item_id)
    assert tee.item_ids == (back.item_id,)
    assert (front.box, front.extra["product_box"]) == (None, [50, 49, 208, 216])
    assert "product_box" not in tee.extra
    assert not any("exclude_item_id" in query.extra for query in found.queries)


def test_the_partition_at_the_root_without_boxes_and_texts(root, write, jpegs):
    write("list_eval_partition.txt", PARTITION.replace("\n", "\r\n"))
    jpegs(*(f"Img/{name}" for name in PICTURES))
    found = load_dataset("inshop", root)
    assert found.items[0].image == str(root / "Img" / DRESS / "02_2_side.jpg")
    assert [(item.target_box, item.description) for item in found.items] == [(None, "")] * 3
    assert len(found.queries) == 2


def test_large_pictures_have_no_boxes(root, write, jpegs):
    write("list_eval_partition.txt", PARTITION)
    write("list_bbox_inshop.txt", BOXES)
    jpegs(*(name.replace("img/", "img_highres/") for name in PICTURES))
    found = load_dataset("inshop", root)
    assert len(found.items) == 3
    assert all(item.target_box is None for item in found.items)
    assert any("img_highres" in note for note in found.notes)


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ("nan 1 9 9", "not finite"),
        ("1 1 inf 9", "not finite"),
        ("9 1 1 9", "inverted or empty"),
        ("300 1 400 9", "lies outside the image of 256 x 256"),
        ("a 1 9 9", "is not four numbers"),
        ("1 9 9", "6 columns, not 7"),
    ],
)
def test_a_bad_box_costs_only_the_box(root, layout, write, corners, reason):
    text = BOXES.replace("119 048 136 300", corners)
    write("Anno/list_bbox_inshop.txt", text)
    found = load_dataset("inshop", root)
    assert [item.target_box for item in found.items] == [None, None, (70, 64, 187, 224)]
    (reject,) = found.rejected
    assert reason in reject.reason
    assert (reject.line, reject.source) == (4, str(root / "Anno/list_bbox_inshop.txt"))


def test_bad_rows_and_a_wrong_count(root, layout, write):
    rows = ["img/../../outside.jpg id_00000002 gallery", "img/x.jpg id_00000002 gallery"]
    rows += [f"{DRESS}/02_2_side.jpg id_00000002 test", f"{DRESS}/02_2_side.jpg"]
    rows += [f"{DRESS}/02_2_side.jpg id_00000008 gallery"]
    write("Eval/list_eval_partition.txt", PARTITION + "\n".join(rows))
    found = load_dataset("inshop", root)
    assert len(found.items) == 3
    reasons = ["no path inside", "listed but not in", "'test' is not train, query", "1 columns"]
    for reject, reason in zip(found.rejected, [*reasons, "duplicate"], strict=True):
        assert reason in reject.reason
    assert "list_eval_partition.txt promises 6 rows and has 11" in found.notes


@pytest.mark.parametrize(
    ("text", "count", "reason"),
    [
        ("[", 0, "not valid JSON"),
        ("{}", 0, "not a JSON list"),
        ('["x", {"item": 7}, {"item": "id_00000008", "color": "Red"}]', 1, "no item id"),
        ('[{"item": "id_00000002", "description": [1]}]', 0, "is no text"),
        ('[{"item": "id_00000002", "color": ["red"]}]', 0, "is no text"),
        ("[" * 200_000, 0, "not valid JSON"),
    ],
)  # fmt: skip
def test_bad_texts_cost_only_the_text(root, layout, write, text, count, reason):
    write("Anno/list_description_inshop.json", text)
    found = load_dataset("inshop", root)
    assert len(found.items) == 3
    assert sum(bool(item.attributes) for item in found.items) == count
    assert found.rejected
    assert all(reason in reject.reason for reject in found.rejected)


def test_queries_without_a_gallery(root, write, jpegs):
    write("list_eval_partition.txt", PARTITION.replace("gallery", "train"))
    jpegs(*PICTURES)
    with pytest.raises(InputError, match="split test has no item"):
        load_dataset("inshop", root)
