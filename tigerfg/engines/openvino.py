"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.engines.base import INPUTS, OUTPUTS, Arrays, TowerShapes
from tigerfg.engines.onnx import first_line
from tigerfg.errors import EngineError, MissingExtraError

PRECISIONS = ("fp32", "int8", "bf16")
BLOCK = 16  # pictures a compiled batch holds


class OpenVinoRunner:
    """One tower in OpenVINO, compiled for two fixed shapes: one picture and BLOCK pictures.

    Fixed shapes run 1.3-1.5 times as fast as a dynamic batch and each new shape costs a
    compilation, so a batch is cut into blocks; a rest of half a block or more is filled up,
    a smaller one runs picture by picture. Texts are padded to the model's maximum length. Each
    shape is compiled when first needed. bf16 runs the float32 graph in bfloat16.
    """

    engine = "openvino"

    def __init__(
        self, path: Path, tower: str, precision: str, threads: int, shapes: TowerShapes
    ) -> None:
        self._core, version, process = _core()
        if process != os.getpid():
            raise EngineError(
                f"openvino was started by process {process} before this one was forked from it, "
                "and hangs here: start it after the fork only, or choose another engine"
            )
        self.precision = precision
        self.version = f"openvino {version}"
        self._path, self._tower, self._shapes = path, tower, shapes
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._lock = threading.Lock()
        self._requests: dict[int, Any] = {}
        with self._lock:
            self._request(1)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        batch = len(feeds["pixels"])
        length = feeds["token_ids"].shape[1] if self._tower == "item" else 0
        feeds = {name: self._pad_text(name, feeds[name]) for name in INPUTS[self._tower]}
        parts = []
        with self._lock:  # one stream: concurrent calls would queue anyway
            for start, count, size in _blocks(batch):
                rows = {
                    name: _fill(value[start : start + count], size) for name, value in feeds.items()
                }
                parts.append({name: value[:count] for name, value in self._infer(rows, size)})
        outputs = {
            name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS[self._tower]
        }
        if self._tower == "item":
            outputs["token_weights"] = np.ascontiguousarray(outputs["token_weights"][:, :length])
        return outputs

    def close(self) -> None:
        with self._lock:
            self._requests.clear()

    def _pad_text(self, name: str, value: np.ndarray) -> np.ndarray:
        if not name.startswith("token_"):
            return value
        missing = self._shapes.max_text_length - value.shape[1]
        return np.pad(value, ((0, 0), (0, missing))) if missing else value

    def _infer(self, rows: Arrays, size: int) -> list[tuple[str, np.ndarray]]:
        try:
            results = self._request(size).infer(rows, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"openvino failed: {first_line(error)}") from error
        return [(name, np.array(results[name])) for name in OUTPUTS[self._tower]]

    def _request(self, size: int) -> Any:
        if size not in self._requests:
            side, length = self._shapes.sides[self._tower], self._shapes.max_text_length
            shapes = {
                "pixels": [size, 3, side, side],
                "patch_mask": [size, self._shapes.patches(self._tower)],
                "token_ids": [size, length],
                "token_mask": [size, length],
            }
            try:
                model = self._core.read_model(self._path)
                model.reshape({name: shapes[name] for name in INPUTS[self._tower]})
                compiled = self._core.compile_model(model, "CPU", self._settings)
            except RuntimeError as error:
                raise EngineError(
                    f"openvino cannot load {self._path}: {first_line(error)}"
                ) from error
            self._requests[size] = compiled.create_infer_request()
        return self._requests[size]


@functools.cache
def _core() -> tuple[Any, str, int]:
    """OpenVINO's core, its version and the process that made it: one core for the process, which is
    never given back.

    With the last core OpenVINO 2026.4 unloads its plugins, and the next signal that reaches Python
    (Ctrl-C) then crashes the process.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("the engine 'openvino'", "openvino", "cpu") from error
    return openvino.Core(), openvino.__version__.split("-")[0], os.getpid()


def _blocks(batch: int) -> list[tuple[int, int, int]]:
    """How a batch is cut: (start, pictures, compiled batch size) of every run."""
    whole, rest = divmod(batch, BLOCK)
    blocks = [(index * BLOCK, BLOCK, BLOCK) for index in range(whole)]
    start = whole * BLOCK
    if rest >= BLOCK // 2:
        return [*blocks, (start, rest, BLOCK)]
    return blocks + [(start + index, 1, 1) for index in range(rest)]


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until there are `size` rows."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
