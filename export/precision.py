"""A float32 tower as a strongly typed graph: the encoders' products in float16 or bfloat16.

Every type stands in the graph, as explicit Casts, so that no runtime has to choose. Norms, the
scores up to their softmax, reductions and all that follows the encoders stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tigerfg.errors import InputError
from tigerfg.export.fold import empty_like

FLOAT = TensorProto.FLOAT
DTYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
SUFFIXES = {FLOAT: "fp32", **{kind: name for name, kind in DTYPES.items()}}
NUMPY = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: ml_dtypes.bfloat16}

ENCODERS = ("vision.", "vision/", "text.", "text/")  # what the names of their nodes start with
PRODUCTS = {"Conv", "Gemm", "MatMul"}
ELEMENTWISE = {"Add", "Gelu", "Mul", "Neg", "Relu", "Sigmoid", "Sub"}
MOVEMENT = {  # no arithmetic, so that a value is the same before and after it
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",  # a Cast right after a softmax: TensorRT-RTX 1.7 fails on softmax, Where, Cast, MatMul
}
_ANY_TYPE = {"Shape", "Size"}  # reads no elements
_PAIRS = {"DequantizeLinear", "QuantizeLinear"}
_CONV_BF16 = 22  # the operator set in which Conv learnt bfloat16


def typed_graph(
    proto: onnx.ModelProto,
    dtype: str,
    low_outputs: Collection[str] = (),
    keep: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with the encoders' products, and what is cheap beside them, in `dtype`.

    Every value keeps its name in the type that it is computed in; its copy in the other type is
    called "<name>.fp32", or "<name>.fp16" ("<name>.bf16"), as is the Cast that makes it. (A graph
    output that is not computed in its type: the copy has the plain name.) In float32 stay
    the nodes that have a constant outside the range of `dtype`. Q/DQ pairs around low products take
    and give `dtype`, and so do their scales.

    Args:
        proto: a float32 tower with its weights inside, quantised or not; it is not altered.
        dtype: "fp16" or "bf16"; a bfloat16 convolution raises the operator set to 22.
        low_outputs: graph outputs that get `dtype`; all others, and the inputs, stay as they are.
        keep: names of nodes that stay float32; names that the graph lacks are ignored, so that a
            tower and its backbone can share a list.

    Raises:
        InputError: an unknown dtype or output.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; choose {', '.join(DTYPES)}")
    names = [entry.name for entry in proto.graph.output]
    if unknown := sorted(set(low_outputs) - set(names)):
        raise InputError(f"low_outputs: the graph has no {unknown[0]!r}; it has {', '.join(names)}")
    result = _Typed(proto, DTYPES[dtype], frozenset(low_outputs), frozenset(keep)).graph()
    onnx.checker.check_model(result, full_check=True)
    return result


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value by name, initialisers included."""
    light = empty_like(proto)  # shape inference copies what it gets: leave the weights out
    light.graph.node.extend(proto.graph.node)
    light.graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        light.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    graph = onnx.shape_inference.infer_shapes(light).graph
    return {
        info.name: info.type.tensor_type.elem_type
        for info in (*graph.input, *graph.value_info, *graph.output)
    }


