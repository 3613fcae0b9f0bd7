"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tigerfg.engines.base import OUTPUTS, Arrays
from tigerfg.errors import EngineError, MissingExtraError

PRECISIONS = ("fp32", "int8")


class OnnxRunner:
    """One tower in ONNX Runtime, any batch size and text length."""

    engine = "onnx"

    def __init__(self, path: Path, tower: str, precision: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("the engine 'onnx'", "onnxruntime", "cpu") from error
        self.precision = precision
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._outputs = list(OUTPUTS[tower])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spin inside a run, where the next operator is microseconds away, but not between runs,
        # where it would take the CPU from image decoding.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception types share no base class of their own
            raise EngineError(f"onnxruntime cannot load {path}: {first_line(error)}") from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        try:
            values = self._session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise EngineError(f"onnxruntime failed: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Nothing to do: the session goes with this object."""


def first_line(error: BaseException) -> str:
    """The first line of a runtime's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
