"""The query side after the backbone: pooled patches, LayerNorm, projection and L2 norm, one launch.

    z = l2norm(W_e · LN(pool(V)))          (TIGER-FG, arXiv 2605.18434; README, "The model")

Three numbers decide the shape of the kernel (N = 196 patches, D = 768, E = 256, fp16): an item's V
is 301 kB and is needed once, the projection W_e is 393 kB and is needed by every item, and its
product costs 0.4 MFLOP an item. So one program projects 16 items at a time: W_e is then read once
for 16 items (25 kB an item instead of 393 kB), and the items fill the matrix units' smallest tile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from tigerfg.kernels import tuning
from tigerfg.kernels.arrival import counters
from tigerfg.kernels.dispatch import fused, served
from tigerfg.kernels.pooling_kernel import GROUP, KINDS, MAX_SPLITS, variant, variants
from tigerfg.kernels.variant import TRITON_TYPES

__all__ = [
    "attention_pool_reference",
    "embedding_head_reference",
    "masked_mean_reference",
    "pooled_embedding",
    "pooled_embedding_reference",
    "pooled_embedding_triton",
    "variants",
]

MAX_WIDTH = 2048
MAX_EMBEDDING = 512


def masked_mean_reference(v: Tensor, patch_mask: Tensor | None = None) -> Tensor:
    """Mean of the valid patches: v (B, N, D), patch_mask (B, N) bool -> (B, D).

    An item without a valid patch gives zeros.
    """
    if patch_mask is None:
        return v.mean(dim=1)
    weights = patch_mask.to(v.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)  # first: no large sums
    return (weights[:, None, :] @ v)[:, 0]


def attention_pool_reference(
    v: Tensor, query: Tensor, weights: Tensor | None = None, *, key_norm_eps: float | None = 1e-6
) -> Tensor:
    """Attention by one learnt query: p = Σ_n a_n v_n, a_n ∝ w_n exp(query · LN(v_n)), Σ a_n = 1.

    Args:
        v: patch features (B, N, D), keys and values at once; the keys' LayerNorm is not affine.
        query: (D,), softmax scale included.
        weights: (B, N), a bool mask of the valid patches or a soft region >= 0; None means all.
            Patches of weight 0 must be finite.
        key_norm_eps: epsilon of that LayerNorm, None for raw keys.

    Returns:
        (B, D); zeros for an item whose weights are all zero.
    """
    keys = v if key_norm_eps is None else F.layer_norm(v, v.shape[-1:], eps=key_norm_eps)
    logits = keys @ query  # [B, N]
    if weights is None:
        return (logits.softmax(dim=-1)[:, None, :] @ v)[:, 0]
    lowest = torch.finfo(logits.dtype).min  # under autocast another dtype than v's
    maps = logits.masked_fill(weights <= 0, lowest).softmax(dim=-1) * weights.to(v.dtype)
    total = maps.sum(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return ((maps / total)[:, None, :] @ v)[:, 0]


def embedding_head_reference(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, projection: Tensor, norm_eps: float = 1e-6
) -> Tensor:
    """l2norm(projection · LN(x)): x (B, D), norm_* (D,), projection (E, D) -> (B, E)."""
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_eps)
    return F.normalize(F.linear(normed, projection), dim=-1, eps=1e-6)


def pooled_embedding_reference(
    v: Tensor,
    patch_mask: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    query: Tensor | None = None,
    *,
    kind: str = "mean",
    key_norm_eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> Tensor:
    """What `pooled_embedding` computes, in float32, or in float64 for a float64 v."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    v = v.to(dtype)
    if kind == "cls":
        pooled = v[:, 0]
    elif kind == "mean":
        pooled = masked_mean_reference(v, patch_mask)
    else:
        pooled = attention_pool_reference(v, query.to(dtype), patch_mask, key_norm_eps=key_norm_eps)
    head = (weights.to(dtype) for weights in (norm_weight, norm_bias, projection))
    return embedding_head_reference(pooled, *head, norm_eps=norm_eps)


