"""Where a run's pools lie, and what happens when two processes make one at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from PIL import Image

from tigerfg.training import inputs
from tigerfg.training.distributed import joined
from tigerfg.training.inputs import Inputs, pool_names
from tigerfg.training.photos import photos_digest
from tigerfg.training.pool import Pool


def write_items(folder: Path, title: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"item_id": "m1", "image": "m1.png", "title": title}
    (folder / "items.jsonl").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "renamed"),
    [
        ({}, set()),
        ({"seed": 5}, set()),  # a study's seeds share their pools
        ({"products": 4}, {"rendered", "held_out"}),
        ({"product_seed": 4}, {"rendered", "held_out", "photos"}),
        ({"photos": Path("elsewhere/shop")}, {"photos"}),  # of the same name
        ({"photos_split": "val"}, {"photos"}),
        ({"photo_crops": 6}, {"photos"}),
        ({"photo_collages": 0}, {"photos"}),
        ({"model": replace(tiny_run.MODEL, item_size=32)}, {"rendered", "held_out", "photos"}),
    ],
)
def test_pools_are_named_by_what_they_are_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], renamed: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, title in (("shop", "mug"), ("elsewhere/shop", "cup")):
        write_items(Path(folder), title)
    one = pool_names(tiny_run.config(tmp_path, photos=Path("shop")))
    other = pool_names(tiny_run.config(tmp_path, **{"photos": Path("shop"), **change}))
    assert {kind for kind in one if one[kind] != other[kind]} == renamed
    digest = photos_digest(Path("shop"))
    assert one["photos"] == f"photos-shop-{digest}-train-5-3000-1-32-64"
    assert one["rendered"] == "rendered-10000-1-32-64"
    assert one["held_out"] == "held_out-512-1001-32-64"


def test_photos_repaired_after_a_run_was_prepared_are_prepared_anew(
    tmp_path: Path, make_image: Callable[..., Image.Image]
) -> None:
    tiny_run.write_pools(tmp_path)
    shop = tmp_path / "shop"
    write_items(shop, "mug")
    make_image(60, 40).save(shop / "m1.png")

    def texts() -> set[str]:
        with joined("cpu", 10.0) as world:
            sources = Inputs(tiny_run.config(tmp_path, photos=shop), world).maker.sources
        return {text for text, *_ in sources[1].texts}

    assert texts() == {"mug"}
    write_items(shop, "cup")
    assert texts() == {"cup"}
    assert len(list((tmp_path / "pools").glob("photos-shop-*"))) == 2


def test_photos_give_as_many_crops_and_collages_as_asked_for(
    tmp_path: Path, make_image: Callable[..., Image.Image]
) -> None:
    tiny_run.write_pools(tmp_path)
    shop = tmp_path / "shop"
    shop.mkdir()
    for number, name in enumerate(("red mug", "tin")):
        make_image(60, 40, seed=number).save(shop / f"{name}.png")
    config = tiny_run.config(tmp_path, photos=shop, photo_crops=3, photo_collages=7)
    with joined("cpu", 10.0) as world:
        pool = Inputs(config, world).maker.sources[1]
    assert isinstance(pool, Pool)
    assert (len(pool.crops), len(pool.scenes)) == (2 * 3, 2 + 7)


@pytest.mark.parametrize("layout", ["", "standard", "cluttered", "beside", "pictures"])
def test_every_picture_of_any_kind_of_folder_is_in_the_digest(tmp_path: Path, layout: str) -> None:
    shop = tmp_path / "shop"
    if layout == "pictures":  # a folder without a file of items
        shop.mkdir()
    else:
        write_items(shop / layout.replace("beside", ""), "mug")
    picture = {"beside": tmp_path}.get(layout, shop / layout.replace("pictures", "")) / "m1.png"
    digests = set()
    for content in (b"first", b"second", b""):
        picture.write_bytes(content)
        digests.add(photos_digest(shop))
        assert photos_digest(shop) in digests
    if layout != "pictures":
        picture.unlink()
        digests.add(photos_digest(shop))
    assert len(digests) == 3 + (layout != "pictures")


def test_a_picture_name_that_no_file_can_have_is_a_missing_picture(tmp_path: Path) -> None:
    tmp_path.joinpath("items.jsonl").write_text(
        "".join(
            json.dumps({"item_id": str(number), "image": image, "title": "mug"}) + "\n"
            for number, image in enumerate(["a" * 5000, "nul\0.png", "\ud800.png", "http://x/y"])
        )
    )
    assert len(photos_digest(tmp_path)) == 12


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
