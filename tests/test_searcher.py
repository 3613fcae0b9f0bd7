"""Searcher: the whole way from pictures to hits, with a model that is none."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from fakes import DIM, FakeBundle, FakeEngine, picture, save_picture
from PIL import Image

from tigerfg.bundle import DEFAULT_MODEL
from tigerfg.errors import BundleError, CatalogError, EngineError, InputError
from tigerfg.index.collection import Collection
from tigerfg.index.database import LOCK_FILE, STORE_FILE
from tigerfg.query_sample import query_embeddings
from tigerfg.records import Item, Query, Rejected
from tigerfg.searcher import Searcher


def item(number: int, seed: int | None = None, **fields) -> Item:
    image = picture(number if seed is None else seed)
    return Item(f"i{number}", image, title=f"item {number}", **fields)


def ids(hits) -> list[str]:
    return [hit.item_id for hit in hits]


def test_add_search_and_read_back(searcher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        save_picture(tmp_path / f"{number}.png", number)
    report = searcher.add(
        Item(
            f"i{number}",
            f"{number}.png",
            title=f"item {number}",
            category="Shoes",
            attributes={"size": number, "tags": ["a", "ü"]},
            target_box=(1, 2, 3, 4),
            extra={"sku": f"s{number}"},
        )
        for number in range(40)
    )
    assert (report.added, report.unchanged, report.rejected) == (40, 0, [])
    assert report.rejects_file is None
    assert set(report.stages) == {"read", "check", "decode", "encode", "store"}
    assert report.seconds > 0
    assert report.images_per_second == pytest.approx(40 / report.seconds)
    assert len(searcher) == 40
    hits = searcher.search("7.png", k=5)
    assert len(hits) == 5
    assert hits[0].item_id == "i7"
    # fp16 storage: see test_store
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    stored = hits[0].item
    assert stored == searcher.get("i7")
    assert stored.image == str(tmp_path / "7.png")
    assert stored.attributes == {"size": 7, "tags": ["a", "ü"]}
    assert stored.target_box == (1, 2, 3, 4)
    assert stored.extra == {"sku": "s7"}
    assert hits[0].grounding_map.dtype == np.float32
    assert hits[0].grounding_map.shape == (4, 4)
    assert hits[0].grounding_map.sum() == pytest.approx(1)
    assert ids(searcher.search("7.png", k=3, where={"size": {"$lt": 2}})).count("i7") == 0
    assert len(searcher.search("7.png", where={"sku": "s9"})) == 1
    assert [one.item_id for one in searcher] == [f"i{n}" for n in range(40)]


def test_every_kind_of_picture_gives_the_same_hit(searcher, tmp_path):
    searcher.add([item(n) for n in range(20)])
    path = save_picture(tmp_path / "q.png", 3)
    image = Image.open(path)
    sources = [str(path), path, path.read_bytes(), image, np.asarray(image)]
    results = searcher.search_batch(sources, k=3)
    assert all(ids(hits) == ids(results[0]) for hits in results)
    assert results[0][0].item_id == "i3"
    assert searcher.get("i3").image is None
    for source in sources:
        np.testing.assert_array_equal(
            searcher.encode_query(source), searcher.encode_query(sources[0])
        )


def test_box_is_the_crop(searcher):
    searcher.add([item(n) for n in range(20)])
    scene = np.zeros((64, 48, 3), np.uint8)
    scene[30:46, 8:24] = picture(11)
    [hit] = searcher.search(scene, box=(8, 30, 24, 46), k=1)
    assert hit.item_id == "i11"
    assert hit.score == pytest.approx(1, abs=1e-5)
    [batched], [whole] = searcher.search_batch([scene, scene], [(8, 30, 24, 46), None], k=1)
    assert batched.item_id == "i11"
    assert whole.score < 0.99


def test_grounding_map_covers_the_picture_only(searcher):
    searcher.add([Item("wide", picture(1, 32, 16)), Item("tall", picture(2, 8, 32))])
    shapes = {
        hit.item_id: hit.grounding_map.shape for hit in searcher.search(picture(1, 32, 16), k=2)
    }
    assert shapes == {"wide": (2, 4), "tall": (4, 1)}


def test_bad_items_are_listed_and_good_ones_kept(searcher, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(picture(1, 64, 64)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:200])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    good = [item(n) for n in range(10)]
    bad = [
        Item("cut", tmp_path / "cut.png"),
        Item("zero", tmp_path / "zero.png"),
        Item("text", tmp_path / "text.jpg"),
        Item("gone", tmp_path / "gone.jpg"),
        Item("folder", tmp_path),
        Item("floats", np.zeros((4, 4, 3))),
        Item("nan", picture(1), extra={"x": float("nan")}),
        Item("surrogate", picture(1), title="\ud800"),
        Item("none", None),
        {"image": picture(1)},
        {"item_id": "box", "image": picture(1), "target_box": [5, 5, 1, 1]},
        "i3",
        Rejected(None, "not valid JSON", 7, "items.jsonl"),
    ]
    mixed = [entry for pair in zip(bad, [*good, *[None] * 3], strict=True) for entry in pair]
    report = searcher.add([entry for entry in mixed if entry is not None], batch_size=4)
    assert report.added == len(searcher) == 10
    assert len(report.rejected) == len(bad)
    reasons = {rejected.item_id: rejected.reason for rejected in report.rejected}
    for name in ("cut", "zero", "text", "gone"):
        assert str(tmp_path / name) in reasons[name]
    for name in ("floats", "nan", "surrogate", "none", "box"):
        assert reasons[name]
    assert all("\n" not in rejected.reason for rejected in report.rejected)
    assert Rejected(None, "not valid JSON", 7, "items.jsonl") in report.rejected
    for n in range(10):
        assert searcher.search(picture(n), k=1)[0].item_id == f"i{n}"


def test_rejects_are_appended_to_a_file_of_the_catalogue(tmp_path, engine):
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=engine) as searcher:
        bad = [Item("gone", tmp_path / "gone.jpg"), Rejected(None, "not valid JSON", 7, "a.jsonl")]
        report = searcher.add([*bad, item(1)])
        assert report.rejects_file == tmp_path / "cat" / "rejects.jsonl"
        lines = report.rejects_file.read_text().splitlines()
        assert [Rejected(**json.loads(line)) for line in lines] == report.rejected
        assert len(searcher.add(bad[:1]).rejected) == 1
    assert len(report.rejects_file.read_text().splitlines()) == 3


def test_taken_ids_are_rejected_and_same_content_is_unchanged(searcher, engine):
    searcher.add([item(n) for n in range(5)])
    encoded = engine.items_encoded
    report = searcher.add([item(n) for n in range(5)])
    assert (report.added, report.unchanged, report.rejected) == (0, 5, [])
    assert engine.items_encoded == encoded
    report = searcher.add([item(0, seed=99), item(5), item(5, seed=98), item(5)])
    assert (report.added, report.unchanged) == (1, 1)
    assert [rejected.item_id for rejected in report.rejected] == ["i0", "i5"]
    assert "upsert" in report.rejected[0].reason
    assert searcher.search(picture(0), k=1)[0].score == pytest.approx(1, abs=1e-5)
    assert len(searcher) == 6


def test_a_picture_that_is_gone_is_named_though_the_id_is_taken(searcher, tmp_path):
    file = save_picture(tmp_path / "a.png", 1)
    entry = {"item_id": "a", "image": file}
    assert searcher.add([entry]).added == 1
    file.unlink()
    [rejected] = searcher.add([entry]).rejected
    assert "no such file" in rejected.reason


def test_an_id_of_thousands_of_digits_is_refused_alone(searcher):
    report = searcher.add([{"item_id": 10**5000, "image": picture(1)}, item(2)])
    assert report.added == 1
    assert "item_id is a number, not a string" in report.rejected[0].reason
    assert searcher.update([{"item_id": 10**5000, "price": 1}]).rejected


def test_numbers_and_boxes_of_numpy_are_taken(searcher):
    box = np.array([1, 2, 9, 8])
    entries = [
        Item(f"i{n}", picture(n), target_box=given)
        for n, given in enumerate((box, box.astype(np.float32), tuple(box), [1, 2, 9, 8]))
    ]
    assert searcher.add(entries, batch_size=np.int64(3)).added == 4
    assert [list(searcher.get(f"i{n}").target_box) for n in range(4)] == [[1, 2, 9, 8]] * 4
    assert len(searcher.search(picture(0), k=np.int32(2))) == 2
    assert searcher.verify(sample=np.int64(2)).ok
    for wrong in (True, 1.0, "1", -1, None):
        with pytest.raises(InputError, match=r"sample .* must be a whole number, at least 0"):
            searcher.verify(sample=wrong)
        with pytest.raises(InputError, match=r"batch_size .* must be a whole number, at least 1"):
            searcher.add([], batch_size=wrong)


def test_embeddings_have_to_be_of_unit_length(searcher):
    searcher.add([item(n) for n in range(3)])
    query = searcher.encode_query(picture(0))
    for wrong in (3 * query, 0.1 * query, 0 * query, np.full(64, np.nan)):
        with pytest.raises(InputError, match=r"embeddings: row 1 has length .*; divide by"):
            searcher.search_embeddings(np.stack([query, wrong]))
    for wrong in ("text", [query.tolist(), [1.0]], query, np.full((1, 64), "a")):
        with pytest.raises(InputError, match="embeddings"):
            searcher.search_embeddings(wrong)
    first, second = searcher.search_embeddings(np.stack([query, query]).astype(np.float16), k=1)
    first[0].grounding_map[:] = 0  # the caller's own
    assert second[0].grounding_map.sum() > 0


def test_a_catalogue_keeps_its_index_settings_and_says_so(tmp_path, caplog):
    options = {"engine": FakeEngine(), "exist_ok": True}
    Searcher.create(tmp_path / "cat", FakeBundle(), target_recall=0.9, **options).close()
    for given, told in (({}, 0), ({"target_recall": np.float64(0.9)}, 0), ({"index": "flat"}, 1)):
        caplog.clear()
        with Searcher.create(tmp_path / "cat", FakeBundle(), **options, **given) as searcher:
            assert searcher.info.target_recall == 0.9
        assert len(caplog.messages) == told
    assert "keeps its index settings" in caplog.text
    with pytest.raises(InputError, match=r"memory_budget 1\.5 must be a whole number, at least 1"):
        Searcher.create(tmp_path / "cat", FakeBundle(), memory_budget=1.5, **options)


def test_a_pil_image_is_what_it_shows(searcher):
    """Palette, transparency and orientation count, how the same pixels are kept does not."""
    plain = Image.new("P", (16, 8))
    shown = {}
    for name, palette in (("red", [200, 0, 0]), ("blue", [0, 0, 200])):
        shown[name] = plain.copy()
        shown[name].putpalette(palette)
    shown["clear"] = shown["red"].copy()
    shown["clear"].info["transparency"] = 0
    shown["turned"] = shown["clear"].copy()
    shown["turned"].getexif()[0x0112] = 6
    assert searcher.add([Item("a", shown["red"])]).added == 1
    for name in ("blue", "clear", "turned", "red"):
        assert searcher.upsert([Item("a", shown[name])]).replaced == 1, name
    assert searcher.upsert([Item("a", shown["red"].convert("RGB"))]).unchanged == 1


def test_content_hash_sees_the_picture_and_the_record(searcher, tmp_path, engine):
    path = save_picture(tmp_path / "a.png", 1)
    assert searcher.add([Item("a", path, title="t")]).added == 1
    assert searcher.upsert([Item("a", path, title="t")]).unchanged == 1
    assert searcher.upsert([Item("a", path, title="u")]).replaced == 1
    save_picture(path, 2)
    assert searcher.upsert([Item("a", path, title="u")]).replaced == 1
    assert searcher.search(picture(2), k=1)[0].score == pytest.approx(1, abs=1e-5)
    assert engine.items_encoded == 3


def test_an_upsert_of_other_fields_encodes_nothing(searcher, engine):
    searcher.add([item(n, extra={"price": 10 + n}, target_box=(0, 0, 4, 4)) for n in range(6)])
    encoded = engine.items_encoded
    assert ids(searcher.search(picture(2), where={"price": {"$gt": 14}}))[0] == "i5"
    cheaper = [item(n, extra={"price": n, "sale": True}, target_box=None) for n in (1, 4)]
    assert [r.item_id for r in searcher.add(cheaper).rejected] == ["i1", "i4"]
    report = searcher.upsert([*cheaper, item(2, extra={"price": 12}, target_box=(0, 0, 4, 4))])
    assert (report.replaced, report.updated, report.unchanged) == (0, 2, 1)
    assert report.stored == 3
    assert str(report).startswith("2 updated, 1 unchanged in ")
    assert engine.items_encoded == encoded
    assert (searcher.get("i4").extra, searcher.get("i4").target_box) == (
        {"price": 4, "sale": True},
        None,
    )
    assert set(ids(searcher.search(picture(2), where={"sale": True}))) == {"i1", "i4"}
    assert set(ids(searcher.search(picture(2), where={"price": {"$lt": 10}}))) == {"i1", "i4"}
    assert searcher.search(picture(2), where={"price": 14}) == []
    assert [one.item_id for one in searcher] == [f"i{n}" for n in range(6)]
    [hit] = searcher.search(picture(4), k=1)
    assert (hit.item_id, hit.item.extra["price"]) == ("i4", 4)
    assert hit.score == pytest.approx(1, abs=1e-5)
    moved = Item("i4", picture(4), title="item 4", category="Hats", extra={"price": 4})
    assert searcher.upsert([moved]).replaced == 1
    assert engine.items_encoded == encoded + 1


def test_the_path_of_a_picture_is_no_content(searcher, tmp_path, engine):
    before, after = (save_picture(tmp_path / name, 1) for name in ("a.png", "b.png"))
    searcher.add([Item("a", before, title="t")])
    assert searcher.upsert([Item("a", after, title="t")]).updated == 1
    assert searcher.get("a").image == str(after)
    assert engine.items_encoded == 1


def test_updates_and_replacements_of_one_id_count_in_their_order(searcher):
    searcher.add([item(9)])
    for batch_size in (1, 2, 8):
        priced = item(9, extra={"price": batch_size})
        searcher.upsert([item(9, seed=60), priced], batch_size=batch_size)
        assert searcher.search(picture(9), k=1)[0].item.extra == {"price": batch_size}
        dearer = item(9, extra={"price": 100})
        searcher.upsert([dearer, item(9, seed=60), item(10)], batch_size=batch_size)
        assert searcher.search(picture(60), k=1)[0].item.extra == {}
        searcher.upsert([priced, dearer, priced], batch_size=batch_size)
        assert searcher.search(picture(9), k=1)[0].item.extra == {"price": batch_size}


def test_upsert_replaces_and_the_last_of_a_call_counts(searcher):
    searcher.add([item(n) for n in range(3)])
    report = searcher.upsert([item(1, seed=50), item(3)])
    assert (report.added, report.replaced) == (1, 1)
    assert len(searcher) == 4
    assert searcher.search(picture(50), k=1)[0].item_id == "i1"
    assert searcher.search(picture(1), k=1)[0].score < 0.99
    for batch_size in (1, 2, 8):
        a, b = item(9, seed=60), item(9, seed=61)
        searcher.upsert([a, item(10), b, item(11), a, item(12), b], batch_size=batch_size)
        assert searcher.search(picture(61), k=1)[0].score == pytest.approx(1, abs=1e-5)
        searcher.upsert([b, a], batch_size=batch_size)
        assert searcher.search(picture(60), k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_upsert_of_a_broken_picture_keeps_the_stored_item(searcher):
    searcher.add([item(1)])
    report = searcher.upsert([Item("i1", b"no picture")])
    assert len(report.rejected) == 1
    assert searcher.search(picture(1), k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_delete(searcher, caplog):
    searcher.add([item(n) for n in range(10)])
    with caplog.at_level(logging.WARNING, "tigerfg"):
        assert searcher.delete(["i3", "i4", "nope"]) == 2
    assert "1 of 3" in caplog.text
    assert searcher.delete("i5") == 1
    assert "i3" not in searcher
    assert "i6" in searcher
    assert 7 not in searcher
    assert searcher.get("i3") is None
    assert set(ids(searcher.search(picture(3), k=10))) == {f"i{n}" for n in (0, 1, 2, 6, 7, 8, 9)}
    assert searcher.add([item(3)]).added == 1
    assert searcher.search(picture(3), k=1)[0].item_id == "i3"


def test_k_and_empty_catalogue(searcher):
    assert searcher.search(picture(1)) == []
    assert searcher.search_batch([picture(1)] * 2) == [[], []]
    assert searcher.search_batch([]) == []
    assert bool(searcher)
    searcher.add([item(n) for n in range(3)])
    assert len(searcher.search(picture(1), k=100)) == 3
    for kind in (np.int8, np.int64, np.uint32):
        assert len(searcher.search(picture(1), k=kind(2))) == 2
        assert len(searcher.search(picture(1), k=kind(2), where={"title": {"$ne": "x"}})) == 2
    for k in (0, -1, 1.5, True, "3", None):
        with pytest.raises(InputError, match=r"k .* must be"):
            searcher.search(picture(1), k=k)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.search("/nowhere/a.jpg"), "/nowhere/a.jpg"),
        (
            lambda s: s.search("http://a.b/c.jpg"),
            "no such file: only pictures of items are fetched",
        ),
        (lambda s: s.search(picture(1), where={"a": None}), '{"\\$exists": false}'),
        (lambda s: s.search(picture(1), where={"a": {"$exists": 1}}), "takes true or false"),
        (lambda s: s.optimize(memory_budget=-1), "memory_budget -1 .* at least 0"),
        (lambda s: s.search(picture(1), box=(5, 5, 2, 2)), "inverted"),
        (lambda s: s.search(picture(1), box=(50, 50, 60, 60)), "outside"),
        (lambda s: s.search(picture(1), where={"a": {"$x": 1}}), "unknown operator"),
        (lambda s: s.search(picture(1), where={"a": {"$in": (n for n in "12")}}), "list of values"),
        (lambda s: s.search(picture(1), where={"a": {"$in": np.array(5)}}), "list of values"),
        (lambda s: s.search_batch("photo.jpg"), "takes a list"),
        (lambda s: s.search_batch(picture(1)), "takes a list"),
        (lambda s: s.search_batch(Image.fromarray(picture(1))), "takes a list"),
        (lambda s: s.search_batch([picture(1)], [None, None]), "2 boxes for 1 images"),
        (lambda s: s.search_batch([picture(1)], on_error="ignore"), "on_error"),
        (lambda s: s.search_embeddings(np.zeros((1, 3), np.float32)), "shape"),
        (lambda s: s.search_embeddings(np.full((1, DIM), np.nan)), "row 0 has length nan"),
        (lambda s: s.optimize({"query_id": "a", "image": "a.jpg"}), "give a list"),
        (lambda s: s.optimize(np.zeros((1, 3), np.float32)), "shape"),
        (lambda s: s.optimize(5), "give a list"),
        (lambda s: s.optimize(Query("a", picture(1))), "give a list"),
        (lambda s: s.optimize(np.full((1, DIM), np.nan)), "row 0 has length nan"),
        (lambda s: s.optimize(2 * np.eye(DIM)), "row 0 has length 2; divide"),
        (lambda s: s.optimize(np.zeros((1, DIM), object)), "type object: give float32"),
        (lambda s: s.optimize([Rejected("e", "no picture")]), "none of 1 can be used"),
        (lambda s: s.optimize(["a.jpg", None]), "none of 2 can be used"),
        (lambda s: s.optimize([{"query_id": "a", "image": b"broken"}]), "none of 1 can be used"),
        (lambda s: s.add("items.jsonl"), "read_items"),
        (lambda s: s.add({"item_id": "a", "image": "a.jpg"}), "iterable"),
        (lambda s: s.add([], batch_size=0), "batch_size"),
        (lambda s: s.get("\ud800"), "Unicode"),
        (lambda s: s.delete(None), "give one of them"),
        (lambda s: s.delete([{"a": 1}]), "item id is of type dict"),
        (lambda s: s.delete([["a"]]), "item id is of type list"),
        (lambda s: s.delete({"price": 5}), "give ids, or a filter as where="),
        (lambda s: s.verify(seed=-1), "seed -1 must be a whole number"),
        (lambda s: s.verify(seed="a"), "seed 'a' must be a whole number"),
        (lambda s: s.search_batch([picture(1)], boxes=3), "boxes: give a list"),
    ],
)
def test_bad_calls_are_refused_in_one_line(searcher, call, words):
    searcher.add([item(1)])
    with pytest.raises(InputError, match=words) as caught:
        call(searcher)
    assert "\n" not in str(caught.value)


def test_bad_photo_in_a_batch(searcher, caplog):
    searcher.add([item(n) for n in range(5)])
    photos = [picture(1), b"broken", picture(3), b""]
    with pytest.raises(InputError, match=r"query 1: .*query 3: "):
        searcher.search_batch(photos)
    with caplog.at_level(logging.WARNING, "tigerfg"):
        results = searcher.search_batch(photos, k=1, on_error="skip")
    assert [hits and ids(hits) for hits in results] == [["i1"], None, ["i3"], None]
    assert "query 1 skipped" in caplog.text
    assert searcher.search_batch([b"broken"], on_error="skip") == [None]


def test_optimize_takes_sample_photos(searcher, caplog):
    searcher.add([item(n) for n in range(5)])
    photos = [
        Query("a", picture(1)),
        {"query_id": "b", "image": picture(2), "box": [0, 0, 20, 20]},
        Query("c", b"broken"),
        Query("d", None),
        Rejected("e", "no picture"),
        "f.jpg",
    ]
    with caplog.at_level(logging.WARNING, "tigerfg"):
        assert searcher.optimize(photos).items == 5
    for left_out in ("query 'c' left out", "query 'd' left out", "no picture", "is a string"):
        assert left_out in caplog.text
    if not isinstance(searcher._collection, Collection):
        return  # in Milvus they are not kept
    kept = searcher._collection._store.queries
    known = [searcher.encode_query(picture(1)), searcher.encode_query(picture(2), (0, 0, 20, 20))]
    np.testing.assert_allclose(kept(), known, atol=1e-3)
    searcher.optimize()
    assert len(kept()) == 2
    with pytest.raises(InputError, match="none of 1"):
        searcher.optimize([b"broken"])
    assert len(kept()) == 2
    searcher.optimize([])
    assert len(kept()) == 0


def test_of_many_sample_queries_some_are_taken_evenly():
    embeddings = np.zeros((700, DIM))
    angles = np.arange(700) / 700
    embeddings[:, 0], embeddings[:, 1] = np.cos(angles), np.sin(angles)
    found = query_embeddings(embeddings, lambda: None, DIM)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, embeddings[::3].astype(np.float32))
    assert query_embeddings(embeddings[:300], lambda: None, DIM).shape == (300, DIM)
    assert query_embeddings(embeddings[:0], lambda: None, DIM).shape == (0, DIM)
    assert query_embeddings(iter(()), lambda: None, DIM).shape == (0, DIM)


def test_equal_scores_come_in_the_order_of_adding(searcher):
    searcher.add([item(n, seed=1) for n in (4, 2, 9, 7, 1)])
    for k in range(1, 6):
        assert ids(searcher.search(picture(1), k=k)) == ["i4", "i2", "i9", "i7", "i1"][:k]


def test_progress_is_told_after_each_stored_batch(searcher):
    seen = []

    def note(report):
        assert len(searcher) == report.added
        seen.append(report.added)

    searcher.add([item(n) for n in range(20)], batch_size=8, progress=note)
    assert seen == [8, 16, 20]


def test_progress_bar(searcher, capsys):
    searcher.add([item(n) for n in range(20)], progress=True)
    assert "20/20" in capsys.readouterr().out


def test_error_in_the_callers_iterator_keeps_the_batches_before(searcher):
    def items():
        yield from (item(n) for n in range(100))
        raise OSError("the network went away")

    with pytest.raises(OSError, match="went away"):
        searcher.add(items(), batch_size=4)
    assert len(searcher) > 0
    report = searcher.add([item(n) for n in range(100)])
    assert report.added + report.unchanged == 100
    assert report.unchanged > 0


def test_one_process_at_a_time_writes_to_a_directory(tmp_path, engine):
    with (
        Searcher.create(tmp_path / "cat", FakeBundle(), engine=engine),
        pytest.raises(CatalogError, match="open for writing"),
    ):
        Searcher.open(tmp_path / "cat", FakeBundle())


def test_of_two_that_make_a_catalogue_one_hears_that_it_is_open(tmp_path):
    with (
        Searcher.create(tmp_path, FakeBundle()),
        pytest.raises(CatalogError, match="open for writing already"),
    ):
        Searcher.create(tmp_path, FakeBundle())  # began when there was none
    with pytest.raises(CatalogError, match="holds a catalogue already"):
        Searcher.create(tmp_path, FakeBundle())


def test_what_a_killed_create_left_is_no_obstacle(tmp_path):
    for name in (f"{STORE_FILE}.new", f"{STORE_FILE}.new-journal", LOCK_FILE):
        (tmp_path / name).write_bytes(b"half")
    Searcher.create(tmp_path, FakeBundle()).close()


def test_open_again(place, engine):
    path = place
    with Searcher.create(path, FakeBundle(), engine=engine) as searcher:
        searcher.add([item(1)])
        with Searcher.open(path, FakeBundle(), read_only=True, engine=engine) as reader:
            assert ids(reader.search(picture(1))) == ["i1"]
            searcher.add([item(2)])
            assert len(reader.search(picture(1))) == 2
            with pytest.raises(CatalogError, match="reading only"):
                reader.add([item(3)])
            with pytest.raises(CatalogError, match="reading only"):
                reader.delete(["i1"])
            assert reader.info.read_only
    assert not engine.closed, "an engine that was handed in is the caller's to close"
    with pytest.raises(CatalogError, match="closed"):
        searcher.search(picture(1))
    with Searcher.create(path, FakeBundle(), engine=engine, exist_ok=True) as searcher:
        assert len(searcher) == 2
    with pytest.raises(CatalogError, match="already"):
        Searcher.create(path, FakeBundle())


def test_an_existing_catalogue_keeps_its_model(tmp_path):
    Searcher.create(tmp_path / "old", "tiny").close()
    with Searcher.create(tmp_path / "old", exist_ok=True) as searcher:
        assert searcher.model.name == "tiny"
    with Searcher.create(tmp_path / "new", exist_ok=True) as searcher:
        assert searcher.model.name == DEFAULT_MODEL


def test_another_model_is_refused(place, tmp_path):
    path = place
    Searcher.create(path, FakeBundle("one", "1" * 64)).close()
    for attempt in (
        lambda model: Searcher.open(path, model),
        lambda model: Searcher.create(path, model, exist_ok=True),
    ):
        with pytest.raises(CatalogError, match=r"made with the model .*one \(1{12}\).*two \(2{12}"):
            attempt(FakeBundle("two", "2" * 64))
    with pytest.raises(BundleError, match=r"was made with it.*model="):
        Searcher.open(path)
    with Searcher.open(path, FakeBundle("moved", "1" * 64)) as searcher:
        assert searcher.model.name == "moved"
    with pytest.raises(BundleError):
        Searcher.create(tmp_path / "new", tmp_path / "no model")
    assert not (tmp_path / "new").exists()


def test_info(searcher):
    assert searcher.info.engine is None
    searcher.add([item(1)])
    info = searcher.info
    assert (info.items, info.embedding_dim, info.fingerprint) == (1, DIM, "f" * 64)
    assert info.engine == "fake fp32 on cpu"
    assert (info.size_bytes is None) == str(info.path).startswith("milvus://")
    assert info.size_bytes is None or info.size_bytes > 0


def test_flush_writes_the_index_file(tmp_path, engine):
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=engine) as searcher:
        searcher.add([item(1)])
        assert not (tmp_path / "cat" / "flat.index").exists()
        searcher.flush()
        assert (tmp_path / "cat" / "flat.index").exists()


def test_searches_beside_writes_from_many_threads(searcher):
    searcher.add([item(n) for n in range(30)])
    errors: list[BaseException] = []
    stop = threading.Event()

    def search(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                n = int(rng.integers(30))
                hits = searcher.search(picture(n), k=3, where={"title": {"$exists": True}})
                assert hits[0].item_id == f"i{n}"
                assert len(hits) == 3
        except BaseException as error:
            errors.append(error)

    def write(base: int) -> None:
        try:
            for step in range(6):
                numbers = range(base + 10 * step, base + 10 * step + 10)
                assert searcher.add([item(n) for n in numbers], batch_size=4).added == 10
                assert searcher.search(picture(base + 10 * step), k=1)[0].score > 0.999
                assert searcher.delete([f"i{n}" for n in numbers[:5]]) == 5
        except BaseException as error:
            errors.append(error)

    searchers = [threading.Thread(target=search, args=(n,)) for n in range(3)]
    writers = [threading.Thread(target=write, args=(1000 * n,)) for n in (1, 2)]
    for thread in searchers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in searchers:
        thread.join()
    assert not errors
    assert len(searcher) == 30 + 2 * 30


def test_decoding_runs_ahead_but_not_without_bound(searcher):
    pulled, stored = 0, 0

    def items():
        nonlocal pulled
        for n in range(400):
            pulled += 1
            # ahead: a batch being checked, one looked up, two decoded, one encoded, one written
            assert pulled - stored <= 6 * 8 + 3
            yield item(n)

    def note(report):
        nonlocal stored
        stored = report.added

    assert searcher.add(items(), batch_size=8, progress=note).added == 400


def test_a_search_imports_neither_torch_nor_transformers(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fakes import FakeBundle, FakeEngine, picture\n"
        "from tigerfg import Item, Searcher\n"
        "with Searcher.create(sys.argv[2], FakeBundle(), engine=FakeEngine()) as s:\n"
        "    s.add([Item('a', picture(1))])\n"
        "    assert s.search(picture(1))[0].item_id == 'a'\n"
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "cat")], check=True
    )


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_a_turned_photo_is_the_same_as_path_bytes_and_pil_image(searcher, tmp_path, turn):
    upright = Image.fromarray(picture(5, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "turned.png"
    upright.save(path, exif=exif)
    box = (2, 3, 22, 18)
    expected = searcher.encode_query(path, box)
    assert np.array_equal(searcher.encode_query(path.read_bytes(), box), expected)
    with Image.open(path) as opened:
        assert np.array_equal(searcher.encode_query(opened, box), expected)
    assert not np.array_equal(searcher.encode_query(upright, box), expected)


def test_a_bad_item_does_not_shadow_a_good_one_of_its_id(searcher):
    broken = Item("same", b"no picture")
    report = searcher.add([broken, item(1), Item("same", picture(2)), broken])
    assert report.added == 2
    assert [r.item_id for r in report.rejected] == ["same", "same"]
    assert "same" in searcher
    report = searcher.add([Item("twice", b"no picture")] * 2)
    assert (report.added, report.unchanged, len(report.rejected)) == (0, 0, 2)


def test_of_one_id_twice_the_first_is_added_and_the_last_upserted(searcher):
    report = searcher.add([item(1, 1), item(1, 2), item(1, 1)])
    assert (report.added, report.unchanged, len(report.rejected)) == (1, 1, 1)
    searcher.upsert([item(1, 3), item(1, 4)])
    assert searcher.search(picture(4))[0].score == pytest.approx(1.0, abs=1e-3)


def test_versions_of_one_item_do_not_pile_up_in_memory(searcher, monkeypatch):
    """Few of them wait for those before: the source is read on when they are stored."""
    monkeypatch.setattr("tigerfg.ingest.HELD", 8)
    monkeypatch.setattr("tigerfg.ingest.HELD_BATCHES", 2)
    stored, ahead = [0], []

    def versions():
        for number in range(150):
            ahead.append(number - stored[-1])
            yield item(1, number)

    def progress(report):
        stored.append(report.stored)

    report = searcher.upsert(versions(), batch_size=4, progress=progress)
    assert (report.added, report.replaced) == (1, 149)
    assert max(ahead) < 60  # 8 that wait, and what is read and decoded ahead
    assert searcher.search(picture(149))[0].score == pytest.approx(1.0, abs=1e-3)


def test_what_was_read_before_the_source_broke_is_kept(searcher):
    def source():
        yield from (item(1), item(2))
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        searcher.add(source())
    assert len(searcher) == 2


def test_an_address_that_cannot_be_fetched_is_named(searcher):
    report = searcher.add([Item("web", "http://no.such.host.invalid/a.png")])
    assert report.rejected[0].reason.startswith("http://no.such.host.invalid/a.png: ")


def test_a_refused_create_leaves_nothing_in_the_directory(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CatalogError, match="holiday"):
        Searcher.create(tmp_path, FakeBundle())
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "onxx"}, "engine: 'onxx' is unknown"),
        ({"engine": 5}, "engine 5: give a name"),
        ({"engine": "tensorrt"}, "has nothing for GPUs"),
        ({"engine": "torch", "precision": "int8"}, "runs fp32, not 'int8'"),
        ({"precision": "fp31"}, "precision: 'fp31' is unknown"),
        ({"threads": 0}, "threads 0 must be"),
        ({"model": 5}, "model 5: give a bundle"),
        ({"gpu": 5}, "gpu 5: give auto"),
    ],
)
def test_what_the_first_add_would_refuse_makes_no_catalogue(tmp_path, options, words):
    with pytest.raises((EngineError, InputError), match=words):
        Searcher.create(tmp_path / "shop", **{"model": FakeBundle(), **options})
    assert not (tmp_path / "shop").exists()
    Searcher.create(tmp_path / "shop", FakeBundle()).close()
    with pytest.raises((EngineError, InputError), match=words):
        Searcher.open(tmp_path / "shop", **{"model": FakeBundle(), **options})
    Searcher.open(tmp_path / "shop", FakeBundle()).close()  # nobody has it open


def test_a_place_must_be_a_path(tmp_path):
    for call in (Searcher.open, Searcher.create):
        with pytest.raises(InputError, match="path 5: give a catalogue's directory"):
            call(5)
    made = Searcher.create(tmp_path, FakeBundle())
    with made, pytest.raises(InputError, match="path 5: give a new or empty directory"):
        made.snapshot(5)


def test_k_may_be_a_numpy_integer(searcher):
    searcher.add([item(1)])
    assert len(searcher.search(picture(1), k=np.int64(3))) == 1
