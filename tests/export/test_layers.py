"""compare_layers names the layer that was spoiled."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from graphs import CONFIGS, graph
from onnx import numpy_helper
from small_models import inputs

from tigerfg.export.emulate import EmulatedRunner
from tigerfg.export.layers import LayerError, compare_layers, format_layers, large_layers
from tigerfg.export.precision import typed_graph
from tigerfg.export.quantize import gpu_fp8_graph, gpu_int8_graph

DOWN = "vision.model.model.layer.1.mlp.down_proj/MatMul"


def weight_scaled(proto: onnx.ModelProto, node: str, largest: float) -> onnx.ModelProto:
    """A copy in which the node alone reads its weight, scaled to that largest element."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    found = next(entry for entry in copy.graph.node if entry.name == node)
    weight = next(t for t in copy.graph.initializer if t.name == found.input[1])
    values = numpy_helper.to_array(weight)
    values = values * np.float32(largest / np.abs(values).max())
    found.input[1] = f"{node}.scaled"
    copy.graph.initializer.append(numpy_helper.from_array(values, found.input[1]))
    return copy


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.min(np.sum(a * b, axis=1)))  # both of norm 1


@pytest.mark.parametrize(
    ("largest", "error"),
    [(1e-8, 1.0), (6e4, math.inf)],  # all of the weight underflows; the products overflow
    ids=["underflow", "overflow"],
)
def test_a_weight_beyond_float16_is_named_first_and_keeping_it_helps(largest, error):
    feeds = inputs(CONFIGS["hf"], "item")
    reference = weight_scaled(graph("hf", "item"), DOWN.replace("down", "up"), 1.0)
    reference = weight_scaled(reference, DOWN, largest)
    errors = compare_layers(reference, typed_graph(reference, "fp16"), feeds, 1)
    assert (errors[0].node, errors[0].operator) == (DOWN, "MatMul")
    assert errors[0].error == pytest.approx(error, abs=1e-3)
    assert errors[0].gain > 100 * errors[1].gain

    kept = [DOWN, DOWN.replace("MatMul", "Add")]  # the bias and what follows take the large sums
    after = "vision.model.model.layer.1"
    kept += [f"{after}.layer_scale2/Mul", f"{after}/Add.2"]
    errors = compare_layers(reference, typed_graph(reference, "fp16", keep=kept), feeds, 1)
    assert errors[0].gain < 5e-3  # the float16 rounding of ten nodes or so


def test_large_layers_are_those_around_a_large_value():
    feeds = inputs(CONFIGS["hf"], "item")
    proto = graph("hf", "item")
    assert large_layers(proto, feeds, 1e4, 1) == set()  # scores at -3e38 and -inf are masked
    large = large_layers(weight_scaled(proto, DOWN, 1e7), feeds, 1e4, 1)
    assert {DOWN, DOWN.replace("MatMul", "Add")} <= large
    assert DOWN.replace("down", "up") not in large  # it gives what the large one reads
    assert not any("layer.0." in name or name.startswith("text.") for name in large)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("factor", [50, 0.02], ids=["coarse", "saturated"])
def test_a_bad_scale_is_named_first(kind, factor):
    reference = graph("conv", "query")
    feeds = inputs(CONFIGS["conv"], "query", 8)
    quantised = gpu_int8_graph(reference, feeds)
    if kind == "fp8":
        quantised = gpu_fp8_graph(quantised, reference)
    name = "vision.blocks.1.down/MatMul"
    makers = {node.output[0]: node for node in quantised.graph.node}
    product = next(node for node in quantised.graph.node if node.name == name)
    pair = makers[product.input[0]]
    assert pair.op_type == "DequantizeLinear"
    scale = next(t for t in quantised.graph.initializer if t.name == pair.input[1])
    if kind == "fp8" and factor > 1:
        factor = 1e6  # a floating-point type only loses what falls below its subnormals
    values = numpy_helper.to_array(scale) * np.float32(factor)
    scale.CopyFrom(numpy_helper.from_array(values, scale.name))
    found = compare_layers(reference, typed_graph(quantised, "bf16"), feeds, 1)
    assert found[0].node == name
    assert found[0].gain > 3 * found[1].gain


def test_equal_graphs_have_no_errors_and_inner_values_have_sources():
    proto, feeds = graph("hf", "item"), inputs(CONFIGS["hf"], "item")
    errors = compare_layers(proto, proto, feeds, 1)
    assert {(entry.error, entry.gain) for entry in errors} == {(0.0, 0.0)}
    assert {"MatMul", "LayerNormalization", "Softmax", "Add"} <= {e.operator for e in errors}
    assert not {"Reshape", "Transpose", "Shape"} & {e.operator for e in errors}


def test_errors_are_relative_to_the_float32_value():
    proto = graph("conv", "query")
    feeds = inputs(CONFIGS["conv"], "query")
    typed = typed_graph(proto, "bf16")
    first = "vision.stem.0/Conv"
    value = next(node.output[0] for node in proto.graph.node if node.name == first)
    expected = EmulatedRunner(proto, 1, [value]).run(feeds)[value]
    found = EmulatedRunner(typed, 1, [value]).run(feeds)[value]
    relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    entry = next(entry for entry in compare_layers(proto, typed, feeds, 1) if entry.node == first)
    assert entry.error == entry.gain == pytest.approx(relative, rel=1e-5)  # one by one or not
    assert 2**-11 < entry.error < 2**-8  # bfloat16 has 8 bits


def test_table_has_a_line_a_node():
    errors = [LayerError("vision.a/MatMul", "MatMul", 0.5, 0.25), LayerError("b", "Add", 0.1, 0.0)]
    assert format_layers(errors, top=1).splitlines() == [
        "     gain      error  operator            node",
        " 2.50e-01   5.00e-01  MatMul              vision.a/MatMul",
    ]
    assert len(format_layers(errors).splitlines()) == 3
