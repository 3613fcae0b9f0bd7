"""Contrastive losses over a batch of query-item pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss compute in float32 at least, also under autocast and for bfloat16 inputs.

    All floating inputs are cast to their common type, float32 or wider: float64 stays float64.
    """

    @functools.wraps(loss)
    def wide(*args: Any, **options: Any) -> Tensor:
        floats = [a for a in (*args, *options.values()) if _is_floating(a)]
        dtype = functools.reduce(torch.promote_types, (f.dtype for f in floats), torch.float32)

        def cast(value: Any) -> Any:
            return value.to(dtype) if _is_floating(value) else value

        with torch.autocast(floats[0].device.type, enabled=False):
            return loss(*map(cast, args), **{name: cast(v) for name, v in options.items()})

    return wide


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@in_full_precision
def info_nce(
    queries: Tensor,
    items: Tensor,
    products: Tensor,
    logit_scale: Tensor,
    extra_negatives: Tensor | None = None,
    extra_products: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE: pair i is (queries[i], items[i]). It is L_nce and L_region.

        ½ mean_i [ -log softmax_j(scale · q_i·z_j)_i  -  log softmax_j(scale · z_i·q_j)_i ]

    where j runs over i itself and the pairs of other products: other pairs of the same product
    are taken out of the denominator, so that a duplicate is never a false negative. For L_nce z
    are item embeddings; for L_region they are the pictures' patches pooled with the true region
    (`TigerFG.encode_region`). van den Oord et al. 2018 (arXiv 1807.03748); symmetric with a learned
    temperature: CLIP (arXiv 2103.00020).

    Over several ranks give the gathered tensors of the global batch. Rows that must not count (no
    box for L_region, a non-finite embedding) are to be left out of all arguments beforehand.

    Args:
        queries, items: embeddings (B, E) with norm 1.
        products: (B,) int64 product ids.
        logit_scale: scalar, inverse temperature.
        extra_negatives: (C, E) embeddings of other things; they only enter the direction
            query -> item.
        extra_products: (C,) int64, what they show; -1, or None for all of them, where it is no
            query's product. One of a query's own product is no negative of that query.

    Returns:
        The mean loss, a scalar in nats; 0 for an empty batch.
    """
    if len(queries) == 0:
        return (queries.sum() + items.sum()) * 0.0
    logits = logit_scale * (queries @ items.T)  # [B, B]
    duplicate = products[:, None] == products[None, :]
    duplicate.fill_diagonal_(False)
    logits = logits.masked_fill(duplicate, float("-inf"))
    target = torch.arange(len(queries), device=queries.device)
    forward = logits
    if extra_negatives is not None:
        extra = logit_scale * (queries @ extra_negatives.T)  # [B, C]
        if extra_products is not None:
            own = products[:, None] == extra_products[None, :]
            extra = extra.masked_fill(own, float("-inf"))
        forward = torch.cat([logits, extra], dim=1)
    return 0.5 * (F.cross_entropy(forward, target) + F.cross_entropy(logits.T, target))
