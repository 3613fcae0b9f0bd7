"""What a typed graph gives on a GPU, computed on the CPU: float32, rounded where a GPU rounds.

ONNX Runtime's CPU provider has no bfloat16, and runs float16 nodes in float32 without rounding in
between. Here every low value is computed in float32 from low inputs, which is what tensor cores do,
and then rounded. Sums are taken in another order than on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

from tigerfg.engines.base import Arrays
from tigerfg.engines.onnx import first_line
from tigerfg.errors import EngineError
from tigerfg.export.fold import empty_like
from tigerfg.export.precision import DTYPES, FLOAT, MOVEMENT, element_types

LOW = set(DTYPES.values())
_EXACT = MOVEMENT | {"Neg", "Relu"}  # of rounded inputs they give rounded outputs


def emulated(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32, with two Casts after every node that rounds.

    All values keep their names; low inputs, outputs and weights become float32. Q/DQ pairs stay:
    int8 and float8 (E4M3) saturate. A graph without low values is copied.

    Args:
        proto: a typed graph with its weights inside; it is not altered.
    """
    types = element_types(proto)
    result = empty_like(proto)
    graph = result.graph
    for node in proto.graph.node:
        graph.node.extend(_rounded(node, types))
    for tensor in proto.graph.initializer:
        if tensor.data_type in LOW:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(values, tensor.name))
        else:
            graph.initializer.append(tensor)
    graph.value_info.extend(proto.graph.value_info)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        if entry.type.tensor_type.elem_type in LOW:
            entry.type.tensor_type.elem_type = FLOAT
    return result


def _rounded(node: NodeProto, types: Mapping[str, int]) -> list[NodeProto]:
    low = [name for name in node.output if types.get(name) in LOW]
    if node.op_type == "Cast":
        if low:
            return _round(node.input[0], node.output[0], types[node.output[0]])
        if types.get(node.output[0]) == FLOAT and types.get(node.input[0]) in LOW:
            return [helper.make_node("Identity", node.input, node.output, node.name)]
    if not low or node.op_type in _EXACT:
        return [node]
    exact = NodeProto()
    exact.CopyFrom(node)
    exact.output[:] = [f"{name}.exact" if name in low else name for name in node.output]
    casts = [cast for name in low for cast in _round(f"{name}.exact", name, types[name])]
    return [exact, *casts]


def _round(source: str, target: str, kind: int) -> list[NodeProto]:
    between = f"{target}.rounded"
    return [
        helper.make_node("Cast", [source], [between], f"{target}/Round", to=kind),
        helper.make_node("Cast", [between], [target], f"{target}/Widen", to=FLOAT),
    ]


class EmulatedRunner:
    """A typed graph on the CPU, emulated; any batch size and text length.

    Args:
        proto: as for `emulated`.
        threads: 0 takes all cores.
        values: names of inner float values that `run` gives too.

    Raises:
        EngineError: onnxruntime does not take the graph.
    """

    engine = "emulated"

    def __init__(
        self, proto: onnx.ModelProto, threads: int = 0, values: Collection[str] = ()
    ) -> None:
        self.version = f"onnxruntime {onnxruntime.__version__}"
        graph = emulated(proto)
        names = [entry.name for entry in graph.graph.output]
        for name in values:
            if name not in names:
                graph.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
                names.append(name)
        self._inputs = [entry.name for entry in graph.graph.input]
        self._outputs = names
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # No graph optimisation: none may drop a pair of Casts, or run a Q/DQ pair and its product
        # in the integer arithmetic of CPUs.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with tempfile.TemporaryDirectory() as temp:
                path = Path(temp) / "emulated.onnx"  # a message may have 2 GB, a file more
                onnx.save(graph, path, save_as_external_data=True, location="weights.bin")
                del graph
                self._session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
        except Exception as error:  # its exception types share no base class of their own
            raise EngineError(f"emulation: onnxruntime: {first_line(error)}") from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Inputs by name (more than the graph has are ignored) to float32 outputs by name."""
        try:
            values = self._session.run(
                self._outputs, {name: feeds[name] for name in self._inputs if name in feeds}
            )
        except Exception as error:
            raise EngineError(f"emulation: onnxruntime failed: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))
