"""Where catalogues and caches may lie: odd names, and users without a home."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine, picture

from tigerfg import Searcher
from tigerfg.errors import CatalogError
from tigerfg.files import engines_cache


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "100%25", "why?", "no#1", "\udcff\udcfe", "[a]*", "q'\"", "file:x"]
)
def test_a_catalogue_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    options = {"model": FakeBundle(), "engine": FakeEngine()}
    with Searcher.create(path, index="IVF2,SQfp16", **options) as searcher:
        searcher.add([{"item_id": f"i{n}", "image": picture(n)} for n in range(90)])
        searcher.optimize()
        searcher.snapshot(tmp_path / f"{name} copied")
    for place in (path, tmp_path / f"{name} copied"):
        with Searcher.open(place, read_only=True, **options) as reader:
            assert reader.stats().kind == "IVF2,SQfp16"
            assert reader.search(picture(7), k=1)[0].item_id == "i7"
            assert reader.verify(3).ok


def test_a_user_without_a_home_has_a_place_for_engines(monkeypatch) -> None:
    """As in a container that runs under a number which no user has."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert engines_cache() == Path("/.cache/tigerfg/engines")


@pytest.mark.parametrize("index", ["flat", "IVF2,SQfp16"])
def test_the_writer_of_a_directory_that_was_swapped_leaves_the_other_alone(
    tmp_path: Path, caplog, index: str
) -> None:
    """A copy is changed and takes the catalogue's place, and the old process ends: its index has
    the same catalogue's name and as many items, and others under the same numbers."""
    live, options = tmp_path / "live", {"model": FakeBundle(), "engine": FakeEngine()}

    def photos(first: int) -> list[dict]:
        return [{"item_id": f"i{n}", "image": picture(first + n)} for n in range(30)]

    old = Searcher.create(live, index=index, **options)
    old.add([{"item_id": f"i{n}", "image": picture(n)} for n in range(100)])
    old.optimize()
    old.flush()
    old.snapshot(tmp_path / "copy")
    old.upsert(photos(1000))
    with Searcher.open(tmp_path / "copy", **options) as new:
        new.upsert(photos(2000))
    live.rename(tmp_path / "old")
    (tmp_path / "copy").rename(live)
    derived = [file for file in live.iterdir() if file.suffix in (".index", ".f16", ".json")]
    before = [file.read_bytes() for file in derived]
    assert old.search(picture(1007), k=1)[0].item_id == "i7"
    old._collection._keeper._index = None  # as one that was interrupted
    assert old.search(picture(1007), k=1)[0].item_id == "i7"
    assert "was removed, or replaced" in old.verify(0).problems[0]
    with pytest.raises(CatalogError, match="was removed, or replaced"):
        old.snapshot(tmp_path / "again")
    if index != "flat":
        with pytest.raises(CatalogError, match="was removed, or replaced"):
            old.optimize()
    old.flush()
    old.close()
    assert before == [file.read_bytes() for file in derived]
    assert "holds another catalogue by now" in caplog.text
    with Searcher.open(live, **options) as searcher:
        assert searcher.verify(0).ok
        assert searcher.search(picture(2007), k=1)[0].item_id == "i7"


def test_a_catalogue_whose_directory_is_gone_is_told_of_and_searched(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    with Searcher.create(shop, model=FakeBundle(), engine=FakeEngine()) as searcher:
        searcher.add([{"item_id": "i0", "image": picture(0)}])
        assert searcher.info.size_bytes > 0
        shutil.rmtree(shop)
        assert (searcher.info.items, searcher.info.size_bytes) == (1, None)
        assert searcher.search(picture(0), k=1)[0].item_id == "i0"


@pytest.mark.parametrize("index", ["flat", "IVF2,SQfp16"])
def test_a_reader_where_it_may_not_write_follows_a_copy_that_went_its_own_way(
    tmp_path: Path, monkeypatch, index: str
) -> None:
    options = {"model": FakeBundle(), "engine": FakeEngine()}
    with Searcher.create(tmp_path / "live", index=index, **options) as searcher:
        searcher.add([{"item_id": f"i{n}", "image": picture(n)} for n in range(100)])
        searcher.optimize()
        searcher.snapshot(tmp_path / "copy")
        searcher.upsert([{"item_id": "i7", "image": picture(1007), "price": 1}])
    with Searcher.open(tmp_path / "copy", **options) as other:
        other.upsert([{"item_id": "i8", "image": picture(2008), "price": 1}])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Searcher.open(tmp_path / "live", read_only=True, **options) as reader:
        [hit] = reader.search(picture(1007), where={"price": 1})
        assert hit.item_id == "i7"
        (tmp_path / "live").rename(tmp_path / "old")
        (tmp_path / "copy").rename(tmp_path / "live")
        [hit] = reader.search(picture(2008), where={"price": 1})
        assert (hit.item_id, round(hit.score, 3)) == ("i8", 1.0)
        assert reader.search(picture(7), k=1)[0].score > 0.999


def test_a_reader_where_it_may_not_write_does_not_take_up_another_catalogue(
    tmp_path: Path, monkeypatch
) -> None:
    options = {"model": FakeBundle(), "engine": FakeEngine()}
    for name, first in (("live", 0), ("other", 50)):
        with Searcher.create(tmp_path / name, **options) as searcher:
            searcher.add([{"item_id": name, "image": picture(first)}])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Searcher.open(tmp_path / "live", read_only=True, **options) as reader:
        assert reader.search(picture(0))[0].item_id == "live"
        (tmp_path / "live").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "live")
        [hit] = reader.search(picture(0))
        assert (hit.item_id, round(hit.score, 3)) == ("live", 1.0)
        assert len(reader) == 1
