"""Item pictures seen at several scales: patch masks and grounding maps of the levels.

A model with L levels sees an item picture at its full size and at half of it, a quarter, ... (mean
of 2x2 pixels), all in one row of patches: attention chooses the scale at which the product looks
like a shopper's crop. Level l has side >> l patches a side; levels follow each other, finest first.
What users give and get are the patches of the full size.
"""

from __future__ import annotations

import numpy as np


def level_sides(side: int, levels: int) -> list[int]:
    """Patches a side at every level, finest first; `side`: at full size."""
    return [side >> level for level in range(levels)]


def level_mask(patch_mask: np.ndarray, levels: int) -> np.ndarray:
    """Masks of all levels: bool (B, N) of the full size -> bool (B, N + N/4 + ...), contiguous.

    A coarse patch is valid if the first of the fine ones that it covers is: pictures lie at the
    top left.
    """
    side = round(patch_mask.shape[1] ** 0.5)
    fine = patch_mask.reshape(-1, side, side)
    grids = [fine[:, :: 1 << level, :: 1 << level] for level in range(levels)]
    return np.concatenate([g.reshape(len(g), g.shape[1] * g.shape[2]) for g in grids], axis=1)


def fold_map(grounding_map: np.ndarray, side: int, levels: int) -> np.ndarray:
    """Maps over all levels (B, N + N/4 + ...) -> (B, N): a coarse patch's share is spread evenly.

    Args:
        side: patches a side at full size.
    """
    batch, start = len(grounding_map), 0
    folded = np.zeros((batch, side, side), grounding_map.dtype)
    for n in level_sides(side, levels):
        scale = side // n
        part = grounding_map[:, start : start + n * n].reshape(batch, n, n)
        folded += part.repeat(scale, axis=1).repeat(scale, axis=2) / scale**2
        start += n * n
    return folded.reshape(batch, side * side)
