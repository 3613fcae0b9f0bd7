"""Losses against plain loops in float64, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tigerfg.images import patch_mask
from tigerfg.training.distillation import (
    dense_loss,
    map_loss,
    map_target_without_box,
    relation_loss,
)
from tigerfg.training.losses import info_nce
from tigerfg.training.regions import box_regions, crop_boxes, extent_masks


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def loop_nce(q: torch.Tensor, z: torch.Tensor, products: list[int], scale: float, extra) -> float:
    total = 0.0
    for i in range(len(q)):
        for a, b, negatives in ((q, z, extra), (z, q, [])):
            own = scale * float(a[i] @ b[i])
            others = [
                scale * float(a[i] @ b[j])
                for j in range(len(q))
                if j != i and products[j] != products[i]
            ] + [scale * float(a[i] @ e) for e in negatives]
            total += math.log(sum(math.exp(o) for o in [own, *others])) - own
    return total / (2 * len(q))


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("products", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1]], ids=["distinct", "dups"])
def test_info_nce_equals_loop_and_masks_duplicates(products: list[int], extra: int) -> None:
    q, z = unit(5, 8, 1), unit(5, 8, 2)
    negatives = unit(3, 8, 3)[:extra] if extra else None
    loss = info_nce(q, z, torch.tensor(products), torch.tensor(7.0), negatives)
    expected = loop_nce(q, z, products, 7.0, [] if negatives is None else negatives)
    # The loss is computed in float32: rounding of logits up to 7 is about 1e-6.
    assert float(loss) == pytest.approx(expected, abs=2e-6)


def test_info_nce_of_nothing_is_zero_and_of_one_pair_is_zero() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = info_nce(empty, empty, torch.zeros(0, dtype=torch.long), torch.tensor(1.0))
    loss.backward()
    assert loss.item() == 0.0
    one = unit(1, 4, 0)
    assert float(info_nce(one, one, torch.tensor([3]), torch.tensor(1.0))) == 0.0


def test_map_loss_is_kl_and_zero_for_equal_maps() -> None:
    region = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    grounding = torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]])
    # The second row has no region and is left out; the first is KL = log 2.
    assert float(map_loss(grounding, region)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(map_loss(region[:1], region[:1])) == pytest.approx(0.0, abs=1e-6)


def test_map_target_without_box_prefers_patches_like_the_crop() -> None:
    crop = unit(2, 6, 1)
    patches = unit(10, 6, 2).view(2, 5, 6).clone()
    patches[:, 3] = crop * 4.0
    target = map_target_without_box(crop, patches, tau=0.1)
    assert target.argmax(dim=1).tolist() == [3, 3]
    torch.testing.assert_close(target.sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_relation_loss_equals_loop_and_is_zero_for_the_teacher_itself() -> None:
    q, z, tq, tz = (unit(4, 6, seed) for seed in range(4))
    tau, total = 0.2, 0.0
    for student, teacher in ((q @ z.T, tq @ tz.T), ((q @ z.T).T, (tq @ tz.T).T)):
        for s, t in zip(student / tau, teacher / tau, strict=True):
            p, r = t.softmax(0), s.softmax(0)
            total += float((p * (p / r).log()).sum()) / (2 * len(q))
    assert float(relation_loss(q, z, tq, tz, tau)) == pytest.approx(total, abs=1e-6)
    assert float(relation_loss(q, z, q, z, tau)) == pytest.approx(0.0, abs=1e-7)


def test_box_regions_are_area_shares() -> None:
    region = box_regions(torch.tensor([[4.0, 0.0, 16.0, 8.0], [9.0, 9.0, 9.5, 10.0]]), 3, 8)
    torch.testing.assert_close(region[0].view(3, 3)[0], torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert region[0].view(3, 3)[1:].sum() == 0
    # Thinner than a patch: all mass in the one patch it touches.
    assert region[1].argmax() == 4
    assert region[1, 4] == 1.0


def test_extent_masks_are_those_of_serving() -> None:
    extents = np.array([[16, 5], [3, 24], [1, 1], [24, 24], [13, 12]])
    mask = extent_masks(torch.from_numpy(extents).float(), 3, 8)
    assert np.array_equal(mask.numpy(), patch_mask(extents, 24, 8))
    assert mask[0].view(3, 3).tolist() == [[True, True, False], [False] * 3, [False] * 3]


def test_crop_boxes_copies_pixels_at_scale_one() -> None:
    pixels = torch.randn(1, 3, 32, 32)
    crops, extents = crop_boxes(pixels, torch.tensor([[8.0, 4.0, 24.0, 12.0]]), 16)
    torch.testing.assert_close(crops[0, :, :8], pixels[0, :, 4:12, 8:24], atol=1e-5, rtol=0)
    assert crops[0, :, 8:].abs().sum() == 0
    assert extents.tolist() == [[16.0, 8.0]]


def test_dense_loss_is_zero_where_patches_equal_the_teachers() -> None:
    teacher = torch.randn(2, 4, 4, 5)
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 32.0]])
    region = box_regions(boxes, 4, 8)
    extents = torch.full((2, 2), 32.0)
    same = dense_loss(teacher.flatten(1, 2) * 3.0, boxes, region, teacher, extents, 8)
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    opposite = dense_loss(-teacher.flatten(1, 2), boxes, region, teacher, extents, 8)
    assert float(opposite) == pytest.approx(2.0, abs=1e-6)


def test_gradients() -> None:
    q, z = unit(3, 4, 5).requires_grad_(), unit(3, 4, 6).requires_grad_()
    products = torch.tensor([0, 1, 0])
    # float32 inside the losses, so steps and tolerances of a float32 finite difference.
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(a, b, products, torch.tensor(3.0)), (q, z), eps=1e-2, atol=2e-3
    )
    tq, tz = unit(3, 4, 7), unit(3, 4, 8)
    assert torch.autograd.gradcheck(
        lambda a, b: relation_loss(a, b, tq, tz, 0.5), (q, z), eps=1e-2, atol=2e-3
    )
