"""The item tower's two launches, from patches to embedding, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from launching import table
from torch import Tensor

from tigerfg.kernels import TailWeights, grounded_embedding, grounded_embedding_reference
from tigerfg.kernels.arrival import counters
from tigerfg.kernels.embedding import grounded_embedding_triton
from tigerfg.kernels.tail import tail_unserved

#    batch, heads, queries a head, patches, width, E, dtype, pool, splits, arch
CASES = [
    (1, 3, 1, 49, 192, 256, torch.float16, "mean", 1, 90),
    (2, 5, 1, 65, 160, 256, torch.float32, "mean", 2, 80),  # the shipped tiny model's width
    (18, 2, 1, 5, 96, 48, torch.float32, "attention", 1, 90),  # two blocks of items; d = 48
    (3, 2, 3, 30, 96, 16, torch.bfloat16, "attention", 2, 80),
    (2, 4, 5, 30, 96, 80, torch.float16, "mean", 1, 80),  # more queries than one block
    (1, 12, 1, 100, 768, 256, torch.float16, "mean", 2, 90),
]


def make(case: tuple, device: str) -> tuple[tuple, dict]:
    """Arguments of the launcher; the first item of several has no valid patch."""
    batch, heads, per_head, patches, width, embedding_dim, dtype, pool, _, _ = case
    generator = torch.Generator().manual_seed(width * 7 + patches)

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return (mean + std * torch.randn(*shape, generator=generator)).to(device, dtype)

    weights = TailWeights(
        w_v=normal(width, width, std=width**-0.5),
        w_o=normal(width, width, std=width**-0.5),
        gate_pool=normal(width, std=0.5),
        gate_text=normal(width, std=0.5),
        norm_weight=normal(width, std=0.3, mean=1.0),
        norm_bias=normal(width, std=0.3),
        projection=normal(embedding_dim, width, std=width**-0.5),
    )
    mask = torch.rand(batch, patches, generator=generator) < 0.7
    mask[0] = batch == 1
    x, v = normal(batch, heads * per_head, width, std=0.3), normal(batch, patches, width, mean=0.5)
    query = normal(width, std=0.2) if pool == "attention" else None
    text = normal(batch, width)
    return (x, v, mask.to(device), text, weights, heads), {"pool_query": query}


def oracle(arguments: tuple, options: dict) -> tuple[Tensor, Tensor]:
    x, v, mask, text, weights, heads = arguments
    query = options["pool_query"]
    query = None if query is None else query.double()
    return grounded_embedding_reference(
        x.double(),
        v.double(),
        mask,
        text.double(),
        TailWeights(*(weight.double() for weight in weights)),
        heads,
        **{**options, "pool_query": query},
    )


def identify(case: tuple) -> str:
    batch, heads, per_head, patches, width, embedding_dim, dtype, pool, splits, arch = case
    name = str(dtype).removeprefix("torch.")
    return (
        f"b{batch}-h{heads}x{per_head}-n{patches}-d{width}-e{embedding_dim}-{name}-{pool}"
        f"-s{splits}-sm{arch}"
    )


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_kernels_are_the_oracle(case, device):
    arguments, options = make(case, device)
    *_, dtype, _, splits, arch = case
    z, grounding_map = grounded_embedding_triton(
        *arguments, **options, splits=splits, arch=table(arch)
    )
    expected_z, expected_map = oracle(arguments, options)
    # An embedding's components are below 1. What is rounded to the dtype on the way (pooled
    # patches, values, normed features) are order 1, half an eps each, and averages out over the
    # width in the next product; float32 sums of a few hundred terms are below 2e-6.
    bound = torch.finfo(dtype).eps if dtype != torch.float32 else 2e-6
    torch.testing.assert_close(z.double(), expected_z, rtol=0, atol=bound)
    torch.testing.assert_close(grounding_map.double(), expected_map, rtol=0, atol=4e-6)
    norms = z.double().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
    assert not counters(z.device, 1).any(), "the counters must be zero for the next launch"


@pytest.mark.parametrize("eps", [None, 1.0])
def test_the_key_norm_is_of_all_queries(eps, device):
    """The pool's query sees the keys as the others do."""
    arguments, options = make(CASES[2], device)
    options["key_norm_eps"] = eps
    z, grounding_map = grounded_embedding_triton(*arguments, **options)
    expected_z, expected_map = oracle(arguments, options)
    # as above; raw keys give logits of some 20, whose rounding the map multiplies
    torch.testing.assert_close(z.double(), expected_z, rtol=0, atol=4e-6)
    torch.testing.assert_close(grounding_map.double(), expected_map, rtol=0, atol=4e-6)


