"""Pooling of patch features on the query side: the oracle."""

from __future__ import annotations

from torch import Tensor


def masked_mean_reference(v: Tensor, patch_mask: Tensor | None = None) -> Tensor:
    """Mean of the valid patches: v (B, N, D), patch_mask (B, N) bool -> (B, D).

    An item without a valid patch gives zeros.
    """
    if patch_mask is None:
        return v.mean(dim=1)
    weights = patch_mask.to(v.dtype)
    return (weights[:, None, :] @ v)[:, 0] / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
