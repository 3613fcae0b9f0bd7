"""The grounding kernels against the float64 oracle; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from launching import table
from torch import Tensor

from tigerfg.kernels import grounding, grounding_reference
from tigerfg.kernels.grounding import grounding_plain, grounding_triton

# Every value of the list in the issue stands in some row, with both orientations of the products
# (sm_80 and sm_90), with and without splits, and with every kind of mask.
#    batch, patches, queries, width, dtype, mask, splits, arch
CASES = [
    (1, 1, 1, 96, torch.float32, "full", 1, 90),
    (2, 1, 12, 192, torch.float16, "ragged", None, 80),
    (7, 49, 4, 96, torch.float16, "ragged", 1, 90),
    (2, 49, 12, 96, torch.bfloat16, "none", 1, 80),
    (2, 196, 12, 384, torch.float16, "one", 1, 80),
    (1, 196, 12, 768, torch.float16, "full", None, 90),
    (1, 196, 16, 768, torch.bfloat16, "ragged", 2, 80),
    (2, 196, 48, 192, torch.float16, "ragged", 1, 90),
    (1, 201, 12, 768, torch.float16, "ragged", 1, 90),
    (2, 201, 1, 384, torch.float32, "one", 3, 80),
    (1, 256, 48, 384, torch.bfloat16, "full", None, 90),
    (7, 256, 16, 192, torch.float16, "none", 2, 80),
    (1, 257, 4, 1024, torch.float16, "ragged", 5, 80),
    (2, 257, 12, 192, torch.float32, "full", 1, 90),
    (1, 576, 12, 384, torch.float16, "ragged", 16, 90),
    (1, 576, 16, 192, torch.bfloat16, "one", 1, 80),
    (1, 49, 12, 1024, torch.bfloat16, "none", 1, 90),
    (1, 49, 64, 768, torch.float16, "ragged", 1, 80),
]


def make(
    batch: int, patches: int, queries: int, width: int, dtype: torch.dtype, mask: str, device: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs with uneven patches (means and sizes differ), so that the key norm matters."""
    generator = torch.Generator().manual_seed(patches * 1009 + queries * 31 + width)
    x = 0.3 * torch.randn(batch, queries, width, generator=generator)
    v = torch.randn(batch, patches, width, generator=generator)
    v = v * (0.5 + 2 * torch.rand(batch, patches, 1, generator=generator)) + torch.randn(
        batch, patches, 1, generator=generator
    )
    valid = torch.rand(batch, patches, generator=generator) < 0.7
    if mask == "one":
        valid[:] = False
        valid[:, patches // 2] = True
    if mask == "none":
        valid[0] = False
    valid = None if mask == "full" else valid.to(device)
    return x.to(device, dtype), v.to(device, dtype), valid


def check(p: Tensor, maps: Tensor, x: Tensor, v: Tensor, mask: Tensor | None, eps=1e-6) -> None:
    """Against the oracle in float64, to the rounding that the dtype cannot avoid.

    p is an average of patches: rounding its weights and its result to the dtype costs at most half
    an eps of the largest patch each. What float32 sums add is below 4e-6 of it.
    """
    expected_p, expected_maps = grounding_reference(x.double(), v.double(), mask, key_norm_eps=eps)
    if maps.ndim == 2:
        expected_maps = expected_maps.mean(dim=1)
    rounding = torch.finfo(v.dtype).eps if v.dtype != torch.float32 else 4e-6
    bound = rounding * float(v.abs().max())
    torch.testing.assert_close(p.double(), expected_p, rtol=0, atol=bound)
    torch.testing.assert_close(maps.double(), expected_maps, rtol=0, atol=4e-6)
    assert p.dtype == v.dtype
    assert maps.dtype == torch.float32


def identify(case: tuple) -> str:
    batch, patches, queries, width, dtype, mask, splits, arch = case
    name = str(dtype).removeprefix("torch.")
    return f"b{batch}-n{patches}-q{queries}-d{width}-{name}-{mask}-s{splits}-sm{arch}"


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_kernel_is_the_oracle(case, device):
    *shape, splits, arch = case
    x, v, mask = make(*shape, device)
    p, grounding_map = grounding_triton(x, v, mask, splits=splits, arch=table(arch))
    check(p, grounding_map, x, v, mask)
    if mask is not None:
        empty = ~mask.any(dim=1)
        assert not p[empty].any()
        assert (grounding_map[~mask] == 0).all()
        assert not grounding_map[empty].any()


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("queries", [3, 40])
def test_maps_of_every_query(queries, splits, device):
    x, v, mask = make(2, 70, queries, 96, torch.float16, "ragged", device)
    p, maps = grounding_triton(x, v, mask, splits=splits, per_query=True)
    assert maps.shape == (2, queries, 70)
    check(p, maps, x, v, mask)


@pytest.mark.parametrize("arch", [80, 90])
def test_raw_keys(arch, device):
    x, v, mask = make(2, 70, 5, 96, torch.float32, "ragged", device)
    p, grounding_map = grounding_triton(x, v, mask, key_norm_eps=None, arch=table(arch))
    check(p, grounding_map, x, v, mask, eps=None)


def test_strided_inputs_are_read_in_place(device):
    x, v, mask = make(3, 54, 6, 96, torch.float16, "ragged", device)
    tokens = v[:, 5:]  # patches behind CLS and registers
    wide = mask.repeat_interleave(2, dim=1)[:, 1::2][:, 5:]
    queries = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(tensor.is_contiguous() for tensor in (tokens, wide, queries))
    found = grounding_triton(queries, tokens, wide, splits=1)
    same = grounding_triton(x.clone(), tokens.clone(), wide.clone(), splits=1)
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    check(*found, x, tokens, wide)
    columns = v.transpose(1, 2).contiguous().transpose(1, 2)  # channels are not the fastest axis
    check(*grounding_triton(x, columns, mask), x, v, mask)


@pytest.mark.parametrize("arch", [80, 90])
def test_float16_values_up_to_ten_thousand(arch, device):
    x, v, mask = make(2, 65, 4, 192, torch.float32, "ragged", device)
    v = (v * (1e4 / v.abs().max())).half()
    x = (x * 0.3).half()
    check(*grounding_triton(x, v, mask, arch=table(arch), splits=2), x, v, mask)
    constant = torch.full_like(v, 1e4)  # the key norm of a constant is zero: all logits are equal
    p, grounding_map = grounding_triton(x, constant, mask, arch=table(arch), splits=1)
    assert (p == 1e4).all()
    share = mask / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grounding_map, share.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_constant_patches_among_others(dtype, arch, device):
    """A constant patch has the key 0; what rounding leaves of it must not be scaled up."""
    x, v, mask = make(2, 65, 4, 192, dtype, "ragged", device)
    v[:, ::2] = torch.tensor(1e4 + 1 / 3, dtype=dtype)
    v[:, 1::4] /= 100  # and patches of another scale
    check(*grounding_triton(x, v, mask, arch=table(arch), splits=1), x, v, mask)


def test_keys_with_a_large_offset(device):
    """Logits lose float32's rounding times offset over spread, here 100: 1e-5 a unit of |x|."""
    x, v, mask = make(2, 65, 4, 192, torch.float32, "ragged", device)
    v = v / v.std(dim=2, keepdim=True) + 100.0
    p, grounding_map = grounding_triton(x, v, mask)
    _, maps = grounding_reference(x.double(), v.double(), mask)
    torch.testing.assert_close(
        grounding_map.double(), maps.mean(dim=1), rtol=0, atol=1e-5 * float(x.norm(dim=2).max())
    )
    assert p.isfinite().all()


def test_equal_logits_give_the_mean(device):
    _, v, mask = make(2, 65, 4, 96, torch.float32, "ragged", device)
    x = torch.zeros(2, 4, 96, device=device)
    p, grounding_map = grounding_triton(x, v, mask)
    mean = (v * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(p, mean[:, None].expand_as(p), rtol=0, atol=2e-5)
    torch.testing.assert_close(grounding_map.sum(dim=1), torch.ones(2, device=device))


def test_a_sharp_map_neither_overflows_nor_loses_its_peak(device):
    v = torch.randn(1, 80, 96, device=device)
    keys = torch.layer_norm(v, (96,), eps=1e-6)
    x = 50.0 * keys[:, 70:71]  # logits up to 4,800; the peak comes in the last tile
    p, grounding_map = grounding_triton(x, v, splits=1)
    torch.testing.assert_close(p[0, 0], v[0, 70], rtol=0, atol=1e-5)
    assert grounding_map[0].argmax() == 70
    assert grounding_map[0, 70].item() == pytest.approx(1.0, abs=1e-6)


def test_two_runs_are_equal_to_the_bit(device):
    x, v, mask = make(2, 201, 5, 96, torch.float16, "ragged", device)
    first, second = (grounding_triton(x, v, mask, splits=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_to_do(device):
    v = torch.zeros(0, 9, 32, device=device)
    p, grounding_map = grounding_triton(torch.zeros(0, 3, 32, device=device), v)
    assert p.shape == (0, 3, 32)
    assert grounding_map.shape == (0, 9)
    p, maps = grounding_triton(
        torch.ones(2, 3, 32, device=device), v.new_zeros(2, 0, 32), per_query=True
    )
    assert not p.any()
    assert maps.shape == (2, 3, 0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x and v", {"x": torch.zeros(3, 32)}),
        ("batch", {"x": torch.zeros(3, 3, 32)}),
        ("width", {"x": torch.zeros(2, 3, 48)}),
        ("x: dtype", {"x": torch.zeros(2, 3, 32).half()}),
        ("x: no queries", {"x": torch.zeros(2, 0, 32)}),
        ("x: on meta", {"x": torch.zeros(2, 3, 32, device="meta")}),
        ("patch_mask: on meta", {"patch_mask": torch.ones(2, 9, device="meta").bool()}),
        ("patch_mask: dtype", {"patch_mask": torch.ones(2, 9)}),
        ("patch_mask: shape", {"patch_mask": torch.ones(2, 8, dtype=torch.bool)}),
    ],
)
def test_wrong_inputs_name_the_argument(name, change):
    inputs = {"x": torch.zeros(2, 3, 32), "v": torch.zeros(2, 9, 32), "patch_mask": None}
    with pytest.raises(ValueError, match=name):
        grounding(**{**inputs, **change})


@pytest.mark.parametrize("eps", [1e-6, None], ids=["norm", "raw"])
def test_logits_beyond_float16(eps, device):
    """Plain and fused: the peak takes all of the map."""
    v = torch.zeros(1, 5, 1024, dtype=torch.float16, device=device)
    v[0, 0, ::2] = 64
    v[0, 0, 1::2] = -64
    x = v[:, :1] * 2  # a logit of 131,072 with the norm, 64 times that without
    found = grounding_plain(x, v, None, eps, False), grounding_triton(x, v, key_norm_eps=eps)
    for p, grounding_map in found:
        assert grounding_map.tolist() == [[1, 0, 0, 0, 0]]
        assert torch.equal(p, v[:, :1])


def test_public_function_on_a_cpu_is_the_reference_with_gradients():
    x, v, mask = make(2, 9, 3, 31, torch.float32, "ragged", "cpu")  # any width goes
    p, grounding_map = grounding(x.requires_grad_(), v, mask)
    expected, maps = grounding_reference(x, v, mask)
    assert torch.equal(p, expected)
    assert torch.equal(grounding_map, maps.mean(dim=1))
    grounding_map[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0
    per_query = grounding(x, v, mask, per_query=True)[1]
    assert torch.equal(per_query, maps)
