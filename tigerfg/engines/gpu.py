"""Whether a bundle runs on this machine's GPU, and with what; said once in the log if not."""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import TYPE_CHECKING

from tigerfg.engines.base import Runner
from tigerfg.engines.trt_library import NAMES, current_gpu, find_builder
from tigerfg.errors import EngineError, MissingExtraError, TigerfgError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle
    from tigerfg.gpu_bundle import GpuPart

logger = logging.getLogger("tigerfg")


class GpuTowers:
    """Opens the towers of a bundle in TensorRT, on one device.

    Args:
        engine: "tensorrt" or "tensorrt-rtx".
        precision: one of the bundle's for GPUs, or "auto": the first of them.

    Raises:
        EngineError: the bundle has nothing for GPUs, or not that precision.
        MissingExtraError: the library is not installed.
    """

    device = "cuda"

    def __init__(self, bundle: Bundle, engine: str, precision: str) -> None:
        if precision == "auto" and bundle.gpu is not None:
            precision = bundle.gpu.precisions[0]
        gpu_part(bundle, precision)
        if not importlib.util.find_spec(NAMES[engine]):
            raise MissingExtraError(f"the engine {engine!r}", NAMES[engine], engine)
        self._bundle, self._engine = bundle, engine
        self._precision = precision

    def open(self, tower: str) -> Runner:
        """The tower's engine, built first if there is none that fits this machine."""
        from tigerfg.engines.tensorrt import TensorRtRunner

        return TensorRtRunner(self._bundle, tower, self._precision, builder=self._engine)


def gpu_part(bundle: Bundle, precision: str) -> GpuPart:
    """What a bundle has for GPUs, if that includes the precision; EngineError otherwise."""
    part = bundle.gpu
    if part is None:
        raise EngineError(
            f"engine: {bundle.path} has nothing for GPUs: export its checkpoint with --fp16"
        )
    if precision not in part.precisions:
        raise EngineError(
            f"precision: {precision!r} was not exported for GPUs; the bundle has "
            f"{', '.join(part.precisions)}"
        )
    return part


def gpu_engine(bundle: Bundle, precision: str) -> str | None:
    """The engine that "auto" takes on a machine with a GPU; None for the CPU.

    Where there is a GPU and it is not used, the reason is logged once.
    """
    if current_gpu() is None:
        return None
    reason = why_not(bundle, precision)
    if reason is None:
        return find_builder().name
    _say_once(f"the GPU is not used: {reason}")
    return None


def why_not(bundle: Bundle, precision: str = "auto") -> str | None:
    """Why a machine with a GPU would not run the bundle there; None if it would."""
    if bundle.gpu is None:
        return f"the bundle {bundle.name} has nothing for GPUs: export it with --fp16"
    if precision not in (*bundle.gpu.precisions, "auto"):
        return f"{precision} was not exported for GPUs"
    try:
        find_builder()
    except TigerfgError as error:
        return str(error)
    if not importlib.util.find_spec("pycuda"):
        return "pycuda is not installed: pip install 'tigerfg[tensorrt-rtx]'"
    return None


@functools.cache
def _say_once(line: str) -> None:
    logger.warning("%s", line)
