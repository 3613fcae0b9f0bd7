"""Files derived from the store: damaged, replaced meanwhile, or of another history."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from tigerfg.index import flat, ivf
from tigerfg.index.collection import Collection
from tigerfg.index.database import STORE_FILE
from tigerfg.index.derived import check_index, load_index
from tigerfg.index.plan import IndexSettings
from tigerfg.index.snapshot import copy_catalog
from tigerfg.index.store import Store
from tigerfg.index.stored import Record
from tigerfg.index.vectors import STAMP_FILE, VectorRows, check_vectors

DIM = 16
KINDS = {"flat": flat.INDEX_FILE, "IVF8,SQfp16": ivf.INDEX_FILE}


def vectors(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def records(first: int, values: np.ndarray) -> list[Record]:
    grid = np.ones((1, 1), np.float32)
    return [
        Record(f"i{n}", b"", json.dumps({"item_id": f"i{n}"}), vector, grid)
        for n, vector in enumerate(values, first)
    ]


def create(path: Path, kind: str, count: int) -> Collection:
    """With so many items, indexed."""
    collection = Collection.create(
        path,
        model="tiny",
        fingerprint="0" * 64,
        embedding_dim=DIM,
        settings=IndexSettings(kind),
    )
    collection.put(records(0, vectors(count)))
    collection.optimize()
    collection.flush()
    return collection


def found(collection: Collection, values: np.ndarray, k: int = 1) -> list[list[int]]:
    return [
        [int(match.document["item_id"][1:]) for match in line]
        for line in collection.search(values, k)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["put", "delete", "rebuild"])
def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: str
) -> None:
    """A reader checks one file and must not read another, which its snapshot knows nothing of."""
    path = tmp_path / "shop"
    writer = create(path, kind, 500)
    late = vectors(100, seed=1)
    whole = faiss.read_index

    def slow(*arguments: object) -> object:
        monkeypatch.setattr(faiss, "read_index", whole)
        if change == "delete":
            writer.delete(f"i{n}" for n in range(100))
        else:
            writer.put(records(500, late))
        if change == "rebuild":
            writer.optimize()
        writer.flush()
        return whole(*arguments)

    monkeypatch.setattr(faiss, "read_index", slow)
    with contextlib.closing(Collection.open(path, read_only=True)) as reader:
        for _ in range(2):
            lines = found(reader, vectors(500)[100:150], 400)
            assert all(len(set(line)) == len(line) == 400 for line in lines)
            assert [line[0] for line in lines] == list(range(100, 150))
        if change != "delete":
            assert [line[0] for line in found(reader, late)] == list(range(500, 600))
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_of_the_trailer_is_noticed(tmp_path: Path, kind: str) -> None:
    create(tmp_path / "shop", kind, 400).close()
    file = tmp_path / "shop" / KINDS[kind]
    content = file.read_bytes()
    with contextlib.closing(Store.open(tmp_path / "shop", read_only=True)) as store:
        assert load_index(file, store) is not None
        assert check_index(file, store) == []
        for bit in range(8 * 52):
            place = len(content) - 1 - bit // 8
            flipped = content[place] ^ (1 << bit % 8)
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
            assert load_index(file, store) is None, bit
            assert len(check_index(file, store)) == 1


def test_every_flipped_bit_of_the_stamp_is_noticed(tmp_path: Path) -> None:
    create(tmp_path / "shop", "IVF8,SQfp16", 400).close()
    file = tmp_path / "shop" / STAMP_FILE
    content = file.read_bytes()
    with contextlib.closing(Store.open(tmp_path / "shop", read_only=True)) as store:
        assert VectorRows(store).unsaved == 0
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            assert VectorRows(store).unsaved == 400, bit
        for other in ("[]", "3", "{}", "[" * 100_000, '{"check": 0}'):
            file.write_text(other)
            assert VectorRows(store).unsaved == 400


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_from_a_backup_never_meets_the_files_of_another_history(
    tmp_path: Path, kind: str
) -> None:
    """Written to until its numbers have passed those of the files, by a process that is killed."""
    path = tmp_path / "shop"
    create(path, kind, 500).close()
    backup = (path / STORE_FILE).read_bytes()
    with contextlib.closing(Collection.open(path)) as collection:
        collection.put(records(500, vectors(300, seed=1)))
        collection.optimize()
        collection.flush()
    (path / STORE_FILE).write_bytes(backup)
    killed = Collection.open(path)
    others = vectors(400, seed=2)
    killed.put(records(2000, others))
    killed._store.close()  # as a killed process leaves it: nothing is saved
    with contextlib.closing(Collection.open(path)) as collection:
        assert [line[0] for line in found(collection, others)] == list(range(2000, 2400))
        scores = [line[0].score for line in collection.search(others, 1)]
        np.testing.assert_allclose(scores, 1.0, atol=1e-3)
        assert collection.inspect(0, 0)[1] == []


def test_a_lost_file_of_vectors_is_made_again_on_closing(tmp_path: Path) -> None:
    path = tmp_path / "shop"
    create(path, "IVF8,SQfp16", 500).close()
    [file] = path.glob("vectors-*.f16")
    file.unlink()
    for unsaved in (500, 0):
        with contextlib.closing(Collection.open(path)) as collection:
            assert found(collection, vectors(500)[7:8]) == [[7]]
            assert collection._keeper.current().rows.unsaved == unsaved
    assert len(list(path.glob("vectors-*.f16"))) == 1


def test_files_of_vectors_do_not_pile_up(tmp_path: Path) -> None:
    """A damaged one is replaced by flush, and goes."""
    path = tmp_path / "shop"
    collection = create(path, "IVF8,SQfp16", 500)
    for _ in range(3):
        collection.close()
        (path / STAMP_FILE).write_text("{}")
        collection = Collection.open(path)
        collection.put(records(500, vectors(1)), replace=True)
        found(collection, vectors(1))
        collection.flush()
        assert len(list(path.glob("vectors-*.f16"))) == 1
    collection.close()


def test_a_snapshot_reads_its_vectors_from_a_file(tmp_path: Path) -> None:
    with contextlib.closing(create(tmp_path / "shop", "IVF8,SQfp16", 500)) as collection:
        collection.put(records(500, vectors(3, seed=1)))
        copy_catalog(tmp_path / "shop", tmp_path / "copy")
    with contextlib.closing(Collection.open(tmp_path / "copy", read_only=True)) as copy:
        assert found(copy, vectors(3, seed=1)) == [[500], [501], [502]]
        assert copy._keeper.current().rows.unsaved == 3


def flip_in_store(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path / STORE_FILE)) as db, db:
        [[vector]] = db.execute("SELECT vector FROM encodings WHERE id = 5")
        vector = vector[:1] + bytes([vector[1] ^ 0x80]) + vector[2:]  # the sign of the first value
        db.execute("UPDATE encodings SET vector = ? WHERE id = 5", [vector])


def flip_in_rows(path: Path) -> None:
    [file] = path.glob("vectors-*.f16")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


def lose_rows(path: Path) -> None:
    [file] = path.glob("vectors-*.f16")
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_in_store, "1 vectors differ in the store and in vectors-"),
        (flip_in_rows, "damaged; the next start reads the store"),
        (lose_rows, "damaged; the next start reads the store"),
    ],
)
def test_verify_sees_damaged_vectors(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    create(tmp_path / "shop", "IVF8,SQfp16", 500).close()
    with contextlib.closing(Store.open(tmp_path / "shop", read_only=True)) as store:
        assert check_vectors(store) == []
    damage(tmp_path / "shop")
    with contextlib.closing(Store.open(tmp_path / "shop", read_only=True)) as store:
        [problem] = check_vectors(store)
    assert words in problem


def test_vectors_do_not_differ_where_denormals_are_zero(tmp_path: Path) -> None:
    """As some libraries set it for the whole thread when they are loaded."""
    values = vectors(9, seed=1)
    values[:, 0] = 1e-5  # smaller than a normal float16
    with contextlib.closing(create(tmp_path / "shop", "IVF8,SQfp16", 500)) as collection:
        collection.put(records(500, values))
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        with contextlib.closing(Store.open(tmp_path / "shop", read_only=True)) as store:
            assert check_vectors(store) == []
        with contextlib.closing(Collection.open(tmp_path / "shop", read_only=True)) as again:
            assert found(again, values) == [[n] for n in range(500, 509)]
    finally:
        torch.set_flush_denormal(False)


def test_verify_sees_one_state_beside_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(create(tmp_path / "shop", "IVF8,SQfp16", 500)) as collection:

        class Overtaken(VectorRows):
            def __init__(self, store: Store) -> None:
                super().__init__(store)
                collection.put(records(len(collection), vectors(5, seed=len(collection))))

        monkeypatch.setattr("tigerfg.index.vectors.VectorRows", Overtaken)
        count, problems, chosen = collection.inspect(600, 0)
        assert (count, problems, len(chosen), len(collection)) == (500, [], 500, 505)


def test_what_seems_damaged_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that a writer saves meanwhile is newer than what is looked at."""
    with contextlib.closing(create(tmp_path / "shop", "IVF8,SQfp16", 500)) as collection:
        looks = iter([["newer than the store"], []])
        monkeypatch.setattr("tigerfg.index.index_files.check_vectors", lambda store: next(looks))
        assert collection.inspect(0, 0)[1] == []
        assert list(looks) == []
        monkeypatch.setattr("tigerfg.index.index_files.check_vectors", lambda store: ["damaged"])
        assert collection.inspect(0, 0)[1] == ["damaged"]


def test_a_file_of_an_older_version_is_made_again(tmp_path: Path) -> None:
    """Without its own checksum, and with shorter records."""
    path = tmp_path / "shop"
    create(path, "IVF8,SQfp16", 500).close()
    stamp = json.loads((path / STAMP_FILE).read_text())
    del stamp["check"]
    stamp["crc32"] = zlib.crc32(b"")
    (path / STAMP_FILE).write_text(json.dumps(stamp))
    with contextlib.closing(Collection.open(path)) as collection:
        assert found(collection, vectors(500)[7:8]) == [[7]]
    with contextlib.closing(Store.open(path, read_only=True)) as store:
        assert VectorRows(store).unsaved == 0
