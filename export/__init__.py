"""From a checkpoint to a bundle that proves its own accuracy; imported as `tigerfg.export`."""

from __future__ import annotations

from tigerfg.errors import MissingExtraError

try:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("export", error.name or "torch", "train") from error

from tigerfg.engines.accuracy import THRESHOLDS
from tigerfg.export.bundle import PRECISIONS, export_bundle
from tigerfg.export.gpu import GpuRequest

__all__ = ["PRECISIONS", "THRESHOLDS", "GpuRequest", "export_bundle"]
