"""Exceptions of a signal's handler in the few places where they cost something: a lock, a thread, a
file's checksum."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine, picture
from test_interrupted import Interrupting, make
from test_store import found, record, store_of

from tigerfg import Searcher
from tigerfg.download import Fetcher, FetchLimits
from tigerfg.index import database
from tigerfg.index.collection import Collection
from tigerfg.index.index_files import check_files
from tigerfg.index.vectors import VectorRows


def test_an_interrupted_opening_keeps_no_lock(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path / "cat").close()
    monkeypatch.setattr(database, "fcntl", Interrupting(database.fcntl, "flock"))
    with pytest.raises(KeyboardInterrupt) as kept:
        Collection.open(tmp_path / "cat")
    Collection.open(tmp_path / "cat").close()
    assert kept.tb


def test_an_interrupted_close_lets_the_next_writer_in(tmp_path: Path) -> None:
    """SQLite's part of it may take a while: it empties the log of writes."""
    collection = make(tmp_path / "cat")
    collection.put([record(1)])
    store = store_of(collection)
    store._db = Interrupting(store._db, "close")
    with pytest.raises(KeyboardInterrupt):
        collection.close()
    with contextlib.closing(Collection.open(tmp_path / "cat")) as other:
        assert found(other, 1) == ["i1"]


def test_a_close_that_was_interrupted_at_once_is_repeated(tmp_path: Path, monkeypatch) -> None:
    collection = make(tmp_path / "cat")

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_of(collection), "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection.close()
    monkeypatch.undo()
    collection.close()
    Collection.open(tmp_path / "cat").close()


def test_an_interrupted_sweep_leaves_the_next_build_its_lock(tmp_path: Path, monkeypatch) -> None:
    with contextlib.closing(make(tmp_path / "cat", "IVF2,SQfp16")) as collection:
        collection.put([record(n) for n in range(100)])
        collection.optimize()
        index = collection._keeper._index
        monkeypatch.setattr(index, "sweep", Interrupting(index, "sweep").sweep)
        with pytest.raises(KeyboardInterrupt):
            collection.flush()
        assert not collection._keeper._building.locked()
        collection.optimize()


@pytest.mark.parametrize("name", ["_tail", "_crc"])
def test_vectors_whose_save_was_interrupted_are_whole(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    with contextlib.closing(make(tmp_path / "cat", "IVF2,SQfp16")) as collection:
        collection.put([record(n) for n in range(100)])
        collection.optimize()
        collection.put([record(n) for n in range(100, 150)])
        found(collection, 120)

        def interrupted(rows: VectorRows, attribute: str, value: object) -> None:
            if attribute == name:
                monkeypatch.undo()
                raise KeyboardInterrupt
            object.__setattr__(rows, attribute, value)

        monkeypatch.setattr(VectorRows, "__setattr__", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            collection.flush()
        collection.put([record(n) for n in range(150, 200)])
        collection.flush()
        assert check_files(store_of(collection)) == []
        assert found(collection, 170) == ["i170"]


def test_an_interrupted_upsert_stores_nothing_later(tmp_path: Path, monkeypatch) -> None:
    """What it stored after its end would undo a later write."""
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("tigerfg-store"):
            threads.append(thread)
            raise KeyboardInterrupt

    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searcher.upsert([{"item_id": "a", "image": picture(1)}])
        monkeypatch.undo()
        threads[0].join(60)
        assert not threads[0].is_alive()
        assert len(searcher) == 0


@pytest.mark.parametrize("starts", [False, True])
def test_a_fetcher_whose_thread_does_not_start_ends(monkeypatch, starts: bool) -> None:
    """As without the right to one more thread, or where its start is interrupted."""
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        threads.append(thread)
        if starts:
            start(thread)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"), Fetcher() as fetcher:
        list(fetcher.ahead(["http://127.0.0.1:9/"], str))
    if starts:
        threads[0].join(60)
    assert not threads[0].is_alive()


def test_a_fetcher_whose_client_cannot_be_made_tells_why(monkeypatch) -> None:
    before = threading.active_count()
    monkeypatch.setenv("HTTP_PROXY", "ftp://proxy")
    with pytest.raises(ValueError, match="proxy"), Fetcher() as fetcher:
        list(fetcher.ahead(["http://127.0.0.1:9/"], str))
    assert threading.active_count() == before


def test_an_interrupted_wait_for_the_fetcher_does_not_keep_it(monkeypatch) -> None:
    before = {*threading.enumerate()}
    fetcher = Fetcher(FetchLimits(attempts=1))
    list(fetcher.ahead(["http://127.0.0.1:9/"], str))
    [thread] = {*threading.enumerate()} - before

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetcher.__exit__()
    monkeypatch.undo()
    thread.join(60)
    assert not thread.is_alive()
