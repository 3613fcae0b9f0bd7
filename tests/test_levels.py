"""Item pictures at several scales: masks, maps and regions of the levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import CONV, LEVELS, build, inputs, tensors

from tigerfg import levels
from tigerfg.errors import InputError
from tigerfg.images import patch_mask
from tigerfg.model import levels as torch_levels
from tigerfg.training.distillation import dense_loss
from tigerfg.training.regions import box_regions, item_regions

SIDE = LEVELS.item_side  # 8 patches
TOTAL = LEVELS.item_patches


def maps(batch: int) -> np.ndarray:
    values = np.random.default_rng(0).random((batch, TOTAL)).astype(np.float32)
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_numpy_and_torch_agree(batch):
    extents = np.array([[64, 64], [3, 40], [33, 9]])[:batch]
    mask = patch_mask(extents.reshape(-1, 2), 64, 8)
    found = torch_levels.level_masks(torch.from_numpy(mask), SIDE, 2)
    assert np.array_equal(levels.level_mask(mask, 2), torch.cat(found, dim=1).numpy())
    values = maps(batch)
    folded = torch_levels.fold_map(torch.from_numpy(values), SIDE, 2).numpy()
    assert np.array_equal(levels.fold_map(values, SIDE, 2), folded)


def test_one_level_changes_nothing():
    values = maps(2)[:, : SIDE**2]
    assert np.array_equal(levels.fold_map(values, SIDE, 1), values)
    mask = np.ones((2, SIDE**2), np.bool_)
    assert np.array_equal(levels.level_mask(mask, 1), mask)


def test_folding_spreads_a_coarse_patch_over_the_four_that_it_covers():
    values = np.zeros((1, TOTAL), np.float32)
    values[0, SIDE**2 + 5] = 0.8  # coarse row 1, column 1
    values[0, 0] = 0.2
    folded = levels.fold_map(values, SIDE, 2).reshape(SIDE, SIDE)
    expected = np.zeros((SIDE, SIDE), np.float32)
    expected[0, 0] = 0.2
    expected[2:4, 2:4] = 0.2
    np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(levels.fold_map(maps(4), SIDE, 2).sum(axis=1), 1.0, rtol=1e-5)


def test_a_coarse_patch_is_valid_with_the_first_that_it_covers():
    mask = patch_mask(np.array([[21, 8]]), 64, 8)  # centres 4, 12 and 20: three patches
    coarse = levels.level_mask(mask, 2)[0, SIDE**2 :].reshape(4, 4)
    fine = mask.reshape(SIDE, SIDE)
    assert coarse.tolist() == [
        [bool(fine[2 * row, 2 * column]) for column in range(4)] for row in range(4)
    ]
    assert coarse.sum() == 2


def test_patches_of_the_second_level_are_those_of_the_halved_picture():
    model = build(LEVELS)
    pixels, *_ = tensors(inputs(LEVELS, "item"))
    patches = model.item_patches(pixels)
    halved = pixels.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(patches[:, : SIDE**2], model.vision(pixels), rtol=0, atol=0)
    # a mean of four is summed in another order
    torch.testing.assert_close(patches[:, SIDE**2 :], model.vision(halved), rtol=0, atol=2e-5)


def test_encode_item_gives_the_map_of_the_full_size():
    model = build(LEVELS)
    feeds = tensors(inputs(LEVELS, "item"))
    item = model.encode_item(*feeds)
    inner = model.ground(model.item_patches(feeds[0]), *feeds[1:])
    assert item.grounding_map.shape == (3, SIDE**2)
    assert inner.grounding_map.shape == (3, TOTAL)
    torch.testing.assert_close(item.grounding_map.sum(dim=1), torch.ones(3))
    assert torch.equal(item.embedding, inner.embedding)


def test_baseline_without_grounding_weighs_the_levels_alike():
    model = build(LEVELS, item_tower="global")
    feeds = tensors(inputs(LEVELS, "item"))
    flat = model.ground(model.item_patches(feeds[0]), *feeds[1:]).grounding_map
    torch.testing.assert_close(flat[:, : SIDE**2].sum(dim=1), torch.full((3,), 0.5))
    torch.testing.assert_close(flat.sum(dim=1), torch.ones(3))


def test_regions_share_the_levels_by_how_near_the_box_is_to_the_querys_size():
    boxes = torch.tensor([[0.0, 0, 32, 20], [0, 0, 64, 64], [3, 5, 48, 20], [0, 0, 0, 0]])
    regions = item_regions(boxes, LEVELS)  # queries of 32 pixels
    shares = regions[:, : SIDE**2].sum(dim=1)
    # at its own size: misfit 0 against ln 2, and the other way round for twice the size
    first = 1 / (1 + 2 ** (-1 / 0.35))
    wanted = torch.tensor([first, 1 - first])
    torch.testing.assert_close(shares[:2], wanted, rtol=0, atol=1e-6)
    assert shares[1] < shares[2] < shares[0]
    torch.testing.assert_close(regions.sum(dim=1), torch.tensor([1.0, 1, 1, 0]))
    torch.testing.assert_close(
        regions[2, : SIDE**2] / shares[2], box_regions(boxes[2:3], SIDE, 8)[0]
    )
    assert torch.equal(item_regions(boxes, CONV), box_regions(boxes, SIDE, 8))


def test_dense_loss_is_zero_where_every_level_equals_the_teacher():
    teacher = torch.randn(2, 1, 1, 5).expand(2, 4, 4, 5)  # the same feature everywhere
    boxes = torch.tensor([[0.0, 0, 32, 32], [8, 0, 56, 40]])
    regions = item_regions(boxes, LEVELS)
    extents = torch.tensor([[32.0, 32.0], [32.0, 26.0]])
    patches = teacher[:, 0, 0, None, :].repeat(1, TOTAL, 1)
    same = dense_loss(patches, boxes, regions, teacher, extents, 8, 2)
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    patches[:, SIDE**2 :] *= -1  # the coarse level points the other way
    found = dense_loss(patches, boxes, regions, teacher, extents, 8, 2)
    coarse = regions[:, SIDE**2 :].sum(dim=1).mean()
    assert float(found) == pytest.approx(2 * float(coarse), abs=1e-6)


@pytest.mark.parametrize("count", [0, 5])
def test_levels_that_do_not_fit_are_refused(count):
    with pytest.raises(InputError, match="item_levels"):
        replace(CONV, item_levels=count)


def test_patches_of_all_levels_are_counted():
    assert CONV.item_patches == 64
    assert LEVELS.item_patches == 80
