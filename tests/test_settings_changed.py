"""How a catalogue is searched, changed after it was made."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine
from milvus_places import MILVUS
from test_index import GRAPH, SETTINGS, create, numbers, records, vectors
from test_milvus import opened
from test_milvus import record as milvus_record

from tigerfg.errors import CatalogError, InputError
from tigerfg.index import keeper
from tigerfg.index.collection import Collection
from tigerfg.index.flat import FlatIndex
from tigerfg.index.plan import IndexSettings
from tigerfg.index.snapshot import copy_catalog
from tigerfg.index.store import Store
from tigerfg.searcher import Searcher

AUTO = IndexSettings("auto", 0.9)


def filled(path: Path, settings: IndexSettings, count: int = 2000) -> Collection:
    collection = create(path, settings)
    collection.put(records(0, vectors(count)))
    return collection


def files(path: Path) -> set[str]:
    """Derived ones, but for the random part of a name."""
    return {file.name.split("-")[0] for file in path.iterdir()} - {
        *(f"catalog.sqlite{end}" for end in ("", "-wal", "-shm")),
        "writer.lock",
    }


def test_changes_of_settings():
    settings = IndexSettings("IVF4,PQ16", 0.9, 1000)
    assert settings.changed(None, None, None) is None
    assert settings.changed(None, 0.8, None) == IndexSettings("IVF4,PQ16", 0.8, 1000)
    assert settings.changed("auto", None, 0) == IndexSettings("auto", 0.9, None)
    assert settings.changed(None, None, 7) == IndexSettings("IVF4,PQ16", 0.9, 7)
    with pytest.raises(InputError, match="target_recall"):
        settings.changed(None, 2, None)


def test_another_target_is_tuned_for_and_kept(tmp_path):
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    other = IndexSettings(f"SVD,{GRAPH}", 0.5)
    stats = collection.optimize(settings=other)
    assert stats.setting == collection.meta.index == other.index
    assert stats.kind == f"SVD32,{GRAPH}"
    assert collection.meta.settings == other
    collection.close()
    with_other = Collection.open(path)
    assert with_other.meta.settings == other
    assert with_other.stats().kind == f"SVD32,{GRAPH}"
    index = with_other._keeper.current()
    assert index.notes["settings"] == asdict(other)
    assert with_other._keeper.due() is None
    with_other.close()


def test_from_an_index_to_exact_search_and_back(tmp_path):
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    assert files(path) == {"ivf.index", "vectors", "vectors.json"}
    values = vectors(2000)
    reader = Collection.open(path, read_only=True)
    assert reader.stats().kind == GRAPH
    assert collection.optimize(settings=AUTO).kind == "flat"
    assert files(path) == {"flat.index"}
    assert numbers(collection.search(values[7][None], 1)[0]) == [7]
    collection.put(records(5000, vectors(1, seed=5)))
    assert numbers(reader.search(vectors(1, seed=5), 1)[0]) == [5000]
    assert (reader.stats().kind, reader.meta.settings) == ("flat", AUTO)
    reader.close()
    collection.close()
    again = Collection.open(path)
    assert (again.stats().kind, again.meta.settings) == ("flat", AUTO)
    assert again.optimize(settings=SETTINGS).kind == GRAPH
    assert files(path) == {"ivf.index", "vectors", "vectors.json"}
    again.close()


def test_a_reader_follows_other_settings_and_no_other_build(tmp_path):
    path, other = tmp_path / "cat", IndexSettings(f"SVD,{GRAPH}", 0.9)
    collection = filled(path, SETTINGS)
    collection.optimize()
    reader = Collection.open(path, read_only=True)
    assert reader.stats().kind == GRAPH
    first = reader._keeper.current()
    collection.optimize()
    assert reader._keeper.current() is first
    collection.optimize(settings=other)
    reader.search(vectors(1), 1)
    assert reader.stats().kind == f"SVD32,{GRAPH}"
    assert (reader.stats().setting, reader.meta.settings) == (other.index, other)
    second = reader._keeper.current()
    (path / "ivf.index").unlink()  # by somebody: it is as good as before
    reader.search(vectors(1), 1)
    assert reader._keeper.current() is second
    reader.close()
    collection.close()


def test_settings_that_cannot_be_met_change_nothing(tmp_path):
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    for other, words in (
        (IndexSettings("HNSW32"), "no IVF index"),
        (IndexSettings("IVF9999,PQ16x4fs"), "too few"),
        (IndexSettings("auto", 0.9, 1), "memory_budget"),
    ):
        with pytest.raises(InputError, match=words):
            collection.optimize(np.zeros((0, 32), np.float32), other)
        assert collection.meta.settings == SETTINGS
        assert collection.stats().kind == GRAPH
    collection.close()
    reader = Collection.open(path, read_only=True)
    with pytest.raises(CatalogError, match="reading only"):
        reader.optimize(settings=AUTO)
    assert reader.meta.settings == SETTINGS
    reader.close()


def test_another_catalogue_in_its_place_is_left_alone(tmp_path):
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    copy_catalog(path, tmp_path / "copy")
    path.rename(tmp_path / "old")
    (tmp_path / "copy").rename(path)
    held = files(path)
    with pytest.raises(CatalogError, match="replaced by another catalogue"):
        collection.optimize(settings=AUTO)
    assert files(path) == held == {"ivf.index", "vectors", "vectors.json"}
    collection.close()


def test_a_crash_between_settings_and_index_is_made_good(tmp_path):
    path, other = tmp_path / "cat", IndexSettings(f"SVD,{GRAPH}", 0.9)
    collection = filled(path, SETTINGS)
    collection.optimize()
    with collection._exclusive() as store:
        store.keep(None, other)
    collection.close(build=False)
    again = Collection.open(path)
    again.search(vectors(1), 1)
    assert again._keeper.due() == other.index
    again._keeper.wait()
    assert again.stats().kind == f"SVD32,{GRAPH}"
    again.close()


def test_exact_search_that_cannot_be_kept_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()

    def full(*arguments):
        raise CatalogError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep", full)
        with pytest.raises(CatalogError, match="disk is full"):
            collection.optimize(settings=AUTO)
    assert (collection.stats().kind, collection.meta.settings) == (GRAPH, SETTINGS)
    assert files(path) == {"ivf.index", "vectors", "vectors.json"}
    collection.close()


@pytest.mark.parametrize("crash", ["before the files", "none, the disk is full"])
def test_exact_search_stays_whatever_became_of_the_files(tmp_path, monkeypatch, crash):
    """`auto` took the index that was still there when the catalogue was opened again."""
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    if crash == "before the files":
        with collection._exclusive() as store:
            store.keep(None, AUTO)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(FlatIndex, "save", lambda self: False)
            assert collection.optimize(settings=AUTO).kind == "flat"
    assert "ivf.index" in files(path)
    collection._keeper.retire()
    collection._store.close()
    again = Collection.open(path)
    assert (again.stats().kind, again.meta.settings) == ("flat", AUTO)
    assert again._keeper.due() is None
    again.flush()
    assert files(path) == {"flat.index"}
    again.close()


def test_an_index_without_its_settings_is_built_once_more(tmp_path):
    """Older versions did not note them."""
    path = tmp_path / "cat"
    collection = filled(path, SETTINGS)
    collection.optimize()
    del collection._keeper.current().notes["settings"]
    collection._keeper.save()
    collection.close()
    for due in (GRAPH, None):
        again = Collection.open(path)
        assert again.stats().kind == GRAPH
        assert again._keeper.due() == due
        again.flush()
        again.close()


def test_an_index_that_is_no_longer_wanted_is_dropped(tmp_path, monkeypatch):
    """One that was begun in the background before the settings were changed."""
    path = tmp_path / "cat"
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments, whole=keeper.build):
        begun.set()
        assert go_on.wait(60)
        return whole(*arguments)

    collection = filled(path, SETTINGS)
    monkeypatch.setattr(keeper, "build", slow)
    collection.search(vectors(1), 1)
    assert begun.wait(60)
    with collection._exclusive() as store:
        store.keep(None, AUTO)
    go_on.set()
    collection._keeper.wait()
    assert collection.stats().kind == "flat"
    collection.close()


def test_an_index_is_of_the_settings_that_chose_it(tmp_path, monkeypatch):
    """Others are kept between the choice and the building."""
    path, other = tmp_path / "cat", IndexSettings(f"SVD,{GRAPH}", 0.9)
    collection = filled(path, SETTINGS)

    def choose(settings, *arguments, whole=IndexSettings.choose):
        factory = whole(settings, *arguments)
        with collection._exclusive() as store:
            store.keep(None, other)
        return factory

    with monkeypatch.context() as patch:
        patch.setattr(IndexSettings, "choose", choose)
        assert collection.optimize().kind == "flat"
    assert collection.optimize().kind == f"SVD32,{GRAPH}"
    collection.close()


def test_two_calls_at_once_change_both(tmp_path, monkeypatch):
    with Searcher.create(tmp_path / "cat", FakeBundle(), engine=FakeEngine()) as searcher:
        first, whole = threading.Event(), Collection.optimize

        def slow(collection, queries, settings):
            if not first.is_set():
                first.set()
                other.join(0.3)  # it waits for this one
            return whole(collection, queries, settings)

        monkeypatch.setattr(Collection, "optimize", slow)
        other = threading.Thread(
            target=lambda: first.wait(60) and searcher.optimize(target_recall=0.8)
        )
        other.start()
        searcher.optimize(memory_budget=10**9)
        other.join()
        assert (searcher.info.target_recall, searcher.info.memory_budget) == (0.8, 10**9)


@pytest.mark.parametrize("kind", MILVUS)
def test_milvus_has_another_index(kind, tmp_path):
    for collection in opened(kind, tmp_path, settings=IndexSettings("auto", 0.9)):
        rows = [milvus_record(n) for n in range(40)]
        collection.put(rows)
        before = collection.stats().kind
        other = IndexSettings("HNSW,M=8,efConstruction=64", 0.8)
        stats = collection.optimize(settings=other)
        assert (stats.kind, stats.setting) == (other.index, other.index) != (before, before)
        again = type(collection).open(collection.path)
        assert again.meta.settings == other
        assert str(again._index) == other.index
        [found] = again.search(rows[3].vector[None].astype(np.float32), 1)
        assert found[0].document["item_id"] == rows[3].item_id
        again.close()
        with pytest.raises(InputError, match="memory_budget"):
            collection.optimize(settings=IndexSettings("auto", 0.9, 100))
        assert collection.meta.settings == other
