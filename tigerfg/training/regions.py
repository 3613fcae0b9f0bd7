"""Boxes on the patch grid: soft regions, and target crops cut from full pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tigerfg.levels import level_sides
from tigerfg.model.config import ModelConfig

LEVEL_SHARPNESS = 0.35  # in natural logarithms of a scale


def box_regions(boxes: Tensor, grid: int, patch: int) -> Tensor:
    """Soft overlap of every patch with a box, normalised to sum 1.

    Args:
        boxes: (B, 4) float x0, y0, x1, y1 in pixels of the network's input.
        grid: patches a side. patch: pixels a patch.

    Returns:
        (B, grid * grid) float32; a box thinner than a patch still has its overlap. Zeros for a box
        without area, outside the picture, or with a number that is not finite.
    """
    edges = torch.arange(grid, device=boxes.device, dtype=torch.float32) * patch
    finite = boxes.isfinite().all(dim=1, keepdim=True)
    boxes = torch.where(finite, boxes, 0.0).float()

    def shares(low: Tensor, high: Tensor) -> Tensor:  # [B] -> [B, grid]
        left = torch.maximum(edges[None], low[:, None])
        right = torch.minimum(edges[None] + patch, high[:, None])
        overlap = (right - left).clamp(min=0.0)
        total = overlap.sum(dim=1, keepdim=True)
        return overlap / torch.where(total > 0, total, 1.0)

    rows, columns = shares(boxes[:, 1], boxes[:, 3]), shares(boxes[:, 0], boxes[:, 2])
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def item_regions(boxes: Tensor, config: ModelConfig) -> Tensor:
    """Soft regions over all item levels: (B, 4) boxes at full size -> (B, N'), rows sum to 1.

    The levels share the region by how near the box is to the query's size there:
    w_l ∝ exp(-|ln(longest side at level l / query_size)| / LEVEL_SHARPNESS).
    """
    patch, side = config.vision.patch, config.item_side
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).nan_to_num(0.0).clamp(min=1.0)
    sides = level_sides(side, config.item_levels)
    scales = [side // grid for grid in sides]
    misfit = torch.stack([(longest / (n * config.query_size)).log().abs() for n in scales], dim=1)
    shares = (-misfit / LEVEL_SHARPNESS).softmax(dim=1)
    regions = [
        shares[:, level, None] * box_regions(boxes / n, grid, patch)
        for level, (n, grid) in enumerate(zip(scales, sides, strict=True))
    ]
    return torch.cat(regions, dim=1)


def crop_boxes(pixels: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut boxes out of normalised pictures, letterboxed at the top left like serving does.

    Between pixels it is bilinear, without the antialiasing of serving: much the same where a box
    shrinks by no more than half.

    Args:
        pixels: (B, 3, S, S) normalised. boxes: (B, 4) in pixels, inside the picture; one without
            area gives a crop of zeros. size: side of the crops.

    Returns:
        crops (B, 3, size, size), zero outside the box; extents (B, 2) float: valid (w, h).
    """
    side = pixels.shape[-1]
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # input pixels per crop pixel
    step = (torch.maximum(wide, high) / size).clamp(min=1e-6)
    places = torch.arange(size, device=pixels.device, dtype=torch.float32) + 0.5
    x = boxes[:, 0, None] + places[None] * step[:, None]
    y = boxes[:, 1, None] + places[None] * step[:, None]
    grid = torch.stack(
        [x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1
    )
    crops = F.grid_sample(
        pixels,
        grid * (2.0 / side) - 1.0,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    extents = torch.stack([wide / step, high / step], dim=1)
    return crops * extent_pixels(extents, size), extents


def extent_pixels(extents: Tensor, size: int) -> Tensor:
    """(B, 2) valid (w, h) in pixels -> (B, 1, size, size) bool: the pixel's centre is inside."""
    centres = torch.arange(size, device=extents.device, dtype=torch.float32) + 0.5
    wide, high = centres < extents[:, :1], centres < extents[:, 1:]
    return (high[:, :, None] & wide[:, None, :])[:, None]


def extent_masks(extents: Tensor, grid: int, patch: int) -> Tensor:
    """(B, 2) valid (w, h) in pixels -> (B, grid²) bool: the patch's centre is in the picture.

    The rule of `tigerfg.images.patch_mask`: the first row and column always count.
    """
    centres = (torch.arange(grid, device=extents.device, dtype=torch.float32) + 0.5) * patch
    inside = centres[None, None, :] < extents[:, :, None]  # [B, (w, h), grid]
    inside[:, :, 0] = True
    return (inside[:, 1, :, None] & inside[:, 0, None, :]).flatten(1)
