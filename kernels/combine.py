"""Joining what several programs found in their parts of an item's patches.

Splitting the patches of one item and joining the softmaxes is flash-decoding (Dao et al. 2023);
splits are always joined in their order, so that the result does not depend on the schedule.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from tigerfg.kernels.variant import Variant, triton_type

MAX_SPLITS = 16


@triton.jit
def split_shares(stats_ptr, item, q, queries, splits, BLOCK_S: tl.constexpr):
    """What each split of (item, q) weighs [BLOCK_S], and how its logits become the map.

    a_n = share · 2^(logit_n - base); without a valid patch every weight is 0.
    """
    split = tl.arange(0, BLOCK_S)
    rows = stats_ptr + ((item * splits + split) * queries + q) * 2
    tops = tl.load(rows, mask=split < splits, other=float("-inf"))
    totals = tl.load(rows + 1, mask=split < splits, other=0.0)
    top = tl.max(tops, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = totals * tl.exp2(tops - base)
    total = tl.sum(mass, 0)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    return mass * share, base, share


@triton.jit(do_not_specialize=["patches", "queries", "splits"])
def grounding_combine_kernel(
    parts_ptr,
    stats_ptr,
    logits_ptr,
    p_ptr,
    map_ptr,
    patches,
    queries,
    splits,
    D: tl.constexpr,
    PER_QUERY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Joins the splits in their order: one program a query of an item, then some for its map.

    PER_QUERY: the maps replace their logits; else the mean over queries goes to map_ptr.
    """
    item = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if part < queries:
        weights, _base, _share = split_shares(stats_ptr, item, part, queries, splits, BLOCK_S)
        split = tl.arange(0, BLOCK_S)
        rows = ((item * splits + split) * queries + part) * D
        for c in tl.static_range(D // BLOCK_D):
            d = c * BLOCK_D + tl.arange(0, BLOCK_D)
            p = tl.load(
                parts_ptr + rows[:, None] + d[None, :], mask=(split < splits)[:, None], other=0.0
            )  # [BS, BD]
            p = tl.sum(p * weights[:, None], 0)
            tl.store(p_ptr + (item * queries + part) * D + d, p.to(p_ptr.dtype.element_ty))
    else:
        write_map(
            stats_ptr, logits_ptr, map_ptr, item, part - queries, patches, queries, splits,
            queries, PER_QUERY, BLOCK_S, BLOCK_N,
        )  # fmt: skip


@triton.jit
def write_map(
    stats_ptr,
    logits_ptr,
    map_ptr,
    item,
    block,
    patches,
    queries,
    splits,
    map_queries,
    PER_QUERY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The map of one block of an item's patches, from logits and the statistics of the splits."""
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for q in tl.range(0, map_queries):
        _, base, share = split_shares(stats_ptr, item, q, queries, splits, BLOCK_S)
        s_row = logits_ptr + (item * queries + q) * patches + n
        a = tl.exp2(tl.load(s_row, mask=n < patches, other=float("-inf")) - base) * share
        if PER_QUERY:
            tl.store(s_row, a, mask=n < patches)
        total += a
    if not PER_QUERY:
        tl.store(map_ptr + item * patches + n, total / map_queries, mask=n < patches)


def chunk_width(width: int, at_most: int) -> int:
    """The largest power of two that divides the width, and at most `at_most`."""
    return min(width & -width, at_most)


@functools.cache
def combine_variant(dtype: torch.dtype, width: int, per_query: bool) -> Variant:
    """The joining of splits for one dtype and width, the same for every architecture."""
    name = triton_type(dtype, "v")
    pointers = {
        "parts_ptr": "*fp32",
        "stats_ptr": "*fp32",
        "logits_ptr": "*fp32",
        "p_ptr": f"*{name}",
        "map_ptr": "*fp32",
    }
    numbers = ("patches", "queries", "splits")
    return Variant(
        name=f"grounding_combine_{name}_d{width}{'_maps' if per_query else ''}",
        kernel=grounding_combine_kernel,
        arguments={**pointers, **dict.fromkeys(numbers, "i32")},
        constexprs={
            "D": width,
            "PER_QUERY": per_query,
            "BLOCK_S": MAX_SPLITS,
            "BLOCK_N": 256,
            "BLOCK_D": chunk_width(width, 256),
        },
        aligned=frozenset(pointers),
        grid=("batch", "queries + cdiv(patches, 256)"),
        num_warps=2,
        num_stages=1,
    )
