"""Items and queries: conversion from and to records, and every wrong field."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tigerfg.catalog import Item, Query
from tigerfg.errors import InputError

FULL = {
    "item_id": "a",
    "image": "/photos/a.jpg",
    "title": "Red shoe",
    "category": "Shoes",
    "attributes": {"colour": "red", "sizes": [41, 42], "deep": {"x": None}},
    "description": "Light.",
    "target_box": [1, 2.5, 30, 40],
    "split": "train",
    "objects": [{"box": [0, 0, 1, 1]}],
}


def test_item_survives_its_dict():
    item = Item.from_dict(FULL)
    item.validate()
    assert item.target_box == (1, 2.5, 30, 40)
    assert item.extra == {"split": "train", "objects": FULL["objects"]}
    assert item.to_dict() == FULL
    assert Item.from_dict(json.loads(json.dumps(item.to_dict()))) == item


def test_values_of_numpy_are_taken_as_those_of_python():
    """As rows of pandas have them."""
    values = {
        "item_id": np.int64(7),
        "image": "a.jpg",
        "attributes": {"size": np.int64(41), "sizes": [np.int64(41), 42], "new": np.True_},
        "price": np.float32(9.5),
        "embedding": np.arange(3),
    }
    item = Item.from_dict(values)
    item.validate()
    assert item.item_id == "7"
    assert item.attributes == {"size": 41, "sizes": [41, 42], "new": True}
    assert item.extra == {"price": 9.5, "embedding": [0, 1, 2]}
    assert json.loads(json.dumps(item.to_dict()))["attributes"] == item.attributes
    query = Query.from_dict({"query_id": np.int32(1), "image": "q.jpg", "rank": np.uint8(3)})
    query.validate()
    assert (query.query_id, query.extra) == ("1", {"rank": 3})


def test_values_of_numpy_in_lists_and_objects():
    """As pandas reads nested columns of parquet."""
    ragged = np.array([None, None], object)
    ragged[:] = [np.array([1, 2]), np.array([np.float32(3)])]
    inner = {"w": np.int64(3), "s": np.array(["x"])}
    item = Item("a", "a.jpg", attributes={"sizes": ragged, "box": [inner]}, extra={"own": inner})
    item.validate()
    plain = {"w": 3, "s": ["x"]}
    assert item.attributes == {"sizes": [[1, 2], [3]], "box": [plain]}
    assert item.extra == {"own": plain}
    assert "np." not in repr(item)


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2026-01-01"),
        np.datetime64("2026-01-01", "ns"),  # in a series of pandas: its number is no date
        np.array(["2026-01-01"], "M8[ns]"),
        np.timedelta64(1, "ns"),
        np.complex64(1),
        np.add,
    ],
    ids=repr,
)
def test_what_of_numpy_is_no_json(value):
    for item in (
        Item("a", "a.jpg", attributes={"x": value}),
        Item("a", "a.jpg", extra={"x": value}),
    ):
        with pytest.raises(InputError, match=r"(attributes|x) is not JSON"):
            item.validate()


def test_query_survives_its_dict():
    values = {
        "query_id": "q",
        "image": "q.jpg",
        "box": [0, 0, 5, 5],
        "item_ids": ["a", "b"],
        "query_kind": "shelf",
    }
    query = Query.from_dict(values)
    query.validate()
    assert query.item_ids == ("a", "b")
    assert query.to_dict() == values
    assert Query.from_dict(query.to_dict()) == query


def test_missing_and_null_fields_take_their_defaults():
    nulls = dict.fromkeys(("title", "category", "attributes", "description"))
    item = Item.from_dict({"item_id": "a", "image": "a.jpg", **nulls, "target_box": None})
    item.validate()
    assert item == Item("a", "a.jpg")
    assert not item.has_text
    query = Query.from_dict({"query_id": "q", "image": "q.jpg"})
    query.validate()
    assert (query.box, query.item_ids) == (None, ())


def test_empty_cells_of_pandas_are_null():
    nan = float("nan")
    fields = ("title", "category", "attributes", "description", "target_box", "brand")
    item = Item.from_dict({"item_id": "a", "image": "a.jpg", **dict.fromkeys(fields, nan)})
    item.validate()
    assert item == Item("a", "a.jpg", extra={"brand": None})
    with pytest.raises(InputError, match="item_id is missing"):
        Item.from_dict({"item_id": nan, "image": "a.jpg"}).validate()
    query = Query.from_dict({"query_id": "q", "image": "q.jpg", "box": nan, "item_ids": nan})
    assert query == Query("q", "q.jpg")


@pytest.mark.parametrize("box", [[1, 2, 3, 4], np.array([1, 2, 3, 4], np.float32)], ids=type)
def test_boxes_given_as_lists_and_arrays_are_tuples(box):
    assert Item("a", "a.jpg", target_box=box) == Item("a", "a.jpg", target_box=(1, 2, 3, 4))
    assert Query("q", "q.jpg", box=box) == Query("q", "q.jpg", box=(1, 2, 3, 4))


def test_integer_ids_become_strings():
    assert Item.from_dict({"item_id": 17, "image": "a"}).item_id == "17"
    query = Query.from_dict({"query_id": 3, "image": "a", "item_ids": [17, "b"]})
    assert (query.query_id, query.item_ids) == ("3", ("17", "b"))


def test_images_in_memory_are_valid_and_not_written(make_image):
    for image in (make_image(), np.zeros((2, 2, 3), np.uint8), b"\xff\xd8"):
        item = Item("a", image)
        item.validate()
        assert item.to_dict()["image"] is None
    restored = Item.from_dict(item.to_dict())  # a stored record comes back without its picture
    with pytest.raises(InputError, match="item_id 'a': image is missing"):
        restored.validate()


def test_extra_cannot_hide_a_field():
    assert Item("a", "a.jpg", title="T", extra={"title": "X", "n": 1}).to_dict()["title"] == "T"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"item_id": None}, "item_id is missing"),
        ({"item_id": ""}, "item_id is missing"),
        ({"item_id": 1.5}, "item_id is a number, not a string"),
        ({"item_id": True}, "item_id is true/false, not a string"),
        ({"item_id": ["a"]}, "item_id is a list, not a string"),
        ({"item_id": "a\nb"}, "item_id 'a\\nb' has control characters"),
        ({"item_id": " a"}, "spaces at its ends"),
        ({"item_id": "\ud800"}, "item_id is no valid Unicode text"),
        ({"image": None}, "item_id 'a': image is missing"),
        ({"image": ""}, "item_id 'a': image is missing"),
        ({"image": 5}, "item_id 'a': image is a number, not a path"),
        ({"image": {"url": "x"}}, "image is an object, not a path"),
        ({"title": 501}, "item_id 'a': title is a number, not a string"),
        ({"title": "x\udfff"}, "title is no valid Unicode text"),
        ({"category": ["Shoes"]}, "category is a list, not a string"),
        ({"description": {}}, "description is an object, not a string"),
        ({"attributes": ["red"]}, "attributes is a list, not an object"),
        ({"attributes": "red"}, "attributes is a string, not an object"),
        ({"attributes": {"x": float("nan")}}, "attributes is not JSON"),
        ({1: "a"}, "extra has a number for a name"),
        ({"attributes": {"x": {1, 2}}}, "attributes is not JSON"),
        ({"when": {"x": object}}, "when is not JSON"),
        ({"target_box": [0, 0, 5]}, "target_box [0, 0, 5] is not four numbers".replace("[", "(")),
        ({"target_box": "0 0 5 5"}, "target_box '0 0 5 5' is not four numbers"),
        ({"target_box": [5, 0, 0, 5]}, "target_box (5, 0, 0, 5) is inverted or empty"),
        ({"target_box": [0, 0, float("nan"), 5]}, "not finite"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_wrong_item(change, reason):
    with pytest.raises(InputError) as caught:
        Item.from_dict({**FULL, **change}).validate()
    assert reason.replace("5]", "5)") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query_id": None}, "query_id is missing"),
        ({"image": None}, "query_id 'q': image is missing"),
        ({"box": [3, 3, 3, 9]}, "query_id 'q': box (3, 3, 3, 9) is inverted or empty"),
        ({"item_ids": "a"}, "query_id 'q': item_ids is a string, not a list of ids"),
        ({"item_ids": ["a", None]}, "query_id 'q': item_ids is missing"),
        ({"item_ids": {"a": 1}}, "query_id 'q': item_ids is an object, not a list of ids"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_wrong_query(change, reason):
    values = {"query_id": "q", "image": "q.jpg", "item_ids": ["a"], **change}
    with pytest.raises(InputError, match=re.escape(reason)):
        Query.from_dict(values).validate()


@pytest.mark.parametrize("values", [None, "a", ["item_id", "a"], 3])
def test_a_record_must_be_an_object(values):
    with pytest.raises(InputError, match="not an object"):
        Item.from_dict(values)