def _check(
    v: Tensor,
    patch_mask: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    query: Tensor | None,
    kind: str,
) -> None:
    """ValueError, naming the argument, for what neither the kernel nor the reference takes."""
    if v.ndim != 3 or 0 in v.shape[1:]:
        raise ValueError(f"v: shape {tuple(v.shape)}; expected (B, N, D) with N and D above 0")
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}; use one of {', '.join(KINDS)}")
    if (query is not None) != (kind == "attention"):
        raise ValueError('query: kind "attention" needs one, the other kinds take none')
    if patch_mask is not None and (
        patch_mask.dtype != torch.bool or patch_mask.shape != v.shape[:2]
    ):
        raise ValueError(
            f"patch_mask: {patch_mask.dtype} {tuple(patch_mask.shape)}; "
            f"expected bool {tuple(v.shape[:2])}"
        )
    width = v.shape[2]
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "query": query}
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (width,):
            raise ValueError(f"{name}: shape {tuple(vector.shape)}; expected ({width},)")
    others = {**vectors, "patch_mask": patch_mask, "projection": projection}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != v.device:
            raise ValueError(f"{name}: on {tensor.device}, v on {v.device}: move one of them")
    if projection.ndim != 2 or projection.shape[1] != width:
        raise ValueError(f"projection: shape {tuple(projection.shape)}; expected (E, {width})")


def _unsupported(
    v: Tensor, norm_weight: Tensor, norm_bias: Tensor, projection: Tensor, query: Tensor | None
) -> str | None:
    """Why the kernel can't take these inputs; None when it can."""
    if v.dtype not in TRITON_TYPES:
        return f"v: dtype {v.dtype}; the kernel takes float16, bfloat16 and float32"
    if v.shape[2] % 16 or v.shape[2] > MAX_WIDTH:
        return f"v: width {v.shape[2]}; the kernel takes multiples of 16 up to {MAX_WIDTH}"
    if projection.shape[0] % 16 or not 0 < projection.shape[0] <= MAX_EMBEDDING:
        return (
            f"projection: embedding dimension {projection.shape[0]}; "
            f"the kernel takes multiples of 16 up to {MAX_EMBEDDING}"
        )
    for name, weights in {"norm_weight": norm_weight, "projection": projection}.items():
        if weights.dtype not in (v.dtype, torch.float32):
            return f"{name}: dtype {weights.dtype}; the kernel takes that of v and float32"
    for name, vector in {"norm_bias": norm_bias, "query": query}.items():
        if vector is not None and vector.dtype != norm_weight.dtype:
            return f"{name}: dtype {vector.dtype}; the kernel takes that of norm_weight"
    return None


def pooled_embedding_triton(
    v: Tensor,
    patch_mask: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    query: Tensor | None = None,
    *,
    kind: str = "mean",
    key_norm_eps: float = 1e-6,
    norm_eps: float = 1e-6,
    splits: int | None = None,
) -> Tensor:
    """Launch the kernel; arguments, result and errors as in `pooled_embedding`.

    Args:
        splits: programs per item; by default as many as fill the device with two programs per
            multiprocessor. Held between 1 and the lesser of MAX_SPLITS and the tiles of rows.

    Raises:
        ValueError: also for what the kernel does not take and `pooled_embedding` computes with
            its reference.
    """
    _check(v, patch_mask, norm_weight, norm_bias, projection, query, kind)
    reason = _unsupported(v, norm_weight, norm_bias, projection, query)
    if reason is not None:
        raise ValueError(reason)
    if kind == "cls":
        v, patch_mask = v[:, :1], None
    batch, patches, width = v.shape
    embedding_dim = projection.shape[0]
    compiled = variant(
        kind,
        v.dtype,
        width,
        embedding_dim,
        patch_mask is not None,
        tuning.architecture(v.device),
        norm_dtype=norm_weight.dtype,
        projection_dtype=projection.dtype,
        key_norm_eps=key_norm_eps,
        norm_eps=norm_eps,
    )
    if splits is None:
        splits = 2 * tuning.multiprocessors(v.device) // max(batch, 1)
    splits = min(max(splits, 1), MAX_SPLITS, triton.cdiv(patches, compiled.constexprs["ROWS"]))
    v = v if v.stride(2) == 1 else v.contiguous()
    norm_weight, norm_bias = norm_weight.contiguous(), norm_bias.contiguous()
    float32 = {"dtype": torch.float32, "device": v.device}
    z = torch.empty(batch, embedding_dim, **float32)
    if not batch:
        return z
    compiled.launch(
        (batch * splits,),
        v,
        # Not read where the kind takes none, as are the parts of a single split.
        v if patch_mask is None else patch_mask.contiguous().view(torch.int8),
        norm_weight if query is None else query.contiguous(),
        norm_weight,
        norm_bias,
        projection.contiguous(),
        z,
        torch.empty(batch if splits > 1 else 0, splits, width, **float32),
        torch.empty(batch if splits > 1 else 0, splits, 2, **float32),
        torch.empty(batch, width, dtype=v.dtype, device=v.device),
        counters(v.device, batch + triton.cdiv(batch, GROUP)),
        batch,
        patches,
        splits,
        width,
        v.stride(0),
        v.stride(1),
    )
    return z


