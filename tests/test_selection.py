"""Items by filter: counted, listed and deleted, on a disk and in Milvus."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from fakes import DIM, FakeBundle, FakeEngine, picture

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.stored import CHUNK, Record
from tigerfg.index.where import parse_filter
from tigerfg.records import Item
from tigerfg.searcher import Searcher

CHEAP = {"price": {"$lt": 5}}


def item(number: int) -> Item:
    return Item(f"i{number}", picture(number), title=f"item {number}", extra={"price": number})


def names(items) -> list[str]:
    return [one.item_id for one in items]


def fill(searcher: Searcher, count: int = 12) -> None:
    searcher.add(item(n) for n in range(count))


def test_count_and_list_by_filter(searcher):
    assert searcher.count() == searcher.count(CHEAP) == 0
    assert list(searcher.items()) == list(searcher.items(CHEAP)) == []
    fill(searcher)
    assert (searcher.count(), searcher.count(CHEAP), searcher.count({})) == (12, 5, 12)
    assert names(searcher.items(CHEAP)) == [f"i{n}" for n in range(5)]
    assert names(searcher.items()) == names(searcher.items({})) == names(searcher)
    assert next(searcher.items({"price": 7})) == searcher.get("i7")


def test_delete_by_filter(searcher):
    fill(searcher)
    assert searcher.delete(where=CHEAP) == 5
    assert names(searcher) == [f"i{n}" for n in range(5, 12)]
    assert searcher.count(CHEAP) == 0
    found = searcher.search(picture(3), k=20, where={"price": {"$lt": 7}})
    assert {hit.item_id for hit in found} == {"i5", "i6"}
    assert {hit.item_id for hit in searcher.search(picture(3), k=20)} == set(names(searcher))
    assert searcher.delete(where={"$or": [CHEAP, {"$and": [{}], "price": {"$lt": 6}}]}) == 1
    assert searcher.delete(where=CHEAP) == searcher.delete(where={"item_id": {"$in": []}}) == 0
    assert searcher.delete(where={"item_id": {"$exists": True}}) == 6
    assert len(searcher) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of them"),
        ({"item_ids": ["i1"], "where": CHEAP}, "give one of them"),
        ({"where": {}}, "where asks for nothing"),
        ({"where": {"$and": [{}, {}]}}, "where asks for nothing"),
        ({"where": {"$or": [{"price": 1}, {}]}}, "where asks for nothing"),
        ({"where": {"item_id": {"$nin": []}}}, "where asks for nothing"),
        ({"where": {"price": {"$below": 3}}}, "unknown operator"),
        ({"where": "price < 3"}, "no mapping"),
    ],
)
def test_a_deletion_that_is_not_clear_deletes_nothing(searcher, arguments, words):
    fill(searcher, 3)
    with pytest.raises(InputError, match=words):
        searcher.delete(**arguments)
    assert len(searcher) == 3


def test_a_bad_filter_is_told_before_the_first_item(searcher):
    for call in (searcher.count, searcher.items):
        with pytest.raises(InputError, match="unknown operator"):
            call({"price": {"$below": 3}})


def test_items_go_on_while_others_are_written(searcher):
    fill(searcher, 3 + CHUNK)
    given = searcher.items({"price": {"$gte": 1}})
    assert next(given).item_id == "i1"
    searcher.delete([f"i{CHUNK + 1}"])  # beyond what has been read
    searcher.upsert([Item(f"i{CHUNK + 2}", picture(0), title="other", extra={"price": 1})])
    searcher.add([item(9000)])
    left = names(given)
    assert left[: CHUNK - 1] == [f"i{n}" for n in range(2, CHUNK + 1)]
    assert f"i{CHUNK + 1}" not in left
    assert "i9000" not in left


def test_a_reader_counts_and_lists_but_deletes_nothing(place):
    with Searcher.create(place, FakeBundle(), engine=FakeEngine()) as searcher:
        fill(searcher)
        reader = Searcher.open(place, FakeBundle(), read_only=True, engine=FakeEngine())
        assert (reader.count(CHEAP), len(list(reader.items(CHEAP)))) == (5, 5)
        with pytest.raises(CatalogError, match="reading only"):
            reader.delete(where=CHEAP)
        searcher.delete(where={"price": 0})
        assert reader.count(CHEAP) == 4
        reader.close()
        for call in (reader.count, reader.items):
            with pytest.raises(CatalogError, match="closed"):
                call(CHEAP)


def records(count: int) -> list[Record]:
    vector, grid = np.full(DIM, DIM**-0.5, np.float32), np.ones((1, 1), np.float32)
    return [
        Record(f"i{n}", b"h", f'{{"item_id": "i{n}", "n": {n}}}', vector, grid)
        for n in range(count)
    ]


def test_many_are_deleted_at_once_or_none(tmp_path, monkeypatch):
    from tigerfg.index.store import Store

    store = Store.create(tmp_path / "cat", model="m", fingerprint="f", embedding_dim=DIM)
    store.put(records(3 * CHUNK))
    left = 2  # chunks until it fails

    def failing(found, whole=Store._remove):
        nonlocal left
        left -= 1
        if not left:
            raise sqlite3.OperationalError("database or disk is full")
        return whole(store, found)

    term = parse_filter({"n": {"$gte": 10}})
    monkeypatch.setattr(store, "_remove", failing)
    with pytest.raises(CatalogError, match="disk is full"):
        store.delete_matching(term)
    assert len(store) == 3 * CHUNK
    monkeypatch.undo()
    assert store.delete_matching(term) == 3 * CHUNK - 10
    assert store.ids().tolist() == list(range(1, 11))
    assert store.check() == []
    store.close()
