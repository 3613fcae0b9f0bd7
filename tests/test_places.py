"""Where catalogues and caches may lie: odd names, and users without a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import FakeBundle, FakeEngine, picture

from tigerfg import Searcher
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
