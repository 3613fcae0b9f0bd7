"""Where a run's pools lie, and what happens when two processes make one at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from tigerfg.training import inputs
from tigerfg.training.distributed import joined
from tigerfg.training.inputs import Inputs, pool_names
from tigerfg.training.pool import Pool


@pytest.mark.parametrize(
    ("change", "renamed"),
    [
        ({}, set()),
        ({"seed": 5}, set()),  # a study's seeds share their pools
        ({"products": 4}, {"rendered", "held_out"}),
        ({"product_seed": 4}, {"rendered", "held_out", "photos"}),
        ({"photos": Path("elsewhere")}, {"photos"}),
        ({"photos_split": "val"}, {"photos"}),
        ({"model": replace(tiny_run.MODEL, item_size=32)}, {"rendered", "held_out", "photos"}),
    ],
)
def test_pools_are_named_by_what_they_are_made_from(
    tmp_path: Path, change: dict[str, Any], renamed: set[str]
) -> None:
    one = pool_names(tiny_run.config(tmp_path, photos=Path("shop")))
    other = pool_names(tiny_run.config(tmp_path, **{"photos": Path("shop"), **change}))
    assert {kind for kind in one if one[kind] != other[kind]} == renamed
    assert one["photos"] == "photos-shop-train-1-32-64"
    assert one["rendered"] == "rendered-10000-1-32-64"
    assert one["held_out"] == "held_out-512-1001-32-64"


def test_who_makes_a_pool_too_late_takes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run.config(tmp_path)
    tiny_run.write_pools(tmp_path)
    folder = tmp_path / "pools" / pool_names(config)["rendered"]
    folder.rename(tmp_path / "made")

    def render(*_: Any, **__: Any) -> Pool:
        (tmp_path / "made").rename(folder)  # by another process, meanwhile
        return tiny_run.pool(7)

    monkeypatch.setattr(inputs, "rendered_pool", render)
    with joined("cpu", 10.0) as world:
        taken = Inputs(config, world)
    assert taken.maker is not None
    assert Pool.load(folder).products == 30
    assert not list(folder.parent.glob(".pool-*"))


def test_a_pool_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(inputs, "rendered_pool", lambda *_, **__: tiny_run.pool(3))
    monkeypatch.setattr(Pool, "save", full)
    with joined("cpu", 10.0) as world, pytest.raises(OSError, match="no space"):
        Inputs(tiny_run.config(tmp_path), world)
