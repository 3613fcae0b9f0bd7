"""Losses against plain loops in float64, and their gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import CONV, build

from tigerfg.errors import InputError
from tigerfg.images import patch_mask
from tigerfg.training.distillation import (
    dense_loss,
    map_loss,
    map_target_without_box,
    relation_loss,
)
from tigerfg.training.losses import info_nce
from tigerfg.training.regions import box_regions, crop_boxes, extent_masks

# Loss and loop are both float64, of a few dozen terms of size 1-10: rounding is some 1e-15.
EXACT = 1e-12


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def shares(rows: int, patches: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, patches, generator=generator, dtype=torch.float64).softmax(dim=1)


def loop_nce(
    q: torch.Tensor, z: torch.Tensor, products: list[int], scale: float, extra, shown=(-1,) * 3
) -> float:
    total = 0.0
    for i in range(len(q)):
        for a, b, negatives in ((q, z, extra), (z, q, [])):
            own = scale * float(a[i] @ b[i])
            others = [
                scale * float(a[i] @ b[j])
                for j in range(len(q))
                if j != i and products[j] != products[i]
            ] + [
                scale * float(a[i] @ e)
                for e, product in zip(negatives, shown, strict=False)
                if product != products[i]
            ]
            total += math.log(sum(math.exp(o) for o in [own, *others])) - own
    return total / (2 * len(q))


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("products", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1]], ids=["distinct", "dups"])
def test_info_nce_equals_loop_and_masks_duplicates(products: list[int], extra: int) -> None:
    q, z = unit(5, 8, 1), unit(5, 8, 2)
    negatives = unit(3, 8, 3)[:extra] if extra else None
    loss = info_nce(q, z, torch.tensor(products), torch.tensor(7.0), negatives)
    expected = loop_nce(q, z, products, 7.0, [] if negatives is None else negatives)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("shown", [(-1, -1, -1), (0, 2, -1), (1, 1, 9), (2, 2, 2)])
@pytest.mark.parametrize("products", [[0, 1, 2, 3, 4], [2, 2, 2, 2, 2]], ids=["distinct", "one"])
def test_an_extra_of_a_querys_own_product_is_no_negative_of_it(
    products: list[int], shown: tuple[int, ...]
) -> None:
    q, z, extra = (unit(n, 8, seed).requires_grad_() for n, seed in ((5, 1), (5, 2), (3, 3)))
    loss = info_nce(q, z, torch.tensor(products), torch.tensor(7.0), extra, torch.tensor(shown))
    loop = loop_nce(q.detach(), z.detach(), products, 7.0, extra.detach(), shown)
    assert loss.item() == pytest.approx(loop, abs=EXACT)
    loss.backward()
    assert extra.grad is not None
    own = [set(products) == {product} for product in shown]  # of all queries
    assert (extra.grad.abs().sum(dim=1) == 0).tolist() == own
    assert all(value.grad.isfinite().all() for value in (q, z))


def test_info_nce_of_nothing_is_zero_and_of_one_pair_is_zero() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = info_nce(empty, empty, torch.zeros(0, dtype=torch.long), torch.tensor(1.0))
    loss.backward()
    assert loss.item() == 0.0
    one = unit(1, 4, 0)
    assert float(info_nce(one, one, torch.tensor([3]), torch.tensor(1.0))) == 0.0


def test_duplicates_of_one_product_have_nothing_to_be_told_apart_from() -> None:
    q, z = unit(4, 8, 1).requires_grad_(), unit(4, 8, 2)
    loss = info_nce(q, z, torch.zeros(4, dtype=torch.long), torch.tensor(100.0))
    loss.backward()
    assert loss.item() == 0.0
    assert q.grad is not None
    assert q.grad.abs().max() == 0.0


def test_region_loss_pools_patches_with_the_true_region() -> None:
    """L_region: InfoNCE of queries and region-pooled patches through the shared head, by loops."""
    model = build(CONV).double()
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 16, CONV.vision.width, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0.0, 20.0, 9.0], [8.0, 8.0, 32.0, 32.0], [3.0, 1.0, 5.0, 30.0]])
    region, queries = box_regions(boxes, 4, 8), unit(3, CONV.embedding_dim, 1)
    pooled = torch.zeros(3, CONV.vision.width, dtype=torch.float64)
    for b, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        area = 0.0
        for n in range(16):
            left, top = n % 4 * 8, n // 4 * 8
            wide = max(0.0, min(x1, left + 8) - max(x0, left))
            high = max(0.0, min(y1, top + 8) - max(y0, top))
            pooled[b] += wide * high * patches[b, n]
            area += wide * high
        pooled[b] /= area
    items = model.head(pooled)
    expected = loop_nce(queries, F.normalize(items, dim=-1), [0, 1, 2], 5.0, [])
    ours = model.encode_region(patches, region.double())
    loss = info_nce(queries, ours, torch.arange(3), torch.tensor(5.0))
    # box_regions gives shares in float32: relative rounding 6e-8, times the scale of 5.
    assert float(loss) == pytest.approx(expected, abs=3e-6)


def test_map_loss_equals_loop_and_leaves_out_rows_without_region() -> None:
    region, grounding = shares(3, 6, 1), shares(3, 6, 2)
    region[1] = 0.0
    region[2, 3] = 0.0
    total = sum(
        p * (math.log(p) - math.log(a))
        for b in (0, 2)
        for p, a in zip(region[b].tolist(), grounding[b].tolist(), strict=True)
        if p > 0
    )
    assert float(map_loss(grounding, region)) == pytest.approx(total / 2, abs=EXACT)
    assert float(map_loss(grounding, grounding)) == pytest.approx(0.0, abs=EXACT)
    assert float(map_loss(grounding, torch.zeros_like(region))) == 0.0


def test_map_loss_pulls_a_saturated_map_back() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)  # shares 1, 9e-27, 9e-27
    map_loss(logits.softmax(dim=1), torch.tensor([[0.0, 1.0, 0.0]])).backward()
    # The gradient of KL by the logits is map - region, however small the share.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]), atol=1e-5, rtol=0)


def test_map_target_without_box_equals_loop() -> None:
    crop, patches, tau = unit(2, 6, 1) * 3.0, unit(10, 6, 2).view(2, 5, 6).clone(), 0.1
    patches[:, 3] = crop * 4.0
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    target = map_target_without_box(crop, patches, tau, mask)
    assert target.argmax(dim=1).tolist() == [3, 3]
    for b in range(2):
        scores = [
            math.exp(
                float(crop[b] @ v) / (math.sqrt(float(crop[b] @ crop[b]) * float(v @ v))) / tau
            )
            if inside
            else 0.0
            for v, inside in zip(patches[b], mask[b].tolist(), strict=True)
        ]
        expected = torch.tensor(scores, dtype=torch.float64) / sum(scores)
        torch.testing.assert_close(target[b], expected, atol=EXACT, rtol=0)
    whole = map_target_without_box(crop, patches, tau)
    torch.testing.assert_close(whole[0], target[0], atol=EXACT, rtol=0)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_the_relations_temperature_must_be_positive(tau) -> None:
    with pytest.raises(InputError, match="tau: the temperature of the relation loss"):
        relation_loss(*(unit(4, 6, seed) for seed in range(4)), tau)


def test_map_target_of_an_empty_mask_is_zero_and_tau_must_be_positive() -> None:
    crop, patches = unit(1, 6, 1), unit(5, 6, 2)[None]
    nothing = map_target_without_box(crop, patches, 0.1, torch.zeros(1, 5, dtype=torch.bool))
    assert nothing.tolist() == [[0.0] * 5]
    with pytest.raises(InputError, match="tau"):
        map_target_without_box(crop, patches, 0.0)


def loop_dense(patches, boxes, region, teacher_map, extents, patch: int) -> float:
    side, grid = teacher_map.shape[1], math.isqrt(patches.shape[1])
    totals = []
    for b in range(len(patches)):
        if float(region[b].sum()) == 0:
            continue
        x0, y0, x1, y1 = boxes[b].tolist()
        total = 0.0
        for n in range(grid * grid):
            # place in the crop, in patches, counted from the centre of its first patch
            place = []
            for number, low, high, valid in (
                (n % grid, x0, x1, float(extents[b, 0])),
                (n // grid, y0, y1, float(extents[b, 1])),
            ):
                pixels = ((number + 0.5) * patch - low) * valid / (high - low)
                last = max(k for k in range(side) if k == 0 or (k + 0.5) * patch < valid)
                place.append(min(max(pixels / patch - 0.5, 0.0), float(last)))
            value = torch.zeros(patches.shape[2], dtype=torch.float64)
            for row in range(side):
                for column in range(side):
                    weight = max(0.0, 1 - abs(place[0] - column)) * max(
                        0.0, 1 - abs(place[1] - row)
                    )
                    if weight:
                        value += weight * teacher_map[b, row, column]
            norm = math.sqrt(float(patches[b, n] @ patches[b, n]) * float(value @ value))
            total += float(region[b, n]) * (1.0 - float(patches[b, n] @ value) / norm)
        totals.append(total)
    return sum(totals) / len(totals)


def dense_case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(3, 16, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 3, 3, 5, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[3.0, 5.0, 27.0, 20.0], [0.0, 0.0, 32.0, 32.0], [9.0, 2.0, 13.0, 31.0]])
    region = shares(3, 16, 4)
    region[1] = 0.0
    extents = torch.tensor([[24.0, 15.0], [24.0, 24.0], [3.0, 20.0]])  # one thinner than a patch
    teacher[0, 2] = 1e9  # no patch of the crop: its centre lies below
    teacher[2, 2], teacher[2, :, 1:] = 1e9, 1e9
    return patches, boxes.double(), region, teacher, extents.double()


def test_dense_loss_equals_loop() -> None:
    case = dense_case()
    assert float(dense_loss(*case, 8)) == pytest.approx(loop_dense(*case, 8), abs=EXACT)


def test_dense_loss_is_zero_where_patches_equal_the_teachers() -> None:
    teacher = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 32.0]])
    region = box_regions(boxes, 4, 8)
    extents = torch.full((2, 2), 32.0)
    same = dense_loss(teacher.flatten(1, 2) * 3.0, boxes, region, teacher, extents, 8)
    assert float(same) == pytest.approx(0.0, abs=EXACT)
    opposite = dense_loss(-teacher.flatten(1, 2), boxes, region, teacher, extents, 8)
    assert float(opposite) == pytest.approx(2.0, abs=EXACT)


def test_relation_loss_equals_loop_and_is_zero_for_the_teacher_itself() -> None:
    q, z, tq, tz = (unit(4, 6, seed) for seed in range(4))
    tau, total = 0.2, 0.0
    for student, teacher in ((q @ z.T, tq @ tz.T), ((q @ z.T).T, (tq @ tz.T).T)):
        for s, t in zip(student / tau, teacher / tau, strict=True):
            p, r = t.softmax(0), s.softmax(0)
            total += float((p * (p / r).log()).sum()) / (2 * len(q))
    assert float(relation_loss(q, z, tq, tz, tau)) == pytest.approx(total, abs=EXACT)
    assert float(relation_loss(q, z, q, z, tau)) == pytest.approx(0.0, abs=EXACT)
    assert float(relation_loss(q[:0], z[:0], tq[:0], tz[:0], tau)) == 0.0


def gradient_cases() -> dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]:
    q, z, tq, tz = (unit(4, 5, seed) for seed in range(4))
    products, negatives = torch.tensor([0, 1, 0, 2]), unit(3, 5, 9)
    patches, boxes, region, teacher, extents = dense_case()
    return {
        "info_nce": (
            lambda a, b, scale, extra: info_nce(a, b, products, scale, extra),
            [q, z, torch.tensor(3.0, dtype=torch.float64), negatives],
        ),
        "relation": (lambda a, b: relation_loss(a, b, tq, tz, 0.3), [q, z]),
        "map": (lambda a: map_loss(a, shares(4, 6, 7)), [shares(4, 6, 8)]),
        "dense": (lambda v: dense_loss(v, boxes, region, teacher, extents, 8), [patches]),
    }


@pytest.mark.parametrize("name", ["info_nce", "relation", "map", "dense"])
def test_gradients(name: str) -> None:
    loss, inputs = gradient_cases()[name]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    # Central differences with step 1e-6 in float64: error step² + 1e-16/step, about 1e-10.
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-8, rtol=1e-7)


def test_box_regions_are_area_shares() -> None:
    region = box_regions(torch.tensor([[4.0, 0.0, 16.0, 8.0], [9.0, 9.0, 9.5, 10.0]]), 3, 8)
    torch.testing.assert_close(region[0].view(3, 3)[0], torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert region[0].view(3, 3)[1:].sum() == 0
    # Thinner than a patch: all mass in the one patch it touches.
    assert region[1].argmax() == 4
    assert region[1, 4] == 1.0


@pytest.mark.parametrize(
    "box",
    [
        (4.0, 4.0, 4.0, 9.0),
        (9.0, 4.0, 4.0, 9.0),
        (30.0, 2.0, 40.0, 9.0),
        (math.nan, 0.0, 8.0, 8.0),
        (0.0, 0.0, math.inf, 8.0),
    ],
    ids=["flat", "inverted", "outside", "nan", "inf"],
)
def test_boxes_without_a_region_give_zeros(box: tuple[float, ...]) -> None:
    good = (0.0, 0.0, 24.0, 24.0)
    regions = box_regions(torch.tensor([good, box, (1.0, 1.0, 1.0 + 1e-4, 1.0 + 1e-4)]), 3, 8)
    assert regions[1].tolist() == [0.0] * 9
    torch.testing.assert_close(regions.sum(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    assert box_regions(torch.zeros(0, 4), 3, 8).shape == (0, 9)


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


def test_crop_of_a_box_without_area_is_empty() -> None:
    crops, extents = crop_boxes(torch.randn(1, 3, 32, 32), torch.full((1, 4), 5.0), 16)
    assert crops.abs().sum() == 0
    assert extents.tolist() == [[0.0, 0.0]]
