"""Pillow's antialiased resize of 8-bit images (libImaging/Resample.c), in PyTorch and in Triton.

Pillow takes a weighted mean along the rows, rounds it to 8 bits, and then one along the columns,
and rounds again; since version 13 in the other order where the height shrinks by more than twice as
many pixels as the width (python-pillow/Pillow#9549), that is for pictures taller than 2 : 1. The
weights are a filter, widened by the scale when shrinking, at the distances of the source pixels'
centres, divided by their sum and rounded to multiples of 2**-22.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SUPPORTS = {"bilinear": 1, "bicubic": 2, "lanczos": 3}  # radius of each filter, which names it


def resize_reference(image: Tensor, extent: tuple[int, int], interpolation: str) -> Tensor:
    """image (H, W, C) of values 0..255 -> float64 (height, width, C), whole values 0..255.

    Equal to Pillow's resize of an 8-bit RGB image to ``extent``, (width, height), pixel for pixel.
    """
    height, width = image.shape[:2]
    if height > extent[1] and height - extent[1] > 2 * (width - extent[0]):  # columns first
        turned = resize_reference(image.transpose(0, 1), extent[::-1], interpolation)
        return turned.transpose(0, 1)
    support = SUPPORTS[interpolation]
    columns = _matrix(width, extent[0], support).to(image.device)
    rows = _matrix(height, extent[1], support).to(image.device)
    narrowed = _to_8_bits(torch.einsum("xw,hwc->hxc", columns, image.to(torch.float64)))
    return _to_8_bits(torch.einsum("yh,hxc->yxc", rows, narrowed))


def _to_8_bits(sums: Tensor) -> Tensor:
    return torch.floor((sums + 2**21) / 2**22).clamp(0, 255)


def _matrix(length: int, extent: int, support: int) -> Tensor:
    """Weights of ``length`` pixels for ``extent``: (extent, length) float64, in units of 2**-22."""
    scale = length / extent
    widening = max(scale, 1.0)
    centres = (torch.arange(extent, dtype=torch.float64) + 0.5)[:, None] * scale
    first = (centres - support * widening + 0.5).to(torch.int64)
    end = (centres + support * widening + 0.5).to(torch.int64)
    source = torch.arange(length, dtype=torch.float64)[None, :]
    x = ((source - centres + 0.5) / widening).abs()
    if support == 1:
        weights = 1 - x
    elif support == 2:
        near = (1.5 * x - 2.5) * x * x + 1
        weights = torch.where(x < 1, near, ((x - 5) * x + 8) * x * -0.5 + 2)
    else:
        weights = torch.sinc(x) * torch.sinc(x / 3)
    weights = torch.where((x < support) & (source >= first) & (source < end), weights, 0)
    weights = weights / weights.sum(dim=1, keepdim=True) * 2**22
    return torch.trunc(weights + torch.where(weights < 0, -0.5, 0.5))


@triton.jit
def _sinc(x):
    """sin(πx) / (πx) for x >= 0: a polynomial of the distance to the nearest integer."""
    nearest = tl.floor(x + 0.5)
    rest = x - nearest
    s = rest * rest  # at most 1/4; there the polynomial is within 2e-11
    p = 0.02611745335161686 - 0.0022372049279510975 * s
    p = 1.0 + s * (-1.644934058189392 + s * (0.8117421865463257 + s * (p * s - 0.1907479017972946)))
    odd = nearest - 2.0 * tl.floor(nearest * 0.5)
    return tl.where(nearest == 0.0, p, p * (1.0 - 2.0 * odd) * rest / tl.maximum(x, 0.5))


@triton.jit
def _weights(source, result, length, extent, SUPPORT: tl.constexpr):
    """The filter at source positions for result positions, up to a factor per result position.

    Distances are whole numbers of 1 / (2 · max(length, extent)) of the filter's unit, and exact
    (each product may leave int32, their difference comes back); bilinear weights are whole and
    exact too (int32, others float32).
    """
    unit = 2 * tl.maximum(length, extent)
    distance = tl.abs((2 * source + 1) * extent - (2 * result + 1) * length)
    if SUPPORT == 1:
        weight = tl.maximum(unit - distance, 0)
    else:
        x = distance.to(tl.float32) * (1.0 / unit.to(tl.float32))
        if SUPPORT == 2:  # Keys' cubic with a = -1/2
            near = (1.5 * x - 2.5) * x * x + 1.0
            far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
            weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
        else:
            weight = tl.where(x < 3.0, _sinc(x) * _sinc(x * (1.0 / 3.0)), 0.0)
    return tl.where(source < length, weight, 0)


@triton.jit
def weight_totals(start, end, result, length, extent, SUPPORT: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of the filter over source positions [start, end), one per result position: [R]."""
    total = tl.zeros(result.shape, tl.int64 if SUPPORT == 1 else tl.float32)
    for first in range(start, end, BLOCK):
        source = (first + tl.arange(0, BLOCK))[:, None]
        weights = _weights(source, result[None, :], length, extent, SUPPORT)
        total += tl.sum(weights.to(total.dtype), axis=0)
    return tl.where(total == 0, 1, total)  # zero where there is no source


