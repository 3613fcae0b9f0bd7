"""The custom operators pass through torch.export, torch.compile and, decomposed, ONNX export."""

from __future__ import annotations

import logging
import sys
from collections import Counter

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tigerfg.kernels import (
    TailWeights,
    grounded_embedding,
    grounded_embedding_reference,
    grounding,
    grounding_reference,
)
from tigerfg.kernels.attend import WIDTHS, grounding_variant, unserved
from tigerfg.kernels.decompositions import decompositions
from tigerfg.kernels.dispatch import fused, served
from tigerfg.kernels.tuning import ARCHITECTURES, architecture

BATCH = torch.export.Dim("batch")


class Grounding(nn.Module):
    """Calls the operator itself, as a model exported on CUDA does."""

    def forward(self, x: Tensor, v: Tensor, patch_mask: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.tigerfg.grounding(x, v, patch_mask, 1e-6, False)


class Item(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        square, vector = (width, width), (width,)
        for name, shape in zip(
            TailWeights._fields, (square, square, *[vector] * 4, (8, width)), strict=True
        ):
            self.register_buffer(name, torch.randn(*shape) / width**0.5)

    def forward(self, x: Tensor, v: Tensor, patch_mask: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        weights = [getattr(self, name) for name in TailWeights._fields]
        return torch.ops.tigerfg.grounded_embedding(
            x, v, patch_mask, text, weights, 3, None, 1e-6, 1e-6
        )


class Query(Item):
    def forward(self, v: Tensor, patch_mask: Tensor) -> Tensor:
        return torch.ops.tigerfg.pooled_embedding(
            v, patch_mask, self.norm_weight, self.norm_bias, self.projection
        )


def cases() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    x, v, text = torch.randn(2, 3, 48), torch.randn(2, 9, 48), torch.randn(2, 48)
    mask = torch.rand(2, 9) < 0.7
    return {
        "grounding": (Grounding(), (x, v, mask)),
        "grounded_embedding": (Item(48), (x, v, mask, text)),
        "pooled_embedding": (Query(48), (v, mask)),
    }


OPERATORS = ("grounding", "grounded_embedding", "pooled_embedding")


@pytest.mark.parametrize("operator", OPERATORS)
def test_compile_in_one_graph(operator):
    module, inputs = cases()[operator]
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), module(*inputs), rtol=0, atol=0)


def test_public_functions_compile_in_one_graph():
    _, (x, v, mask) = cases()["grounding"]
    compiled = torch.compile(grounding, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, v, mask), grounding(x, v, mask), rtol=0, atol=0)
    item, (x, v, mask, text) = cases()["grounded_embedding"]
    weights = TailWeights(*(getattr(item, name) for name in TailWeights._fields))
    arguments = (x, v, mask, text, weights, 3)
    compiled = torch.compile(grounded_embedding, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), grounded_embedding(*arguments), rtol=0, atol=0)


def test_what_decides_for_the_kernels_is_a_constant_to_the_compiler():
    def decide(v: Tensor) -> Tensor:
        reason = unserved(v.dtype, v.shape[1], architecture(v.device))
        return v + 1 if reason is None else v - 1

    compiled = torch.compile(decide, backend="eager", fullgraph=True, dynamic=False)
    assert compiled(torch.zeros(2, 32)).sum() == 64
    assert compiled(torch.zeros(2, 31)).sum() == -62


@pytest.mark.parametrize("operator", OPERATORS)
def test_export_keeps_the_operator_and_decomposes_for_onnx(operator, tmp_path):
    module, inputs = cases()[operator]
    program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: BATCH} for _ in inputs))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert f"tigerfg.{operator}.default" in calls
    plain = program.run_decompositions(decompositions())
    assert not any("tigerfg" in str(node.target) for node in plain.graph.nodes)
    exported = torch.onnx.export(plain, dynamo=True, verbose=False)
    nodes = Counter(node.op_type for node in exported.model_proto.graph.node)
    assert nodes["LayerNormalization"] >= 1
    assert all(node.domain == "" for node in exported.model_proto.graph.node)
    file = tmp_path / "operator.onnx"
    exported.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = tuple(torch.cat([value, value.flip(0)])[:3] for value in inputs)  # another batch
    feeds = {
        entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)
    }
    expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, wanted in zip(session.run(None, feeds), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_fake_implementation_has_the_real_shapes(operator):
    module, inputs = cases()[operator]
    meta = module.to("meta")(*(value.to("meta") for value in inputs))
    real = cases()[operator][0](*inputs)
    as_tuple = lambda value: value if isinstance(value, tuple) else (value,)  # noqa: E731
    for fake, true in zip(as_tuple(meta), as_tuple(real), strict=True):
        assert (fake.shape, fake.dtype) == (true.shape, true.dtype)


class OnCuda:
    """Stands for a CUDA tensor where only its flags are asked."""

    is_cuda = True

    def __init__(self, requires_grad: bool = False) -> None:
        self.requires_grad = requires_grad


def test_kernels_serve_cuda_tensors_without_gradients(caplog):
    assert not fused(torch.zeros(1))
    assert fused(OnCuda(), None)
    assert not fused(OnCuda(), OnCuda(requires_grad=True))
    with torch.no_grad():
        assert fused(OnCuda(), OnCuda(requires_grad=True))
    assert served("grounding", None)
    with caplog.at_level(logging.WARNING, "tigerfg"):
        for _ in range(2):
            assert not served("grounding", "width 31 is no multiple of 16")
    assert [record.message for record in caplog.records] == [
        "grounding: the reference runs instead of the fused kernels: width 31 is no multiple of 16"
    ]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_widths_of_many_chunks_are_left_to_the_reference(arch):
    """Every chunk is unrolled: 69 of them compile for minutes and spill thousands of registers."""
    assert unserved(torch.float16, 1104, arch) == "width 1104 is 69 chunks of 16, more than 10"
    assert "11 chunks of 16" in unserved(torch.float32, 176, arch)
    assert [width for width in WIDTHS if unserved(torch.float16, width, arch)] == []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for width in range(16, 1281, 16):
            if unserved(dtype, width, arch) is None:
                constants = grounding_variant(dtype, width, 16, 1e-6, True, arch).constexprs
                assert width // constants["BLOCK_D"] <= 10


def test_a_width_of_many_chunks_runs_and_is_said_once(monkeypatch, caplog):
    for name in ("grounding", "embedding"):  # as modules: the package's `grounding` is the function
        monkeypatch.setattr(sys.modules[f"tigerfg.kernels.{name}"], "fused", lambda *_: True)
    x, v, text = torch.randn(1, 4, 208), torch.randn(1, 9, 208), torch.randn(1, 208)
    mask, item = torch.ones(1, 9, dtype=torch.bool), Item(208)
    weights = TailWeights(*(getattr(item, name) for name in TailWeights._fields))
    with caplog.at_level(logging.WARNING, "tigerfg"):
        for _ in range(2):
            p, _ = grounding(x, v, mask)
            z, _ = grounded_embedding(x, v, mask, text, weights, 4)
    assert torch.equal(p, grounding_reference(x, v, mask)[0])
    assert torch.equal(z, grounded_embedding_reference(x, v, mask, text, weights, 4)[0])
    assert [record.message for record in caplog.records] == [
        f"{operator}: the reference runs instead of the fused kernels: width 208 is 13 chunks of "
        "16, more than 10"
        for operator in ("grounding", "grounded_embedding")
    ]
