"""Searcher.update: fields that the model does not read, without pictures, wherever they lie."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine, picture, save_picture
from PIL import Image

from tigerfg.catalog import read_changes
from tigerfg.errors import CatalogError, InputError
from tigerfg.records import Item, Rejected
from tigerfg.searcher import Searcher

ATTRIBUTES = {"color": "Red", "size": "S"}


def nested(depth):
    """A list in a list in a list ..."""
    return [nested(depth - 1)] if depth else 1


@pytest.fixture
def searcher(searcher):
    searcher.add(
        Item(
            f"i{n}",
            picture(n),
            title=f"item {n}",
            attributes=ATTRIBUTES,
            target_box=(0, 0, 8, 8),
            extra={"price": n, "stock": 5},
        )
        for n in range(8)
    )
    return searcher


def test_other_fields_change_and_filters_see_them(searcher, engine):
    encoded = engine.items_encoded
    changes = [
        {"item_id": "i1", "price": 99.5},
        {"item_id": "i2", "price": 99, "stock": None, "sale": True},
        {"item_id": "i3", "price": 3},  # as it is
        {"item_id": "i4", "target_box": [1, 2, 3, 4], "title": "item 4"},
        {"item_id": "i5", "price": math.nan, "image": math.nan},  # empty cells of pandas
    ]
    report = searcher.update(changes)
    assert (report.updated, report.unchanged, report.rejected) == (3, 2, [])
    assert engine.items_encoded == encoded
    found = searcher.search(picture(1), where={"price": {"$gt": 90}})
    assert [hit.item_id for hit in found] == ["i1", "i2"]
    assert [hit.item_id for hit in searcher.search(picture(5), where={"sale": True})] == ["i2"]
    assert len(searcher.search(picture(5), where={"stock": {"$exists": True}})) == 7
    whole = searcher.get("i1")
    assert (whole.title, whole.attributes, whole.image) == ("item 1", ATTRIBUTES, None)
    assert whole.extra == {"price": 99.5, "stock": 5}
    assert searcher.get("i4").target_box == (1, 2, 3, 4)
    assert [one.item_id for one in searcher] == [f"i{n}" for n in range(8)]
    assert searcher.search(picture(1), k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_the_picture_stays_the_items_own(searcher, tmp_path, engine):
    path = save_picture(tmp_path / "a.png", 20)
    searcher.upsert([Item("a", path, title="t", extra={"price": 1})])
    path.unlink()
    assert searcher.update([{"item_id": "a", "price": 2, "image": path}]).updated == 1
    assert searcher.get("a").image == str(path)
    save_picture(path, 20)
    encoded = engine.items_encoded
    assert searcher.upsert([Item("a", path, title="t", extra={"price": 2})]).unchanged == 1
    assert engine.items_encoded == encoded


def test_the_last_of_an_item_counts_and_changes_add_up(searcher):
    changes = [{"item_id": "i1", "price": 1.5}, {"item_id": "i1", "stock": 0}]
    assert searcher.update([*changes, {"item_id": "i1", "price": 2.5}]).updated == 3
    assert searcher.get("i1").extra == {"price": 2.5, "stock": 0}
    there_and_back = [{"item_id": "i2", "price": 7}, {"item_id": "i2", "price": 2}]
    report = searcher.update([*there_and_back, there_and_back[-1]])
    assert (report.updated, report.unchanged) == (2, 1)
    many = [{"item_id": f"i{n % 8}", "price": n + 0.25} for n in range(2500)]  # three transactions
    assert searcher.update(iter(many)).updated == 2500
    assert searcher.get("i3").extra["price"] == 2499.25


@pytest.mark.parametrize(
    ("change", "item_id", "reason"),
    [
        ({"item_id": "nope", "price": 1}, "nope", "'nope' is not in the catalogue"),
        ({"item_id": "i1", "title": "other"}, "i1", "title, .* are others"),
        ({"item_id": "i1", "attributes": {"color": "Blue"}}, "i1", "attributes .* are others"),
        ({"item_id": "i1", "image": "b.png"}, "i1", "image is another one"),
        ({"item_id": "i1", "price": [math.nan]}, "i1", "price is not JSON"),
        ({"item_id": "i1", "price": {1, 2}}, "i1", "price is not JSON"),
        ({"item_id": "i1", "name": "\udc80"}, "i1", "name is no valid Unicode"),
        ({"item_id": "i1", "target_box": [3, 3, 1, 1]}, "i1", "target_box"),
        ({"item_id": "i1", "attributes": 5}, "i1", "attributes is a number"),
        ({"item_id": "i1", "attributes": {1: "a"}}, "i1", "attributes has a number for a name"),
        ({"item_id": "i1", "x": nested(101)}, "i1", "x has lists or objects more than 100 deep"),
        ({"item_id": "i1", "attributes": {"a": nested(900)}}, "i1", "attributes has lists"),
        ({"item_id": "i1", "size": "L"}, "i1", "size is one of its attributes"),
        ({"item_id": "i1", "size": np.zeros(2)}, "i1", "size is one of its attributes"),
        ({"item_id": "i1", "when": np.datetime64("2026-01-01")}, "i1", "when is not JSON"),
        ({"item_id": "i1", "image": np.zeros((8, 8, 3), np.uint8)}, "i1", "image is another one"),
        ({"item_id": "\udc80", "price": 1}, None, "no valid Unicode"),
        ({"price": 1}, None, "item_id is missing"),
        ({"item_id": [1], "price": 1}, None, "item id is of type list"),
        (7, None, "a record is a number"),
        (Rejected(None, "no JSON", 3, "a.jsonl"), None, "no JSON"),
    ],
)
def test_a_bad_change_costs_the_others_nothing(searcher, change, item_id, reason):
    report = searcher.update(
        [{"item_id": "i0", "price": 50}, change, {"item_id": "i7", "price": 51}]
    )
    assert (report.updated, report.unchanged) == (2, 0)
    [rejected] = report.rejected
    assert rejected.item_id == item_id
    assert re.search(reason, rejected.reason)
    assert "\n" not in rejected.reason
    assert [searcher.get(name).extra["price"] for name in ("i0", "i1", "i7")] == [50, 1, 51]
    if report.rejects_file is not None:
        assert json.loads(report.rejects_file.read_text())["reason"] == rejected.reason


def test_none_takes_a_field_away(searcher):
    before = searcher.get("i1")
    assert searcher.update([{"item_id": "i1", "note": "x", "box": nested(100)}]).updated == 1
    taken = {"item_id": "i1", "note": None, "box": None, "never": None, "image": None}
    assert searcher.update([taken]).updated == 1
    assert searcher.get("i1").to_dict() == before.to_dict()


def test_changes_before_a_failure_are_stored(searcher):
    def failing():
        yield {"item_id": "i1", "price": 50}
        yield {"item_id": "nope", "price": 51}
        raise OSError("the feed broke off")

    with pytest.raises(OSError, match="broke off"):
        searcher.update(failing())
    assert searcher.get("i1").extra["price"] == 50


def test_bad_calls_are_refused(searcher, place):
    for changes in ("a.jsonl", {"item_id": "i1", "price": 1}, None, 5):
        with pytest.raises(InputError, match="iterable of dicts"):
            searcher.update(changes)
    assert searcher.update([]).updated == 0
    with (
        Searcher.open(place, FakeBundle(), read_only=True) as reader,
        pytest.raises(CatalogError, match="reading only"),
    ):
        reader.update([{"item_id": "i1", "price": 1}])


def test_a_number_names_the_item_whose_id_it_is(searcher):
    searcher.add([{"item_id": 12, "image": picture(12), "price": 1}])
    assert searcher.update([{"item_id": 12, "price": 2}]).updated == 1
    assert searcher.get("12").extra == {"price": 2}


def test_a_file_of_whole_items_can_be_given(place, tmp_path):
    """Pictures beside it; null in JSON takes a field away, an empty cell of a table does not."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs the extra scale")
    import pyarrow

    from tigerfg.catalog import read_changes, read_items

    save_picture(tmp_path / "a.png", 1)
    row = {"item_id": "a", "image": "a.png", "title": "t", "price": 2, "stock": 5}
    file, table = tmp_path / "items.jsonl", tmp_path / "changes.parquet"
    file.write_text(json.dumps(row))
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "price": 3, "stock": None}]), table)
    with Searcher.create(place, FakeBundle(), engine=FakeEngine()) as searcher:
        assert searcher.add(read_items(file)).added == 1
        assert searcher.update(read_changes(file)).unchanged == 1
        assert searcher.update(read_changes(table)).updated == 1
        assert searcher.get("a").extra == {"price": 3, "stock": 5}
        file.write_text(json.dumps({**row, "stock": None}))
        assert searcher.update(read_changes(file)).updated == 1
        assert searcher.get("a").extra == {"price": 2}


