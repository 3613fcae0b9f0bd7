"""ONNX files and the model's parameters in one weight file: what is alike is stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto

from tigerfg.model.bundled import ORDERS, parameter_digest

WEIGHTS = "weights.bin"
ALIGNMENT = 64
SMALLEST = 1024  # bytes; below, a tensor stays inside its ONNX file


def write_models(models: Mapping[str, onnx.ModelProto], directory: Path) -> WeightFile:
    """Write every model as `directory/<name>`, and their large tensors once each in WEIGHTS.

    The models are left with references in place of their large tensors.
    """
    file = WeightFile(directory / WEIGHTS)
    with file.path.open("wb") as stream:
        for name, proto in models.items():
            for tensor in proto.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) >= SMALLEST:
                    _refer(tensor, file.place(stream, data), len(data))
            (directory / name).write_bytes(proto.SerializeToString(deterministic=True))
    return file


class WeightFile:
    """WEIGHTS of a bundle, and where in it what lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, int] = {}

    def place(self, stream: BinaryIO, data: bytes) -> int:
        """The offset of these bytes, written at the end of the stream unless they are there."""
        key = _key(data)
        if key not in self._places:
            stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
            self._places[key] = stream.tell()
            stream.write(data)
        return self._places[key]

    def add_parameters(self, parameters: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Make sure that every parameter of a model is in the file.

        Graphs hold most of them, matrices often transposed.

        Args:
            parameters: name -> float32 array.

        Returns:
            "plain" and "transposed": name -> offset of what lies there as it is, or as its
            transpose; "sha256": of them all. `tigerfg.model.bundled` reads it.
        """
        found: dict[str, dict[str, int]] = {order: {} for order in ORDERS}
        with self.path.open("ab") as stream:
            for name, value in parameters.items():
                turned, data = False, value.tobytes()
                if value.ndim == 2 and _key(data) not in self._places:
                    turned = _key(other := value.T.tobytes()) in self._places
                    data = other if turned else data
                found[ORDERS[turned]][name] = self.place(stream, data)
        return {**found, "sha256": parameter_digest(parameters)}


def _key(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _refer(tensor: TensorProto, offset: int, length: int) -> None:
    kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    kept.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        kept.external_data.add(key=key, value=str(value))
    tensor.CopyFrom(kept)
