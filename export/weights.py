"""ONNX files that share one weight file: the backbone of both towers is stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

WEIGHTS = "weights.bin"
ALIGNMENT = 64
SMALLEST = 1024  # bytes; below, a tensor stays inside its ONNX file


def write_models(models: Mapping[str, onnx.ModelProto], directory: Path) -> None:
    """Write every model as `directory/<name>`, and their large tensors once each in WEIGHTS.

    The models are left with references in place of their large tensors.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with open(directory / WEIGHTS, "wb") as stream:
        for name, proto in models.items():
            for tensor in proto.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) < SMALLEST:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in places:
                    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                    places[key] = (stream.tell(), len(data))
                    stream.write(data)
                _refer(tensor, *places[key])
            (directory / name).write_bytes(proto.SerializeToString(deterministic=True))


def _refer(tensor: TensorProto, offset: int, length: int) -> None:
    kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    kept.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        kept.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(kept)
