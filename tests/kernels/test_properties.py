"""What must hold for any input of the grounding kernels (hypothesis; the interpreter, small)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import DEVICE, table
from torch import Tensor

from tigerfg.kernels import TailWeights, grounding_reference, project_values_reference
from tigerfg.kernels.embedding import grounded_embedding_triton
from tigerfg.kernels.grounding import grounding_triton

EXAMPLES = settings(max_examples=8, derandomize=True)

# float32 sums of at most a few hundred terms of order 1 to 10, in another order
ATOL = 3e-5


@st.composite
def inputs(draw) -> tuple[Tensor, Tensor, Tensor, dict]:
    """x, v, a mask with at least one valid patch an item, and how to launch."""
    batch, patches = draw(st.integers(1, 3)), draw(st.integers(1, 90))
    queries, width = draw(st.integers(1, 20)), 16 * draw(st.integers(2, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([0.0, 0.3, 3.0]))
    x = scale * torch.randn(batch, queries, width, generator=generator)
    v = torch.randn(batch, patches, width, generator=generator) + 1.0
    mask = torch.rand(batch, patches, generator=generator) < draw(st.floats(0.1, 1.0))
    mask[:, draw(st.integers(0, patches - 1))] = True
    options = {"splits": draw(st.integers(1, 4)), "arch": table(draw(st.sampled_from([80, 90])))}
    return x.to(DEVICE), v.to(DEVICE), mask.to(DEVICE), options


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ATOL)


@EXAMPLES
@given(inputs(), st.randoms(use_true_random=False))
def test_the_order_of_patches_does_not_matter(case, random):
    x, v, mask, options = case
    order = list(range(v.shape[1]))
    random.shuffle(order)
    p, grounding_map = grounding_triton(x, v, mask, **options)
    shuffled_p, shuffled_map = grounding_triton(x, v[:, order], mask[:, order], **options)
    assert_same((shuffled_p, shuffled_map), (p, grounding_map[:, order]))


@EXAMPLES
@given(inputs(), st.integers(1, 70), st.sampled_from([0.0, 1e4]))
def test_masked_padding_does_not_matter(case, padding, value):
    x, v, mask, options = case
    p, grounding_map = grounding_triton(x, v, mask, **options)
    rows = torch.full((len(v), padding, v.shape[2]), value, device=DEVICE)
    padded = torch.cat([v, rows], dim=1)
    wide = torch.cat([mask, mask.new_zeros(len(v), padding)], dim=1)
    padded_p, padded_map = grounding_triton(x, padded, wide, **options)
    assert_same((padded_p, padded_map[:, : v.shape[1]]), (p, grounding_map))
    assert not padded_map[:, v.shape[1] :].any()


@EXAMPLES
@given(inputs())
def test_a_batch_is_its_items(case):
    x, v, mask, options = case
    together = grounding_triton(x, v, mask, **options)
    alone = [
        grounding_triton(x[i : i + 1], v[i : i + 1], mask[i : i + 1], **options)
        for i in range(len(v))
    ]
    assert_same(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)), together)


@EXAMPLES
@given(inputs(), st.integers(2, 16))
def test_splits_and_orientation_do_not_matter(case, splits):
    x, v, mask, _ = case
    whole = grounding_triton(x, v, mask, splits=1, arch=table(90))
    assert_same(grounding_triton(x, v, mask, splits=splits, arch=table(80)), whole)
    ones = torch.ones(len(v), device=DEVICE)
    torch.testing.assert_close(whole[1].sum(dim=1), ones, rtol=0, atol=1e-5)
    assert (whole[1] >= 0).all()


@settings(max_examples=5, derandomize=True)
@given(inputs(), st.sampled_from([16, 24, 64]))
def test_embeddings_have_norm_one(case, embedding_dim):
    x, v, mask, options = case
    width = v.shape[2]
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    square, vector = (width, width), (width,)
    weights = TailWeights(
        *(normal(*shape) for shape in (square, square, *[vector] * 4, (embedding_dim, width)))
    )
    heads = 1  # divides any number of queries
    z, grounding_map = grounded_embedding_triton(
        x, v, mask, normal(len(v), width), weights, heads, **options
    )
    ones = torch.ones(len(v), device=DEVICE)
    torch.testing.assert_close(z.norm(dim=1), ones, rtol=0, atol=1e-5)
    torch.testing.assert_close(grounding_map.sum(dim=1), ones, rtol=0, atol=1e-5)


@settings(max_examples=30, derandomize=True)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**16))
def test_absorbed_form_is_the_usual_cross_attention(heads, per_head, patches, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    d, batch = 5, 2
    width = heads * d
    q, v = normal(batch, heads, per_head, d), normal(batch, patches, width)
    w_k, w_v, w_o = normal(width, width), normal(width, width), normal(width, width)
    x = (q @ w_k.view(heads, d, width)).reshape(batch, heads * per_head, width)
    p, _ = grounding_reference(x, v)
    found = project_values_reference(p, w_v, w_o, heads)

    keys = (torch.layer_norm(v, (width,), eps=1e-6) @ w_k.T).view(batch, patches, heads, d)
    values = (v @ w_v.T).view(batch, patches, heads, d)
    attended = torch.nn.functional.scaled_dot_product_attention(
        q, keys.transpose(1, 2), values.transpose(1, 2), scale=1.0
    )  # [B, H, M, d]
    expected = attended.mean(dim=2).reshape(batch, width) @ w_o.T
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("key_norm_eps", [1e-6, None])
def test_float64_oracle_has_float64_accuracy(key_norm_eps):
    x, v = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    _, maps = grounding_reference(x, v, key_norm_eps=key_norm_eps)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(1, 2).double(), rtol=0, atol=1e-15)
