"""Raw RGB bytes to model pixels in one launch: crop, antialiased resize, letterbox, normalisation.

One program makes a tile of the result. It takes a block of source pixels, resamples it along the
rows by a matrix product with the band of weights of the tile's columns, rounds to 8 bits as Pillow
does, and adds the block's share to the tile by a second product. Bytes, and weights as two limbs,
are exact in float16 and their sums in float32: the tensor cores do Pillow's integer arithmetic.

Counted for a 4000 x 3000 photo, size 224, bilinear (36 taps each way), tiles of 16 x 16: 36 MB are
read, 1.13 times over because tiles share margins, and 0.3 MB are written in float16; 2.7 GFLOP of
products, 76 per byte (an H200's matrix units do 200 in the time its memory gives one). Gathering
every tap of every result pixel would take 146 million byte loads, nearly each in a sector of its
own (4.7 GB through L1); here a pixel is two 4-byte loads beside its neighbours' (0.1 GB).

Loads are aligned words of 4 bytes: pixels are 3 bytes and rows begin at any byte, so 16-byte loads
would have to be taken apart in shared memory, byte by byte. Stores are 8 bytes a thread, 16 of
float32, where size is a multiple of 8.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from tigerfg.kernels.packing import check_model, check_packed, pack
from tigerfg.kernels.resample import (
    SUPPORTS,
    columns_first,
    crop_side,
    filter_limbs,
    joined,
    letterboxed,
    load_rgb,
    resize_reference,
    source_window,
    to_byte,
    weight_totals,
)
from tigerfg.kernels.tuning import architecture, launch_parameters
from tigerfg.kernels.variant import TRITON_TYPES, Variant, triton_type

__all__ = ["pack", "preprocess", "preprocess_reference", "preprocess_triton", "variants"]

MAX_SIZE = 16_384  # keeps what is counted in result pixels below 2**31


def preprocess_reference(
    packed: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor | None = None,
    *,
    size: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """`preprocess`, image by image; a box outside its image is clipped, to one pixel at least."""
    pixels = packed.new_zeros(len(sizes), 3, size, size, dtype=torch.float32)
    extents = []
    scale, shift = _affine(tuple(mean), tuple(std), packed.device).view(2, 3)
    places = zip(offsets.tolist(), sizes.tolist(), strict=True)
    for index, (offset, (height, width)) in enumerate(places):
        x0, y0, x1, y1 = (0, 0, width, height) if boxes is None else boxes[index].tolist()
        x0, y0 = min(max(math.floor(x0), 0), width - 1), min(max(math.floor(y0), 0), height - 1)
        x1, y1 = max(min(math.ceil(x1), width), x0 + 1), max(min(math.ceil(y1), height), y0 + 1)
        image = packed[offset : offset + 3 * height * width].view(height, width, 3)
        sides = (x1 - x0, y1 - y0)
        extent = tuple(max(1, round(side * size / max(sides))) for side in sides)
        resized = resize_reference(image[y0:y1, x0:x1], extent, interpolation).to(torch.float32)
        pixels[index, :, : extent[1], : extent[0]] = (resized * scale - shift).permute(2, 0, 1)
        extents.append(extent)
    extents = torch.tensor(extents, dtype=torch.int32, device=packed.device).view(-1, 2)
    centres = 2 * torch.arange(size // patch, device=packed.device) + 1
    seen = centres * patch < 2 * extents[:, :, None]  # (B, 2, side)
    seen[:, :, 0] = True
    mask = seen[:, 1, :, None] & seen[:, 0, None, :]
    return pixels.to(dtype), mask.flatten(1), extents


@functools.lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Six float32: 1 / (255 · std) of each channel, then mean / std; kept for the next call."""
    scale = [1 / (255 * s) for s in std]
    shift = [m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(scale + shift, dtype=torch.float32, device=device)


@triton.jit
def _store_patch_mask(mask_ptr, image, extent_x, extent_y, size, patch):
    side = size // patch
    for first in range(0, side * side, 256):
        index = first + tl.arange(0, 256)
        down = index // side
        right = index % side
        seen_y = (down == 0) | ((2 * down + 1) * patch < 2 * extent_y)
        seen_x = (right == 0) | ((2 * right + 1) * patch < 2 * extent_x)
        seen = (seen_y & seen_x).to(tl.uint8)
        tl.store(mask_ptr + image * side * side + index, seen, mask=index < side * side)


@triton.jit
def _store_tile(pixels_ptr, tile, plane, y, x, size, y_stride, x_stride):
    place = plane * size * size + y * y_stride + x * x_stride
    tl.store(pixels_ptr + place, tile, mask=(y < size) & (x < size))


@triton.jit(do_not_specialize=["size", "patch", "boxed"])
def preprocess_kernel(
    packed_ptr,
    offsets_ptr,
    sizes_ptr,
    boxes_ptr,
    affine_ptr,
    pixels_ptr,
    mask_ptr,
    extents_ptr,
    size,
    patch,
    boxed,
    SUPPORT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One tile of one image's pixels; an image's first tile also writes its extent and patch mask.

    packed: the bytes as little-endian words. affine: see `_affine`. boxed: 0 where boxes_ptr is not
    to be read (it may be null).
    """
    across = tl.cdiv(size, BLOCK_W)
    tiles = across * tl.cdiv(size, BLOCK_H)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    top = tile // across * BLOCK_H
    left = tile % across * BLOCK_W

    stored_height = tl.load(sizes_ptr + image * 2)
    stored_width = tl.load(sizes_ptr + image * 2 + 1)
    box = boxes_ptr + image * 4
    x0 = tl.load(box, mask=boxed != 0, other=0.0)
    y0 = tl.load(box + 1, mask=boxed != 0, other=0.0)
    x1 = tl.load(box + 2, mask=boxed != 0, other=float("inf"))
    y1 = tl.load(box + 3, mask=boxed != 0, other=float("inf"))
    x0, width = crop_side(x0, x1, stored_width)
    y0, height = crop_side(y0, y1, stored_height)
    extent_x, extent_y = letterboxed(width, height, size)
    if tile == 0:
        tl.store(extents_ptr + image * 2, extent_x)
        tl.store(extents_ptr + image * 2 + 1, extent_y)
        _store_patch_mask(mask_ptr, image, extent_x, extent_y, size, patch)

    # Pillow resamples some pictures along the columns first: from here on they lie on their side.
    turned = columns_first(width, height, extent_x, extent_y)
    corner = tl.load(offsets_ptr + image) + (y0.to(tl.int64) * stored_width + x0) * 3
    y_step = tl.where(turned, 1, stored_width) * 3
    x_step = tl.where(turned, stored_width, 1) * 3
    y_stride = tl.where(turned, 1, size)
    x_stride = tl.where(turned, size, 1)
    width, height = tl.where(turned, height, width), tl.where(turned, width, height)
    extent_x, extent_y = tl.where(turned, extent_y, extent_x), tl.where(turned, extent_x, extent_y)

    # Result positions beyond the picture repeat its last one, so that no weights sum to zero.
    y_out = tl.minimum(top + tl.arange(0, BLOCK_H), extent_y - 1)
    x_out = tl.minimum(left + tl.arange(0, BLOCK_W), extent_x - 1)
    y_last = tl.minimum(top + BLOCK_H, extent_y) - 1
    x_last = tl.minimum(left + BLOCK_W, extent_x) - 1
    y_start, y_end = source_window(top, y_last, height, extent_y, SUPPORT)
    x_start, x_end = source_window(left, x_last, width, extent_x, SUPPORT)
    shown = (top < extent_y) & (left < extent_x)
    y_end = tl.where(shown, y_end, y_start)
    x_end = tl.where(shown, x_end, x_start)

    y_total = weight_totals(y_start, y_end, y_out, height, extent_y, SUPPORT, BLOCK_ROWS)
    x_total = weight_totals(x_start, x_end, x_out, width, extent_x, SUPPORT, BLOCK_COLUMNS)

    rows = tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    line = corner + y_start * y_step.to(tl.int64) + x_start * x_step.to(tl.int64)
    y_zero = tl.zeros([BLOCK_H, BLOCK_W], tl.int32)
    y_sums = (y_zero, y_zero, y_zero)  # red, green, blue
    for y in range(y_start, y_end, BLOCK_ROWS):
        x_zero = tl.zeros([BLOCK_ROWS, BLOCK_W], tl.int32)
        x_sums = (x_zero, x_zero, x_zero)
        start = line
        row = tl.minimum(rows, y_end - 1 - y)  # rows past the last one repeat it, with weight zero
        place = row[:, None] * y_step + columns[None, :] * x_step
        for x in range(x_start, x_end, BLOCK_COLUMNS):
            ok = (x + columns < x_end)[None, :]
            rgb = load_rgb(packed_ptr, start, place, ok)  # [BR, BC]
            high, low = filter_limbs(
                (x + columns)[:, None], x_out[None, :], x_total[None, :], width, extent_x, SUPPORT
            )  # [BC, BW]
            new_sums = ()
            for c in tl.static_range(3):
                values = (rgb >> (8 * c) & 255).to(tl.float16)
                x_sum = joined(tl.dot(values, high), tl.dot(values, low))
                new_sums = new_sums + (x_sums[c] + x_sum,)
            x_sums = new_sums
            start += BLOCK_COLUMNS * x_step
        line += BLOCK_ROWS * y_step
        high, low = filter_limbs(
            (y + rows)[:, None], y_out[None, :], y_total[None, :], height, extent_y, SUPPORT
        )  # [BR, BH]
        new_sums = ()
        for c in tl.static_range(3):
            values = to_byte(x_sums[c]).to(tl.float16)
            y_sum = joined(tl.dot(tl.trans(high), values), tl.dot(tl.trans(low), values))
            new_sums = new_sums + (y_sums[c] + y_sum,)
        y_sums = new_sums

    y = (top + tl.arange(0, BLOCK_H))[:, None]
    x = (left + tl.arange(0, BLOCK_W))[None, :]
    shown = (y < extent_y) & (x < extent_x)
    for c in tl.static_range(3):
        scale = tl.load(affine_ptr + c)
        shift = tl.load(affine_ptr + 3 + c)
        pixels = to_byte(y_sums[c]).to(tl.float32) * scale - shift
        pixels = tl.where(shown, pixels, 0.0).to(pixels_ptr.dtype.element_ty)
        plane = image * 3 + c
        if (size % 8 == 0) & (x_stride == 1):  # said so that the compiler sees what is aligned
            _store_tile(pixels_ptr, pixels, plane, y, x, size // 8 * 8, size // 8 * 8, 1)
        else:
            _store_tile(pixels_ptr, pixels, plane, y, x, size, y_stride, x_stride)


@functools.cache
def preprocess_variant(dtype: torch.dtype, interpolation: str, arch: int) -> Variant:
    """The kernel for one dtype of pixels and one filter."""
    name = triton_type(dtype, "dtype")
    support = SUPPORTS[interpolation]
    use = launch_parameters("preprocess", arch, support=support)
    pointers = {
        "packed_ptr": "*u32",
        "offsets_ptr": "*i64",
        "sizes_ptr": "*i32",
        "boxes_ptr": "*fp32",
        "affine_ptr": "*fp32",
        "pixels_ptr": f"*{name}",
        "mask_ptr": "*u8",
        "extents_ptr": "*i32",
    }
    blocks = ("BLOCK_H", "BLOCK_W", "BLOCK_ROWS", "BLOCK_COLUMNS")
    return Variant(
        name=f"preprocess_{name}_{interpolation}",
        kernel=preprocess_kernel,
        arguments={**pointers, **dict.fromkeys(("size", "patch", "boxed"), "i32")},
        constexprs={"SUPPORT": support, **{block: use[block] for block in blocks}},
        aligned=frozenset({"pixels_ptr"}),
        grid=(f"batch * cdiv(size, {use['BLOCK_H']}) * cdiv(size, {use['BLOCK_W']})",),
        num_warps=use["num_warps"],
        num_stages=use["num_stages"],
    )


def variants(arch: int) -> list[Variant]:
    """Compiled ahead of time: every dtype and filter."""
    return [preprocess_variant(dtype, name, arch) for dtype in TRITON_TYPES for name in SUPPORTS]


def preprocess_triton(
    packed: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor | None = None,
    *,
    size: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    dtype: torch.dtype = torch.float32,
    arch: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`preprocess` by one launch of the Triton kernel; `arch` overrides the device's."""
    batch = len(sizes)
    device = {"device": packed.device}
    pixels = torch.empty(batch, 3, size, size, dtype=dtype, **device)
    mask = torch.empty(batch, (size // patch) ** 2, dtype=torch.bool, **device)
    extents = torch.empty(batch, 2, dtype=torch.int32, **device)
    if not batch:
        return pixels, mask, extents
    arch = architecture(packed.device) if arch is None else arch
    variant = preprocess_variant(dtype, interpolation, arch)
    affine = _affine(tuple(mean), tuple(std), packed.device)
    tiles = math.prod(triton.cdiv(size, variant.constexprs[b]) for b in ("BLOCK_H", "BLOCK_W"))
    variant.launch(
        (batch * tiles,), packed.view(torch.uint32), offsets.contiguous(), sizes.contiguous(),
        affine if boxes is None else boxes.contiguous(), affine, pixels, mask.view(torch.uint8),
        extents, size, patch, int(boxes is not None),
    )  # fmt: skip
    return pixels, mask, extents


@torch.library.custom_op("tigerfg::preprocess", mutates_args=(), device_types="cuda")
def _preprocess(
    packed: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor | None,
    size: int,
    patch: int,
    mean: list[float],
    std: list[float],
    interpolation: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return preprocess_triton(
        packed, offsets, sizes, boxes, size=size, patch=patch, mean=mean, std=std,
        interpolation=interpolation, dtype=dtype,
    )  # fmt: skip


@_preprocess.register_kernel("cpu")
def _preprocess_cpu(packed, offsets, sizes, boxes, size, patch, mean, std, interpolation, dtype):
    return preprocess_reference(
        packed, offsets, sizes, boxes, size=size, patch=patch, mean=mean, std=std,
        interpolation=interpolation, dtype=dtype,
    )  # fmt: skip


@_preprocess.register_fake
def _preprocess_fake(packed, offsets, sizes, boxes, size, patch, mean, std, interpolation, dtype):
    batch = sizes.shape[0]
    return (
        packed.new_empty(batch, 3, size, size, dtype=dtype),
        packed.new_empty(batch, (size // patch) ** 2, dtype=torch.bool),
        packed.new_empty(batch, 2, dtype=torch.int32),
    )


def preprocess(
    packed: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor | None = None,
    *,
    size: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, letterbox and normalise images for a tower, like `tigerfg.images.preprocess`.

    The crop is resized, with Pillow's antialiasing filter, so that its longer side has ``size``
    pixels; it lies in the top left corner, and the rest is 0, that is the mean colour.

    Args:
        packed: uint8 (bytes,), whole RGB images as `pack` lays them out; any gaps are ignored.
        offsets: int64 (B,), the byte at which each image begins.
        sizes: int32 (B, 2), each (height, width) in pixels.
        boxes: float32 (B, 4), crops (x0, y0, x1, y1) in pixels within each image; every pixel that
            a box touches is kept. None: whole images.
        size: side of the result in pixels, a multiple of ``patch``, at most 16384.
        patch: side of a patch in pixels.
        mean, std: of each channel's values in 0..1.
        interpolation: "bilinear", "bicubic" or "lanczos".
        dtype: of the pixels, float16, bfloat16 or float32.

    Returns:
        pixels (B, 3, size, size), contiguous; patch mask bool (B, (size // patch)**2), row by row,
        True where the centre of the patch shows the picture, the first always; extents int32
        (B, 2), each (width, height) of the picture in pixels.

    Raises:
        ValueError: names the argument. On CUDA the values of the tensors are not checked: offsets
            and sizes must be right there, boxes are clipped to their image (one pixel at least).
    """
    check_packed(packed, offsets, sizes, boxes)
    check_model(size, patch, mean, std, MAX_SIZE)
    if interpolation not in SUPPORTS:
        raise ValueError(f"interpolation: {interpolation!r} is not one of {', '.join(SUPPORTS)}")
    triton_type(dtype, "dtype")
    return torch.ops.tigerfg.preprocess(
        packed, offsets, sizes, boxes, size, patch, list(mean), list(std), interpolation, dtype
    )
