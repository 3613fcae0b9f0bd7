"""A catalogue and more processes than the one that opened it."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine
from test_interrupted import make
from test_store import found, record, store_of

from tigerfg import Searcher
from tigerfg.engines import openvino
from tigerfg.errors import CatalogError, EngineError
from tigerfg.index import keeper, store, store_reader
from tigerfg.index.collection import Collection


@pytest.mark.parametrize("index", ["flat", "IVF2,SQfp16"])
def test_a_child_forked_after_a_search_searches_for_itself(tmp_path: Path, index: str) -> None:
    """As of a server that answers a first query and forks its workers then."""
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from pathlib import Path
from test_interrupted import make
from test_store import found, record, vector
from tigerfg.index.collection import Collection
path = Path({str(tmp_path)!r}) / "cat"
queries = np.stack([vector(n) for n in range(64)])
collection = make(path, {index!r})
collection.put([record(n) for n in range(200)])
collection.optimize()
collection.search(queries, 3)
child = os.fork()
if not child:
    reader = Collection.open(path, read_only=True)
    reader.search(queries, 3)
    os._exit(0 if found(reader, 7) == ["i7"] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    threads = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=threads)


@pytest.mark.parametrize("index", ["flat", "IVF2,SQfp16"])
def test_an_index_behind_the_log_of_removals_catches_up(tmp_path: Path, monkeypatch, index) -> None:
    """That of a reader, and a file of it: the log holds the last few only."""
    for module in (store, store_reader):
        monkeypatch.setattr(module, "LOGGED", 5)
    path = tmp_path / "cat"
    with contextlib.closing(make(path, index)) as collection:
        collection.put([record(n) for n in range(100)])
        collection.delete(["i99"])
        collection.optimize()
        shutil.copytree(path, tmp_path / "saved")
        with contextlib.closing(Collection.open(path, read_only=True)) as reader:
            assert found(reader, 7) == ["i7"]
            for n in range(20):
                collection.delete([f"i{n}"])
                collection.put([record(100 + n)])
            (logged,) = store_of(collection)._db.execute("SELECT count(*) FROM removals").fetchone()
            assert logged <= 5
            wanted = {f"i{n}" for n in range(20, 120)} - {"i99"}
            assert set(found(reader, 7, 200)) == wanted
            assert [found(reader, n) for n in (50, 110)] == [["i50"], ["i110"]]
    for file in (tmp_path / "saved").glob("*.index"):
        shutil.copy(file, path)
    with contextlib.closing(Collection.open(path)) as collection:
        assert set(found(collection, 7, 200)) == wanted


@pytest.mark.parametrize("move", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_searcher_is_not_taken_to_another_process(tmp_path: Path, move) -> None:
    with (
        Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher,
        pytest.raises(TypeError, match="open the catalogue where it is needed"),
    ):
        move(searcher)


def test_openvino_is_refused_in_a_process_forked_after_its_start(monkeypatch) -> None:
    """There it would wait without end for threads of the other one."""
    pytest.importorskip("openvino")
    core, version, process = openvino._core()
    monkeypatch.setattr(openvino, "_core", lambda: (core, version, process + 1))
    with pytest.raises(EngineError, match="before this one was forked"):
        openvino.OpenVinoRunner(Path("query.onnx"), "query", "fp32", 1, None)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process may not open one more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the next one that is free
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_are_told(tmp_path: Path) -> None:
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        with no_more_files():
            with pytest.raises(CatalogError, match="Too many open files"):
                Searcher.create(tmp_path / "other", FakeBundle())
            with pytest.raises(CatalogError, match="too many open files"):
                Searcher.open(tmp_path / "cat", FakeBundle(), read_only=True)
            with pytest.raises(CatalogError, match="too many open files"):
                searcher.snapshot(tmp_path / "copy")
        assert searcher.delete("a") == 0


def test_without_a_thread_to_be_had_what_is_stored_is_told_so(tmp_path: Path, monkeypatch) -> None:
    """A container may have so many threads and no more."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "tigerfg-index":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with contextlib.closing(make(tmp_path / "cat", "IVF2,SQfp16")) as collection:
        assert found(collection, 1) == []
        assert collection.put([record(n) for n in range(100)]) == 0
        assert found(collection, 7) == ["i7"]
        collection._keeper.wait()
        assert collection.stats().kind == "flat"
        monkeypatch.undo()
        assert found(collection, 7) == ["i7"]
        collection._keeper.wait()
        assert collection.stats().kind == "IVF2,SQfp16"


def test_a_forked_childs_end_does_not_wait_for_an_index_file_of_the_parent(tmp_path: Path) -> None:
    with contextlib.closing(make(tmp_path / "cat")) as collection:
        with collection._keeper._saving:
            child = os.fork()
            if not child:
                signal.alarm(5)
                keeper._hold_saves()
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
