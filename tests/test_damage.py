"""What changed bytes do to a catalogue: an error that names the item and the cure, never another
answer."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine, picture
from test_store import create, found, record, store_of, vector

from tigerfg.errors import CatalogError
from tigerfg.index.collection import Collection
from tigerfg.index.database import STORE_FILE
from tigerfg.index.plan import IndexSettings
from tigerfg.records import Item
from tigerfg.searcher import Searcher

WIDE = 32  # dimensions of the catalogue whose bytes are changed
CASES = [
    ("UPDATE items SET document = substr(document, 2) WHERE id = 2", "the record of item 'i2'"),
    ("UPDATE items SET document = NULL WHERE id = 2", "the record of item 'i2'"),
    ("UPDATE encodings SET rows = 7 WHERE id = 2", "the grounding map of item 'i2'"),
    ("UPDATE encodings SET grounding_map = 'text' WHERE id = 2", "the grounding map of item 'i2'"),
    ("UPDATE encodings SET vector = x'003c' WHERE id = 2", "the vector of item 'i2'"),
    ("UPDATE encodings SET vector = 'a text' WHERE id = 2", "the vector of item 'i2'"),
]


def damage(path: Path, sql: str) -> None:
    """Change the store behind its back; what derives from it is gone."""
    with contextlib.closing(Collection.open(path)) as collection:
        db = store_of(collection)._db
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA writable_schema = ON")  # NOT NULL, too, is no promise of a damaged file
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'document TEXT NOT NULL', 'document TEXT')"
        )
    with contextlib.closing(Collection.open(path)) as collection:
        db = store_of(collection)._db
        db.execute("PRAGMA ignore_check_constraints = ON")
        assert db.execute(sql).rowcount == 1
    for file in path.glob("vectors*"):
        file.unlink()
    for file in path.glob("*.index"):
        file.unlink()


@pytest.mark.parametrize(("sql", "what"), CASES)
def test_a_damaged_item_is_named_and_can_be_stored_anew(tmp_path: Path, sql: str, what: str):
    path = tmp_path / "cat"
    with contextlib.closing(create(path)) as collection:
        collection.put([record(n, price=n) for n in range(1, 5)])
    damage(path, sql)
    with contextlib.closing(Collection.open(path)) as collection:
        with pytest.raises(CatalogError, match=f"damaged: {what}; delete that item and add it"):
            collection.search(vector(2)[None], 4)
        assert collection.inspect(4, 0)[1]  # told, not raised
        assert collection.delete(["i2"]) == 1
        assert sorted(found(collection, 2, 4)) == ["i1", "i3", "i4"]
        collection.put([record(2, price=20)])
        assert found(collection, 2) == ["i2"]
        assert found(collection, 2, 4, {"price": {"$lt": 20}}) != ["i2"]
        assert found(collection, 2, 4, {"price": 2}) == []
        assert found(collection, 2, 4, {"price": 20}) == ["i2"]
        assert collection.inspect(4, 0)[1] == []


def test_a_record_changed_into_another_can_be_updated(tmp_path: Path):
    """What filters know is still that of the record before."""
    path = tmp_path / "cat"
    with contextlib.closing(create(path)) as collection:
        collection.put([record(n, price=n) for n in range(1, 5)])
    damage(path, "UPDATE items SET document = replace(document, '2', '9') WHERE id = 2")
    with contextlib.closing(Collection.open(path)) as collection:
        assert collection.update({"i2": record(2, price=2).document}) == 1
        assert found(collection, 2, 4, {"price": 2}) == ["i2"]
        assert collection.delete(["i2"]) == 1
        assert found(collection, 2, 4, {"price": 2}) == []


def test_a_damaged_record_costs_an_update_of_others_nothing(tmp_path: Path):
    path, model = tmp_path / "cat", FakeBundle()
    with Searcher.create(path, model, engine=FakeEngine()) as searcher:
        searcher.add(Item(f"i{n}", picture(n), title=f"item {n}") for n in range(1, 4))
    damage(path, "UPDATE items SET document = substr(document, 2) WHERE id = 2")
    with Searcher.open(path, model=model, engine=FakeEngine()) as searcher:
        report = searcher.update({"item_id": f"i{n}", "stock": 9} for n in range(1, 4))
        assert report.updated == 2
        (rejected,) = report.rejected
        assert (rejected.item_id, "record is damaged" in rejected.reason) == ("i2", True)
        assert searcher.count({"stock": 9}) == 2


def test_a_lost_row_is_an_error_of_the_catalogue(tmp_path: Path):
    with contextlib.closing(create(tmp_path / "cat")) as collection:
        collection.put([record(n) for n in range(1, 5)])
        assert found(collection, 2) == ["i2"]
        store_of(collection)._db.execute("DELETE FROM items WHERE id = 2")
        with pytest.raises(CatalogError, match="damaged: the row of the item with internal id 2"):
            collection.search(vector(2)[None], 1)


@pytest.mark.parametrize("index", ["flat", "IVF4,PQ16x4fs"])
@pytest.mark.parametrize("number", [-7, -5000, 300, 1 << 40, -(1 << 62), "a text", 1.5])
def test_a_filter_that_selects_what_is_not_there(tmp_path: Path, index: str, number: object):
    settings, path = IndexSettings(index), tmp_path / "cat"
    collection = Collection.create(
        path, model="m", fingerprint="f" * 64, embedding_dim=WIDE, settings=settings
    )
    with contextlib.closing(collection):
        collection.put([_record(n) for n in range(200)])
        collection.delete(["i150"])
        collection.optimize()
        collection.search(_wide(0)[None], 5)
        db = store_of(collection)._db
        db.execute("UPDATE fields SET id = ? WHERE key = 'price' AND value = 3", [number])
        for where in ({"price": 3}, {"price": {"$lt": 9}}, {"price": {"$lt": 190}}):
            with pytest.raises(CatalogError, match=r"damaged: (the vector of|an internal id)"):
                collection.search(_wide(0)[None], 5, where)
        assert len(collection.search(_wide(0)[None], 5, {"price": {"$gt": 9}})[0]) == 5


@pytest.mark.parametrize("number", [3, 200])
def test_no_index_is_built_where_a_vector_is_lost(tmp_path: Path, number: int):
    settings = IndexSettings("IVF4,PQ16x4fs")
    collection = Collection.create(
        tmp_path / "cat", model="m", fingerprint="f" * 64, embedding_dim=WIDE, settings=settings
    )
    with contextlib.closing(collection):
        collection.put([_record(n) for n in range(200)])
        store_of(collection)._db.execute("DELETE FROM encodings WHERE id = ?", [number])
        with pytest.raises(CatalogError, match=f"the vector of item 'i{number - 1}'; delete that"):
            collection.optimize()
        with pytest.raises(CatalogError, match=f"the vector of item 'i{number - 1}'; delete that"):
            collection.search(_wide(0)[None], 5, {"price": number - 1})
        collection.delete([f"i{number - 1}"])
        assert collection.optimize().items == 199


def test_damaged_sample_queries_are_given_again(tmp_path: Path):
    with contextlib.closing(create(tmp_path / "cat")) as collection:
        collection.put([record(1)])
        collection.optimize(vector(1)[None])
        store = store_of(collection)
        np.testing.assert_array_equal(store.queries(), vector(1)[None].astype(np.float16))
        store._db.execute("UPDATE queries SET vector = x'003c'")
        with pytest.raises(CatalogError, match="damaged: its sample queries; give them again"):
            store.queries()
        collection.optimize(vector(2)[None])
        assert len(store.queries()) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with inverted lists, and removed items."""
    path = tmp_path_factory.mktemp("whole") / "cat"
    settings = IndexSettings("IVF4,PQ16x4fs")
    collection = Collection.create(
        path, model="m", fingerprint="f" * 64, embedding_dim=WIDE, settings=settings
    )
    with contextlib.closing(collection):
        collection.put([_record(n) for n in range(400)])
        collection.delete([f"i{n}" for n in range(20, 40)])
        collection.optimize()
    return path


