"""Constants of a graph computed once, at export and in float32.

Above all the cosines and sines of a rotary embedding: a runtime that computed them in float16 would
turn every patch by a wrong angle.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

LARGEST = 1 << 20  # bytes that a folded value may have, where its inputs are smaller

# Random numbers are no constants, and a Q/DQ pair of constants says how a weight is stored.
_KEPT = {
    "Bernoulli",
    "DequantizeLinear",
    "Multinomial",
    "QuantizeLinear",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def fold_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A new graph in which every node that only reads constants has become an initialiser.

    Values keep their names; initialisers that nothing reads any more are dropped.

    Args:
        proto: a graph with its weights inside; it is not altered.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {entry.name for entry in graph.output}
    nodes: list[NodeProto] = []
    folded: list[TensorProto] = []
    for node in graph.node:
        values = _evaluate(proto, node, constants) if _foldable(node, constants, outputs) else None
        if values is None:
            nodes.append(node)
            continue
        tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
        constants.update((tensor.name, tensor) for tensor in tensors)
        folded += tensors
    read = {name for node in nodes for name in node.input} | outputs
    gone = {tensor.name for tensor in folded}
    result = empty_like(proto)
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(
        tensor for tensor in (*graph.initializer, *folded) if tensor.name in read
    )
    result.graph.value_info.extend(info for info in graph.value_info if info.name not in gone)
    return result


def empty_like(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of the same inputs, outputs, operator set and origin, with nothing between them."""
    result = onnx.ModelProto(
        ir_version=proto.ir_version,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
    )
    result.opset_import.extend(proto.opset_import)
    result.metadata_props.extend(proto.metadata_props)
    result.functions.extend(proto.functions)
    result.graph.name = proto.graph.name
    result.graph.input.extend(proto.graph.input)
    result.graph.output.extend(proto.graph.output)
    return result


def _foldable(node: NodeProto, constants: dict[str, TensorProto], outputs: set[str]) -> bool:
    subgraph = any(
        entry.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for entry in node.attribute
    )
    return (
        not subgraph
        and node.op_type not in _KEPT
        and all(name in constants for name in node.input if name)
        and not outputs.intersection(node.output)
    )


def _evaluate(
    proto: onnx.ModelProto, node: NodeProto, constants: dict[str, TensorProto]
) -> dict[str, np.ndarray] | None:
    """The node's outputs by name; None if storing them would make the graph much larger."""
    names = [name for name in node.input if name]
    feeds = {name: numpy_helper.to_array(constants[name]) for name in names}
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    values = ReferenceEvaluator(node, opsets=versions).run(None, feeds)
    found = {
        name: np.asarray(value)
        for name, value in zip(node.output, values, strict=True)
        if name  # an optional output that nothing reads
    }
    size = sum(value.nbytes for value in found.values())
    if size > max(LARGEST, sum(value.nbytes for value in feeds.values())):
        return None
    return found
