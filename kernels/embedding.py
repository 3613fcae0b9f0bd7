"""The item tower after its backbone and text, in two launches: oracle, launcher, public function.

One launch grounds (`attend.py`), one takes the pooled patches to the embedding (`tail.py`, which
says why it is a launch of its own). Method: TIGER-FG (arXiv 2605.18434), README, "The model".
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from tigerfg.kernels.arrival import counters
from tigerfg.kernels.attend import attend
from tigerfg.kernels.dispatch import fused, served
from tigerfg.kernels.grounding import check, grounding_reference
from tigerfg.kernels.pooling import (
    attention_pool_reference,
    embedding_head_reference,
    masked_mean_reference,
)
from tigerfg.kernels.tail import MAP_BLOCK, TailWeights, tail_unserved, tail_variant
from tigerfg.kernels.tuning import architecture


def project_values_reference(p: Tensor, w_v: Tensor, w_o: Tensor, heads: int) -> Tensor:
    """g = W_o concat_h(W_v^h mean_m p_m^h): p (B, H·M, D), W_v and W_o (D, D) -> (B, D)."""
    batch, queries, width = p.shape
    p = p.view(batch, heads, queries // heads, width).mean(dim=2)  # [B, H, D]
    c = w_v.view(heads, width // heads, width) @ p[..., None]  # [B, H, d, 1]
    return c.reshape(batch, width) @ w_o.T


def grounded_embedding_reference(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: TailWeights,
    heads: int,
    *,
    pool_query: Tensor | None = None,
    key_norm_eps: float | None = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """z = l2norm(W_e · LN(g + gate_pool ∘ v_pool + gate_text ∘ text)), and the grounding map.

    Args and results as for `grounded_embedding`, in any floating dtype.
    """
    p, maps = grounding_reference(x, v, patch_mask, key_norm_eps=key_norm_eps)
    if pool_query is None:
        pooled = masked_mean_reference(v, patch_mask)
    else:
        pooled = attention_pool_reference(v, pool_query, patch_mask, key_norm_eps=key_norm_eps)
    g = project_values_reference(p, weights.w_v, weights.w_o, heads)
    u = g + weights.gate_pool * pooled + weights.gate_text * text
    z = embedding_head_reference(
        u, weights.norm_weight, weights.norm_bias, weights.projection, norm_eps
    )
    return z, maps.mean(dim=1)


def grounded_embedding_triton(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: TailWeights,
    heads: int,
    *,
    pool_query: Tensor | None = None,
    key_norm_eps: float | None = 1e-6,
    norm_eps: float = 1e-6,
    arch: int | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`grounded_embedding` by the Triton kernels: two launches.

    The pooled picture is one more query of the pass over V: zeros, which weigh all patches alike,
    or the pool's own.
    """
    batch, map_queries, width = x.shape
    patches = v.shape[1]
    embedding_dim = len(weights.projection)
    device = {"dtype": torch.float32, "device": v.device}
    z = torch.empty(batch, embedding_dim, **device)
    if not batch:
        return z, torch.empty(batch, patches, **device)
    if pool_query is not None:
        x = torch.cat([x, pool_query.expand(batch, 1, width)], dim=1)
    arch = architecture(v.device) if arch is None else arch
    passed = attend(
        x, v, patch_mask, key_norm_eps,
        queries=map_queries + 1, map_queries=map_queries, finish=True, arch=arch, splits=splits,
    )  # fmt: skip
    split = passed.stats is not None
    variant = tail_variant(v.dtype, width, width // heads, embedding_dim, norm_eps, split, arch)
    block = variant.constexprs["BLOCK_I"]
    blocks = triton.cdiv(batch, block)
    sums = torch.empty(blocks, heads + 1, width, block, **device)
    programs = blocks * heads
    grounding_map = passed.grounding_map
    if split:
        grounding_map = torch.empty(batch, patches, **device)
        programs += batch * triton.cdiv(patches, MAP_BLOCK)
    variant.launch(
        (programs,), passed.p, passed.stats if split else sums, passed.logits, text.contiguous(),
        *(weight.contiguous() for weight in weights), sums, counters(v.device, blocks), z,
        grounding_map, batch, patches, map_queries + 1, passed.splits, heads,
        map_queries // heads,
    )  # fmt: skip
    return z, grounding_map


def _check(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: TailWeights,
    heads: int,
    pool_query: Tensor | None,
) -> None:
    check(x, v, patch_mask)
    batch, queries, width = x.shape
    if heads < 1 or width % heads or queries % heads or not queries:
        raise ValueError(f"heads: {heads} must divide the width {width} and the {queries} queries")
    square, vector = (width, width), (width,)
    shapes = {"text": (batch, width), "w_v": square, "w_o": square}
    shapes |= dict.fromkeys(("gate_pool", "gate_text", "norm_weight", "norm_bias"), vector)
    shapes |= {"projection": (*weights.projection.shape[:1], width), "pool_query": vector}
    tensors = {"text": text, **weights._asdict(), "pool_query": pool_query}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} must be {shapes[name]}")
        if tensor.dtype != v.dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype} must be v's, {v.dtype}: cast it")
        if tensor.device != v.device:
            raise ValueError(f"{name}: on {tensor.device}, v on {v.device}: move one of them")


