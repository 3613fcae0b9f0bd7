"""The store and the flat index that follows it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from test_filters import documents

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.collection import Collection
from tigerfg.index.database import STORE_FILE
from tigerfg.index.flat import INDEX_FILE
from tigerfg.index.stored import Record

DIM = 16


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def record(number: int, seed: int | None = None, **fields) -> Record:
    document = {"item_id": f"i{number}", "title": f"item {number}", **fields}
    grid = np.full((2, 3), number % 100 + 1, np.float32)
    return Record(
        f"i{number}",
        b"hash %d" % number,
        json.dumps(document),
        vector(number if seed is None else seed),
        grid,
    )


def create(path: Path) -> Collection:
    return Collection.create(path, model="m", fingerprint="f" * 64, embedding_dim=DIM)


def found(collection: Collection, seed: int, k: int = 1, where=None) -> list[str]:
    matches = collection.search(vector(seed)[None], k, where)[0]
    return [match.document["item_id"] for match in matches]


def store_of(collection: Collection):
    return collection._store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cat"


def test_put_is_read_back_and_survives_reopening(path):
    with_text = record(1, category="Shoes", attributes={"color": "Red"})
    collection = create(path)
    assert collection.put([with_text, record(2)]) == 0
    collection.close()
    collection = Collection.open(path)
    assert len(collection) == 2
    assert collection.document("i1") == json.loads(with_text.document)
    assert collection.document("nope") is None
    assert collection.known(["i2", "none"]) == {"i2": (b"hash 2", record(2).document)}
    [match] = collection.search(vector(1)[None], 1)[0]
    # fp16 storage: each of 16 components is off by at most 2**-12 of itself
    assert match.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(match.grounding_map, with_text.grounding_map)
    assert store_of(collection).check() == []
    collection.close()


def test_search_equals_brute_force_through_adds_replacements_and_deletions(path):
    rng = np.random.default_rng(0)
    collection, model = create(path), {}
    for step in range(60):
        numbers = rng.choice(80, 5, replace=False).tolist()
        if step % 3 == 2:
            assert collection.delete([f"i{n}" for n in numbers]) == len(model.keys() & set(numbers))
            for n in numbers:
                model.pop(n, None)
        else:
            seeds = rng.integers(0, 1000, 5).tolist()
            records = [record(n, seed) for n, seed in zip(numbers, seeds, strict=True)]
            assert collection.put(records, replace=True) == len(model.keys() & set(numbers))
            for n, seed in zip(numbers, seeds, strict=True):
                model.pop(n, None)
                model[n] = seed
        if step % 20 == 10:
            collection.close()
            collection = Collection.open(path)
        query = vector(step + 5000)
        matrix = np.stack([vector(seed) for seed in model.values()]).astype(np.float16)
        matrix = matrix.astype(np.float64)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        scores = matrix @ query
        best = np.argsort(-scores, kind="stable")[:7]
        matches = collection.search(query[None], 7)[0]
        assert [m.document["item_id"] for m in matches] == [f"i{list(model)[b]}" for b in best]
        np.testing.assert_allclose([m.score for m in matches], scores[best], atol=1e-6)
    assert store_of(collection).check() == []
    collection.close()


def test_an_update_changes_the_records_and_nothing_else(path):
    collection = create(path)
    collection.put([record(n, price=n, color=["Red"]) for n in range(5)])
    reader = Collection.open(path, read_only=True)
    for one in (collection, reader):
        assert set(found(one, 0, 9, {"price": {"$gte": 3}})) == {"i3", "i4"}
    ids = store_of(collection).ids()
    documents = {f"i{n}": record(n, price=n + 10).document for n in (1, 3)}
    assert collection.update({**documents, "nope": "{}"}) == 2
    for one in (collection, reader):
        assert set(found(one, 0, 9, {"price": {"$gte": 3}})) == {"i1", "i3", "i4"}
        assert len(found(one, 0, 9, {"color": "Red"})) == 3
        assert one.document("i3") == json.loads(documents["i3"])
        assert one.known(["i3"]) == {"i3": (b"hash 3", documents["i3"])}
        assert found(one, 3) == ["i3"]
    assert store_of(collection).ids().tolist() == ids.tolist()
    number = store_of(collection).number
    assert collection.update({}) == collection.update({"nope": "{}"}) == 0
    assert store_of(collection).number == number
    with pytest.raises(CatalogError, match="reading only"):
        reader.update(documents)
    reader.close()
    with pytest.raises(InputError, match="Unicode"):
        collection.update({"i0": "{}", "\udc80": "{}"})
    with pytest.raises(ValueError, match="no JSON object"):
        collection.update({"i0": record(0, price=9).document, "i1": "{"})
    assert collection.document("i0") == json.loads(record(0, price=0, color=["Red"]).document)
    assert store_of(collection).check() == []
    collection.close()


@given(before=documents(), after=documents())
def test_filter_values_of_an_updated_item_are_those_of_a_new_one(before, after):
    with tempfile.TemporaryDirectory() as folder:
        updated, fresh = create(Path(folder) / "a"), create(Path(folder) / "b")
        count = min(len(before), len(after))
        old, new = ([record(n, **one[n]) for n in range(count)] for one in (before, after))
        updated.put(old)
        fresh.put(new)
        assert updated.update({one.item_id: one.document for one in new}) == count
        rows = [
            store_of(one)._db.execute("SELECT * FROM fields").fetchall() for one in (updated, fresh)
        ]
        assert rows[0] == rows[1]
        updated.close()
        fresh.close()


def test_failed_put_changes_nothing(path):
    collection = create(path)
    collection.put([record(1)])
    with pytest.raises(CatalogError, match="UNIQUE"):
        collection.put([record(2), record(1)])
    wrong_size = record(3)._replace(vector=np.ones(DIM + 1, np.float32))
    with pytest.raises(CatalogError, match="CHECK"):
        collection.put([record(4), wrong_size])
    assert len(collection) == 1
    assert store_of(collection).check() == []
    assert found(collection, 2, k=5) == ["i1"]
    collection.put([record(2)])
    assert found(collection, 2) == ["i2"]
    collection.close()


def test_equal_scores_come_in_the_order_of_storing(path):
    collection = create(path)
    order = [7, 3, 9, 1, 8, 2, 6, 4, 5, 0]
    collection.put([record(n, seed=1) for n in order] + [record(50, seed=2)])
    for k in range(1, 12):
        assert found(collection, 1, k) == [*(f"i{n}" for n in order), "i50"][:k]
    collection.put([record(7, seed=1)], replace=True)
    assert found(collection, 1, 10) == [f"i{n}" for n in [*order[1:], 7]]
    collection.close()


def test_filtered_search_gives_k_whenever_k_match(path):
    collection = create(path)
    collection.put([record(n, attributes={"tenth": n % 10 == 0}) for n in range(500)])
    collection.delete([f"i{n}" for n in range(0, 500, 20)])
    where = {"tenth": True}
    everything = found(collection, 3, 500)
    matching = [i for i in everything if int(i[1:]) % 10 == 0]
    assert len(matching) == 25
    assert found(collection, 3, 20, where) == matching[:20]
    assert found(collection, 3, 400, where) == matching
    assert found(collection, 3, 5, {"tenth": "no"}) == []
    collection.close()


def test_readers_follow_a_writer(path):
    writer = create(path)
    writer.put([record(1)])
    reader = Collection.open(path, read_only=True)
    assert found(reader, 1) == ["i1"]
    writer.put([record(2)])
    assert found(reader, 2) == ["i2"]
    writer.delete(["i2"])
    writer.put([record(3)])
    assert sorted(found(reader, 2, 5)) == ["i1", "i3"]
    with pytest.raises(CatalogError, match="reading only"):
        reader.put([record(9)])
    reader.close()
    writer.close()


def test_second_writer_is_refused_and_readers_are_not(path):
    first = create(path)
    with pytest.raises(CatalogError, match=f"process {os.getpid()}.*read-only"):
        Collection.open(path)
    code = (
        "import sys; from tigerfg.index.collection import Collection\n"
        "try: Collection.open(sys.argv[1])\n"
        "except Exception as e: print(type(e).__name__, e)\n"
        "print(len(Collection.open(sys.argv[1], read_only=True)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True)
    assert output.startswith("CatalogError")
    assert output.splitlines()[1] == "0"
    first.close()
    Collection.open(path).close()


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "foreign", "no faiss index"])
def test_damaged_index_file_is_rebuilt(path, tmp_path, caplog, damage):
    collection = create(path)
    collection.put([record(n) for n in range(50)])
    collection.close()
    file = path / INDEX_FILE
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flip":
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    elif damage == "foreign":
        other = create(tmp_path / "other")
        other.put([record(n + 7) for n in range(50)])
        other.close()
        file.write_bytes((tmp_path / "other" / INDEX_FILE).read_bytes())
    else:
        file.write_bytes(b"x" * len(content))
    with caplog.at_level(logging.WARNING, "tigerfg"):
        collection = Collection.open(path)
        for n in range(50):
            assert found(collection, n) == [f"i{n}"]
    assert len([r for r in caplog.records if "rebuilt from the store" in r.message]) == 1
    collection.flush()
    collection.close()
    caplog.clear()
    collection = Collection.open(path)
    assert found(collection, 7) == ["i7"]
    assert not caplog.records
    collection.close()


def test_index_file_is_caught_up_from_where_it_was(path):
    collection = create(path)
    collection.put([record(n) for n in range(100)])
    collection.close()
    stamp = (path / INDEX_FILE).stat().st_mtime_ns
    collection = Collection.open(path)
    collection.put([record(100)])
    collection.delete(["i5"])
    collection.close()
    assert (path / INDEX_FILE).stat().st_mtime_ns == stamp, "two changes are not worth a rewrite"
    collection = Collection.open(path)
    assert found(collection, 100) == ["i100"]
    assert found(collection, 5) != ["i5"]
    collection.close()


def test_store_put_back_from_a_backup_beats_a_newer_index_file(path):
    collection = create(path)
    collection.put([record(1)])
    collection.close()
    backup = (path / STORE_FILE).read_bytes()
    collection = Collection.open(path)
    collection.put([record(2)])
    collection.close()
    (path / STORE_FILE).write_bytes(backup)
    collection = Collection.open(path)
    assert found(collection, 2, 5) == ["i1"]
    collection.close()


def test_what_is_no_catalogue_is_said_in_one_line(tmp_path):
    cases = {}
    cases["missing"] = (tmp_path / "missing", "is no directory")
    (tmp_path / "file").write_text("x")
    cases["file"] = (tmp_path / "file", "is no directory")
    (tmp_path / "empty").mkdir()
    cases["empty"] = (tmp_path / "empty", "holds no catalog.sqlite")
    for name, content in {
        "garbage": b"no database " * 500,
        "short": b"SQLite format 3\0xx",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / STORE_FILE).write_bytes(content)
        cases[name] = (tmp_path / name, "damaged or no SQLite file")
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / STORE_FILE) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    cases["other"] = (tmp_path / "other", "not made by tigerfg")
    create(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer" / STORE_FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    cases["newer"] = (tmp_path / "newer", "format 99")
    for path, words in cases.values():
        for read_only in (False, True):
            with pytest.raises(CatalogError, match=words) as caught:
                Collection.open(path, read_only)
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)
    assert os.listdir(tmp_path / "empty") == [], "looking leaves nothing behind"


def test_create_refuses_what_is_in_use(tmp_path):
    create(tmp_path / "cat").close()
    with pytest.raises(CatalogError, match="holds a catalogue already"):
        create(tmp_path / "cat")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(CatalogError, match=r"neither empty nor a catalogue.*a\.jpg"):
        create(tmp_path / "photos")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CatalogError, match="cannot create a catalogue"):
        create(tmp_path / "file")
    # what a process killed while creating leaves behind is no obstacle
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / f"{STORE_FILE}.new").write_bytes(b"half")
    create(tmp_path / "killed").close()


def test_closed_collection_says_so(path):
    collection = create(path)
    collection.close()
    collection.close()
    with pytest.raises(CatalogError, match="is closed"):
        len(collection)


def test_item_ids_that_are_no_text_are_refused(path):
    collection = create(path)
    for bad in (7, "\ud800", None):
        with pytest.raises(InputError, match="item id"):
            collection.document(bad)
    hostile = "x' OR 1=1 --"
    assert collection.document(hostile) is None
    assert collection.delete([hostile]) == 0
    collection.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "UPDATE items SET document = replace(document, '70', '90') WHERE id = 2",
            "filters do not",
        ),
        ("UPDATE fields SET value = 90 WHERE key = 'price' AND id = 2", "filters do not"),
        ("DELETE FROM fields WHERE key = 'title' AND id = 2", "filters do not"),
        ("UPDATE items SET document = substr(document, 2) WHERE id = 2", "no JSON, .* id 2"),
        ("UPDATE items SET document = '[1]' WHERE id = 2", "no JSON, .* id 2"),
        ("DELETE FROM encodings WHERE id = 2", "1 items without a vector"),
        ("DELETE FROM items WHERE id = 2", "1 vectors without an item"),
        ("INSERT INTO removals VALUES (9, 2)", "1 removed items that are still there"),
        ("UPDATE counter SET number = 1", "1 numbers after the last write"),
        ("UPDATE items SET item_id = 'b' WHERE id = 2", "1 items under another id"),
        (
            "UPDATE encodings SET grounding_map = zeroblob(length(grounding_map)) WHERE id = 2",
            "1 grounding maps of zeros",
        ),
        (
            f"UPDATE encodings SET vector = x'{'003c' * DIM}' WHERE id = 2",
            "1 vectors not of length 1",
        ),
    ],
)
def test_check_finds_rows_that_do_not_fit(path, damage, said):
    with contextlib.closing(create(path)) as collection:
        collection.put([record(1, price=70), record(2, price=70)])
        assert collection.inspect(0, 0)[1] == []
        store_of(collection)._db.execute(damage)
        assert re.search(said, "\n".join(collection.inspect(0, 0)[1]))


def test_a_damaged_record_is_an_error_in_one_line(path):
    with contextlib.closing(create(path)) as collection:
        collection.put([record(1), record(2)])
        store_of(collection)._db.execute("UPDATE items SET document = substr(document, 2)")
        for call in (
            lambda: collection.search(vector(1)[None], 1),
            lambda: collection.document("i1"),
            lambda: list(collection.documents()),
        ):
            with pytest.raises(CatalogError, match="the record of item 'i1'; delete that item"):
                call()


def test_damaged_page_is_an_error_not_a_wrong_answer(path):
    collection = create(path)
    collection.put([record(n, padding="x" * 500) for n in range(300)])
    collection.close()
    file = path / STORE_FILE
    content = bytearray(file.read_bytes())
    (path / INDEX_FILE).unlink()
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    file.write_bytes(content)
    with pytest.raises(CatalogError, match="damaged"):  # noqa: PT012
        collection = Collection.open(path, read_only=True)
        collection.search(vector(1)[None], 10)
