"""Calls that are interrupted, and ends that come at a bad moment: the next call works, and is
right."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine, picture
from test_store import found, record, store_of, vector

from tigerfg import Searcher
from tigerfg.errors import CatalogError, EngineError
from tigerfg.index.collection import Collection
from tigerfg.index.ivf import INDEX_FILE
from tigerfg.index.plan import IndexSettings

WIDE = 16


def make(path: Path, index: str = "auto") -> Collection:
    return Collection.create(
        path, model="m", fingerprint="f" * 64, embedding_dim=WIDE, settings=IndexSettings(index)
    )


class Interrupting:
    """A stand-in that does what it is asked for and is interrupted as one call of it returns."""

    def __init__(self, what: object, name: str, first: str = "") -> None:
        self._what, self._name, self._first, self.done = what, name, first, False

    def __getattr__(self, name: str) -> object:
        value = getattr(self._what, name)
        if name != self._name or self.done:
            return value

        def call(*args: object) -> object:
            result = value(*args)
            if not self.done and (not self._first or str(args[0]).startswith(self._first)):
                self.done = True
                raise KeyboardInterrupt
            return result

        return call


@pytest.mark.parametrize(
    ("call", "sql"),
    [
        (lambda c: c.search(vector(1)[None], 1), "BEGIN"),
        (lambda c: c.put([record(7)]), "BEGIN IMMEDIATE"),
        (lambda c: c.stats(), "SELECT number"),
        (lambda c: c.delete(["i2"]), "UPDATE counter"),
    ],
)
def test_an_interrupted_transaction_is_not_left_open(tmp_path, call, sql):
    with contextlib.closing(make(tmp_path / "cat")) as collection:
        collection.put([record(n) for n in range(3)])
        store = store_of(collection)
        store._db = Interrupting(store._db, "execute", sql)
        with pytest.raises(KeyboardInterrupt):
            call(collection)
        assert store._db.done
        assert found(collection, 1) == ["i1"]
        assert len(collection) == 3
        collection.put([record(8)])
        assert found(collection, 8) == ["i8"]


def test_a_transaction_that_was_left_open_all_the_same_is_ended(tmp_path):
    with contextlib.closing(make(tmp_path / "cat")) as collection:
        collection.put([record(1)])
        store_of(collection)._db.execute("BEGIN")
        assert found(collection, 1) == ["i1"]


def test_a_call_inside_another_of_the_same_thread_is_refused(tmp_path):
    """As a signal's handler makes it: the outer call goes on as if nothing had been."""
    with contextlib.closing(make(tmp_path / "cat")) as collection:

        class Records(list):
            def __iter__(self):
                with pytest.raises(CatalogError, match="in the middle of another call"):
                    found(collection, 1)
                return super().__iter__()

        collection.put(Records([record(1), record(2)]))
        assert found(collection, 1, 3) == ["i1", "i2"]


@pytest.mark.parametrize("index", ["flat", "IVF2,SQfp16"])
def test_an_interrupted_search_indexes_nothing_twice(tmp_path, index):
    with contextlib.closing(make(tmp_path / "cat", index)) as collection:
        collection.put([record(n) for n in range(100)])
        collection.optimize()
        collection.put([record(n) for n in range(100, 150)])
        keeper = collection._keeper
        inner = "_index" if index == "flat" else "_ivf"
        setattr(keeper._index, inner, Interrupting(getattr(keeper._index, inner), "add_with_ids"))
        with pytest.raises(KeyboardInterrupt):
            found(collection, 120)
        hits = found(collection, 120, 150)
        assert hits[0] == "i120"
        assert len(hits) == len(set(hits)) == 150
        assert collection.stats().items == 150


def test_closing_inside_a_build_does_not_wait_for_it(tmp_path, monkeypatch):
    """As a handler of SIGTERM does in the thread that builds."""
    collection = make(tmp_path / "cat", "IVF2,SQfp16")
    collection._keeper._retired = True  # nothing is built in the background
    collection.put([record(n) for n in range(200)])

    def build(*_: object) -> None:
        collection.close()
        raise SystemExit

    monkeypatch.setattr("tigerfg.index.keeper.build", build)
    with pytest.raises(SystemExit):
        collection.optimize()
    monkeypatch.undo()
    with contextlib.closing(Collection.open(tmp_path / "cat")) as again:
        assert len(again) == 200


def test_an_interrupted_close_has_closed(tmp_path, monkeypatch):
    collection = make(tmp_path / "cat")
    collection.put([record(1)])

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collection._keeper, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection.close()
    collection.close()
    with pytest.raises(CatalogError, match="closed"):
        len(collection)
    with contextlib.closing(Collection.open(tmp_path / "cat")) as again:
        assert found(again, 1) == ["i1"]


def test_a_collection_that_is_forgotten_lets_the_next_writer_in(tmp_path):
    make(tmp_path / "cat").put([record(1)])
    gc.collect()
    Collection.open(tmp_path / "cat").close()


def test_a_forked_child_keeps_no_lock(tmp_path):
    collection = make(tmp_path / "cat")
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        collection.close()
        Collection.open(tmp_path / "cat").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_childs_end_leaves_the_parents_lock(tmp_path):
    collection = make(tmp_path / "cat")
    child = os.fork()
    if not child:
        store_of(collection)._unlock()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(CatalogError, match="open for writing already"):
        Collection.open(tmp_path / "cat")
    collection.close()


