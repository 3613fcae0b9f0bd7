"""Images of different sizes in one buffer: how they are laid out, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Pixels. Up to here float32 boxes name every pixel, and 32 rows of bytes fit int32.
MAX_SIDE = 2**24


def pack(images: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Images of different sizes in one buffer.

    Args:
        images: uint8 (H, W, 3) RGB tensors of any strides on one device; there may be none.

    Returns:
        packed uint8 (bytes,), one image after the other, and zeros up to a multiple of 4; offsets
        int64 (B,), the byte at which each begins; sizes int32 (B, 2), each (height, width).

    Raises:
        ValueError: names the image that is no such tensor.
    """
    begins, end = [], 0
    for index, image in enumerate(images):
        shape = tuple(image.shape)
        if image.dtype != torch.uint8 or len(shape) != 3 or shape[2] != 3 or not image.numel():
            raise ValueError(
                f"images[{index}]: {image.dtype} {shape} must be uint8 (H, W, 3) with pixels"
            )
        begins.append(end)
        end += image.numel()
    device = {"device": images[0].device if images else "cpu"}
    padding = torch.zeros(-end % 4, dtype=torch.uint8, **device)
    packed = torch.cat([*(image.reshape(-1) for image in images), padding])
    sides = [image.shape[:2] for image in images]
    sizes = torch.tensor(sides, dtype=torch.int32, **device).view(-1, 2)
    return packed, torch.tensor(begins, dtype=torch.int64, **device), sizes


def check_packed(packed: Tensor, offsets: Tensor, sizes: Tensor, boxes: Tensor | None) -> None:
    """ValueError, naming the argument and the fix, for what `pack` would not have made.

    The values of CUDA tensors are not looked at: that would wait for the GPU.
    """
    batch = len(sizes)
    expected = [
        ("packed", packed, torch.uint8, (packed.numel(),)),
        ("offsets", offsets, torch.int64, (batch,)),
        ("sizes", sizes, torch.int32, (batch, 2)),
    ]
    if boxes is not None:
        expected.append(("boxes", boxes, torch.float32, (batch, 4)))
    for field, tensor, dtype, shape in expected:
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device != packed.device:
            raise ValueError(
                f"{field}: {tensor.dtype} {tuple(tensor.shape)} on {tensor.device} must be {dtype} "
                f"{shape} on {packed.device}: one row per row of sizes, on the device of packed"
            )
    if not packed.is_contiguous() or packed.numel() % 4 or packed.storage_offset() % 4:
        raise ValueError(
            f"packed: {packed.numel()} bytes at {packed.storage_offset()} of their storage must be "
            "contiguous, and both numbers multiples of 4: clone it, and add zeros to its end"
        )
    if packed.is_cpu:
        _check_values(packed.numel(), offsets.tolist(), sizes.tolist(), boxes)


def _check_values(
    length: int, offsets: list[int], sizes: list[list[int]], boxes: Tensor | None
) -> None:
    for index, (offset, (height, width)) in enumerate(zip(offsets, sizes, strict=True)):
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(
                f"sizes[{index}]: {height} x {width} must be 1 to {MAX_SIDE:,} pixels each way"
            )
        if offset < 0 or offset + 3 * height * width > length:
            raise ValueError(
                f"offsets[{index}]: an image of {3 * height * width} bytes at {offset} must lie in "
                f"the {length} bytes of packed"
            )
        if boxes is None:
            continue
        x0, y0, x1, y1 = box = boxes[index].tolist()
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"boxes[{index}]: {box} must be x0 < x1, y0 < y1 within the image, that is "
                f"0..{width} across and 0..{height} down"
            )


def check_model(
    size: int, patch: int, mean: Sequence[float], std: Sequence[float], largest: int
) -> None:
    """ValueError, naming the argument, for pixels that no model takes."""
    if not 1 <= size <= largest or patch < 1 or size % patch:
        raise ValueError(
            f"size: {size} must be a multiple of patch ({patch}), at least 1 and at most {largest}"
        )
    for field, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise ValueError(f"{field}: {list(values)} must be three finite numbers, R, G, B")
    if min(std) <= 0:
        raise ValueError(f"std: {list(std)} must be positive")
