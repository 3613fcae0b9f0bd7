"""Sources and batches: any split of the rows gives the same rows, to the bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import CONV, tokenizer_file

from tigerfg.errors import InputError
from tigerfg.text import TextTokenizer
from tigerfg.training.batches import BatchMaker, Draw, augment
from tigerfg.training.pool import Pool
from tigerfg.training.sources import SceneArrays

Q, S = CONV.query_size, CONV.item_size


def make_pool(products: int = 9, views: int = 3, scenes: int = 2, seed: int = 0) -> Pool:
    """Random pictures: scene 0 of a product shows it alone, the others are cluttered."""
    rng = np.random.default_rng(seed)
    count = products * scenes
    boxes = np.tile(np.float32([4, 8, 40, 50]), (count, 1))
    cluttered = np.arange(count) % scenes > 0
    return Pool(
        crops=rng.integers(0, 256, (products * views, Q, Q, 3), dtype=np.uint8),
        crop_extents=rng.integers(1, Q + 1, (products * views, 2)).astype(np.float32),
        crop_products=np.repeat(np.arange(products, dtype=np.int32), views),
        scenes=rng.integers(0, 256, (count, S, S, 3), dtype=np.uint8),
        scene_extents=rng.integers(52, S + 1, (count, 2)).astype(np.float32),
        scene_products=np.repeat(np.arange(products, dtype=np.int32), scenes),
        scene_boxes=boxes,
        other_boxes=np.where(cluttered[:, None], np.float32([41, 0, 52, 9]), np.float32(0)),
        other_products=np.where(cluttered, (np.arange(count) // scenes + 1) % products, -1),
        cluttered=cluttered,
        twins=np.array([i + 1 if i % 4 == 0 and i + 1 < products else -1 for i in range(products)]),
        texts=[[f"red mug {i} . kitchen", f"red mug {i}", "mug"] for i in range(products)],
        anchors=[["kitchen", "mug", "red"] for _ in range(products)],
    )


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> BatchMaker:
    file = tokenizer_file(tmp_path_factory.mktemp("words") / "tokenizer.json")
    tokenizer = TextTokenizer.from_file(file, CONV.text.max_length)
    return BatchMaker([make_pool(), make_pool(5, seed=1)], [0.6, 0.4], CONV, tokenizer)


def everything(draw: Draw) -> dict[str, torch.Tensor | list[str]]:
    """What a step may ask for, in one order: two crops, two pictures, two texts."""
    values: dict[str, torch.Tensor | list[str]] = {"rows": draw.rows, "products": draw.products}
    for number in range(2):
        for name, part in (("crops", draw.crops()), ("scenes", draw.scenes())):
            for field in dataclasses.fields(part):
                values[f"{name} {number} {field.name}"] = getattr(part, field.name)
        values[f"lines {number}"] = draw.lines()
    return values


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 1, 5, 7, 12), (0, 12, 12)], ids=str)
def test_any_split_gives_the_rows_of_the_whole_batch_to_the_bit(
    maker: BatchMaker, cuts: tuple[int, ...]
) -> None:
    whole = everything(maker.start(3, 7, 12))
    parts = [everything(maker.start(3, 7, 12, slice(a, b))) for a, b in itertools.pairwise(cuts)]
    for name, value in whole.items():
        if isinstance(value, list):
            assert [line for part in parts for line in part[name]] == value, name
        else:
            joined = torch.cat([part[name] for part in parts])
            assert torch.equal(joined, value), name
            assert joined.dtype == value.dtype
    assert whole["products"].unique().numel() == 12
    assert whole["rows"].tolist() == list(range(12))


def test_another_step_or_seed_gives_another_batch(maker: BatchMaker) -> None:
    batches = [maker.start(*at, 8).crops().pixels for at in ((0, 0), (0, 1), (1, 0))]
    assert all(not torch.equal(batches[0], other) for other in batches[1:])
    again = maker.start(0, 0, 8).crops().pixels
    assert torch.equal(again, batches[0])


def test_the_split_does_not_hang_on_the_number_of_threads(maker: BatchMaker) -> None:
    threads = torch.get_num_threads()
    try:
        pixels = []
        for count in (1, 2):
            torch.set_num_threads(count)
            pixels.append(maker.start(0, 0, 12).scenes().pixels)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*pixels)


def test_an_empty_slice_gives_empty_tensors(maker: BatchMaker) -> None:
    draw = maker.start(0, 0, 8, slice(8, 8))
    assert draw.products.tolist() == []
    assert draw.crops().pixels.shape == (0, 3, Q, Q)
    scenes = draw.scenes()
    assert scenes.region.shape == (0, maker.start(0, 0, 1).scenes().region.shape[1])
    assert scenes.boxed.dtype == torch.bool
    assert draw.lines() == []


def test_product_ids_are_unique_over_the_sources(maker: BatchMaker) -> None:
    draw = maker.start(0, 0, 10)
    assert (draw.products[:6] < 9).all()
    assert ((draw.products[6:] >= 9) & (draw.products[6:] < 14)).all()


@pytest.mark.parametrize("shares", [[0.0, 0.5, 0.5], [0.1, 0.45, 0.45], [0.7, 0.1, 0.1, 0.1]])
def test_several_shares_never_take_more_rows_than_there_are(
    maker: BatchMaker, monkeypatch: pytest.MonkeyPatch, shares: list[float]
) -> None:
    asked: list[int] = []
    draw = Pool.draw
    monkeypatch.setattr(
        Pool, "draw", lambda pool, count, rng: asked.append(count) or draw(pool, count, rng)
    )
    several = BatchMaker([make_pool(50) for _ in shares], shares, CONV, maker.tokenizer)
    for batch in range(1, 20):
        asked.clear()
        several.start(0, 0, batch)
        assert min(asked) >= 0
        assert sum(asked) == batch
        assert (abs(np.array(asked) - batch * np.array(shares)) <= 1 + 1e-9).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.35, 0.5, 1.0])
def test_the_second_of_two_sources_has_its_rounded_share(maker: BatchMaker, share: float) -> None:
    both = BatchMaker([make_pool(50)] * 2, [1.0 - share, share], CONV, maker.tokenizer)
    for batch in range(1, 20):
        counts = np.bincount(both.start(0, 0, batch).products // 50, minlength=2)
        assert counts.tolist() == [batch - round(batch * share), round(batch * share)]


@pytest.mark.parametrize("shares", [[1.0], [0.7, 0.7], []], ids=str)
def test_shares_must_fit_the_sources(maker: BatchMaker, shares: list[float]) -> None:
    with pytest.raises(InputError, match="shares"):
        BatchMaker(maker.sources, shares, CONV, maker.tokenizer)


def test_skipped_rows_of_all_sources_are_summed(maker: BatchMaker) -> None:
    pools = [make_pool(3), make_pool(3)]
    pools[0].skipped["missing"] = 2
    pools[1].skipped.update({"missing": 1, "broken": 4})
    both = BatchMaker(pools, [0.5, 0.5], CONV, maker.tokenizer)
    assert both.skipped == Counter(missing=3, broken=4)


def test_no_crop_comes_again_before_all_were_there() -> None:
    pool = make_pool(4, views=3)
    rows = pool.draw(4, np.random.default_rng(0))
    shown = [rows.crops()[0] for _ in range(6)]
    for row, product in enumerate(rows.products):
        ours = pool.crops[pool.crop_products == product]
        which = [
            [np.array_equal(picture[row], own) for own in ours].index(True) for picture in shown
        ]
        assert sorted(which[:3]) == [0, 1, 2]
        assert which[3:] == which[:3]


def test_one_view_is_its_own_pair() -> None:
    rows = make_pool(3, views=1, scenes=1).draw(3, np.random.default_rng(0))
    assert np.array_equal(rows.crops()[0], rows.crops()[0])


def test_unknown_boxes_are_the_whole_picture_without_a_region(maker: BatchMaker) -> None:
    pool = make_pool(3)
    pool.scene_boxes[:] = [[0, 0, 0, 0], [np.nan, 0, 9, 9], [9, 9, 9, 20]] * 2
    scenes = BatchMaker([pool], [1.0], CONV, maker.tokenizer).start(0, 0, 3).scenes()
    assert scenes.boxed.tolist() == [False] * 3
    assert scenes.region.abs().sum() == 0
    assert torch.equal(scenes.boxes[:, :2], torch.zeros(3, 2))
    assert (scenes.boxes[:, 2:] >= 52).all()
    arrays = pool.draw(3, np.random.default_rng(0)).scenes()
    assert isinstance(arrays, SceneArrays)
    assert np.isfinite(arrays.boxes).all()


def test_texts_belong_to_the_picture_of_the_last_scenes() -> None:
    """In the cluttered picture the words that name the target stay, in the other all may go."""
    pool = make_pool(9)
    pool.unknown_words = 1.0
    lost = 0
    for seed in range(40):
        rows = pool.draw(9, np.random.default_rng(seed))
        for _ in range(2):
            alone = ~rows.scenes().other_boxes.any(axis=1)
            for text, free in zip(rows.texts(), alone, strict=True):
                words = set(text.split())
                assert free or words & {"red", "mug", "kitchen"}
                lost += not words & {"red", "mug", "kitchen"}
    assert lost > 50  # of 360 texts of pictures with one product, a third and more


def test_texts_before_any_picture_are_for_the_first_one() -> None:
    pool = make_pool(9)
    first, second = (pool.draw(9, np.random.default_rng(0)) for _ in range(2))
    first.scenes()
    assert first.texts() == second.texts()


def test_without_unknown_words_texts_are_the_pools() -> None:
    pool = make_pool(9)
    pool.unknown_words = 0.0
    rows = pool.draw(9, np.random.default_rng(0))
    full = 0
    for _ in range(20):
        for product, text in zip(rows.products, rows.texts(), strict=True):
            full += text == pool.texts[product][0]
            assert text in pool.texts[product]
    assert 60 < full < 120  # half of 180


def test_a_saved_pool_is_the_same(tmp_path: Path) -> None:
    pool = make_pool()
    pool.skipped["missing picture file"] = 2
    pool.save(tmp_path / "pool")
    again = Pool.load(tmp_path / "pool", unknown_words=0.5)
    assert (again.texts, again.anchors, again.skipped) == (pool.texts, pool.anchors, pool.skipped)
    assert again.unknown_words == 0.5
    assert np.array_equal(again.scenes, pool.scenes)
    assert np.array_equal(again.cluttered, pool.cluttered)


@pytest.mark.parametrize("damage", ["nothing", "cut", "old"])
def test_a_broken_saved_pool_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "pool"
    if damage != "nothing":
        make_pool(3).save(folder)
    if damage == "cut":
        (folder / "scenes.npy").write_bytes((folder / "scenes.npy").read_bytes()[:1000])
    if damage == "old":
        (folder / "texts.json").write_text('[["a text"]]')
    with pytest.raises(InputError, match="prepare it again"):
        Pool.load(folder)


@pytest.mark.parametrize("what", ["crop", "item picture", "text"])
def test_every_product_needs_a_crop_a_picture_and_a_text(what: str) -> None:
    pool = make_pool(3)
    arrays = {field.name: getattr(pool, field.name) for field in dataclasses.fields(pool)}
    if what == "crop":
        arrays["crop_products"] = np.where(pool.crop_products == 1, 0, pool.crop_products)
    elif what == "item picture":
        arrays["scene_products"] = np.where(pool.scene_products == 1, 0, pool.scene_products)
    else:
        arrays["texts"] = [pool.texts[0], [], pool.texts[2]]
    with pytest.raises(InputError, match=f"product 1 has no {what}"):
        Pool(**arrays)


def test_augmentation_keeps_the_margin_and_the_colours_in_range() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, Q, Q, 3), dtype=np.uint8)
    extents = np.float32([[Q, Q], [Q, 9], [1, Q], [1, 1], [17, 30]])
    rngs = [np.random.default_rng(i) for i in range(5)]
    x = augment(pictures, extents, CONV, rngs, erase=1.0)
    mean, std = torch.tensor(CONV.mean)[:, None, None], torch.tensor(CONV.std)[:, None, None]
    assert x.shape == (5, 3, Q, Q)
    assert x.dtype == torch.float32
    for row, (wide, high) in zip(x, extents.astype(int), strict=True):
        assert row[:, high:].abs().sum() == 0
        assert row[:, :, wide:].abs().sum() == 0
        inside = (row * std + mean)[:, :high, :wide]
        assert inside.min() >= -1e-6  # the normalisation is undone in float32
        assert inside.max() <= 1 + 1e-6
    assert augment(pictures[:0], extents[:0], CONV, [], 0.3).shape == (0, 3, Q, Q)


def test_augmentation_changes_light_about_the_pictures_own_mean() -> None:
    """A flat picture stays flat but for the noise: contrast has nothing to spread."""
    pictures = np.full((8, Q, Q, 3), 128, np.uint8)
    pictures[:, 16:] = 0  # the margin below
    extents = np.tile(np.float32([Q, 16]), (8, 1))
    rngs = [np.random.default_rng(i) for i in range(8)]
    x = augment(pictures, extents, CONV, rngs, erase=0.0)[:, :, :16]
    values = x * torch.tensor(CONV.std)[:, None, None] + torch.tensor(CONV.mean)[:, None, None]
    assert values.flatten(2).std(dim=2).max() < 0.031  # noise of at most 0.03
    assert values.mean(dim=(1, 2, 3)).min() > 128 / 255 * 0.8 * 0.9  # darkest light, darkest cast
    assert values.mean(dim=(1, 2, 3)).max() < 128 / 255 * 1.2 * 1.1
