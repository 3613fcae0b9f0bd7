from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fakes import FakeBundle

from tigerfg.benchmark.cost import count_flops, graph_flops
from tigerfg.bundle import Bundle
from tigerfg.errors import BundleError

onnx = pytest.importorskip("onnx")


def save(path: Path, nodes: list, inputs: dict, weights: dict) -> Path:
    """A graph of these nodes; the last one's output "out" is the graph's."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", kind, None)],
        [
            helper.make_tensor(name, kind, shape, bytes(4 * _size(shape)), raw=True)
            for name, shape in weights.items()
        ],
    )
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opset), path)
    return path


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_a_small_graph_by_hand(tmp_path):
    node = onnx.helper.make_node
    nodes = [
        # 12 x 10 pixels, stride 2, padding 1: 6 x 5 of 8 channels, two groups of 2 inputs each
        node("Conv", ["x", "k"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        node("Relu", ["c"], ["r"]),
        node("Flatten", ["r"], ["f"]),  # (1, 240)
        node("Gemm", ["f", "w"], ["g"], transB=1),  # (1, 16)
        node("MatMul", ["t", "m"], ["p"]),  # (1, length, 16)
        node("MatMul", ["p", "v"], ["s"]),  # (1, length, 3)
        node("Gemm", ["a", "b"], ["q"], transA=1),  # (5, 7) from (4, 5) and (4, 7)
        node("ReduceSum", ["s"], ["out"]),
    ]
    file = save(
        tmp_path / "m.onnx",
        nodes,
        {"x": ["batch", 4, 12, 10], "t": ["batch", "length", 9]},
        {
            "k": (8, 2, 3, 3),
            "w": (16, 240),
            "m": (9, 16),
            "v": (16, 3),
            "a": (4, 5),
            "b": (4, 7),
        },
    )

    def by_hand(length: int) -> int:
        conv = 6 * 5 * 8 * (2 * 3 * 3)
        products = 16 * 240 + length * 16 * 9 + length * 3 * 16 + 5 * 7 * 4
        return 2 * (conv + products)

    assert graph_flops(file, 11) == by_hand(11)
    assert graph_flops(file) == by_hand(1)


@pytest.mark.parametrize(
    ("operator", "domain", "inputs"),
    [("Einsum", "", ["x", "x"]), ("FusedMatMul", "com.microsoft", ["x", "x"])],
)
def test_products_that_are_not_counted_are_refused(tmp_path, operator, domain, inputs):
    more = {"equation": "ij,ij->ij"} if operator == "Einsum" else {}
    node = onnx.helper.make_node(operator, inputs, ["out"], domain=domain, **more)
    file = save(tmp_path / "m.onnx", [node], {"x": [2, 2]}, {})
    with pytest.raises(BundleError, match=operator):
        graph_flops(file)


def test_unknown_shapes_are_refused(tmp_path):
    nodes = [
        onnx.helper.make_node("NonZero", ["x"], ["n"]),  # as many as there are
        onnx.helper.make_node("Cast", ["n"], ["c"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["c"], ["t"]),
        onnx.helper.make_node("MatMul", ["t", "c"], ["out"]),
    ]
    file = save(tmp_path / "m.onnx", nodes, {"x": [2, 2]}, {})
    with pytest.raises(BundleError, match="unknown shape"):
        graph_flops(file)


@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_shipped_bundles(name):
    found = count_flops(Bundle.open(name))
    bundle = Bundle.open(name)
    query, item = (
        graph_flops(bundle.onnx(tower, "fp32"), bundle.max_text_length)
        for tower in ("query", "item")
    )
    # the item picture has four times the query's patches, and a text besides
    assert item > 4 * query > 0
    assert found[:2] == (query, item + (query if name == "lite" else 0))
    assert ("attention crop" in found.note) is (name == "lite")
    assert "tokens" in found.note


def test_without_onnx_or_without_graphs_it_says_so(monkeypatch):
    assert count_flops(FakeBundle()) == (
        None,
        None,
        "FLOPs not counted: a fake bundle has no graphs",
    )
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = count_flops(Bundle.open("tiny"))
    assert found[:2] == (None, None)
    assert "onnx is not installed" in found.note
