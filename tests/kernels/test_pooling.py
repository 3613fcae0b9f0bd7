"""The fused query head against its oracle in float64; the interpreter runs it without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import DEVICE
from torch import Tensor

from tigerfg.kernels import arrival, pooling
from tigerfg.kernels.pooling import (
    attention_pool_reference,
    embedding_head_reference,
    masked_mean_reference,
    pooled_embedding,
    pooled_embedding_reference,
    pooled_embedding_triton,
    variants,
)

# Elements of z are at most 1. float32: sums of some hundred terms at 6e-8 each. float16, bfloat16:
# sums are float32 too, but the normalised feature is rounded once for the projection, half an ulp
# of each term; an E of 48 and more averages that to far below one ulp of 1.
BOUND = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def make_case(
    batch: int,
    patches: int,
    width: int,
    *,
    embedding_dim: int = 48,
    kind: str = "mean",
    mask: str = "ragged",
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Random arguments of pooled_embedding: the tensors in order, and the options.

    Patches have an offset, channels have scales of their own, the query tells patches apart.
    """
    draw = torch.Generator().manual_seed(batch + patches + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    v = normal(batch, patches, width) * (1 + normal(width).abs()) + normal(width)
    masks = {
        "none": None,
        "full": torch.ones(batch, patches, dtype=torch.bool),
        "ragged": torch.rand(batch, patches, generator=draw) < torch.rand(batch, 1, generator=draw),
        "one": torch.arange(patches).expand(batch, -1) == patches - 1,
        "empty": torch.zeros(batch, patches, dtype=torch.bool),
    }
    tensors = [
        v.to(dtype),
        masks[mask],
        (1 + 0.5 * normal(width)).to(weight_dtype),
        normal(width).to(weight_dtype),
        (normal(embedding_dim, width) * width**-0.5).to(dtype),
        (4 * width**-0.5 * normal(width)).to(weight_dtype) if kind == "attention" else None,
    ]
    return [None if t is None else t.to(DEVICE) for t in tensors], {"kind": kind}


def oracle(tensors: list[Tensor | None], options: dict[str, Any]) -> Tensor:
    """The reference in float64 of the tensors as rounded to their dtypes."""
    exact = [t if t is None or t.dtype == torch.bool else t.double() for t in tensors]
    return pooled_embedding_reference(*exact, **options)


def largest_error(z: Tensor, expected: Tensor) -> float:
    assert z.dtype == torch.float32
    assert z.shape == expected.shape
    assert torch.isfinite(z).all()
    return (z.double() - expected).abs().max().item()


def check(tensors: list[Tensor | None], options: dict[str, Any], **launch: Any) -> Tensor:
    """The kernel's result, after holding it against the oracle."""
    z = pooled_embedding_triton(*tensors, **options, **launch)
    assert largest_error(z, oracle(tensors, options)) <= BOUND[tensors[0].dtype]
    return z


@pytest.mark.parametrize(
    ("batch", "patches", "width", "embedding_dim", "kind", "mask", "dtype"),
    [
        pytest.param(1, 1, 96, 16, "mean", "none", torch.float32, id="one-patch"),
        pytest.param(1, 1, 96, 16, "attention", "one", torch.float32, id="one-patch-attention"),
        pytest.param(2, 49, 160, 48, "attention", "ragged", torch.float16, id="49-d160"),
        pytest.param(17, 49, 192, 256, "mean", "ragged", torch.float32, id="two-groups"),
        pytest.param(17, 9, 96, 48, "attention", "ragged", torch.float32, id="two-groups-attn"),
        pytest.param(18, 5, 160, 48, "cls", "ragged", torch.float16, id="two-groups-cls"),
        pytest.param(7, 196, 384, 256, "mean", "ragged", torch.bfloat16, id="196-d384-bf16"),
        pytest.param(2, 196, 768, 256, "attention", "ragged", torch.bfloat16, id="196-attn-bf16"),
        pytest.param(2, 201, 768, 256, "mean", "full", torch.float16, id="201-d768"),
        pytest.param(2, 257, 1024, 512, "attention", "none", torch.float16, id="257-d1024-e512"),
        pytest.param(1, 576, 768, 256, "mean", "ragged", torch.float32, id="576-d768"),
        pytest.param(2, 576, 96, 48, "attention", "one", torch.float32, id="576-one-left"),
        pytest.param(2, 256, 1280, 256, "mean", "one", torch.float16, id="256-d1280-one-left"),
    ],
)
def test_matches_the_oracle(
    batch: int,
    patches: int,
    width: int,
    embedding_dim: int,
    kind: str,
    mask: str,
    dtype: torch.dtype,
) -> None:
    tensors, options = make_case(
        batch, patches, width, embedding_dim=embedding_dim, kind=kind, mask=mask, dtype=dtype
    )
    z = check(tensors, options)
    torch.testing.assert_close(z.norm(dim=1), torch.ones_like(z[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_is_no_worse_than_torch_in_the_same_dtype(kind: str, dtype: torch.dtype) -> None:
    tensors, options = make_case(3, 49, 384, embedding_dim=256, kind=kind, dtype=dtype)
    v, mask, norm_weight, norm_bias, projection, query = tensors
    if kind == "mean":
        pooled = masked_mean_reference(v, mask)
    else:
        pooled = attention_pool_reference(v, query.to(dtype), mask)
    eager = embedding_head_reference(pooled, norm_weight.to(dtype), norm_bias.to(dtype), projection)
    expected = oracle(tensors, options)
    error = largest_error(pooled_embedding_triton(*tensors, **options), expected)
    # A quarter more and two roundings of float32: the two round in different places.
    assert error <= 1.25 * largest_error(eager.float(), expected) + 2.0**-23


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_splits_agree_and_repeat_to_the_bit(kind: str) -> None:
    tensors, options = make_case(2, 43, 96, kind=kind)
    tensors[1][0, :20] = False  # an item whose first splits hold no valid patch
    alone = check(tensors, options, splits=1)
    for splits in (2, 5, 100):  # 100 is more than may be
        z = check(tensors, options, splits=splits)
        torch.testing.assert_close(z, alone, rtol=0, atol=3e-7)  # order of float32 sums
    assert torch.equal(z, pooled_embedding_triton(*tensors, **options, splits=splits))


@pytest.mark.parametrize("kind", ["mean", "attention", "cls"])
def test_reads_slices_in_place_and_other_layouts(kind: str) -> None:
    tensors, options = make_case(3, 20, 96, kind=kind)
    v = tensors[0]
    z = check(tensors, options)
    tokens = torch.full((3, 25, 96), torch.nan, device=DEVICE)
    tokens[:, 5:] = v
    patch_major = v.transpose(0, 1).contiguous().transpose(0, 1)
    channel_major = v.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (tokens[:, 5:], patch_major, channel_major):
        assert torch.equal(pooled_embedding_triton(view, *tensors[1:], **options), z)


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("splits", [1, 2])
def test_patches_outside_the_mask_do_not_count(kind: str, splits: int) -> None:
    tensors, options = make_case(2, 30, 96, kind=kind)
    tensors[1][:, 0] = True
    z = check(tensors, options, splits=splits)
    tensors[0][~tensors[1]] = torch.nan
    assert torch.equal(pooled_embedding_triton(*tensors, **options, splits=splits), z)


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("splits", [1, 2])
def test_an_item_without_valid_patches_pools_to_zeros(kind: str, splits: int) -> None:
    tensors, options = make_case(2, 20, 96, kind=kind, mask="empty")
    tensors[1][1, 3] = True
    check(tensors, options, splits=splits)
    tensors[3].zero_()  # then nothing is left of the empty item
    assert not check(tensors, options, splits=splits)[0].any()


def test_cls_takes_the_first_token_whatever_the_mask() -> None:
    tensors, options = make_case(2, 20, 96, kind="cls", mask="empty")
    z = check(tensors, options)
    tensors[0][:, 1:] = torch.nan
    assert torch.equal(pooled_embedding_triton(*tensors, **options), z)


@pytest.mark.parametrize("kind", ["mean", "attention", "cls"])
def test_large_float16_values_do_not_overflow(kind: str) -> None:
    tensors, options = make_case(2, 200, 160, kind=kind, dtype=torch.float16)
    tensors[0] = (1e4 * tensors[0].float().sign() + tensors[0].float()).half()
    check(tensors, options)


@pytest.mark.parametrize("splits", [1, 3])
def test_sharp_and_flat_attention(splits: int) -> None:
    tensors, options = make_case(3, 40, 160, kind="attention", mask="full")
    v, query = tensors[0], tensors[5]
    query *= 300  # logits of hundreds: one patch takes nearly all
    v[1] = v[1, :1]  # all patches alike
    v[2] = 3.0  # keys, and a feature, without variance
    z = pooled_embedding_triton(*tensors, **options, splits=splits)
    expected = oracle(tensors, options)
    assert largest_error(z[:2], expected[:2]) <= BOUND[torch.float32]
    # The head's norm multiplies what rounding leaves of that feature by 1 / sqrt(norm_eps).
    assert largest_error(z[2:], expected[2:]) <= 3.0 * 2.0**-23 * 1e3


def test_keys_with_a_large_offset() -> None:
    tensors, options = make_case(2, 40, 160, kind="attention")
    tensors[0] += 300.0  # E[x²] - μ² would lose the variance
    # v is rounded at 300, so that float32 holds a hundredth of the usual digits
    z = pooled_embedding_triton(*tensors, **options)
    assert largest_error(z, oracle(tensors, options)) <= 1e-4


def test_other_epsilons_reach_the_kernel() -> None:
    tensors, options = make_case(2, 20, 96, kind="attention")
    usual = pooled_embedding_triton(*tensors, **options)
    for name in ("key_norm_eps", "norm_eps"):
        z = check(tensors, {**options, name: 10.0})
        assert (z - usual).abs().max() > 1e-3


@pytest.mark.parametrize("weight_dtype", [torch.float16, torch.float32])
def test_weights_in_the_dtype_of_v_or_float32(weight_dtype: torch.dtype) -> None:
    tensors, options = make_case(
        2, 20, 96, kind="attention", dtype=torch.float16, weight_dtype=weight_dtype
    )
    tensors[4] = tensors[4].to(weight_dtype)
    check(tensors, options)


def test_counters_are_left_at_zero() -> None:
    tensors, options = make_case(17, 40, 96, kind="attention")
    for splits in (1, 3):
        check(tensors, options, splits=splits)
        assert not arrival.counters(tensors[0].device, 1).any()


def test_counters_are_kept_and_grow() -> None:
    device = torch.device(DEVICE, 0 if DEVICE == "cuda" else None)
    kept = arrival.counters(device, 5)
    assert arrival.counters(device, len(kept)) is kept
    grown = arrival.counters(device, len(kept) + 1)
    assert len(grown) > len(kept)
    assert not grown.any()


def test_splits_fill_the_device_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    recorded = SimpleNamespace(
        constexprs={"ROWS": 8}, launch=lambda grid, *arguments: launched.append(grid[0])
    )
    monkeypatch.setattr(pooling, "variant", lambda *args, **kwargs: recorded)
    monkeypatch.setattr(pooling.tuning, "multiprocessors", lambda device: 10)
    for batch, patches in ((1, 196), (1, 12), (3, 196), (8, 196), (20, 196), (100, 196)):
        tensors, options = make_case(batch, patches, 16)
        pooled_embedding_triton(*tensors, **options)
    assert launched == [8, 2, 18, 16, 20, 100]


def test_empty_batch() -> None:
    tensors, options = make_case(1, 20, 96, kind="attention")
    tensors[0], tensors[1] = tensors[0][:0], tensors[1][:0]
    assert pooled_embedding_triton(*tensors, **options).shape == (0, 48)
    assert pooled_embedding(*tensors, **options).shape == (0, 48)


V, MASK, NORM_WEIGHT, NORM_BIAS, PROJECTION, QUERY = range(6)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (V, torch.zeros(2, 96), "v: shape"),
        (V, torch.zeros(2, 0, 96), "v: shape"),
        (MASK, torch.ones(2, 4), "patch_mask: torch.float32"),
        (MASK, torch.ones(2, 5, dtype=torch.bool), "patch_mask: torch.bool"),
        (NORM_WEIGHT, torch.ones(95), "norm_weight: shape"),
        (NORM_BIAS, torch.ones(1, 96), "norm_bias: shape"),
        (PROJECTION, torch.ones(96, 48), "projection: shape"),
        (QUERY, torch.ones(95), "query: shape"),
        (QUERY, None, "query: kind"),
    ],
)
def test_wrong_arguments_are_named(position: int, value: Tensor | None, message: str) -> None:
    tensors, options = make_case(2, 4, 96, kind="attention")
    tensors[position] = value if value is None else value.to(DEVICE)
    for function in (pooled_embedding, pooled_embedding_triton):
        with pytest.raises(ValueError, match=message):
            function(*tensors, **options)


def test_wrong_kinds_are_named() -> None:
    tensors, _ = make_case(2, 4, 96, kind="attention")
    with pytest.raises(ValueError, match="kind: 'max'"):
        pooled_embedding(*tensors, kind="max")
    with pytest.raises(ValueError, match="query: kind"):
        pooled_embedding(*tensors, kind="mean")


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((2, 4, 100), {}, "v: width 100"),
        ((2, 4, 2064), {}, "v: width 2064"),
        ((2, 4, 96, 50), {}, "projection: embedding dimension 50"),
        ((2, 4, 96, 528), {}, "projection: embedding dimension 528"),
        ((2, 4, 96), {V: torch.float64}, "v: dtype torch.float64"),
        ((2, 4, 96), {PROJECTION: torch.float16}, "projection: dtype torch.float16"),
        ((2, 4, 96), {NORM_WEIGHT: torch.bfloat16}, "norm_weight: dtype torch.bfloat16"),
        ((2, 4, 96), {NORM_BIAS: torch.float16}, "norm_bias: dtype torch.float16"),
        ((2, 4, 96), {QUERY: torch.float16}, "query: dtype torch.float16"),
    ],
)
def test_what_the_kernel_does_not_take_runs_on_the_reference(
    shape: tuple[int, ...],
    changes: dict[int, torch.dtype],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors, options = make_case(*shape[:3], embedding_dim=(*shape, 48)[3], kind="attention")
    for position, dtype in changes.items():
        tensors[position] = tensors[position].to(dtype)
    with pytest.raises(ValueError, match=message):
        pooled_embedding_triton(*tensors, **options)
    reasons = []
    monkeypatch.setattr(pooling, "fused", lambda *_: True)  # as on a GPU
    monkeypatch.setattr(pooling, "served", lambda operator, reason: reasons.append(reason))
    z = pooled_embedding(*tensors, **options)
    assert [message in reason for reason in reasons] == [True]
    torch.testing.assert_close(z, pooled_embedding_reference(*tensors, **options), rtol=0, atol=0)


def test_gradients_go_through_the_reference() -> None:
    tensors, options = make_case(2, 4, 96, kind="attention")
    for position in (V, NORM_WEIGHT, NORM_BIAS, PROJECTION, QUERY):
        tensors[position].requires_grad_()
    pooled_embedding(*tensors, **options)[:, 0].sum().backward()
    assert all(t.grad.any() for t in tensors if t.requires_grad)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_custom_op(kind: str) -> None:
    tensors, options = make_case(2, 12, 96, kind=kind, dtype=torch.float16)
    torch.library.opcheck(torch.ops.tigerfg.pooled_embedding.default, tuple(tensors), options)


def test_attention_pool_reference_against_the_formula() -> None:
    tensors, _ = make_case(2, 6, 10, kind="attention")
    v, query = tensors[V].cpu().double(), tensors[QUERY].cpu().double()
    region = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    region[0, 2:4] = 0.0
    for weights in (None, region > 0.3, region):
        pooled = attention_pool_reference(v, query, weights, key_norm_eps=1e-3)
        for b in range(2):
            a = torch.zeros(6, dtype=torch.float64)
            for n in range(6):
                key = (v[b, n] - v[b, n].mean()) / (v[b, n].var(correction=0) + 1e-3).sqrt()
                w = 1.0 if weights is None else float(weights[b, n])
                a[n] = w * torch.exp(query @ key)
            torch.testing.assert_close(pooled[b], (a / a.sum()) @ v[b], rtol=0, atol=1e-12)
    assert not attention_pool_reference(v, query, torch.zeros(2, 6)).any()


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_variants_are_distinct_and_what_a_launch_uses(arch: int) -> None:
    shipped = variants(arch)
    assert len({variant.name for variant in shipped}) == len(shipped) == 3 * 3 * 4
    for variant in shipped:
        assert variant.constexprs["D"] % variant.constexprs["BLOCK_K"] == 0
        constexprs = set(variant.constexprs)
        assert [n for n in variant.kernel.arg_names if n not in constexprs] == [*variant.arguments]
    assert pooling.variant("mean", torch.float16, 768, 256, True, arch) in shipped
