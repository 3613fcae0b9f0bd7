"""The item picture at several scales as one row of patches; see `tigerfg.levels`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tigerfg.levels import level_sides


def level_patches(backbone: Callable[[Tensor], Tensor], pixels: Tensor, levels: int) -> Tensor:
    """pixels (B, 3, S, S) -> patch features of all levels (B, N + N/4 + ..., D), finest first."""
    if levels == 1:
        return backbone(pixels)
    pictures = [pixels if n == 0 else F.avg_pool2d(pixels, 1 << n) for n in range(levels)]
    return torch.cat([backbone(picture) for picture in pictures], dim=1)


def level_masks(patch_mask: Tensor, side: int, levels: int) -> list[Tensor]:
    """The mask (B, N) of the full size -> one mask a level, (B, N), (B, N/4), ..."""
    fine = patch_mask.unflatten(1, (side, side))
    return [fine[:, :: 1 << n, :: 1 << n].flatten(1) for n in range(levels)]


def fold_map(grounding_map: Tensor, side: int, levels: int) -> Tensor:
    """Maps over all levels (B, N + N/4 + ...) -> (B, N): a coarse patch's share is spread evenly.

    Args:
        side: patches a side at full size.
    """
    if levels == 1:
        return grounding_map
    sides = level_sides(side, levels)
    parts = grounding_map.split([n * n for n in sides], dim=1)
    folded = parts[0].unflatten(1, (side, side))
    for n, part in zip(sides[1:], parts[1:], strict=True):
        scale = side // n
        grid = part.unflatten(1, (n, 1, n, 1)).expand(-1, n, scale, n, scale)
        folded = folded + grid.flatten(3, 4).flatten(1, 2) / scale**2
    return folded.flatten(1)