def encoded(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def test_cells_of_a_csv_file_become_what_the_stored_fields_are(searcher, tmp_path):
    fields = {"price": 9.5, "stock": 1, "on_sale": True, "tags": ["x", "y"], "note": "7"}
    searcher.add([{"item_id": name, "image": picture(1), **fields} for name in "abc"])
    file = tmp_path / "changes.csv"
    file.write_text(
        "item_id,price,stock,on_sale,tags,note,new\n"
        'a,10,2,FALSE,"[""z""]",8,5\n'
        "b,10.50,,true,,,\n"
        'c,"10,50",2,,,,\n'
    )
    report = searcher.update(read_changes(file))
    assert (report.updated, len(report.rejected)) == (2, 1)
    assert "price is '10,50', where the catalogue has 9.5" in report.rejected[0].reason
    changed = {"price": 10, "stock": 2, "on_sale": False, "tags": ["z"], "note": "8", "new": "5"}
    assert searcher.get("a").extra == changed
    assert searcher.get("b").extra == {**fields, "price": 10.5}
    assert searcher.get("c").extra == fields
    where = {"price": {"$gt": 9.6}, "tags": "z", "on_sale": False}
    assert [hit.item_id for hit in searcher.search(picture(1), where=where)] == ["a"]
    searcher.update([{"item_id": "a", "price": "on request"}])  # a caller's own text stays one
    assert searcher.get("a").extra["price"] == "on request"


def test_whole_items_with_their_pictures_are_taken(searcher):
    whole = {"item_id": "a", "image": encoded(picture(1)), "title": "Mug", "price": 1}
    searcher.add([whole])
    assert searcher.update([{**whole, "price": 2}]).updated == 1
    for change in ({"image": encoded(picture(2))}, {"title": "Cup"}):
        [rejected] = searcher.update([{**whole, **change}]).rejected
        assert "upsert the whole item" in rejected.reason
    assert searcher.get("a").extra == {"price": 2}
