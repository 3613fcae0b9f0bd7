"""The Triton kernel of `pooling.py`: patches to embeddings in one launch."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from tigerfg.kernels import tuning
from tigerfg.kernels.arrival import last_to_arrive
from tigerfg.kernels.variant import TRITON_TYPES, Variant, dot_options, triton_type

WIDTHS = (384, 768, 1024, 1280)  # ViT-S, B, L and H: what is compiled ahead of time
KINDS = ("mean", "attention", "cls")
GROUP = 16  # items that one program projects
MAX_SPLITS = 8  # programs that may share an item's patches

LOWEST = tl.constexpr(-1e30)  # below every logit, and finite: differences of two are no NaN
NORM_FLOOR = tl.constexpr(1e-6)  # of the L2 norm, as in embedding_head_reference


@triton.jit
def _pool_rows(
    v_ptr, mask_ptr, query_ptr, start, stop, stride_n,
    ATTENTION: tl.constexpr, MASKED: tl.constexpr, KEY_EPS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Σ w_n v_n over the patches [start, stop) of an item, as chunks [BLOCK_D], with Σ w_n.

    w_n = 1, or exp(logit_n - peak) for attention. Every lane of the row tile keeps its own sums
    and, for attention, its own peak, so that nothing crosses lanes before the end of the loop.
    Rows that the mask leaves out are not read.
    """
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    d = tl.arange(0, BLOCK_D)
    lanes = tl.arange(0, ROWS)
    sums = ()
    queries = ()
    for c in tl.static_range(CHUNKS):
        sums += (tl.zeros([ROWS, BLOCK_D], tl.float32),)
        if ATTENTION:
            query = tl.load(query_ptr + c * BLOCK_D + d, mask=c * BLOCK_D + d < D, other=0.0)
            queries += (query.to(tl.float32),)
    peaks = tl.full([ROWS], LOWEST, tl.float32)
    totals = tl.zeros([ROWS], tl.float32)
    for first in tl.range(start, stop, ROWS, num_stages=STAGES):
        n = first + lanes
        n_ok = n < stop
        if MASKED:
            n_ok = n_ok & (tl.load(mask_ptr + n, mask=n_ok, other=0) != 0)
        row_ptr = v_ptr + n.to(tl.int64) * stride_n
        rows = ()
        for c in tl.static_range(CHUNKS):
            ok = n_ok[:, None] & (c * BLOCK_D + d < D)[None, :]
            pointers = row_ptr[:, None] + (c * BLOCK_D + d)[None, :]
            rows += (tl.load(pointers, mask=ok, other=0.0),)  # [ROWS, BLOCK_D]
        weights = n_ok.to(tl.float32)
        scale = tl.full([ROWS], 1.0, tl.float32)
        if ATTENTION:
            row_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for c in tl.static_range(CHUNKS):
                row_sum += rows[c].to(tl.float32)
            mean = tl.sum(row_sum, 1) / D
            squares = tl.zeros([ROWS, BLOCK_D], tl.float32)
            products = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for c in tl.static_range(CHUNKS):
                centred = rows[c].to(tl.float32) - mean[:, None]
                centred = tl.where((c * BLOCK_D + d < D)[None, :], centred, 0.0)
                squares += centred * centred
                products += centred * queries[c][None, :]
            logits = tl.sum(products, 1) * tl.rsqrt(tl.sum(squares, 1) / D + KEY_EPS)
            logits = tl.where(n_ok, logits, LOWEST)
            higher = tl.maximum(peaks, logits)
            scale = tl.exp(peaks - higher)
            weights = tl.where(n_ok, tl.exp(logits - higher), 0.0)
            peaks = higher
        totals = totals * scale + weights
        added = ()
        for c in tl.static_range(CHUNKS):
            if ATTENTION:
                new = sums[c] * scale[:, None] + rows[c].to(tl.float32) * weights[:, None]
            else:
                new = sums[c] + rows[c].to(tl.float32)
            added += (new,)
        sums = added
    peak = tl.max(peaks, 0)
    lane_weights = tl.exp(peaks - peak)
    pooled = ()
    for c in tl.static_range(CHUNKS):
        pooled += (tl.sum(sums[c] * lane_weights[:, None], 0),)
    return pooled, tl.sum(totals * lane_weights, 0), peak


