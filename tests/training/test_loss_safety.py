"""What must hold for any input of the losses: finite values and gradients, also in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerfg.training.distillation import (
    dense_loss,
    known_rows,
    map_loss,
    map_target_without_box,
    relation_loss,
)
from tigerfg.training.losses import info_nce
from tigerfg.training.regions import box_regions

SETTINGS = settings(max_examples=60, derandomize=True)
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
SEEDS = st.integers(0, 2**20)
# Never in a rounding of 1: a scale or temperature of training's range, and far beyond it.
SCALES = st.sampled_from([0.0, 1e-6, 1.0, 100.0, 1e4, 1e6])


def rows(count: int, dim: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Unit rows, some of them zero (an empty picture's features)."""
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(count, dim, generator=generator), dim=-1)
    values[torch.rand(count, generator=generator) < 0.2] = 0.0
    return values.to(dtype).requires_grad_()


def assert_sound(loss: torch.Tensor, *inputs: torch.Tensor, least: float = 0.0) -> None:
    """A finite scalar of float32 or wider, not below `least`, with finite gradients."""
    assert loss.shape == ()
    assert loss.dtype in (torch.float32, torch.float64)
    assert loss.isfinite()
    assert loss.item() >= least
    loss.backward()
    for value in inputs:
        assert value.grad is not None
        assert value.grad.dtype == value.dtype
        assert value.grad.isfinite().all()


@SETTINGS
@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 3), SCALES, DTYPES, SEEDS)
def test_info_nce(
    count: int, kinds: int, extra: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    q, z, negatives = (rows(n, 8, seed + k, dtype) for k, n in enumerate((count, count, extra)))
    products = torch.randint(kinds, (count,), generator=torch.Generator().manual_seed(seed))
    logit_scale = torch.tensor(scale, requires_grad=True)
    loss = info_nce(q, z, products, logit_scale, negatives)
    # -log of a share is never negative; cross_entropy subtracts two numbers of size `scale`.
    assert_sound(loss, q, z, least=-1e-6 * max(1.0, scale))
    assert logit_scale.grad is None or logit_scale.grad.isfinite()


@SETTINGS
@given(st.integers(2, 9), DTYPES, SEEDS)
def test_info_nce_does_not_see_the_order_of_the_pairs(
    count: int, dtype: torch.dtype, seed: int
) -> None:
    q, z = rows(count, 8, seed, dtype), rows(count, 8, seed + 1, dtype)
    generator = torch.Generator().manual_seed(seed)
    products = torch.randint(4, (count,), generator=generator)
    order = torch.randperm(count, generator=generator)
    scale = torch.tensor(10.0)
    straight = info_nce(q, z, products, scale).item()
    shuffled = info_nce(q[order], z[order], products[order], scale).item()
    # Sums of at most 9 float32 terms below 20, in another order: 9 · 20 · 6e-8.
    assert shuffled == pytest.approx(straight, abs=2e-5)


@SETTINGS
@given(st.integers(0, 9), st.sampled_from([1e-4, 0.1, 1.0, 1e4]), DTYPES, SEEDS)
def test_relation_loss(count: int, tau: float, dtype: torch.dtype, seed: int) -> None:
    q, z, tq, tz = (rows(count, 8, seed + k, dtype) for k in range(4))
    loss = relation_loss(q, z, tq.detach(), tz.detach(), tau)
    # KL is never negative; its terms are of size 1/tau, so rounding is 1e-6 of that.
    assert_sound(loss, q, z, least=-1e-6 * max(1.0, 1 / tau))


@SETTINGS
@given(st.integers(0, 5), st.integers(1, 12), st.floats(0.0, 1e4), DTYPES, SEEDS)
def test_map_loss_of_saturated_maps(
    count: int, patches: int, sharpness: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, patches, generator=generator) * sharpness
    logits = logits.to(dtype).requires_grad_()
    region = (torch.randn(count, patches, generator=generator) * 3).softmax(dim=1)
    region[torch.rand(count, generator=generator) < 0.3] = 0.0
    loss = map_loss(logits.softmax(dim=1), region)
    # KL of shares that sum to 1 to the rounding of their type.
    assert_sound(loss, logits, least=-1e-6 if dtype != torch.bfloat16 else -0.05)
    assert logits.grad is not None
    assert logits.grad.abs().max() <= 1.01 if count else True  # map - region, over count
    assert (logits.grad[~known_rows(region)] == 0).all()


@SETTINGS
@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4), DTYPES, SEEDS)
def test_dense_loss_of_odd_boxes(
    count: int, grid: int, side: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * grid * 8
    kind = torch.randint(3, (count,), generator=generator)
    boxes[kind == 0, 2:] = boxes[kind == 0, :2]  # without area
    ordered = boxes.view(count, 2, 2).sort(dim=1).values.flatten(1)  # (x0, y0) below (x1, y1)
    boxes = torch.where((kind == 1)[:, None], ordered, boxes)
    extents = torch.rand(count, 2, generator=generator) * side * 8
    teacher = torch.randn(count, side, side, 6, generator=generator).to(dtype)
    patches = torch.randn(count, grid * grid, 6, generator=generator)
    patches[:, 0] = 0.0  # features of an empty patch
    patches = patches.to(dtype).requires_grad_()
    region = box_regions(boxes, grid, 8)
    loss = dense_loss(patches, boxes, region, teacher, extents, 8)
    assert_sound(loss, patches, least=-1e-6)
    assert loss.item() <= 2.0 + 1e-6


@SETTINGS
@given(st.integers(0, 4), st.integers(1, 9), st.sampled_from([1e-4, 0.07, 1e4]), DTYPES, SEEDS)
def test_map_targets_are_shares_of_the_picture(
    count: int, patches: int, tau: float, dtype: torch.dtype, seed: int
) -> None:
    crop, features = rows(count, 6, seed, dtype), rows(count * patches, 6, seed + 1, dtype)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, patches, generator=generator) < 0.6
    target = map_target_without_box(crop, features.view(count, patches, 6), tau, mask)
    assert (target >= 0).all()
    assert (target[~mask] == 0).all()
    sums = mask.any(dim=1).to(target.dtype)
    torch.testing.assert_close(target.sum(dim=1), sums, atol=1e-6, rtol=0)


def test_losses_of_bfloat16_are_those_of_its_values_also_under_autocast() -> None:
    q, z, tq, tz = (rows(6, 8, seed, torch.bfloat16).detach() for seed in range(4))
    products, scale = torch.tensor([0, 1, 2, 0, 3, 4]), torch.tensor(50.0)
    wide = [value.double() for value in (q, z, tq, tz)]
    exact = (info_nce(*wide[:2], products, scale), relation_loss(*wide, 0.05))
    with torch.autocast("cpu", torch.bfloat16):
        ours = (info_nce(q, z, products, scale), relation_loss(q, z, tq, tz, 0.05))
    for value, expected in zip(ours, exact, strict=True):
        # float32 with logits up to 50: 50 · 6e-8; bfloat16 inside would be off by 0.1.
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


def test_a_sharp_map_in_bfloat16_still_learns() -> None:
    logits = torch.tensor([[40.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    map_loss(logits.softmax(dim=1), torch.tensor([[0.0, 1.0]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].item() < -0.9