@triton.jit
def filter_limbs(source, result, total, length, extent, SUPPORT: tl.constexpr):
    """Weights in units of 2**-22, rounded as Pillow does, as high · 4096 + low.

    Both limbs are whole numbers of at most 2048, which float16 holds exactly.
    """
    weight = _weights(source, result, length, extent, SUPPORT)
    scaled = weight.to(tl.float32) * (4194304.0 / total.to(tl.float32))
    fixed = (scaled + tl.where(scaled < 0.0, -0.5, 0.5)).to(tl.int32)
    if SUPPORT == 1:  # off by one at most: scales of small numbers make many ties, so put it right
        rest = weight.to(tl.int64) * 4194304 - fixed * total
        fixed += (2 * rest >= total).to(tl.int32) - (2 * rest < -total).to(tl.int32)
    high = (fixed + 2048) >> 12
    return high.to(tl.float16), (fixed - high * 4096).to(tl.float16)


@triton.jit
def joined(high, low):
    """int32 sums of values times weights from the float32 sums of values times limbs.

    Those are exact for up to 32 values of 0..255, being whole and at most 2**24.
    """
    return high.to(tl.int32) * 4096 + low.to(tl.int32)


@triton.jit
def to_byte(sums):
    """The nearest whole number of sums in units of 2**-22, halves up, within 0..255."""
    return tl.minimum(tl.maximum((sums + 2097152) >> 22, 0), 255)


@triton.jit
def source_window(first, last, length, extent, SUPPORT: tl.constexpr):
    """Source positions [start, end) that make the result positions from first to last.

    Twice a centre is (2 · position + 1) · length / extent: whole and rest keep it within int32.
    """
    whole = length // extent
    rest = length % extent
    reach = 2 * SUPPORT * tl.maximum(whole, 1)
    reach_rest = 2 * SUPPORT * tl.where(whole > 0, rest, 0)
    start_rest = (2 * first + 1) * rest - reach_rest + 2 * SUPPORT * extent  # not negative
    start = (2 * first + 1) * whole - reach + 1 + start_rest // extent - 2 * SUPPORT
    end = (2 * last + 1) * whole + reach + 1 + ((2 * last + 1) * rest + reach_rest) // extent
    return tl.maximum(start >> 1, 0), tl.minimum(end >> 1, length)


@triton.jit
def columns_first(width, height, extent_x, extent_y):
    """Whether Pillow resamples along the columns before it does along the rows."""
    return (height > extent_y) & (height - extent_y > 2 * (width - extent_x))


@triton.jit
def letterboxed(width, height, size):
    """The longer side becomes size, the other one as much smaller: halves to even, at least 1."""
    longest = tl.maximum(width, height)
    product = tl.minimum(width, height).to(tl.int64) * size
    whole = product // longest
    rest = 2 * (product - whole * longest)
    up = (rest > longest) | ((rest == longest) & (whole % 2 == 1))
    other = tl.maximum(whole + up, 1).to(tl.int32)
    return tl.where(width == longest, size, other), tl.where(height == longest, size, other)


@triton.jit
def crop_side(low, high, side):
    """First pixel and length of a crop that keeps every pixel it touches, one at least."""
    low = tl.minimum(tl.maximum(tl.floor(low), 0.0), (side - 1).to(tl.float32)).to(tl.int32)
    high = tl.minimum(tl.maximum(tl.ceil(high), 0.0), side.to(tl.float32)).to(tl.int32)
    return low, tl.maximum(high - low, 1)


@triton.jit
def load_rgb(words_ptr, start, place, ok):
    """The pixels at bytes start + place, each in the low 24 bits, red lowest; any other bits above.

    words_ptr: the bytes as aligned words; a pixel lies in one of them or in two.
    """
    place += (start & 3).to(tl.int32)
    words = words_ptr + (start >> 2) + (place >> 2)
    shift = (place & 3) * 8
    first = tl.load(words, mask=ok, other=0)
    second = tl.load(words + 1, mask=ok & (shift > 8), other=0)
    return (first >> shift) | (second << (24 - shift) << 8)
