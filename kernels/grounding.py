"""Text-guided grounding attention in the absorbed form: oracle, launcher and public function.

Keys and values are the raw patch features: with x = W_kᵀ q the key projection disappears into
the query, and the value projection is applied to the pooled patch afterwards, so one pass over V
serves all heads (TIGER-FG, arXiv 2605.18434; derivation in README, "The model").
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from tigerfg.kernels.attend import WIDTHS, attend, grounding_variant, unserved
from tigerfg.kernels.combine import combine_variant
from tigerfg.kernels.dispatch import fused, served
from tigerfg.kernels.tuning import architecture
from tigerfg.kernels.variant import Variant


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
        p (B, Q, D): pooled patch features; a (B, Q, N): the maps, float32 at least. Both are zero
        for an item that has no valid patch.
    """
    keys = v if key_norm_eps is None else torch.layer_norm(v, v.shape[-1:], eps=key_norm_eps)
    wide = torch.promote_types(v.dtype, torch.float32)  # float16 ends at 65,504
    logits = x.to(wide) @ keys.to(wide).transpose(1, 2)  # [B, Q, N]
    if patch_mask is None:
        maps = logits.softmax(dim=-1)
    else:
        mask = patch_mask[:, None, :]
        lowest = torch.finfo(logits.dtype).min
        maps = logits.masked_fill(~mask, lowest).softmax(dim=-1) * mask.to(logits.dtype)
    return maps.to(v.dtype) @ v, maps


def grounding_triton(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor | None = None,
    *,
    key_norm_eps: float | None = 1e-6,
    per_query: bool = False,
    arch: int | None = None,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`grounding` by the Triton kernels: one launch, or two where the patches are split.

    Patches are split over several programs where the batch alone leaves multiprocessors idle, and
    the joining launch also serves per-query maps and more queries than one program takes.
    """
    batch, queries, width = x.shape
    patches = v.shape[1]
    if not x.numel() or not patches:
        shape = (batch, queries, patches) if per_query else (batch, patches)
        return torch.zeros_like(x), v.new_zeros(shape, dtype=torch.float32)
    passed = attend(
        x, v, patch_mask, key_norm_eps,
        queries=queries, map_queries=queries, finish=not per_query, arch=arch, splits=splits,
    )  # fmt: skip
    if passed.stats is None:
        return passed.p, passed.grounding_map
    variant = combine_variant(v.dtype, width, per_query)
    p = torch.empty(batch, queries, width, dtype=v.dtype, device=v.device)
    shape = (batch, 0) if per_query else (batch, patches)
    grounding_map = torch.empty(shape, dtype=torch.float32, device=v.device)
    map_blocks = triton.cdiv(patches, variant.constexprs["BLOCK_N"])
    variant.launch(
        (batch, queries + map_blocks), passed.p, passed.stats, passed.logits, p, grounding_map,
        patches, queries, passed.splits,
    )  # fmt: skip
    return p, passed.logits if per_query else grounding_map


def check(x: Tensor, v: Tensor, patch_mask: Tensor | None) -> None:
    """ValueError, naming the argument and the fix, for inputs that do not belong together."""
    if x.ndim != 3 or v.ndim != 3:
        raise ValueError(
            f"x and v must be (B, Q, D) and (B, N, D), not {tuple(x.shape)} and {tuple(v.shape)}"
        )
    if x.shape[0] != v.shape[0] or x.shape[2] != v.shape[2]:
        raise ValueError(
            f"x {tuple(x.shape)} and v {tuple(v.shape)} must agree in batch and in width"
        )
    if x.dtype != v.dtype or not x.is_floating_point():
        raise ValueError(f"x: dtype {x.dtype} must be v's ({v.dtype}), a floating one: cast it")
    if not x.shape[1]:
        raise ValueError("x: no queries; at least one is needed")
    if x.device != v.device:
        raise ValueError(f"x: on {x.device}, v on {v.device}: move one of them")
    if patch_mask is None:
        return
    if patch_mask.device != v.device:
        raise ValueError(f"patch_mask: on {patch_mask.device}, v on {v.device}: move one of them")
    if patch_mask.dtype != torch.bool:
        raise ValueError(f"patch_mask: dtype {patch_mask.dtype} must be torch.bool")
    if patch_mask.shape != v.shape[:2]:
        raise ValueError(
            f"patch_mask: shape {tuple(patch_mask.shape)} must be {tuple(v.shape[:2])}, as v's"
        )


def variants(arch: int) -> list[Variant]:
    """What is compiled ahead of time: every dtype at the usual widths, key norm on."""
    built = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for width in WIDTHS:
            if unserved(dtype, width, arch):
                continue
            built.append(combine_variant(dtype, width, False))
            for queries, finish in ((16, True), (16, False), (64, False)):
                built.append(grounding_variant(dtype, width, queries, 1e-6, finish, arch))
    return list({variant.name: variant for variant in built}.values())


@torch.library.custom_op("tigerfg::grounding", mutates_args=(), device_types="cuda")
def _grounding(
    x: Tensor, v: Tensor, patch_mask: Tensor | None, key_norm_eps: float | None, per_query: bool
) -> tuple[Tensor, Tensor]:
    return grounding_triton(x, v, patch_mask, key_norm_eps=key_norm_eps, per_query=per_query)


@_grounding.register_kernel("cpu")
def grounding_plain(
    x: Tensor, v: Tensor, patch_mask: Tensor | None, key_norm_eps: float | None, per_query: bool
) -> tuple[Tensor, Tensor]:
    p, maps = grounding_reference(x, v, patch_mask, key_norm_eps=key_norm_eps)
    return p, maps if per_query else maps.mean(dim=1)


@_grounding.register_fake
def _grounding_fake(
    x: Tensor, v: Tensor, patch_mask: Tensor | None, key_norm_eps: float | None, per_query: bool
) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], v.shape[1]) if per_query else v.shape[:2]
    map_dtype = torch.promote_types(v.dtype, torch.float32)
    return x.new_empty(x.shape), v.new_empty(shape, dtype=map_dtype)


def grounding(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor | None = None,
    *,
    key_norm_eps: float | None = 1e-6,
    per_query: bool = False,
) -> tuple[Tensor, Tensor]:
    """`grounding_reference`, by the fused kernels on CUDA where no gradient is wanted.

    Args:
        x: absorbed queries, softmax scale included, (B, Q, D), float16, bfloat16 or float32.
        v: patch features, (B, N, D), same dtype; a slice such as tokens[:, 5:] is read in place.
        patch_mask: (B, N) bool, True where the patch shows the picture; None means all. Masked
            patches must be finite.
        key_norm_eps: epsilon of the key LayerNorm, None for raw keys.
        per_query: return every query's map, not their mean.

    Returns:
        p (B, Q, D) in the input's dtype; the map, (B, N) or per query (B, Q, N), float32 (float64
        for float64).

    Raises:
        ValueError: shapes or dtypes that do not belong together.
    """
    check(x, v, patch_mask)
    if fused(v, x) and served("grounding", unserved(v.dtype, v.shape[2], architecture(v.device))):
        return torch.ops.tigerfg.grounding(x, v, patch_mask, key_norm_eps, per_query)
    return grounding_plain(x, v, patch_mask, key_norm_eps, per_query)
