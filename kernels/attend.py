"""One pass over the patch features for all text queries: the attention kernel and its launch.

Counted at N=196, Q=12, D=768 in float16, per item: V is 301 kB, X 18 kB, P 18 kB, logits and map
10 kB; 2·2·N·Q·D = 7.2 MFLOP (9.6 with Q padded to 16), 32 FLOP per byte of V. Every GPU we compile
for has more than 100 per byte on its matrix units: the reading of V is the whole cost. So a program
keeps a tile of V on the chip for both products, and adds nothing to memory but its results.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tigerfg.kernels.combine import MAX_SPLITS, chunk_width
from tigerfg.kernels.tuning import (
    architecture,
    find_parameters,
    launch_parameters,
    multiprocessors,
)
from tigerfg.kernels.variant import TRITON_TYPES, Variant, dot_options, triton_type

WIDTHS = (192, 384, 768, 1024, 1280)  # compiled ahead of time
# A program holds its tile of V chunk by chunk, and every chunk is code of its own: as many as the
# widest kernel that is compiled ahead of time has. 69 take minutes to compile and spill thousands
# of registers.
MAX_CHUNKS = 10


@triton.jit(
    do_not_specialize=[
        "stride_mb",
        "stride_mn",
        "patches",
        "queries",
        "splits",
        "x_queries",
        "map_queries",
    ]
)
def grounding_kernel(
    x_ptr,
    v_ptr,
    mask_ptr,
    p_ptr,
    stats_ptr,
    logits_ptr,
    map_ptr,
    stride_xb,
    stride_vb,
    stride_vn,
    stride_mb,
    stride_mn,
    patches,
    queries,
    splits,
    x_queries,
    map_queries,
    D: tl.constexpr,
    KEY_NORM_EPS: tl.constexpr,
    MASKED: tl.constexpr,
    FINISH: tl.constexpr,
    QUERY_AXIS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Online softmax over one split of the patches, for a block of queries of one item.

    Scores are [BLOCK_Q, BLOCK_N] with QUERY_AXIS 0. With QUERY_AXIS 1 everything is transposed:
    patches and channels are then the long M axis of the products, which Hopper's wgmma asks for.
    FINISH: this program sees all patches and queries, so it also writes the map. Else the combining
    kernel does, from p (of this split), stats (maximum and sum) and logits (to base 2).
    """
    CHUNKS: tl.constexpr = D // BLOCK_D
    PATCH_AXIS: tl.constexpr = 1 - QUERY_AXIS
    pid = tl.program_id(0)
    query_blocks = tl.cdiv(queries, BLOCK_Q)
    query_block = pid % query_blocks
    split = (pid // query_blocks) % splits
    item = (pid // query_blocks // splits).to(tl.int64)
    tiles = tl.cdiv(patches, BLOCK_N)
    first = tiles * split // splits * BLOCK_N
    last = tl.minimum(tiles * (split + 1) // splits * BLOCK_N, patches)

    q = query_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_wide = tl.expand_dims(q, PATCH_AXIS)
    q_ok = q_wide < queries
    d = tl.arange(0, BLOCK_D)
    d_wide = tl.expand_dims(d, QUERY_AXIS)  # channels take the patches' place beside the queries

    x = ()
    accs = ()
    x_sum = tl.zeros([BLOCK_Q], tl.float32)
    for c in tl.static_range(CHUNKS):
        x_tile = x_ptr + item * stride_xb + q_wide * D + c * BLOCK_D + d_wide
        x_c = tl.load(x_tile, mask=q_wide < x_queries, other=0.0)
        x_sum += tl.sum(x_c.to(tl.float32), PATCH_AXIS)
        if UPCAST:
            x_c = x_c.to(tl.float32)
        x = x + (x_c,)
        accs = accs + (tl.zeros(x_c.shape, tl.float32),)
    x_sum = tl.expand_dims(x_sum, PATCH_AXIS)

    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    v_base = v_ptr + item * stride_vb
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        n = start + tl.arange(0, BLOCK_N)
        n_ok = n < last
        n_tile = n.to(tl.int64)[:, None] * stride_vn + d[None, :]
        valid = n_ok
        if MASKED:
            valid = tl.load(mask_ptr + item * stride_mb + n * stride_mn, mask=n_ok, other=0) != 0
        mean = tl.zeros([BLOCK_N], tl.float32)
        squares = tl.zeros([BLOCK_N], tl.float32)  # Σ (v - mean)²
        v = ()
        for c in tl.static_range(CHUNKS):
            v_c = tl.load(v_base + n_tile + c * BLOCK_D, mask=n_ok[:, None], other=0.0)
            if UPCAST:
                v_c = v_c.to(tl.float32)
            if QUERY_AXIS == 0:
                part = tl.dot(x[c], tl.trans(v_c), input_precision=PRECISION)  # [BQ, BN]
            else:
                part = tl.dot(v_c, x[c], input_precision=PRECISION)  # [BN, BQ]
            if c == 0:
                s = part
            else:
                s += part
            if KEY_NORM_EPS is not None:  # moments of the chunks, merged (Chan et al. 1979)
                f = v_c.to(tl.float32)
                chunk_mean = tl.sum(f, 1) / BLOCK_D
                f -= chunk_mean[:, None]
                delta = chunk_mean - mean
                mean += delta / (c + 1)
                squares += tl.sum(f * f, 1) + delta * delta * (BLOCK_D * c / (c + 1))
            v = v + (v_c,)
        if KEY_NORM_EPS is not None:
            # A spread below float32's resolution of the mean is none: the key is 0, not rounding
            # that the scale would blow up.
            flat = tl.expand_dims(squares <= D * 1e-12 * mean * mean, QUERY_AXIS)
            mean = tl.expand_dims(mean, QUERY_AXIS)
            scale = tl.expand_dims(tl.rsqrt(squares / D + KEY_NORM_EPS), QUERY_AXIS)
            s = tl.where(flat, 0.0, scale * (s - mean * x_sum))
        s = tl.where(tl.expand_dims(valid, QUERY_AXIS), s * 1.4426950408889634, float("-inf"))
        n_wide = tl.expand_dims(n, QUERY_AXIS)
        s_tile = logits_ptr + (item * queries + q_wide) * patches + n_wide
        tl.store(s_tile, s, mask=q_ok & (n_wide < last))

        new_top = tl.maximum(top, tl.max(s, PATCH_AXIS))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - base)
        weights = tl.exp2(s - tl.expand_dims(base, PATCH_AXIS))
        total = total * shrink + tl.sum(weights, PATCH_AXIS)
        top = new_top
        shrink = tl.expand_dims(shrink, PATCH_AXIS)
        weights = weights.to(v[0].dtype)
        new_accs = ()
        for c in tl.static_range(CHUNKS):
            if QUERY_AXIS == 0:
                acc = tl.dot(weights, v[c], accs[c] * shrink, input_precision=PRECISION)
            else:
                acc = tl.dot(tl.trans(v[c]), weights, accs[c] * shrink, input_precision=PRECISION)
            new_accs = new_accs + (acc,)
        accs = new_accs

    row = (item * splits + split) * queries
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    for c in tl.static_range(CHUNKS):
        p = accs[c] * tl.expand_dims(share, PATCH_AXIS)
        p_tile = p_ptr + (row + q_wide) * D + c * BLOCK_D + d_wide
        tl.store(p_tile, p.to(p_ptr.dtype.element_ty), mask=q_ok)
    if FINISH:
        tl.debug_barrier()  # the logits below were stored by other threads of this program
        top = tl.where(total > 0.0, top, 0.0)
        for begin in tl.range(0, patches, BLOCK_N):
            m = begin + tl.arange(0, BLOCK_N)
            ok = (q < map_queries)[:, None] & (m < patches)[None, :]
            s_rows = logits_ptr + (item * queries + q[:, None]) * patches + m[None, :]
            logits = tl.load(s_rows, mask=ok, other=float("-inf"))  # [BQ, BN]
            a = tl.exp2(logits - top[:, None]) * share[:, None]
            tl.store(map_ptr + item * patches + m, tl.sum(a, 0) / map_queries, mask=m < patches)
    else:
        tl.store(stats_ptr + (row + q) * 2, top, mask=q < queries)
        tl.store(stats_ptr + (row + q) * 2 + 1, total, mask=q < queries)


class Passed(NamedTuple):
    """What one pass over V leaves: finished (p, map), or splits to be joined (parts, stats)."""

    p: Tensor  # (B, Q, D) in the input's dtype, or (B, S, Q, D) float32
    grounding_map: Tensor | None  # (B, N)
    stats: Tensor | None  # (B, S, Q, 2) float32: maximum and sum, to base 2
    logits: Tensor  # (B, Q, N) float32, to base 2
    splits: int


@torch.compiler.assume_constant_result  # torch.compile need not trace the tables
def unserved(dtype: torch.dtype, width: int, arch: int) -> str | None:
    """Why the kernels do not take patch features of this kind; None where they do."""
    if dtype not in TRITON_TYPES:
        return f"dtype {dtype} is not float16, bfloat16 or float32"
    if width % 16:
        return f"width {width} is no multiple of 16"
    use = find_parameters("grounding", arch, bytes=dtype.itemsize, width=width, queries=1)
    if use is None:
        return f"{dtype} of width {width} does not fit a multiprocessor of sm_{arch}"
    chunk = chunk_width(width, use["BLOCK_D"])
    if width // chunk > MAX_CHUNKS:
        return f"width {width} is {width // chunk} chunks of {chunk}, more than {MAX_CHUNKS}"
    return None


@functools.cache
def grounding_variant(
    dtype: torch.dtype,
    width: int,
    queries: int,
    key_norm_eps: float | None,
    finish: bool,
    arch: int,
    masked: bool = True,
) -> Variant:
    """The pass over V for one dtype and width; `finish`: without splits, the map included.

    Args:
        masked: without, the mask's pointer is never read.
    """
    name = triton_type(dtype, "v")
    result = name if finish else "fp32"
    use = launch_parameters(
        "grounding", arch, bytes=dtype.itemsize, width=width, queries=min(queries, 64)
    )
    pointers = {
        "x_ptr": f"*{name}",
        "v_ptr": f"*{name}",
        "mask_ptr": "*u8",
        "p_ptr": f"*{result}",
        "stats_ptr": "*fp32",
        "logits_ptr": "*fp32",
        "map_ptr": "*fp32",
    }
    strides = ("stride_xb", "stride_vb", "stride_vn", "stride_mb", "stride_mn")
    numbers = ("patches", "queries", "splits", "x_queries", "map_queries")
    norm = "raw" if key_norm_eps is None else "norm"
    return Variant(
        name=f"grounding_{'whole' if finish else 'split'}_{name}_d{width}_q{use['BLOCK_Q']}_{norm}"
        f"{'' if masked else '_unmasked'}",
        kernel=grounding_kernel,
        arguments={**pointers, **dict.fromkeys(strides, "i64"), **dict.fromkeys(numbers, "i32")},
        constexprs={
            "D": width,
            "KEY_NORM_EPS": key_norm_eps,
            "MASKED": masked,
            "FINISH": finish,
            "QUERY_AXIS": use["QUERY_AXIS"],
            "BLOCK_N": use["BLOCK_N"],
            "BLOCK_Q": use["BLOCK_Q"],
            "BLOCK_D": chunk_width(width, use["BLOCK_D"]),
            "STAGES": use["num_stages"],
            **dot_options(dtype),
        },
        aligned=frozenset({*pointers, "stride_xb", "stride_vb", "stride_vn"} - {"mask_ptr"}),
        grid=(f"batch * splits * cdiv(queries, {use['BLOCK_Q']})",),
        num_warps=use["num_warps"],
        num_stages=use["num_stages"],
    )


def attend(
    x: Tensor,
    v: Tensor,
    patch_mask: Tensor | None,
    key_norm_eps: float | None,
    *,
    queries: int,
    map_queries: int,
    finish: bool,
    arch: int | None = None,
    splits: int | None = None,
) -> Passed:
    """One launch of the pass over V.

    Args:
        queries: how many, at least those of x; the others are zero, which weigh all patches alike.
        map_queries: how many of them, from the first on, the map is the mean of.
        finish: whole items in one program each where that fills the device, map included.
        arch, splits: override what the device and the shapes say.
    """
    batch, _, width = x.shape
    patches = v.shape[1]
    arch = architecture(v.device) if arch is None else arch
    masked = patch_mask is not None
    whole = grounding_variant(v.dtype, width, queries, key_norm_eps, True, arch, masked)
    query_blocks = triton.cdiv(queries, whole.constexprs["BLOCK_Q"])
    if splits is None:
        splits = multiprocessors(v.device) // (batch * query_blocks)
    splits = max(1, min(splits, triton.cdiv(patches, whole.constexprs["BLOCK_N"]), MAX_SPLITS))
    finish = finish and splits == query_blocks == 1
    x = x.contiguous()
    if v.stride(2) != 1:
        v = v.contiguous()
    mask, mask_strides = v, (0, 0)
    if masked:
        mask, mask_strides = patch_mask.view(torch.uint8), patch_mask.stride()
    device = {"device": v.device}
    logits = torch.empty(batch, queries, patches, dtype=torch.float32, **device)
    if finish:
        variant, stats = whole, None
        p = torch.empty(batch, queries, width, dtype=v.dtype, **device)
        grounding_map = torch.empty(batch, patches, dtype=torch.float32, **device)
    else:
        variant = grounding_variant(v.dtype, width, queries, key_norm_eps, False, arch, masked)
        p = torch.empty(batch, splits, queries, width, dtype=torch.float32, **device)
        stats = torch.empty(batch, splits, queries, 2, dtype=torch.float32, **device)
        grounding_map = None
    variant.launch(
        (batch * splits * query_blocks,), x, v, mask, p, logits if stats is None else stats, logits,
        logits if grounding_map is None else grounding_map, x.stride(0), v.stride(0), v.stride(1),
        *mask_strides, patches, queries, splits, x.shape[1], map_queries,
    )  # fmt: skip
    return Passed(p, grounding_map, stats, logits, splits)
