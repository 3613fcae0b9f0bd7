"""int8 for CPUs: static QDQ of the backbone's matrix products, calibrated on pictures.

Static on purpose: with dynamic quantisation the scales come from the whole batch, so that an
embedding would depend on the pictures it happens to be encoded with.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

CALIBRATION_BATCH = 8


def int8_graph(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with the layers of `quantised_nodes` in int8 (weights per channel).

    Weights use 7 bits: on CPUs without VNNI instructions 8 bits saturate the 16-bit
    intermediate sums, and the result would be right on the exporting machine only.

    Args:
        proto: a float32 tower with its weights inside.
        feeds: calibration inputs by name.
    """
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
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=quantised_nodes(proto),
                extra_options={"QuantizeBias": False},
            )
            quantised = onnx.load(file)
    finally:
        root.setLevel(level)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


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