def test_the_end_of_the_process_waits_for_an_index_file(tmp_path):
    code = f"""
import sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_interrupted import make, record
collection = make(Path({str(tmp_path)!r}) / "cat", "flat")
collection.put([record(n) for n in range(9)])
collection.stats()
def save():
    begun.set()
    time.sleep(1)
    Path({str(tmp_path)!r}, "saved").touch()
begun = threading.Event()
collection._keeper._index.save = save
threading.Thread(target=collection._keeper._save, daemon=True).start()
begun.wait()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "saved").exists()


def test_without_memory_exact_search_goes_on(tmp_path, monkeypatch, caplog):
    builds: list[int] = []

    def build(*_: object) -> None:
        builds.append(1)
        raise MemoryError

    monkeypatch.setattr("tigerfg.index.keeper.build", build)
    collection = make(tmp_path / "cat", "IVF2,SQfp16")
    collection.put([record(n) for n in range(200)])
    for _ in range(5):
        assert found(collection, 7) == ["i7"]
        collection._keeper.wait()
    assert len(builds) == 1
    assert "no IVF2,SQfp16 index was built: MemoryError" in caplog.text
    collection.close()


def test_a_reader_takes_the_writers_new_index(tmp_path):
    with contextlib.closing(make(tmp_path / "cat", "IVF2,SQfp16")) as writer:
        writer.put([record(n) for n in range(50)])
        with contextlib.closing(Collection.open(tmp_path / "cat", read_only=True)) as reader:
            assert reader.stats().kind == "flat"
            writer.put([record(n) for n in range(50, 200)])
            writer.optimize()
            assert found(reader, 120) == ["i120"]
            assert reader.stats().kind == "IVF2,SQfp16"
            for seed in (1000, 2000, 3000):  # every item with another picture
                writer.put([record(n, seed + n) for n in range(200)], replace=True)
                assert found(reader, seed + 9) == ["i9"]
                writer.optimize()
                assert found(reader, seed + 9) == ["i9"]
            index = reader._keeper._index
            assert (len(index), len(index.rows), index.rows.unsaved) == (200, 200, 0)
            before = os.stat(tmp_path / "cat" / INDEX_FILE).st_ino
            writer.put([record(1000)])
            assert found(reader, 1000) == ["i1000"]
            assert reader._keeper._index is index, "a single item is no reason"
            assert before == os.stat(tmp_path / "cat" / INDEX_FILE).st_ino


def test_closing_and_deleting_do_not_wait_for_an_endless_add(tmp_path):
    searcher = Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine())
    ended: list[BaseException] = []

    def endless():
        number = 0
        while True:
            yield {"item_id": f"i{number}", "image": picture(number % 50)}
            number += 1

    def add() -> None:
        try:
            searcher.add(endless())
        except (CatalogError, EngineError) as error:
            ended.append(error)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while "i0" not in searcher and time.monotonic() < deadline:
        time.sleep(0.01)
    assert searcher.delete("i0") == 1
    searcher.close()
    thread.join(60)
    assert not thread.is_alive()
    assert "closed" in str(ended[0])
    with Searcher.open(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as again:
        assert again.verify(0).ok
        assert "i0" not in again


def test_an_exception_does_not_wait_for_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr("tigerfg.index.keeper.IndexKeeper.maintain", lambda self: None)
    builds: list[str] = []
    monkeypatch.setattr(
        "tigerfg.index.keeper.IndexKeeper.build",
        lambda self, factory, asked: builds.append(factory),
    )
    options = {"engine": FakeEngine(), "exist_ok": True, "index": "IVF2,SQfp16"}
    for interrupt in (True, False):
        entries = [{"item_id": f"{interrupt}{n}", "image": picture(n)} for n in range(100)]
        with (
            contextlib.suppress(KeyboardInterrupt),
            Searcher.create(tmp_path / "cat", FakeBundle(), **options) as searcher,
        ):
            searcher.add(entries)
            if interrupt:
                raise KeyboardInterrupt
        assert builds == ([] if interrupt else ["IVF2,SQfp16"])


def test_vectors_that_cannot_be_saved_take_no_room(tmp_path, monkeypatch):
    with contextlib.closing(make(tmp_path / "cat", "IVF2,SQfp16")) as collection:
        collection.put([record(n) for n in range(100)])
        collection.optimize()
        [file] = (tmp_path / "cat").glob("vectors-*.f16")
        size = file.stat().st_size
        collection.put([record(n) for n in range(100, 200)])

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("tigerfg.index.vectors.VectorRows._stamp", full)
        found(collection, 150)
        collection._keeper._index.rows.save()
        assert file.stat().st_size == size
        assert found(collection, 150) == ["i150"]


def test_a_progress_callback_that_raises_is_told_once(tmp_path):
    told: list[int] = []

    def progress(report: object) -> None:
        told.append(report.added)
        if len(told) == 1:
            raise ValueError("enough")

    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        entries = [{"item_id": f"i{n}", "image": picture(n)} for n in range(96)]
        with pytest.raises(ValueError, match="enough"):
            searcher.add(entries, progress=progress)
        assert told == sorted(set(told))
        assert told[-1] <= len(searcher)


def test_a_search_beside_a_close_ends_with_an_error_of_ours(tmp_path):
    searcher = Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine())
    searcher.add([{"item_id": "a", "image": picture(1)}])
    encoder = searcher._get_encoder()
    encoder.close()
    with pytest.raises(EngineError, match="closed meanwhile"):
        encoder.encode_queries([(picture(1), None), (picture(2), None)])
    searcher.close()
    with pytest.raises(CatalogError, match="closed"):
        searcher.search_batch([picture(1)] * 2)
