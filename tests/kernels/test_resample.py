"""The arithmetic of the resize alone, for sides that no test could afford to resize."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from launching import DEVICE

from tigerfg.decoding import _letterbox_extent
from tigerfg.kernels.resample import (
    SUPPORTS,
    _matrix,
    filter_limbs,
    letterboxed,
    source_window,
    weight_totals,
)


@triton.jit
def extents_kernel(sides_ptr, extents_ptr, size, count: tl.constexpr):
    side = sides_ptr + 2 * tl.arange(0, count)
    width, height = letterboxed(tl.load(side), tl.load(side + 1), size)
    extent = extents_ptr + 2 * tl.arange(0, count)
    tl.store(extent, width)
    tl.store(extent + 1, height)


@triton.jit
def weights_kernel(
    weights_ptr, window_ptr, first, length, extent, support: tl.constexpr, block: tl.constexpr
):
    """Weights of all sources for 8 results from `first` on, and the window they lie in."""
    line = tl.arange(0, 8)
    result = tl.minimum(first + line, extent - 1)
    last = tl.minimum(first + 7, extent - 1)
    start, end = source_window(first, last, length, extent, support)
    tl.store(window_ptr, start)
    tl.store(window_ptr + 1, end)
    total = weight_totals(start, end, result, length, extent, support, block)
    for x in range(start, end, block):
        source = x + tl.arange(0, block)[:, None]
        high, low = filter_limbs(source, result[None, :], total[None, :], length, extent, support)
        weights = high.to(tl.int32) * 4096 + low.to(tl.int32)
        tl.store(weights_ptr + line[None, :] * length + source, weights, mask=source < length)


@pytest.mark.parametrize("size", [1, 2, 7, 224, 448, 1024, 16_384])
def test_extents_round_like_python_also_halves_and_extreme_sides(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    small = torch.randint(1, 40, (512, 2), generator=draw)  # many halves
    large = (2.0 ** (24 * torch.rand(508, 2, generator=draw))).to(torch.int64)
    corners = torch.tensor([[2**24, 1], [1, 2**24], [2**24, 2**24 - 1], [12_000, 11_999]])
    sides = torch.cat([small, large, corners]).to(torch.int32)
    extents = torch.zeros_like(sides, device=DEVICE)
    extents_kernel[(1,)](sides.to(DEVICE), extents, size, count=1024)
    assert extents.tolist() == [list(_letterbox_extent(tuple(s), size)) for s in sides.tolist()]


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize(
    ("length", "extent", "first"),
    [
        (12_000, 448, 0),
        (12_000, 448, 221),
        (12_001, 448, 440),
        (24_000, 224, 100),
        (5, 448, 0),
        (5, 448, 223),
        (447, 448, 300),
        (84, 122, 50),
        (448, 448, 8),
        (3_000, 1, 0),
        (1, 9, 8),
    ],
)
def test_weights_are_pillows(support: int, length: int, extent: int, first: int) -> None:
    found = torch.zeros(8, length, dtype=torch.int32, device=DEVICE)
    window = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    weights_kernel[(1,)](found, window, first, length, extent, support=support, block=1024)
    expected = _matrix(length, extent, support)[first : first + 8]
    found = found[: len(expected)].cpu().to(torch.float64)
    # Bilinear weights are exact; others come of some float32 operations on values up to 2.5, whose
    # half units in the last place are half a unit of 2**-22 each.
    assert (found - expected).abs().max() <= (0 if support == 1 else 3)
    start, end = window.tolist()
    assert expected[:, :start].count_nonzero() == expected[:, end:].count_nonzero() == 0
    scale = length / extent  # what lies under 8 filters is read, and no pixel in vain
    assert end - start <= 7 * scale + 2 * support * max(scale, 1) + 1
