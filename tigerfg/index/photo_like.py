"""Queries to tune an index with where there are no photos: stored items, moved as photos are."""

from __future__ import annotations

import numpy as np

COSINE = 0.88  # the median of photos (`tiny`, rendered products) with the best of a million items
SEED = 11


def photo_like(items: np.ndarray) -> np.ndarray:
    """Items, each turned away from itself in a direction in which two others differ.

    An item lies amid its neighbours, a photo beside them: its ten nearest are in more lists, and
    hardly nearer than many others. What is tuned on items alone finds less for photos.

    Args:
        items: embeddings float32 (N, E), unit length.

    Returns:
        float32 (N, E), unit length, whose cosine with the item is `COSINE`; an item itself where
        there are no two others that differ.
    """
    order = np.random.default_rng(SEED).permutation(len(items))
    beside = np.empty_like(items)
    beside[order] = items[np.roll(order, 1)] - items[np.roll(order, 2)]
    beside -= np.vecdot(beside, items)[:, None] * items
    length = np.linalg.norm(beside, axis=1, keepdims=True)
    there = length > 1e-3
    moved = COSINE * items + np.sqrt(1 - COSINE**2) * beside / np.where(there, length, 1.0)
    return np.where(there, moved, items).astype(np.float32)