class _Typed:
    """Decides which nodes are low and writes the typed graph."""

    def __init__(
        self, proto: onnx.ModelProto, kind: int, low_outputs: frozenset[str], keep: frozenset[str]
    ) -> None:
        self._proto, self._kind, self._low_outputs, self._keep = proto, kind, low_outputs, keep
        self._nodes: list[NodeProto] = list(proto.graph.node)
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._outputs = {entry.name for entry in proto.graph.output}
        types = element_types(proto)
        self._floats = {name for name, kind in types.items() if kind == FLOAT}
        self._producer = {name: i for i, node in enumerate(self._nodes) for name in node.output}
        self._consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self._nodes):
            for name in node.input:
                self._consumers.setdefault(name, []).append(i)
        self._fits: dict[str, bool] = {}
        self._low = self._low_nodes()
        self._wanted = set(self._demands())

    # Which nodes are low

    def _low_nodes(self) -> set[int]:
        low: set[int] = set()
        free: set[int] = set()  # movement of constants (tables, learnt tokens): as their readers
        exempt = self._scores()
        for i, node in enumerate(self._nodes):
            if node.op_type in MOVEMENT and not self._makers(node, free):
                free.add(i)
            if node.name in self._keep or not self._representable(node):
                exempt.add(i)
            elif i not in exempt and self._may_be_low(node, low, free):
                low.add(i)
        for i in reversed(range(len(self._nodes))):
            node = self._nodes[i]
            if i in exempt or i in low:
                continue
            if node.op_type in _PAIRS:  # as its product
                readers = (j for name in node.output for j in self._consumers.get(name, ()))
                if any(j in low for j in readers):
                    low.add(i)
            elif node.op_type in MOVEMENT and self._read_low_only(node, low):
                low.add(i)  # the same values, and half the bytes to move
        return low

    def _may_be_low(self, node: NodeProto, low: set[int], free: set[int]) -> bool:
        if not any(name in self._floats for name in node.output):
            return False
        if node.op_type in PRODUCTS | ELEMENTWISE:
            return node.name.startswith(ENCODERS)
        if node.op_type not in MOVEMENT:
            return False
        makers = self._makers(node, free)
        return bool(makers) and all(
            i in low or (i is not None and self._nodes[i].op_type == "DequantizeLinear")
            for i in makers
        )

    def _makers(self, node: NodeProto, free: set[int]) -> list[int | None]:
        """What computes the node's float inputs, constants aside; None for a graph input."""
        names = (n for n in node.input if n in self._floats and n not in self._constants)
        return [i for i in map(self._producer.get, names) if i not in free]

    def _read_low_only(self, node: NodeProto, low: set[int]) -> bool:
        values = [name for name in node.output if name in self._floats]
        readers = [j for name in values for j in self._consumers.get(name, ())]
        outputs = self._outputs.intersection(values)
        return (
            bool(readers or outputs)
            and outputs <= self._low_outputs
            and all(j in low or self._nodes[j].op_type in _ANY_TYPE for j in readers)
        )

    def _scores(self) -> set[int]:
        """Nodes between a product and the softmax of its result: masks and scales."""
        found: set[int] = set()
        pending = [name for node in self._nodes if node.op_type == "Softmax" for name in node.input]
        while pending:
            i = self._producer.get(pending.pop())
            stop = PRODUCTS | _PAIRS | {"LayerNormalization", "Softmax"}
            if i is None or i in found or self._nodes[i].op_type in stop:
                continue
            found.add(i)
            pending += [name for name in self._nodes[i].input if name in self._floats]
        return found

    def _representable(self, node: NodeProto) -> bool:
        """Whether the node's constants are what they were in the low type, but for rounding."""
        stored = node.op_type == "DequantizeLinear" and node.input[0] in self._constants
        return all(
            self._fit(name, underflow=node.op_type in _PAIRS and not stored)
            for name in node.input
            if name in self._constants and name in self._floats
        )

    def _fit(self, name: str, underflow: bool) -> bool:
        key = f"{name} {underflow}"
        if key not in self._fits:
            values = numpy_helper.to_array(self._constants[name])
            with np.errstate(over="ignore"):
                low = values.astype(NUMPY[self._kind])
            lost = (values != 0) & (low == 0) if underflow or values.size == 1 else np.False_
            self._fits[key] = bool(np.isfinite(low).all() and not lost.any())
        return self._fits[key]

    # The graph

    def _type(self, i: int) -> int:
        return self._kind if i in self._low else FLOAT

    def _computed(self, name: str) -> int:
        """The type in which a value that is no constant is computed."""
        i = self._producer.get(name)
        return FLOAT if i is None else self._type(i)

    def _output_type(self, name: str) -> int:
        return self._kind if name in self._low_outputs else FLOAT

    def _demands(self) -> Iterator[tuple[str, int]]:
        """Every float value with every type in which it is read."""
        for i, node in enumerate(self._nodes):
            for name in node.input:
                if name not in self._floats:
                    continue
                if node.op_type not in _ANY_TYPE:
                    yield name, self._type(i)
                elif name in self._constants:
                    yield name, FLOAT
        yield from ((name, self._output_type(name)) for name in self._outputs & self._floats)

    def _name(self, name: str, kind: int) -> str:
        """What the value is called in that type."""
        if name not in self._floats:
            return name
        if name in self._constants:
            plain = FLOAT if (name, FLOAT) in self._wanted else self._kind
        elif name in self._outputs:
            plain = self._output_type(name)
        else:
            plain = self._computed(name)
        return name if kind == plain else f"{name}.{SUFFIXES[kind]}"

    def graph(self) -> onnx.ModelProto:
        result = empty_like(self._proto)
        graph = result.graph
        for entry in graph.input:
            graph.node.extend(self._casts(entry.name))
        for i, node in enumerate(self._nodes):
            typed = graph.node.add()
            typed.CopyFrom(node)
            if node.op_type in _ANY_TYPE:
                typed.input[:] = [
                    self._name(name, FLOAT if name in self._constants else self._computed(name))
                    for name in node.input
                ]
            else:
                typed.input[:] = [self._name(name, self._type(i)) for name in node.input]
            typed.output[:] = [self._name(name, self._type(i)) for name in node.output]
            for name in node.output:
                graph.node.extend(self._casts(name))
        graph.initializer.extend(self._initialisers())
        for entry in graph.output:
            if entry.name in self._low_outputs:
                entry.type.tensor_type.elem_type = self._kind
        self._describe(graph)
        if self._kind == TensorProto.BFLOAT16 and any(
            self._nodes[i].op_type == "Conv" for i in self._low
        ):
            for entry in result.opset_import:
                if not entry.domain:
                    entry.version = max(entry.version, _CONV_BF16)
        return result

    def _casts(self, name: str) -> Iterator[NodeProto]:
        """The Cast of a value that is read in a type it is not computed in."""
        computed = self._computed(name)
        other = FLOAT if computed == self._kind else self._kind
        if (name, other) in self._wanted:
            copy = f"{name}.{SUFFIXES[other]}"
            source, target = self._name(name, computed), self._name(name, other)
            yield helper.make_node("Cast", [source], [target], copy, to=other)

    def _initialisers(self) -> Iterator[TensorProto]:
        read = {name for node in self._nodes for name in node.input} | self._outputs
        scales = {node.input[1] for node in self._nodes if node.op_type in _PAIRS}
        for name, tensor in self._constants.items():
            if (name, FLOAT) in self._wanted or (name not in self._floats and name in read):
                yield tensor
            if (name, self._kind) in self._wanted:
                dtype = NUMPY[self._kind]
                values = numpy_helper.to_array(tensor).astype(dtype)
                if name in scales:  # of weights that are all but zero: a scale must be positive
                    values = np.maximum(values, ml_dtypes.finfo(dtype).smallest_subnormal)
                yield numpy_helper.from_array(values, self._name(name, self._kind))

    def _describe(self, graph: onnx.GraphProto) -> None:
        """The known shapes of inner values, with their new types."""
        for info in self._proto.graph.value_info:
            if info.name in self._outputs or info.name in self._constants:
                continue
            entry = graph.value_info.add()
            entry.CopyFrom(info)
            if info.name in self._floats:
                entry.type.tensor_type.elem_type = self._computed(info.name)