@triton.jit
def _store_part(
    partial_ptr, stats_ptr, part, pooled, total, peak, D: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Leave what one program pooled for the last program of its item."""
    d = tl.arange(0, BLOCK_D)
    for c in tl.static_range(len(pooled)):
        columns = c * BLOCK_D + d
        tl.store(partial_ptr + part * D + columns, pooled[c], mask=columns < D)
    tl.store(stats_ptr + part * 2, total)
    tl.store(stats_ptr + part * 2 + 1, peak)


@triton.jit
def _add_parts(
    partial_ptr, stats_ptr, first, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """An item's parts brought to one peak and added up: its pooled chunks and their total."""
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    d = tl.arange(0, BLOCK_D)
    s = tl.arange(0, MAX_SPLITS)
    s_ok = s < splits
    stat_ptr = stats_ptr + (first + s) * 2
    totals = tl.load(stat_ptr, mask=s_ok, other=0.0, cache_modifier=".cg")
    peaks = tl.load(stat_ptr + 1, mask=s_ok, other=LOWEST, cache_modifier=".cg")
    parts = ()  # all loads before the first sum, which makes the threads wait for each other
    for c in tl.static_range(CHUNKS):
        columns = c * BLOCK_D + d
        pointers = partial_ptr + (first + s)[:, None] * D + columns[None, :]
        ok = s_ok[:, None] & (columns < D)[None, :]
        part = tl.load(pointers, mask=ok, other=0.0, cache_modifier=".cg")
        parts += (part,)  # [MAX_SPLITS, BLOCK_D]
    weights = tl.exp(peaks - tl.max(peaks, 0))
    pooled = ()
    for c in tl.static_range(CHUNKS):
        pooled += (tl.sum(parts[c] * weights[:, None], 0),)
    return pooled, tl.sum(totals * weights, 0)


@triton.jit
def _store_normed(
    normed_ptr, norm_weight_ptr, norm_bias_ptr, pooled, total,
    NORM_EPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store LN(pooled / total) in the dtype of the projection's dot; no valid patch: LN(0)."""
    CHUNKS: tl.constexpr = len(pooled)
    d = tl.arange(0, BLOCK_D)
    inverse = 1.0 / tl.where(total > 0.0, total, 1.0)
    feature_sum = tl.zeros([BLOCK_D], tl.float32)
    for c in tl.static_range(CHUNKS):
        feature_sum += pooled[c]
    mean = tl.sum(feature_sum, 0) * inverse / D
    squares = tl.zeros([BLOCK_D], tl.float32)
    for c in tl.static_range(CHUNKS):
        centred = tl.where(c * BLOCK_D + d < D, pooled[c] * inverse - mean, 0.0)
        squares += centred * centred
    scale = tl.rsqrt(tl.sum(squares, 0) / D + NORM_EPS)
    for c in tl.static_range(CHUNKS):
        columns = c * BLOCK_D + d
        ok = columns < D
        gamma = tl.load(norm_weight_ptr + columns, mask=ok, other=0.0).to(tl.float32)
        beta = tl.load(norm_bias_ptr + columns, mask=ok, other=0.0).to(tl.float32)
        x = (pooled[c] * inverse - mean) * scale * gamma + beta
        tl.store(normed_ptr + columns, x.to(normed_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _project(
    normed_ptr, projection_ptr, z_ptr, group, batch, width,
    E: tl.constexpr, GROUP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """z = l2norm(W_e · x) of a group's items. E lies on the dot's M axis, which is never small."""
    e = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    items = group * GROUP + tl.arange(0, GROUP)
    w_ptr = projection_ptr + e[:, None] * width + k[None, :]
    x_ptr = normed_ptr + items[:, None] * width + k[None, :]
    e_ok = (e < E)[:, None]
    items_ok = (items < batch)[:, None]
    acc = tl.zeros([BLOCK_E, GROUP], tl.float32)
    for first in tl.range(0, width, BLOCK_K):
        w = tl.load(w_ptr + first, mask=e_ok, other=0.0)  # [BLOCK_E, BLOCK_K]
        x = tl.load(x_ptr + first, mask=items_ok, other=0.0, cache_modifier=".cg")
        w = w.to(x.dtype)
        if UPCAST:
            w = w.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
    norm = tl.maximum(tl.sqrt(tl.sum(acc * acc, 0)), NORM_FLOOR)
    z = tl.trans(acc / norm[None, :])  # [GROUP, BLOCK_E]
    z_ok = items_ok & (e < E)[None, :]
    tl.store(z_ptr + items[:, None] * E + e[None, :], z, mask=z_ok)


@triton.jit(do_not_specialize=["batch", "patches", "splits"])
def pooled_embedding_kernel(
    v_ptr, mask_ptr, query_ptr, norm_weight_ptr, norm_bias_ptr, projection_ptr, z_ptr,
    partial_ptr, stats_ptr, normed_ptr, counters_ptr,
    batch, patches, splits, width, stride_b, stride_n,
    ATTENTION: tl.constexpr, MASKED: tl.constexpr, KEY_EPS: tl.constexpr, NORM_EPS: tl.constexpr,
    D: tl.constexpr, E: tl.constexpr, GROUP: tl.constexpr, MAX_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """z = l2norm(W_e · LN(pool(V))): `splits` programs an item, three steps.

    1. Each program pools its rows of V; with several, all leave partial sums in memory and
       the last of the item adds them up.
    2. That program normalises the pooled feature.
    3. The last program of GROUP items projects all of them.

    The programs of a group follow each other, so that its projection runs beside the pooling of
    later groups. mask_ptr is (batch, patches) without gaps; it is not read unless MASKED, nor is
    query_ptr unless ATTENTION, nor are partial_ptr (batch, splits, D) and stats_ptr
    (batch, splits, 2) with one split. normed_ptr is (batch, D), counters_ptr
    (batch + ceil(batch / GROUP)) holds zeros before and after. width is D at run time: a loop to a
    constant is unrolled by ptxas into 10-20 kB of instructions, each fetched to run once.
    """
    program = tl.program_id(0)
    item = (program // splits).to(tl.int64)
    split = program % splits
    share = tl.cdiv(tl.cdiv(patches, splits), ROWS) * ROWS
    start = tl.minimum(split * share, patches)
    stop = tl.minimum(start + share, patches)
    pooled, total, peak = _pool_rows(
        v_ptr + item * stride_b, mask_ptr + item * patches, query_ptr, start, stop, stride_n,
        ATTENTION, MASKED, KEY_EPS, D, BLOCK_D, ROWS, STAGES,
    )  # fmt: skip
    complete = splits == 1
    if splits > 1:
        first = item * splits
        _store_part(partial_ptr, stats_ptr, first + split, pooled, total, peak, D, BLOCK_D)
        complete = last_to_arrive(counters_ptr + item, splits)
        if complete:
            pooled, total = _add_parts(
                partial_ptr, stats_ptr, first, splits, D, BLOCK_D, MAX_SPLITS
            )
    if complete:
        _store_normed(
            normed_ptr + item * D, norm_weight_ptr, norm_bias_ptr, pooled, total,
            NORM_EPS, D, BLOCK_D,
        )  # fmt: skip
        group = item // GROUP
        members = tl.minimum(batch - group * GROUP, GROUP)
        if last_to_arrive(counters_ptr + batch + group, members):
            _project(
                normed_ptr, projection_ptr, z_ptr, group, batch, width,
                E, GROUP, BLOCK_E, BLOCK_K, PRECISION, UPCAST,
            )  # fmt: skip


@functools.cache
def variant(
    kind: str,
    dtype: torch.dtype,
    width: int,
    embedding_dim: int,
    masked: bool,
    arch: int,
    *,
    norm_dtype: torch.dtype = torch.float32,
    projection_dtype: torch.dtype | None = None,
    key_norm_eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> Variant:
    """The kernel for a kind of pooling, a dtype of V, widths and an architecture.

    The query, norm_weight and norm_bias have norm_dtype, the projection has projection_dtype (by
    default that of V). "cls" is the mean without a mask, launched with patches = 1.
    """
    element = triton_type(dtype, "v")
    norm = "*" + triton_type(norm_dtype, "norm_weight")
    block_e = max(64, triton.next_power_of_2(embedding_dim))  # 64: the least M of Hopper's MMA
    widest = max(dtype.itemsize, (projection_dtype or dtype).itemsize)  # tiles of either are shared
    use = tuning.launch_parameters(
        "pooling", arch, bytes=widest, width=width, embedding_dim=block_e
    )
    arguments = {
        "v_ptr": f"*{element}",
        "mask_ptr": "*i8",
        "query_ptr": norm,
        "norm_weight_ptr": norm,
        "norm_bias_ptr": norm,
        "projection_ptr": "*" + triton_type(projection_dtype or dtype, "projection"),
        "z_ptr": "*fp32",
        "partial_ptr": "*fp32",
        "stats_ptr": "*fp32",
        "normed_ptr": f"*{element}",
        "counters_ptr": "*i32",
        "batch": "i32",
        "patches": "i32",
        "splits": "i32",
        "width": "i32",
        "stride_b": "i64",
        "stride_n": "i64",
    }
    constexprs = {
        "ATTENTION": kind == "attention",
        "MASKED": masked,
        "KEY_EPS": key_norm_eps,
        "NORM_EPS": norm_eps,
        "D": width,
        "E": embedding_dim,
        "GROUP": GROUP,
        "MAX_SPLITS": MAX_SPLITS,
        "BLOCK_D": use["BLOCK_D"],
        "BLOCK_E": block_e,
        # No mask in the dot's K tiles: a power of two that divides the width.
        "BLOCK_K": min(use["BLOCK_K"], width & -width),
        "ROWS": use["ROWS"],
        "STAGES": use["STAGES"],
        **dot_options(dtype),
    }
    unaligned = {"mask_ptr", "batch", "patches", "splits"}
    masked_name = "_masked" if masked else ""
    return Variant(
        name=f"pooled_embedding_{kind}{masked_name}_{element}_d{width}_e{embedding_dim}",
        kernel=pooled_embedding_kernel,
        arguments=arguments,
        constexprs=constexprs,
        aligned=frozenset(arguments) - unaligned,
        grid=("batch * splits",),
        num_warps=use["num_warps"],
        num_stages=use["num_stages"],
    )


def variants(arch: int) -> list[Variant]:
    """What is compiled ahead of time: norm weights and query in float32, the projection as V."""
    return [
        variant(kind, dtype, width, 256, kind != "cls", arch)
        for kind in KINDS
        for dtype in TRITON_TYPES
        for width in WIDTHS
    ]