pooled_embedding_op = torch.library.custom_op(
    "tigerfg::pooled_embedding", pooled_embedding_triton, mutates_args=(), device_types="cuda"
)


@pooled_embedding_op.register_kernel("cpu")
def pooled_embedding_cpu(
    *tensors: Tensor | None, splits: int | None = None, **options: Any
) -> Tensor:
    return pooled_embedding_reference(*tensors, **options).float()


@pooled_embedding_op.register_fake
def _(*tensors: Tensor | None, **options: Any) -> Tensor:
    v, projection = tensors[0], tensors[4]
    return v.new_empty(v.shape[0], projection.shape[0], dtype=torch.float32)


def pooled_embedding(
    v: Tensor,
    patch_mask: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection: Tensor,
    query: Tensor | None = None,
    *,
    kind: str = "mean",
    key_norm_eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> Tensor:
    """Embeddings of pictures from their patch features: z = l2norm(projection · LN(pooled)).

    pooled is, for the kind
        "mean"       the mean of the valid patches,
        "attention"  Σ_n a_n v_n with a = softmax over the valid patches of query · LN(v_n),
        "cls"        v[:, 0], whatever the mask,
    and zeros where an item has no valid patch. Fused into one launch for CUDA tensors of which
    no gradient is wanted; plain PyTorch otherwise, also for shapes and dtypes that the kernel
    does not take (logged once).

    Args:
        v: patch features (B, N, D), float16, bfloat16 or float32. Any batch and patch strides:
            a slice like tokens[:, 5:] is read in place.
        patch_mask: (B, N) bool, True where the patch shows the picture; None means all. Masked
            patches must be finite.
        norm_weight, norm_bias: the head's LayerNorm (D,), in the dtype of v or float32.
        projection: (E, D), in the dtype of v or float32.
        query: (D,), softmax scale included, in the dtype of norm_weight; for "attention" only.
        kind: "mean", "attention" or "cls".
        key_norm_eps: epsilon of the keys' LayerNorm, which is not affine ("attention").
        norm_eps: epsilon of the head's LayerNorm.

    Returns:
        (B, E) float32 with norm 1 (float64 from PyTorch for a float64 v).

    Raises:
        ValueError: a shape, a mask that is not bool, an unknown kind, a missing or surplus query.
    """
    _check(v, patch_mask, norm_weight, norm_bias, projection, query, kind)
    tensors = (v, patch_mask, norm_weight, norm_bias, projection, query)
    options = {"kind": kind, "key_norm_eps": key_norm_eps, "norm_eps": norm_eps}
    if fused(*tensors) and served(
        "pooled_embedding", _unsupported(v, norm_weight, norm_bias, projection, query)
    ):
        return torch.ops.tigerfg.pooled_embedding(*tensors, **options)
    return pooled_embedding_reference(*tensors, **options)
