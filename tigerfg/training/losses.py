"""Contrastive losses over a batch of query-item pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    queries: Tensor,
    items: Tensor,
    products: Tensor,
    logit_scale: Tensor,
    extra_negatives: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE (L_nce): pair i is (queries[i], items[i]).

    Other pairs of the same product are taken out of the denominator, so that a duplicate is
    never a false negative.

    Args:
        queries, items: embeddings (B, E) with norm 1.
        products: (B,) int64 product ids.
        logit_scale: scalar, inverse temperature.
        extra_negatives: (C, E) embeddings that match no query; they only enter the direction
            query -> item.

    Returns:
        The mean loss, a scalar in nats; 0 for an empty batch.
    """
    if len(queries) == 0:
        return queries.sum() * 0.0
    logits = logit_scale * queries.float() @ items.float().T  # [B, B]
    duplicate = products[:, None] == products[None, :]
    duplicate.fill_diagonal_(False)
    logits = logits.masked_fill(duplicate, float("-inf"))
    target = torch.arange(len(queries), device=queries.device)
    forward = logits
    if extra_negatives is not None:
        extra = logit_scale * queries.float() @ extra_negatives.float().T
        forward = torch.cat([logits, extra], dim=1)
    return 0.5 * (F.cross_entropy(forward, target) + F.cross_entropy(logits.T, target))