@torch.library.custom_op("tigerfg::grounded_embedding", mutates_args=(), device_types="cuda")
def _grounded_embedding(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: list[Tensor],
    heads: int,
    pool_query: Tensor | None,
    key_norm_eps: float | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    return grounded_embedding_triton(
        x, v, patch_mask, text, TailWeights(*weights), heads,
        pool_query=pool_query, key_norm_eps=key_norm_eps, norm_eps=norm_eps,
    )  # fmt: skip


@_grounded_embedding.register_kernel("cpu")
def grounded_embedding_plain(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: list[Tensor],
    heads: int,
    pool_query: Tensor | None,
    key_norm_eps: float | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    z, grounding_map = grounded_embedding_reference(
        x, v, patch_mask, text, TailWeights(*weights), heads,
        pool_query=pool_query, key_norm_eps=key_norm_eps, norm_eps=norm_eps,
    )  # fmt: skip
    dtype = torch.promote_types(v.dtype, torch.float32)
    return z.to(dtype), grounding_map.to(dtype)


@_grounded_embedding.register_fake
def _grounded_embedding_fake(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: list[Tensor],
    heads: int,
    pool_query: Tensor | None,
    key_norm_eps: float | None,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(v.dtype, torch.float32)
    z = v.new_empty((v.shape[0], weights[-1].shape[0]), dtype=dtype)
    return z, v.new_empty(v.shape[:2], dtype=dtype)


def grounded_embedding(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor,
    text: Tensor,
    weights: TailWeights,
    heads: int,
    *,
    pool_query: Tensor | None = None,
    key_norm_eps: float | None = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The item's embedding and grounding map, in two launches on CUDA without gradients.

    Args:
        x: absorbed queries, softmax scale included, (B, H·M, D), head by head.
        v: patch features, (B, N, D), float16, bfloat16 or float32; a slice is read in place.
        patch_mask: (B, N) bool, True where the patch shows the picture. Masked patches must be
            finite.
        text: pooled text, (B, D).
        weights: of the projections, gates and norm; all tensors in v's dtype.
        heads: H.
        pool_query: (D,), attention pooling of the whole picture; None for the mean of its patches.
        key_norm_eps: epsilon of the key LayerNorm, of the pool's query as well; None for raw keys.
        norm_eps: epsilon of the last LayerNorm.

    Returns:
        embedding (B, E) with norm 1; map (B, N), the mean over queries; float32 (float64 for
        float64).

    Raises:
        ValueError: names the argument whose shape or dtype is wrong.
    """
    _check(x, v, patch_mask, text, weights, heads, pool_query)
    head_width, embedding_dim = v.shape[2] // heads, weights.projection.shape[0]
    arguments = (
        x, v, patch_mask, text, list(weights), heads, pool_query, key_norm_eps, norm_eps
    )  # fmt: skip
    if fused(v, x, text, pool_query, *weights) and served(
        "grounded_embedding",
        tail_unserved(v.dtype, v.shape[2], head_width, embedding_dim, architecture(v.device)),
    ):
        return torch.ops.tigerfg.grounded_embedding(*arguments)
    return grounded_embedding_plain(*arguments)
