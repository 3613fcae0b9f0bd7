"""What a tower costs: floating-point operations, counted in its ONNX graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tigerfg.errors import BundleError

if TYPE_CHECKING:
    import onnx

    from tigerfg.bundle import Bundle

PRECISION = "fp32"  # quantised graphs do the same products under other names
# operators that multiply matrices, but whose products are not counted here
UNCOUNTED = {"Attention", "ConvTranspose", "Einsum", "GRU", "LSTM", "MatMulInteger", "RNN"}
UNCOUNTED |= {"ConvInteger", "QLinearConv", "QLinearMatMul"}


class Flops(NamedTuple):
    """Operations of a query and of an item; None where they could not be counted, and why."""

    query: int | None
    item: int | None
    note: str


def count_flops(bundle: Bundle) -> Flops:
    """FLOPs of one query and of one item with the longest text that the model takes.

    A multiply-add counts as two. Matrix products and convolutions are counted; activations,
    normalisations and softmax are not, they are a few per cent.

    Needs the package ``onnx``; without it, or if a graph cannot be counted, the note says so.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        return Flops(None, None, "FLOPs not counted: the package onnx is not installed")
    length = bundle.max_text_length
    try:
        query, item = (
            graph_flops(bundle.onnx(tower, PRECISION), length) for tower in ("query", "item")
        )
    except BundleError as error:
        return Flops(None, None, f"FLOPs not counted: {error}")
    note = f"FLOPs: products and convolutions, texts of {length} tokens"
    if bundle.attention_crop:
        item, note = item + query, f"{note}; an item's include its attention crop's"
    return Flops(query, item, note)


def graph_flops(file: Path, text_length: int = 1) -> int:
    """FLOPs of one run of an ONNX graph with a batch of one.

    Args:
        file: the graph; its weights may lie outside. Of its symbolic input sizes "batch" is 1 and
            every other one is ``text_length``.

    Raises:
        BundleError: an operator's shapes are unknown or its products are not counted.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.input:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1 if dim.dim_param == "batch" else text_length
    del model.graph.value_info[:]  # with the symbols, they would stand in the way
    for entry in model.graph.output:
        entry.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, list[int]] = {entry.name: list(entry.dims) for entry in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        tensor = entry.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[entry.name] = [dim.dim_value for dim in tensor.shape.dim]
    return sum(_node_flops(node, shapes, file) for node in graph.node)


def _node_flops(node: onnx.NodeProto, shapes: dict[str, list[int]], file: Path) -> int:
    has_subgraph = any(attribute.HasField("g") for attribute in node.attribute)
    if node.op_type in UNCOUNTED or node.domain not in ("", "ai.onnx") or has_subgraph:
        raise BundleError(f"{file}: products of {node.op_type} are not counted")
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0
    try:
        out = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            terms = math.prod(shapes[node.input[1]][1:])  # channels of a group x kernel
        elif node.op_type == "Gemm":
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            terms = shapes[node.input[0]][0 if turned else 1]
        else:
            terms = shapes[node.input[0]][-1]
    except KeyError as error:
        raise BundleError(f"{file}: {node.op_type} {node.name!r}: unknown shape") from error
    return 2 * out * terms
