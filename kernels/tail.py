"""Everything after the pooling of an item, up to its embedding, in one launch: the kernel.

Counted at D=768, H=12, E=256 in float16: after the pooling an item needs 2.8 MFLOP with 2.75 MB of
weights (W_v and W_o 1.18 MB each, W_e 0.39 MB), but only 18 kB of its own. In the launch that reads
V (301 kB an item) each program would fetch all weights for its one item, nine times the bytes of V.
So a second launch takes 16 items at a time, which divides that by 16, and one program per head,
which spreads W_v and W_o over H programs; the last of them to finish adds up the heads and goes on
to LayerNorm, W_e and the norm.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tigerfg.kernels.arrival import last_to_arrive
from tigerfg.kernels.attend import WIDTHS, unserved
from tigerfg.kernels.combine import MAX_SPLITS, chunk_width, write_map
from tigerfg.kernels.tuning import launch_parameters
from tigerfg.kernels.variant import Variant, dot_options, triton_type

MAP_BLOCK = 256  # patches of one program that writes a map
MAX_HEAD, MAX_EMBEDDING = 128, 256  # what fits a multiprocessor of 100 kB


class TailWeights(NamedTuple):
    """The weights after the pooling, in the dtype of the patch features.

    w_v, w_o (D, D): value (head by head) and output projection; gate_pool, gate_text (D,);
    norm_weight, norm_bias (D,): LayerNorm; projection (E, D).
    """

    w_v: Tensor
    w_o: Tensor
    gate_pool: Tensor
    gate_text: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    projection: Tensor


@triton.jit
def pooled_rows(
    p_ptr, stats_ptr, items, items_ok, q, d, queries, splits,
    D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Query q's pooled patches of some items, splits joined: float32 [BLOCK_D, BLOCK_I]."""
    if SPLIT:
        split = tl.arange(0, BLOCK_S)
        rows = ((items[None, :] * splits + split[:, None]) * queries + q) * 2  # [BS, BI]
        ok = (split < splits)[:, None] & items_ok[None, :]
        tops = tl.load(stats_ptr + rows, mask=ok, other=float("-inf"))
        totals = tl.load(stats_ptr + rows + 1, mask=ok, other=0.0)
        top = tl.max(tops, 0)
        base = tl.where(top == float("-inf"), 0.0, top)
        mass = totals * tl.exp2(tops - base[None, :])
        total = tl.sum(mass, 0)
        shares = mass / tl.where(total > 0.0, total, 1.0)[None, :]
        p = tl.zeros([d.shape[0], items.shape[0]], tl.float32)
        for s in tl.range(0, splits):
            share = tl.sum(tl.where((split == s)[:, None], shares, 0.0), 0)  # [BI]
            tile = p_ptr + ((items * splits + s) * queries + q)[None, :] * D + d[:, None]
            p += share[None, :] * tl.load(tile, mask=items_ok[None, :], other=0.0)
        return p
    else:
        tile = p_ptr + (items * queries + q)[None, :] * D + d[:, None]
        return tl.load(tile, mask=items_ok[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["batch", "patches", "queries", "splits", "heads", "per_head"])
def tail_kernel(
    p_ptr,
    stats_ptr,
    logits_ptr,
    text_ptr,
    w_v_ptr,
    w_o_ptr,
    gate_pool_ptr,
    gate_text_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    projection_ptr,
    sums_ptr,
    counters_ptr,
    z_ptr,
    map_ptr,
    batch,
    patches,
    queries,
    splits,
    heads,
    per_head,
    D: tl.constexpr,
    E: tl.constexpr,
    HEAD: tl.constexpr,
    NORM_EPS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """From pooled patches to embeddings: one program per block of items and head.

    Weights are the long M axis of every product and the items its N axis. SPLIT: the pooled
    patches come as splits to be joined, and further programs write the maps.
    """
    pid = tl.program_id(0)
    head_programs = tl.cdiv(batch, BLOCK_I) * heads
    if pid < head_programs:
        block = (pid // heads).to(tl.int64)
        head = pid % heads
        lane = tl.arange(0, BLOCK_I)
        items = block * BLOCK_I + lane
        items_ok = items < batch
        h = tl.arange(0, BLOCK_H)
        sums = sums_ptr + block * (heads + 1) * D * BLOCK_I + lane[None, :]

        c = tl.zeros([BLOCK_H, BLOCK_I], tl.float32)
        for start in tl.range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            p = tl.zeros([BLOCK_D, BLOCK_I], tl.float32)
            for m in tl.range(0, per_head):
                q = head * per_head + m
                p += pooled_rows(
                    p_ptr, stats_ptr, items, items_ok, q, d, queries, splits, D, SPLIT, BLOCK_S
                )
            w_v = tl.load(
                w_v_ptr + (head * HEAD + h)[:, None] * D + d[None, :],
                mask=(h < HEAD)[:, None],
                other=0.0,
            )  # [BH, BD]
            if UPCAST:
                w_v = w_v.to(tl.float32)
            c = tl.dot(w_v, (p / per_head).to(w_v.dtype), c, input_precision=PRECISION)
        # float16 would overflow above 65,504: W_o sees values of at most 1, by a power of two
        peak = tl.max(tl.abs(c), 0)
        size = tl.exp2(tl.ceil(tl.log2(tl.maximum(peak, 1e-30))))[None, :]
        c /= size
        for start in tl.range(0, D, BLOCK_D):
            d_out = start + tl.arange(0, BLOCK_D)
            w_o = tl.load(
                w_o_ptr + d_out[:, None] * D + (head * HEAD + h)[None, :],
                mask=(h < HEAD)[None, :],
                other=0.0,
            )  # [BD, BH]
            if UPCAST:
                w_o = w_o.to(tl.float32)
            g = tl.dot(w_o, c.to(w_o.dtype), input_precision=PRECISION)  # [BD, BI]
            tl.store(sums + (head * D + d_out)[:, None] * BLOCK_I, g * size)

        if last_to_arrive(counters_ptr + block, heads):
            mean = tl.zeros([BLOCK_I], tl.float32)
            squares = tl.zeros([BLOCK_I], tl.float32)
            for start in tl.range(0, D, BLOCK_D):
                d_sum = start + tl.arange(0, BLOCK_D)
                u = tl.zeros([BLOCK_D, BLOCK_I], tl.float32)
                for k in tl.range(0, heads):
                    u += tl.load(sums + (k * D + d_sum)[:, None] * BLOCK_I, cache_modifier=".cg")
                pooled = pooled_rows(
                    p_ptr, stats_ptr, items, items_ok, queries - 1, d_sum, queries, splits, D,
                    SPLIT, BLOCK_S,
                )  # fmt: skip
                text = tl.load(
                    text_ptr + items[None, :] * D + d_sum[:, None],
                    mask=items_ok[None, :],
                    other=0.0,
                )
                u += tl.load(gate_pool_ptr + d_sum).to(tl.float32)[:, None] * pooled
                u += tl.load(gate_text_ptr + d_sum).to(tl.float32)[:, None] * text.to(tl.float32)
                tl.store(sums + (heads * D + d_sum)[:, None] * BLOCK_I, u)
                done = start * 1.0  # channels so far; moments merged (Chan et al. 1979)
                part = tl.sum(u, 0) / BLOCK_D
                delta = part - mean
                u -= part[None, :]
                squares += tl.sum(u * u, 0) + delta * delta * (BLOCK_D * done / (done + BLOCK_D))
                mean += delta * (BLOCK_D / (done + BLOCK_D))
            scale = tl.rsqrt(squares / D + NORM_EPS)
            tl.debug_barrier()  # u was stored by other threads of this program
            e = tl.arange(0, BLOCK_E)
            z = tl.zeros([BLOCK_E, BLOCK_I], tl.float32)
            for start in tl.range(0, D, BLOCK_D):
                d_in = start + tl.arange(0, BLOCK_D)
                y = tl.load(sums + (heads * D + d_in)[:, None] * BLOCK_I, cache_modifier=".cg")
                gamma = tl.load(norm_weight_ptr + d_in).to(tl.float32)
                beta = tl.load(norm_bias_ptr + d_in).to(tl.float32)
                y = (y - mean[None, :]) * scale[None, :] * gamma[:, None] + beta[:, None]
                w_e = tl.load(
                    projection_ptr + e[:, None] * D + d_in[None, :],
                    mask=(e < E)[:, None],
                    other=0.0,
                )  # [BE, BD]
                if UPCAST:
                    w_e = w_e.to(tl.float32)
                z = tl.dot(w_e, y.to(w_e.dtype), z, input_precision=PRECISION)
            z /= tl.maximum(tl.sqrt(tl.sum(z * z, 0)), 1e-6)[None, :]
            tl.store(
                z_ptr + items[None, :] * E + e[:, None],
                z,
                mask=(e < E)[:, None] & items_ok[None, :],
            )
    elif SPLIT:
        map_blocks = tl.cdiv(patches, BLOCK_N)
        item = ((pid - head_programs) // map_blocks).to(tl.int64)
        write_map(
            stats_ptr, logits_ptr, map_ptr, item, (pid - head_programs) % map_blocks, patches,
            queries, splits, heads * per_head, False, BLOCK_S, BLOCK_N,
        )  # fmt: skip


@torch.compiler.assume_constant_result
def tail_unserved(
    dtype: torch.dtype, width: int, head_width: int, embedding_dim: int, arch: int
) -> str | None:
    """Why the two launches do not take an item tower of this kind; None where they do."""
    reason = unserved(dtype, width, arch)
    if reason is None and (head_width > MAX_HEAD or embedding_dim > MAX_EMBEDDING):
        reason = (
            f"heads of {head_width} channels and {embedding_dim} dimensions; the kernels take "
            f"{MAX_HEAD} and {MAX_EMBEDDING}"
        )
    return reason


@functools.cache
def tail_variant(
    dtype: torch.dtype,
    width: int,
    head_width: int,
    embedding_dim: int,
    norm_eps: float,
    split: bool,
    arch: int,
) -> Variant:
    """The second launch for one dtype and width; `split`: after a pass that was split."""
    name = triton_type(dtype, "v")
    use = launch_parameters("tail", arch, bytes=dtype.itemsize, width=width)
    pointers = {
        "p_ptr": "*fp32" if split else f"*{name}",
        "stats_ptr": "*fp32",
        "logits_ptr": "*fp32",
        "text_ptr": f"*{name}",
        **{f"{field}_ptr": f"*{name}" for field in TailWeights._fields},
        "sums_ptr": "*fp32",
        "counters_ptr": "*i32",
        "z_ptr": "*fp32",
        "map_ptr": "*fp32",
    }
    numbers = ("batch", "patches", "queries", "splits", "heads", "per_head")
    head_programs = f"cdiv(batch, {use['BLOCK_I']}) * heads"
    maps = f" + batch * cdiv(patches, {MAP_BLOCK})"
    return Variant(
        name=f"tail_{'split' if split else 'whole'}_{name}_d{width}_h{head_width}_e{embedding_dim}",
        kernel=tail_kernel,
        arguments={**pointers, **dict.fromkeys(numbers, "i32")},
        constexprs={
            "D": width,
            "E": embedding_dim,
            "HEAD": head_width,
            "NORM_EPS": norm_eps,
            "SPLIT": split,
            "BLOCK_I": use["BLOCK_I"],
            "BLOCK_D": chunk_width(width, use["BLOCK_D"]),
            "BLOCK_H": max(16, triton.next_power_of_2(head_width)),
            "BLOCK_E": max(16, triton.next_power_of_2(embedding_dim)),
            "BLOCK_S": MAX_SPLITS,
            "BLOCK_N": MAP_BLOCK,
            **dot_options(dtype),
        },
        aligned=frozenset(pointers),
        grid=(head_programs + maps if split else head_programs,),
        num_warps=use["num_warps"],
        num_stages=use["num_stages"],
    )


def variants(arch: int) -> list[Variant]:
    """What is compiled ahead of time: every dtype at the usual widths, heads of 64, 256 out."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return [
        tail_variant(dtype, width, 64, 256, 1e-6, split, arch)
        for dtype in dtypes
        for width in WIDTHS
        for split in (False, True)
        if not unserved(dtype, width, arch)
    ]