def test_float16_values_up_to_ten_thousand(device):
    """Value projections beyond float16's 65,504 on the way do not overflow."""
    (x, v, mask, text, weights, heads), options = make(CASES[0], device)
    v = (v.float() * (1e4 / v.float().abs().max())).half()
    v[:, :, :96] = 1e4
    weights = weights._replace(w_v=weights.w_v.abs() * 2)
    arguments = (x, v, mask, text, weights, heads)
    z, _ = grounded_embedding_triton(*arguments, **options)
    expected, _ = oracle(arguments, options)
    assert expected.isfinite().all()
    bound = torch.finfo(torch.float16).eps
    torch.testing.assert_close(z.double(), expected, rtol=0, atol=bound)


def test_a_batch_is_its_items(device):
    case = (18, 2, 1, 5, 96, 48, torch.float32, "mean", 1, 90)
    (x, v, mask, text, weights, heads), options = make(case, device)
    z, grounding_map = grounded_embedding_triton(x, v, mask, text, weights, heads, **options)
    for rows in (slice(0, 1), slice(15, 17)):  # across the border of two blocks of items
        part = grounded_embedding_triton(
            x[rows], v[rows], mask[rows], text[rows], weights, heads, **options
        )
        torch.testing.assert_close(part[0], z[rows], rtol=0, atol=1e-6)
        torch.testing.assert_close(part[1], grounding_map[rows], rtol=0, atol=1e-6)


def test_two_runs_are_equal_to_the_bit(device):
    arguments, options = make(CASES[1], device)
    runs = [grounded_embedding_triton(*arguments, **options, splits=3) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_strided_inputs(device):
    (x, v, mask, text, weights, heads), options = make(CASES[1], device)
    expected = grounded_embedding_triton(x, v, mask, text, weights, heads, **options)
    tokens = torch.cat([v[:, :5], v], dim=1)[:, 5:]
    text = text.repeat(1, 2)[:, : text.shape[1]]
    weights = weights._replace(w_v=weights.w_v.T.contiguous().T)
    strided = (tokens, text, weights.w_v)
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = grounded_embedding_triton(x, tokens, mask, text, weights, heads, **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_items(device):
    (x, v, mask, text, weights, heads), options = make(CASES[0], device)
    z, grounding_map = grounded_embedding_triton(
        x[:0], v[:0], mask[:0], text[:0], weights, heads, **options
    )
    assert z.shape == (0, 256)
    assert grounding_map.shape == (0, 49)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("heads: 5 must divide", {"heads": 5}),
        ("text: shape", {"text": torch.zeros(2, 192)}),
        ("gate_pool: shape", {"gate_pool": torch.zeros(3)}),
        ("w_o: dtype", {"w_o": torch.zeros(192, 192).double()}),
        ("projection: shape", {"projection": torch.zeros(256, 191).half()}),
        ("pool_query: shape", {"pool_query": torch.zeros(191).half()}),
        ("text: on meta", {"text": torch.zeros(1, 192, device="meta").half()}),
        ("projection: on meta", {"projection": torch.zeros(9, 192, device="meta").half()}),
        ("patch_mask: dtype", {"mask": torch.ones(1, 49)}),
    ],
)
def test_wrong_inputs_name_the_argument(message, change):
    (x, v, mask, text, weights, heads), _ = make(CASES[0], "cpu")
    inputs = {"text": text, "mask": mask, "heads": heads, "pool_query": None}
    inputs |= {name: value for name, value in change.items() if name in inputs}
    fields = {name: value for name, value in change.items() if name in weights._fields}
    weights = weights._replace(**fields)
    with pytest.raises(ValueError, match=message):
        grounded_embedding(
            x, v, inputs["mask"], inputs["text"], weights, inputs["heads"],
            pool_query=inputs["pool_query"],
        )  # fmt: skip


def test_public_function_on_a_cpu_is_the_reference_with_gradients():
    case = (2, 5, 1, 9, 155, 7, torch.float32, "mean", 1, 90)  # any width goes
    (x, v, mask, text, weights, heads), options = make(case, "cpu")
    z, grounding_map = grounded_embedding(
        x.requires_grad_(), v, mask, text, weights, heads, **options
    )
    expected = grounded_embedding_reference(x, v, mask, text, weights, heads, **options)
    assert torch.equal(z, expected[0])
    assert torch.equal(grounding_map, expected[1])
    assert tail_unserved(torch.float16, 768, 64, 256, 90) is None
    assert "heads of 768" in tail_unserved(torch.float16, 768, 768, 256, 90)
    assert "512 dimensions" in tail_unserved(torch.float16, 768, 64, 512, 90)
    z[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0
