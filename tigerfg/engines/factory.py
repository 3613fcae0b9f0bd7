"""Opening engines: which are installed, and one engine over two lazily loaded towers."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from tigerfg.bundle import TOWERS
from tigerfg.engines import select
from tigerfg.engines.base import (
    Arrays,
    Engine,
    EngineInfo,
    Runner,
    TowerEngine,
    TowerShapes,
    check_outputs,
    installed,
)
from tigerfg.engines.cpu import thread_count
from tigerfg.engines.gpu import GpuTowers, gpu_engine
from tigerfg.engines.trt_library import NAMES
from tigerfg.errors import EngineError, MissingExtraError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

# name -> package
ENGINES = {**NAMES, "onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def available_engines() -> list[str]:
    """Names of the engines whose package is installed, without importing any."""
    return installed(ENGINES)


def open_engine(
    bundle: Bundle | str | os.PathLike,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Open an engine on a bundle; each tower is loaded when it is first used.

    Args:
        bundle: a Bundle, its directory or the name of a shipped one; for engine "torch" one that
            holds its parameters, or a checkpoint.
        engine: "tensorrt", "tensorrt-rtx", "onnx", "openvino", "torch", or "auto": on a GPU if
            bundle and machine allow it (a reason why not is logged once), else what a short
            measurement on this machine finds fastest, per tower, remembered in the user's cache
            directory.
        precision: on a GPU one of `bundle.gpu.precisions`, "auto" is the first; on a CPU "fp32",
            "int8", "bf16" (OpenVINO on a CPU with bfloat16), or "auto": the fastest whose cosine
            with float32 is 0.995 at least.
        threads: CPU threads of a call; None for all that the process may use.

    Raises:
        EngineError: unknown names, a combination that cannot run, a file that cannot be loaded.
        BundleError: no such bundle, or a damaged one; of a checkpoint InputError.
        InputError: threads is no number above 0.
        MissingExtraError: the engine's package is not installed.
    """
    if isinstance(bundle, (str, os.PathLike)) and engine != "torch":
        from tigerfg.bundle import Bundle

        bundle = Bundle.open(bundle)
    check_request(bundle, engine, precision, threads)
    threads = thread_count(threads)
    if engine == "torch":
        from tigerfg.engines.torch import TorchEngine

        return TorchEngine(getattr(bundle, "path", bundle), threads)
    if engine == "auto" and (chosen := gpu_engine(bundle, precision)) is not None:
        engine = chosen
    if engine in NAMES:
        return BundleEngine(bundle, GpuTowers(bundle, engine, precision), threads)
    return BundleEngine(bundle, select.CpuTowers(bundle, engine, precision, threads), threads)


def check_request(bundle: Any, engine: str, precision: str, threads: int | None) -> None:
    """Raise what `open_engine` raises of a request that cannot be met, as far as it can be told
    without starting an engine or looking for a GPU; "auto" takes what there is.

    Args:
        bundle: an open one; of engine "torch" it is not looked at.
    """
    if engine not in (*ENGINES, "auto"):
        raise EngineError(f"engine: {engine!r} is unknown; choose auto, {', '.join(ENGINES)}")
    thread_count(threads)
    if engine == "torch":
        if precision not in ("auto", "fp32"):
            raise EngineError(f"precision: the torch engine runs fp32, not {precision!r}")
    elif engine in NAMES:
        GpuTowers(bundle, engine, precision)
    elif engine != "auto" and engine not in available_engines():
        raise MissingExtraError(f"the engine {engine!r}", ENGINES[engine], "cpu")
    else:
        on_gpu = ("auto", *bundle.gpu.precisions) if bundle.gpu else ("auto",)
        if engine != "auto" or precision not in on_gpu:
            select.check_request(bundle, engine, precision)


class Towers(Protocol):
    """Where a bundle's towers come from: the CPU's runtimes, or a GPU's."""

    device: str

    def open(self, tower: str) -> Runner:
        """A tower, loaded and ready."""
        ...


class BundleEngine(TowerEngine):
    """Both towers of a bundle, each loaded when it is first used."""

    def __init__(self, bundle: Bundle, towers: Towers, threads: int) -> None:
        self._towers, self._threads = towers, threads
        self._shapes = TowerShapes.of(bundle)
        self._lock = threading.Lock()
        # One tower may take minutes to build, the other must go on.
        self._opening = {tower: threading.Lock() for tower in TOWERS}
        self._runners: dict[str, Runner] = {}
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """What runs; decides about the query tower if nothing has been encoded yet."""
        query = self._runner("query")
        detail = query.version
        item = self._runners.get("item")
        if item is not None and (item.engine, item.precision) != (query.engine, query.precision):
            detail += f"; items: {item.version} {item.precision}"
        device = self._towers.device
        return EngineInfo(query.engine, query.precision, device, self._threads, detail)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for runner in self._runners.values():
                runner.close()
            self._runners.clear()

    def _compute(self, tower: str, feeds: Arrays) -> Arrays:
        runner = self._runner(tower)
        return check_outputs(runner.run(feeds), runner)

    def _runner(self, tower: str) -> Runner:
        with self._opening[tower]:
            with self._lock:
                if self._closed:
                    raise EngineError("the engine is closed; open it again")
                if tower in self._runners:
                    return self._runners[tower]
            runner = self._towers.open(tower)
            with self._lock:
                if self._closed:
                    runner.close()
                    raise EngineError("the engine was closed while it opened")
                self._runners[tower] = runner
            return runner
