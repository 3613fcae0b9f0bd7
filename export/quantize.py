"""Static quantisation of the backbone's matrix products, calibrated on pictures (explicit Q/DQ).

Static on purpose: with dynamic quantisation the scales come from the whole batch, so that an
embedding would depend on the pictures it happens to be encoded with. ONNX Runtime's quantiser finds
the ranges and places the Q/DQ pairs.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tigerfg.export.precision import PRODUCTS

CALIBRATION_BATCH = 8
INT8_MAX, FP8_MAX = 127.0, 448.0  # fp8 is E4M3 without infinities
FP8 = TensorProto.FLOAT8E4M3FN


def int8_graph(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with the layers of `quantised_nodes` in int8 as CPUs like it.

    Activations are unsigned with a zero point. Weights, per channel, use 7 bits: on CPUs without
    VNNI instructions 8 bits saturate the 16-bit intermediate sums, and the result would be right
    on the exporting machine only.

    Args:
        proto: a float32 tower with its weights inside.
        feeds: calibration inputs by name.
    """
    return _quantise(
        proto,
        feeds,
        quantised_nodes(proto),
        activation_type=QuantType.QUInt8,
        reduce_range=True,
    )


def gpu_int8_graph(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """The float32 graph with symmetric int8 Q/DQ pairs (no zero points), as TensorRT takes them.

    Weights are quantised per channel, activations per tensor.

    Args:
        proto, feeds: as for `int8_graph`.
        keep: names of nodes that are not quantised.
    """
    return _quantise(
        proto,
        feeds,
        [name for name in quantised_nodes(proto) if name not in keep],
        activation_type=QuantType.QInt8,
        extra={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # what follows a product reads float16 anyway: no second rounding
            "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS),
        },
    )


def gpu_fp8_graph(int8: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The pairs of a `gpu_int8_graph` in E4M3 over the same ranges; weights from the original.

    ONNX Runtime's own float8 calibration keeps a histogram of every tensor and is no better: 0.9984
    against 0.9987 (least cosine, random tiny query tower).
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(int8)
    values = {tensor.name: tensor for tensor in graph.graph.initializer}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    pairs = ("QuantizeLinear", "DequantizeLinear")
    for node in (node for node in graph.graph.node if node.op_type in pairs):
        name, scale_name, zero_name = node.input[:3]
        scale, zero = values[scale_name], values[zero_name]
        if zero.data_type != FP8:
            _replace(zero, np.zeros(tuple(zero.dims), ml_dtypes.float8_e4m3fn))
            _replace(scale, numpy_helper.to_array(scale) * np.float32(INT8_MAX / FP8_MAX))
        stored = values.get(name)
        if stored is not None and stored.data_type == TensorProto.INT8:
            weight = numpy_helper.to_array(weights[name.removesuffix("_quantized")])
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            shape = [1] * weight.ndim
            steps = numpy_helper.to_array(scale)
            if steps.ndim:
                shape[axis] = -1
            clipped = np.clip(weight / steps.reshape(shape), -FP8_MAX, FP8_MAX)
            _replace(stored, clipped.astype(ml_dtypes.float8_e4m3fn))
    for info in graph.graph.value_info:
        if info.type.tensor_type.elem_type == TensorProto.INT8:
            info.type.tensor_type.elem_type = FP8
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _quantise(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    nodes: list[str],
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    if not nodes:  # the quantiser would take none for all
        return proto
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser advises on the root logger
    try:
        with tempfile.TemporaryDirectory() as temp:
            source, file = Path(temp) / "fp32.onnx", Path(temp) / "int8.onnx"
            onnx.save(proto, source)  # the quantiser alters a graph that it is given in memory
            quantize_static(
                str(source),
                str(file),
                _Batches(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                # the ranges of other operators need not be measured
                op_types_to_quantize=sorted(PRODUCTS),
                nodes_to_quantize=nodes,
                extra_options={"QuantizeBias": False, **(extra or {})},  # TensorRT refuses int32
                **options,
            )
            quantised = _loaded(file)
    finally:
        root.setLevel(level)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _loaded(file: Path) -> onnx.ModelProto:
    """The graph in a file; on a full disk ONNX Runtime writes what it can and says nothing."""
    with contextlib.suppress(DecodeError):
        graph = onnx.load(file)
        if graph.graph.node:
            return graph
    reason = "the graph in int8 is incomplete, as on a full disk: free some space"
    raise OSError(errno.ENOSPC, reason, str(file.parent))


def _replace(tensor: TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def quantised_nodes(proto: onnx.ModelProto) -> list[str]:
    """The backbone's products with constant weights: all linear layers and dense convolutions.

    In float32 stay the first layer on the pixels, depthwise convolutions (bound by memory), all
    norms and softmaxes, the text encoder, the grounding and the head.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    names = []
    for node in proto.graph.node:
        if not node.name.startswith("vision.") or "pixels" in node.input:
            continue
        if node.op_type == "Conv":
            groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            dense = groups == 1
        else:
            dense = node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
        if dense:
            names.append(node.name)
    return names


class _Batches(CalibrationDataReader):
    """Hands the calibration inputs to the quantiser in small batches."""

    def __init__(self, feeds: Mapping[str, np.ndarray]) -> None:
        count = len(feeds["pixels"])
        self._batches = iter(
            {name: value[start : start + CALIBRATION_BATCH] for name, value in feeds.items()}
            for start in range(0, count, CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)
