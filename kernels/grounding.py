"""Text-guided grounding attention in the absorbed form: the oracle.

Keys and values are the raw patch features: with x = W_kᵀ q the key projection disappears into
the query, and the value projection is applied to the pooled patch afterwards, so one pass over V
serves all heads (TIGER-FG, arXiv 2605.18434; derivation in README, "The model").
"""

from __future__ import annotations

import torch
from torch import Tensor


def grounding_reference(
    x: Tensor, v: Tensor, patch_mask: Tensor | None = None, *, key_norm_eps: float | None = 1e-6
) -> tuple[Tensor, Tensor]:
    """Attend with absorbed text queries over patch features that are keys and values at once.

        s_qn = x_q · LN(v_n)          (LN without affine; s_qn = x_q · v_n if key_norm_eps is None)
        a_q  = softmax_n(s_q)         (over the patches with patch_mask True)
        p_q  = Σ_n a_qn v_n

    An affine key norm needs no arguments here: its scale is absorbed into x, and its shift adds the
    same amount to every patch's logit.

    Args:
        x: absorbed queries, softmax scale included, (B, Q, D), floating point.
        v: patch features, (B, N, D), same dtype.
        patch_mask: (B, N) bool, True where the patch shows the picture; None means all.
        key_norm_eps: epsilon of the key LayerNorm, None for raw keys.

    Returns:
        p (B, Q, D): pooled patch features; a (B, Q, N): the maps. Both are zero for an item
        that has no valid patch.
    """
    keys = v if key_norm_eps is None else torch.layer_norm(v, v.shape[-1:], eps=key_norm_eps)
    logits = x @ keys.transpose(1, 2)  # [B, Q, N]
    if patch_mask is None:
        maps = logits.softmax(dim=-1)
    else:
        mask = patch_mask[:, None, :]
        lowest = torch.finfo(logits.dtype).min
        maps = logits.masked_fill(~mask, lowest).softmax(dim=-1) * mask.to(logits.dtype)
    return maps @ v, maps
