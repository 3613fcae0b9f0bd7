"""Where a run's pools lie, and what happens when two processes make one at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

from tigerfg.errors import InputError
from tigerfg.training import inputs
from tigerfg.training.batches import BatchMaker
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
        ({"product_seed": 4}, {"rendered", "held_out", "photos.0"}),
        ({"photos": [Path("elsewhere/shop")]}, {"photos.0"}),  # of the same name
        ({"photos_split": "val"}, {"photos.0"}),
        ({"photo_crops": 6}, {"photos.0"}),
        ({"photo_collages": 0}, {"photos.0"}),
        ({"model": replace(tiny_run.MODEL, item_size=32)}, {"rendered", "held_out", "photos.0"}),
    ],
)
def test_pools_are_named_by_what_they_are_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], renamed: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, title in (("shop", "mug"), ("elsewhere/shop", "cup")):
        write_items(Path(folder), title)
    one = pool_names(tiny_run.config(tmp_path, photos=[Path("shop")]))
    other = pool_names(tiny_run.config(tmp_path, **{"photos": [Path("shop")], **change}))
    assert {kind for kind in one if one[kind] != other[kind]} == renamed
    digest = photos_digest(Path("shop"))
    assert one["photos.0"] == f"photos-shop-{digest}-train-5-3000-1-32-64"
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
            sources = Inputs(tiny_run.config(tmp_path, photos=[shop]), world).maker.sources
        return {text for text, *_ in sources[1].texts}

    assert texts() == {"mug"}
    write_items(shop, "cup")
    assert texts() == {"cup"}
    assert len(list((tmp_path / "pools").glob("photos-shop-*"))) == 2


@pytest.fixture
def shops(tmp_path: Path, make_image: Callable[..., Image.Image]) -> list[Path]:
    """Two folders of one name, with two and with one photo; the run's other pools are made."""
    tiny_run.write_pools(tmp_path)
    folders = [tmp_path / "shop", tmp_path / "elsewhere" / "shop"]
    for folder, names in zip(folders, (["red mug", "tin"], ["blue cup"]), strict=True):
        folder.mkdir(parents=True)
        for number, name in enumerate(names):
            make_image(60, 40, seed=number).save(folder / f"{name}.png")
    return folders


def opened(out: Path, **changes: Any) -> Inputs:
    with joined("cpu", 10.0) as world:
        return Inputs(tiny_run.config(out, **{"photo_collages": 4, **changes}), world)


@pytest.mark.parametrize(
    ("share", "shares"),
    [
        (0.5, [0.5, 0.25, 0.25]),
        ([0.25, 0.5], [0.25, 0.25, 0.5]),
        ([0.0, 0.125], [0.875, 0.0, 0.125]),
        (1.0, [0.0, 0.5, 0.5]),
        ([0.25, 0.75], [0.0, 0.25, 0.75]),
    ],
)
def test_every_directory_has_its_pool_and_its_share(
    tmp_path: Path, shops: list[Path], share: object, shares: list[float]
) -> None:
    made = opened(tmp_path, photos=shops, photo_share=share)
    assert made.one_view == 3
    pools = made.maker.sources[1:]
    titles = [{text for texts in pool.texts for text in texts} for pool in pools]
    assert titles == [{"red mug", "tin"}, {"blue cup"}]
    assert len({*pool_names(tiny_run.config(tmp_path, photos=shops)).values()}) == 4
    assert made.maker.shares == shares
    products = made.maker.start(0, 0, 16).products.numpy()
    counts = np.bincount(np.searchsorted([30, 32], products, "right"), minlength=3)
    assert counts.tolist() == [16 * part for part in shares]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.35, 1.0, [0.35]], ids=str)
def test_batches_of_one_directory_are_those_of_its_share_and_the_rest(
    tmp_path: Path, shops: list[Path], share: float | list[float]
) -> None:
    made = opened(tmp_path, photos=shops[:1], photo_share=share).maker
    share = share[0] if isinstance(share, list) else share
    by_hand = BatchMaker(made.sources, [1.0 - share, share], made.config, made.tokenizer)
    for batch in (1, 7, 10):
        one, other = made.start(3, 5, batch), by_hand.start(3, 5, batch)
        assert (one.products >= 30).sum() == round(batch * share)
        assert torch.equal(one.crops().pixels, other.crops().pixels)
        assert torch.equal(one.scenes().pixels, other.scenes().pixels)
        assert one.lines() == other.lines()


def test_photos_give_as_many_crops_and_collages_as_asked_for(
    tmp_path: Path, shops: list[Path]
) -> None:
    made = opened(tmp_path, photos=shops[:1], photo_crops=3, photo_collages=7)
    pool = made.maker.sources[1]
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
    with joined("cpu", 10.0) as world, pytest.raises(InputError, match="no space left; while"):
        Inputs(tiny_run.config(tmp_path), world)