def _record(number: int):
    return record(number, price=number)._replace(vector=_wide(number))


def _wide(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(WIDE).astype(np.float32)
    return values / np.linalg.norm(values)


def _answers(path: Path) -> list[list[tuple[float, str, float]]]:
    queries = np.stack([_wide(n) for n in (0, 7, 50, 399)])
    with contextlib.closing(Collection.open(path, read_only=True)) as collection:
        collection.stats()
        lines = collection.search(queries, 400)[:0]  # every row is read
        for k, where in ((1, None), (5, {"price": {"$lt": 12}})):
            lines += collection.search(queries, k, where)
        collection.inspect(0, 0)  # whatever it finds, it does not raise
    return [[(round(m.score, 5), m.document["item_id"], m.grounding_map.sum()) for m in line]
            for line in lines]  # fmt: skip


def _changed(content: bytes, rng: random.Random) -> bytes:
    """One bit, 64 bytes of zeros, or 512 arbitrary ones."""
    place, kind = rng.randrange(len(content)), rng.randrange(3)
    length = min((1, 64, 512)[kind], len(content) - place)
    new = (bytes([content[place] ^ 1 << rng.randrange(8)]), bytes(64), rng.randbytes(512))[kind]
    return content[:place] + new[:length] + content[place + length :]


@pytest.mark.parametrize("kind", ["ivf.index", "vectors-*.f16", "vectors.json"])
def test_changed_bytes_of_derived_files_change_no_answer(whole: Path, tmp_path: Path, kind: str):
    [name] = [file.name for file in whole.glob(kind)]
    right, rng = _answers(whole), random.Random(1)
    for trial in range(40):
        path = shutil.copytree(whole, tmp_path / f"{trial}")
        (path / name).write_bytes(_changed((path / name).read_bytes(), rng))
        assert _answers(path) == right


@pytest.mark.parametrize("derived", ["derived files", "store alone"])
def test_changed_bytes_of_the_store_are_an_error_or_change_no_answer(
    whole: Path, tmp_path: Path, derived: str
):
    right, rng, errors = _answers(whole), random.Random(2), 0
    for trial in range(60):
        path = shutil.copytree(whole, tmp_path / f"{trial}")
        (path / STORE_FILE).write_bytes(_changed((path / STORE_FILE).read_bytes(), rng))
        if derived == "store alone":
            for file in [*path.glob("vectors*"), *path.glob("*.index")]:
                file.unlink()
        with contextlib.suppress(CatalogError):
            assert _answers(path) == right
            continue
        errors += 1
    assert errors  # some of the changes met what is read
