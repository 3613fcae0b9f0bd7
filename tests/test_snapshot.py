"""Snapshots of a catalogue in use, and `verify`."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine, save_picture

from tigerfg.errors import CatalogError, InputError
from tigerfg.index import snapshot as snapshot_module
from tigerfg.index.database import STORE_FILE
from tigerfg.index.flat import INDEX_FILE
from tigerfg.records import Item
from tigerfg.searcher import Searcher


def item(folder: Path, number: int, picture: int | None = None) -> Item:
    file = save_picture(folder / f"{number}.png", number if picture is None else picture)
    return Item(f"i{number}", file, title=f"item {number}", attributes={"n": number})


@pytest.fixture
def searcher(tmp_path: Path):
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        yield searcher


def opened(path: Path, read_only: bool = True) -> Searcher:
    return Searcher.open(path, FakeBundle(), engine=FakeEngine(), read_only=read_only)


def test_a_snapshot_is_a_catalogue_of_its_own(searcher: Searcher, tmp_path: Path) -> None:
    searcher.add(item(tmp_path, n) for n in range(20))
    searcher.flush()
    searcher.delete("i3")  # after the index file was written
    copy = searcher.snapshot(tmp_path / "deep" / "copy")
    searcher.delete("i4")
    assert sorted(os.listdir(copy)) == sorted([STORE_FILE, INDEX_FILE])
    with opened(copy, read_only=False) as other:
        assert [one.item_id for one in other] == [f"i{n}" for n in range(20) if n != 3]
        assert other.search(tmp_path / "4.png", k=1)[0].item_id == "i4"
        assert other.verify().ok
        other.add([item(tmp_path, 50)])
        assert "i50" not in searcher
    assert "i4" not in searcher
    assert os.listdir(tmp_path / "deep") == ["copy"]


def test_a_snapshot_into_the_catalogue_is_refused(searcher: Searcher, tmp_path: Path) -> None:
    for place in (tmp_path / "cat", tmp_path / "cat" / "copies" / "1"):
        with pytest.raises(CatalogError, match="is in the catalogue's own directory"):
            searcher.snapshot(place)
    assert not (tmp_path / "cat" / "copies").exists()


def test_an_empty_catalogue_and_an_empty_directory(searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with opened(searcher.snapshot(tmp_path / "copy")) as other:
        assert len(other) == 0
        report = other.verify()
    assert (report.ok, report.items, report.compared, report.least_cosine) == (True, 0, 0, None)


def test_a_snapshot_is_one_state_while_a_writer_goes_on(searcher: Searcher, tmp_path: Path) -> None:
    """Pairs are added and deleted together: every copy holds both of a pair or none."""
    files = [save_picture(tmp_path / f"{n}.png", n) for n in range(4)]
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            pair = [Item(f"{number}-{half}", files[number % 4], title="x") for half in "ab"]
            searcher.add(pair)
            if number % 3 == 0:
                searcher.delete([f"{number}-a", f"{number}-b"])
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = [searcher.snapshot(tmp_path / f"copy{n}") for n in range(8)]
    finally:
        stop.set()
        writer.join()
    last: set[str] = set()
    for copy in copies:
        with opened(copy) as other:
            ids = {one.item_id for one in other}
            assert ids == {f"{one[:-1]}{half}" for one in ids for half in "ab"}
            assert other.verify(sample=0).ok
        # a pair that is deleted again may be in one copy and not in the next; the others stay
        kept = {one for one in ids if int(one.split("-")[0]) % 3}
        assert last <= kept
        last = kept
    assert last


def test_a_snapshot_is_not_put_into_what_is_there(searcher: Searcher, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for target in ("full", "full/notes.txt"):
        with pytest.raises(CatalogError, match="neither new nor empty"):
            searcher.snapshot(tmp_path / target)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_failed_snapshot_leaves_nothing(
    searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher.add([item(tmp_path, 1)])
    folder = tmp_path / "out"

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot_module, "_fsync", refuse)
    with pytest.raises(CatalogError, match=r"cannot write a snapshot to .*: No space left"):
        searcher.snapshot(folder / "copy")
    assert os.listdir(folder) == []
    monkeypatch.undo()
    searcher.close()
    with pytest.raises(CatalogError, match="is closed"):
        searcher.snapshot(folder / "copy")


def test_verify_compares_pictures_with_vectors(searcher: Searcher, tmp_path: Path) -> None:
    searcher.add(item(tmp_path, n) for n in range(30))
    searcher.add([Item("bytes", (tmp_path / "1.png").read_bytes(), title="no path")])
    report = searcher.verify(sample=100)
    assert report.ok
    assert (report.items, report.compared) == (31, 30)
    assert report.least_cosine == pytest.approx(1, abs=1e-5)
    assert report.skipped == {"stored without a path": 1}
    assert (
        searcher.verify(sample=5).compared
        + searcher.verify(sample=5).skipped.get("stored without a path", 0)
        == 5
    )
    save_picture(tmp_path / "7.png", 99)
    (tmp_path / "8.png").unlink()
    report = searcher.verify(sample=100)
    assert report.ok
    assert report.skipped == {"stored without a path": 1, "picture changed since, or gone": 2}
    assert searcher.verify(sample=0).compared == 0
    with pytest.raises(InputError, match="sample -1"):
        searcher.verify(sample=-1)


def test_verify_finds_vectors_of_something_else(searcher: Searcher, tmp_path: Path) -> None:
    searcher.add(item(tmp_path, n) for n in range(10))
    wrong = np.zeros(FakeBundle().embedding_dim, "<f2")
    wrong[0] = 1
    searcher.close()
    with sqlite3.connect(tmp_path / "cat" / STORE_FILE) as db:
        where = "id = (SELECT id FROM items WHERE item_id = 'i6')"
        db.execute(f"UPDATE encodings SET vector = ? WHERE {where}", (wrong.tobytes(),))
        db.execute("DELETE FROM items WHERE item_id = 'i2'")
    with opened(tmp_path / "cat") as reader:
        report = reader.verify()
    assert not report.ok
    *counts, far = report.problems
    assert counts == ["1 vectors without an item", "3 filter values without an item"]
    assert "1 of 9 stored vectors" in far
    assert "'i6'" in far


@pytest.mark.parametrize("damage", ["cut", "flip", "none"])
def test_verify_checks_the_index_file(searcher: Searcher, tmp_path: Path, damage: str) -> None:
    searcher.add(item(tmp_path, n) for n in range(10))
    searcher.flush()
    file = tmp_path / "cat" / INDEX_FILE
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    problems = searcher.verify(sample=0).problems
    if damage == "none":
        assert problems == []
    else:
        [problem] = problems
        assert "the next start rebuilds it" in problem


def test_verify_reports_a_damaged_store(searcher: Searcher, tmp_path: Path) -> None:
    searcher.add(item(tmp_path, n) for n in range(60))
    searcher.close()
    file = tmp_path / "cat" / STORE_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    with opened(tmp_path / "cat") as reader:
        report = reader.verify(sample=0)
    assert not report.ok
