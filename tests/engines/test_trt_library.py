"""Finding the installed TensorRT, its log, and the GPU of this thread."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any

import pytest
from trt_fakes import Script, fake_build, fake_builder, fake_module

from tigerfg.engines import trt_library
from tigerfg.engines.trt_library import Builder, Gpu, current_gpu, find_builder, library_log
from tigerfg.errors import EngineError, MissingExtraError


def installed(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Make these modules, or the errors that importing them raises, all that is installed."""
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name not in trt_library.NAMES.values():
            return real(name, package)
        found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    trt_library._warn_once.cache_clear()


def module(rtx: bool, version: str) -> Any:
    found = fake_module(Script(), rtx)
    found.__version__, found.Runtime = version, object
    return found


def test_full_tensorrt_comes_first(monkeypatch):
    full, other = module(False, "10.13.2.6"), module(True, "1.7.1.116")
    installed(monkeypatch, tensorrt=full, tensorrt_rtx=other)
    assert find_builder() == Builder("tensorrt", "10.13.2.6", full)
    assert find_builder("tensorrt-rtx") == Builder("tensorrt-rtx", "1.7.1.116", other)


class Stub:
    """What the package index has under the name tensorrt."""

    __version__ = "11.4.0.5"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Stub(), "only as a stub without the library"),
        (ImportError("libnvinfer.so.10: cannot open shared object file\nmore"), "libnvinfer.so.10"),
        (OSError("libcuda.so.1: cannot open shared object file"), "libcuda.so.1"),
        (ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"), "_libs"),
        (RuntimeError(""), r"\(RuntimeError\)"),
        (module(False, "8.6.1"), "8.6.1 is too old: 10 or later"),
    ],
    ids=["stub", "no-library", "no-driver", "no-libs-package", "silent", "old"],
)
def test_a_broken_tensorrt_is_reported_once_and_passed_over(monkeypatch, caplog, broken, reason):
    installed(monkeypatch, tensorrt=broken, tensorrt_rtx=module(True, "1.7.1.116"))
    assert find_builder().name == "tensorrt-rtx"
    assert find_builder().name == "tensorrt-rtx"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tigerfg", logging.WARNING)
    assert record.message.endswith(": using tensorrt-rtx 1.7.1.116")
    assert "\n" not in record.message
    with pytest.raises(EngineError, match=f"tensorrt.*{reason}.*repair it or pip install"):
        find_builder("tensorrt")
    installed(monkeypatch, tensorrt=broken)
    with pytest.raises(EngineError, match=f"tensorrt.*{reason}.*repair it or pip install"):
        find_builder()


def test_none_is_installed(monkeypatch):
    installed(monkeypatch)
    for name in ("auto", "tensorrt-rtx"):
        with pytest.raises(MissingExtraError, match=r"pip install 'tigerfg\[tensorrt-rtx\]'"):
            find_builder(name)
    with pytest.raises(EngineError, match=r"tensorrt is not installed.*'tigerfg\[tensorrt-rtx\]'"):
        find_builder("tensorrt")
    with pytest.raises(EngineError, match="builder: 'trt' is unknown; give auto, tensorrt or"):
        find_builder("trt")


class Driver:
    """libcuda with two GPUs, an H200 and an L4; `current` is the thread's context."""

    def __init__(self, count: int = 2, current: int | None = None) -> None:
        self.count, self.current, self.stack = count, current, []

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuCtxGetCurrent(self, context: Any) -> int:  # noqa: N802
        context._obj.value = self.current
        return 0

    def cuCtxGetDevice(self, device: Any) -> int:  # noqa: N802
        device._obj.value = 1  # every context of ours is on the second
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: (9, 8), 76: (0, 9)}[attribute][device.value]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.stack.append((threading.current_thread().name, context.value))
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.stack.append((threading.current_thread().name, None))
        return 0


@pytest.mark.parametrize(
    ("driver", "gpu"),
    [
        (None, None),
        (Driver(count=0), None),
        (Driver(), Gpu(90, "CUDA 12.8", None)),
        (Driver(current=4096), Gpu(89, "CUDA 12.8", 4096)),
    ],
    ids=["no-driver", "no-gpu", "first", "of-the-context"],
)
def test_the_gpu_of_this_thread(monkeypatch, driver, gpu):
    monkeypatch.setattr(trt_library, "_driver", lambda: driver)
    assert current_gpu() == gpu


def test_the_build_works_in_the_context_of_its_caller(tmp_path, monkeypatch):
    driver = Driver(current=4096)
    monkeypatch.setattr(trt_library, "_driver", lambda: driver)
    made = fake_build(tmp_path, fake_builder(Script()))
    assert (made.sms, made.driver) == ((89,), "CUDA 12.8")
    assert driver.stack == [("tensorrt build", 4096), ("tensorrt build", None)]


def test_the_librarys_log_is_a_logger(caplog):
    module = fake_module(Script(), False)
    severity, log = module.ILogger.Severity, library_log(module)
    assert library_log(module) is log  # TensorRT keeps to the first it was given
    with caplog.at_level(logging.DEBUG, "tigerfg.tensorrt"):
        for level in severity:
            log.log(level, f"{level.name} 100%")
    assert {record.name for record in caplog.records} == {"tigerfg.tensorrt"}
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "INTERNAL_ERROR 100%"),
        ("INFO", "ERROR 100%"),
        ("INFO", "WARNING 100%"),
        ("DEBUG", "INFO 100%"),
        ("DEBUG", "VERBOSE 100%"),
    ]
    assert log.errors == ["INTERNAL_ERROR 100%", "ERROR 100%"]
    for number in range(100):
        log.log(severity.ERROR, str(number))
    assert log.errors == [str(number) for number in range(80, 100)]
