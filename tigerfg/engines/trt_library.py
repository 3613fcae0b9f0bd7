"""The TensorRT that is installed, full or RTX: finding it, its log, and the GPU it works on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tigerfg.errors import EngineError, MissingExtraError

NAMES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
ERRORS_KEPT = 20
OLDEST_FULL = 10  # the first full TensorRT with strongly typed networks

_RTX_HINT = "pip install 'tigerfg[tensorrt-rtx]'"
_USED = ("Builder", "OnnxParser", "Runtime", "ILogger", "IProgressMonitor")

_log = logging.getLogger("tigerfg")
_library_log = logging.getLogger("tigerfg.tensorrt")


@dataclass(frozen=True)
class Builder:
    """An installed TensorRT: its name (a key of NAMES), its full version and its Python module."""

    name: str
    version: str
    module: Any

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_builder(name: str = "auto") -> Builder:
    """The TensorRT to use: the full one if it works, else TensorRT-RTX.

    Args:
        name: "tensorrt" or "tensorrt-rtx" for that one only.

    Raises:
        MissingExtraError: none is installed.
        EngineError: the name is unknown, or what is installed cannot be used; says why.
    """
    if name not in ("auto", *NAMES):
        raise EngineError(f"builder: {name!r} is unknown; give auto, {' or '.join(NAMES)}")
    broken = []
    for candidate in NAMES if name == "auto" else (name,):
        found = _load(candidate)
        if isinstance(found, Builder):
            for reason in broken:
                _warn_once(f"{reason}: using {found}")
            return found
        if found is not None:
            broken.append(found)
    if broken:
        raise EngineError(f"{'; '.join(broken)}; repair it or {_RTX_HINT}")
    if name == "tensorrt":
        raise EngineError(
            f"tensorrt is not installed: install it as NVIDIA describes, or use tensorrt-rtx "
            f"({_RTX_HINT})"
        )
    raise MissingExtraError("building and running TensorRT engines", "tensorrt-rtx", "tensorrt-rtx")


def _load(name: str) -> Builder | str | None:
    """The library, or why it cannot be used; None if it is not installed."""
    module_name = NAMES[name]
    try:
        module: ModuleType = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            return None
        return f"{name} is installed but cannot be used ({error})"
    except Exception as error:  # a library that is not there or does not fit fails in many ways
        first = str(error).splitlines()[:1] or [type(error).__name__]
        return f"{name} is installed but cannot be used ({first[0]})"
    if not all(hasattr(module, attribute) for attribute in _USED):
        return f"{name} is installed but only as a stub without the library"
    version = str(module.__version__)
    if name == "tensorrt" and int(version.split(".")[0]) < OLDEST_FULL:
        return f"tensorrt {version} is too old: {OLDEST_FULL} or later is needed"
    return Builder(name, version, module)


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


@functools.cache
def library_log(module: Any) -> Any:
    """The logger object that a TensorRT module writes to, on the logger "tigerfg.tensorrt".

    One for the process: TensorRT keeps using the first it was given. Its `errors` are the last
    errors logged, one line each, oldest first; whoever wants those of one call clears them before
    and tells them: they and the warnings (about the use of the API) are logged as information.
    """
    severities = module.ILogger.Severity
    errors = (severities.INTERNAL_ERROR, severities.ERROR)

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = logging.INFO if severity in (*errors, severities.WARNING) else logging.DEBUG
            if severity in errors:
                if "cudaError 35" in message and current_gpu() is None:
                    level = logging.DEBUG  # no driver: said on every call, even where none is used
                else:
                    self.errors.append(" ".join(message.split()))
                    del self.errors[:-ERRORS_KEPT]
            if _library_log.isEnabledFor(level):
                _library_log.log(level, "%s", message)

    return Log()


@dataclass(frozen=True)
class Gpu:
    """The GPU that a thread works on.

    Attributes:
        sm: compute capability, 89 for 8.9.
        driver: the newest CUDA that the driver serves, "CUDA 13.0".
        context: address of the thread's CUDA context, None if it has none yet.
    """

    sm: int
    driver: str
    context: int | None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Work in that context, in another thread too."""
        if self.context is None:
            yield
            return
        driver = _driver()
        driver.cuCtxPushCurrent_v2(ctypes.c_void_p(self.context))
        try:
            yield
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def current_gpu() -> Gpu | None:
    """The GPU of this thread's CUDA context, else the first one; None without driver or GPU."""
    driver = _driver()
    if driver is None:
        return None
    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuCtxGetCurrent(ctypes.byref(context))
    if context.value is None or driver.cuCtxGetDevice(ctypes.byref(device)):
        driver.cuDeviceGet(ctypes.byref(device), 0)
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    newest = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(10 * major.value + minor.value, newest, context.value)


_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@functools.cache
def _driver() -> Any | None:
    """The CUDA driver's library, started; None where there is none or it does not start."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver
