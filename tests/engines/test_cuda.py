"""The boundary to pycuda, on a pretended device."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from cuda_fakes import Device, IllegalError, description, pretended_cuda

from tigerfg import EngineError, MissingExtraError
from tigerfg.engines.cuda import Arena, Cuda, Kernel
from tigerfg.kernels.variant import Variant


@triton.jit
def shift_kernel(x_ptr, y_ptr, unused_ptr, start, count, BLOCK: tl.constexpr):  # noqa: N803
    """y[i] = x[i] + start / 2^40 for i < count, one program a block."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < count)
    tl.store(y_ptr + i, x + (start >> 40).to(tl.float32), mask=i < count)


SHIFT = Variant(
    name="shift",
    kernel=shift_kernel,
    arguments={"x_ptr": "*fp32", "y_ptr": "*fp32", "unused_ptr": "*u8", "start": "i64",
               "count": "i32"},
    constexprs={"BLOCK": 16},
    aligned=frozenset({"x_ptr", "start"}),
    grid=("cdiv(count, 16)",),
    num_warps=2,
    num_stages=1,
)  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with pretended_cuda(monkeypatch) as device:
        device.variants["shift"] = SHIFT
        yield device


@pytest.fixture
def cuda(device: Device) -> Iterator[Cuda]:
    cuda = Cuda.open()
    yield cuda
    cuda.close()


def test_what_a_device_is(cuda: Cuda, device: Device) -> None:
    assert (cuda.name, cuda.sm, cuda.multiprocessors) == ("Pretended GPU", 89, 20)
    assert cuda.driver == "13.0"
    assert cuda.memory() == (device.memory, device.memory)
    device.sm = 120
    assert Cuda.open().sm == 120


def test_every_open_shares_one_primary_context_that_is_never_left_current(device: Device) -> None:
    first, second = Cuda.open(), Cuda.open()
    assert device.contexts == 1
    with first.active(), second.active():
        assert device.stack == [device.retained] * 2
    assert not device.stack
    with pytest.raises(KeyError), first.active():
        raise KeyError
    assert not device.stack


def test_threads_have_the_device_active_on_their_own(cuda: Cuda) -> None:
    seen: list[Any] = []

    def work() -> None:
        buffer = cuda.buffer(64, "a test")
        with cuda.active():
            seen.append(buffer.address)
        buffer.free()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4


def test_copies_are_done_when_the_stream_is(cuda: Cuda) -> None:
    stream, buffer, pinned = cuda.stream(), cuda.buffer(1024, "a test"), cuda.pinned(1024)
    values = pinned.array.view(np.float32)
    with cuda.active():
        values[:128] = np.arange(128)
        stream.upload(buffer.address, values[:128])
        stream.clear(buffer.address + 16, 8)
        stream.download(values[128:], buffer.address)
        assert np.isnan(values[128:]).all()
        stream.synchronize()
    wanted = np.arange(128, dtype=np.float32)
    wanted[4:6] = 0
    np.testing.assert_array_equal(values[128:], wanted)


def test_upload_is_complete(cuda: Cuda, device: Device) -> None:
    values = np.arange(30, dtype=np.float16).reshape(5, 6).T
    buffer = cuda.upload(values, "a weight")
    content = device.bytes_at(buffer.address, 60).view(np.float16).reshape(6, 5)
    np.testing.assert_array_equal(content, values)


def load(cuda: Cuda, variant: Variant = SHIFT, **changes: Any) -> Kernel:
    return cuda.kernel({**description(variant, 89), **changes}, b"shift")


def test_kernel_gets_pointers_long_integers_and_null_scratch(cuda: Cuda, device: Device) -> None:
    kernel, stream = load(cuda), cuda.stream()
    x = cuda.upload(np.arange(40, dtype=np.float32), "x")
    y = cuda.buffer(160, "y")
    values = {"x_ptr": x.address, "y_ptr": y.address, "unused_ptr": x.address}
    with cuda.active():
        kernel.launch(stream, 3, {**values, "start": 5 << 40, "count": 40})
        stream.synchronize()
    content = device.bytes_at(y.address, 160).view(np.float32)
    np.testing.assert_array_equal(content, np.arange(40) + 5)
    # two warps, the described shared memory; 5 pointers, one long and one padded int
    assert device.launches == [("shift", 3, (64, 1, 1), 65536, 5 * 8 + 8 + 8)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x_ptr", 8, "shift: x_ptr is .*, no multiple of 16"),
        ("start", 17, "shift: start is 17, no multiple of 16"),
        ("count", 1 << 31, "shift: count is 2147483652, 2147483647 is the largest"),
        ("count", -5, "shift: count is -1, 2147483647 is the largest"),
    ],
)
def test_values_that_a_kernel_would_read_wrongly(
    cuda: Cuda, name: str, value: int, message: str
) -> None:
    kernel, stream, buffer = load(cuda), cuda.stream(), cuda.buffer(64, "a test")
    values = dict.fromkeys(("x_ptr", "y_ptr", "unused_ptr"), buffer.address)
    values |= {"start": 0, "count": 4}
    values[name] = values[name] + value
    with cuda.active(), pytest.raises(EngineError, match=message):
        kernel.launch(stream, 1, values)


def test_little_shared_memory_is_not_asked_for(cuda: Cuda, device: Device) -> None:
    kernel = load(cuda, shared=1024)
    assert kernel._function._most_shared == 48 * 1024


def test_arena_only_grows(cuda: Cuda, device: Device) -> None:
    arena = Arena(cuda, "a batch of 8")
    first = arena.reserve(100)
    assert arena.reserve(60) == arena.reserve(100) == first
    arena.reserve(200)
    assert device.used() == 200
    device.memory = 1 << 20
    with pytest.raises(EngineError, match="a batch of 8 needs 2 MiB, 1 MiB are free on Pretended"):
        arena.reserve(2 << 20)
    assert arena.reserve(100)
    arena.free()
    arena.free()
    assert device.used() == 0


def test_out_of_memory_says_what_and_how_much(cuda: Cuda, device: Device) -> None:
    device.memory = 3 << 20
    cuda.buffer(1 << 20, "a test")
    wanted = (
        "out of GPU memory: the engine needs 5 MiB, 2 MiB are free on Pretended GPU; use smaller "
        "batches, an engine with smaller profiles, or free memory of other programs"
    )
    for ask in (cuda.buffer, cuda.require):
        with pytest.raises(EngineError) as raised:
            ask(5 << 20, "the engine")
        assert str(raised.value) == wanted
    cuda.require(2 << 20, "the engine")


def test_error_of_cuda_names_its_call(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = sys.modules["pycuda.driver"]

    def failing(flags: int) -> None:
        raise driver.LogicError("cuStreamCreate failed: an illegal memory access was encountered")

    monkeypatch.setattr(driver, "Stream", failing)
    with pytest.raises(EngineError, match="CUDA: cuStreamCreate failed: an illegal memory access"):
        cuda.stream()


def test_close_frees_what_is_left_and_refuses_everything_after(device: Device) -> None:
    cuda = Cuda.open()
    kept = [cuda.stream(), cuda.buffer(64, "a test"), cuda.pinned(64), load(cuda)]
    cuda.buffer(32, "another").free()
    assert len(device.live) == 4
    cuda.close()
    assert not device.live
    cuda.close()
    for resource in kept:
        resource.free()  # once was enough
    for use in (cuda.memory, cuda.stream, lambda: cuda.buffer(64, "a test")):
        with pytest.raises(EngineError, match="the CUDA device is closed; open it again"):
            use()


def test_device_that_is_not_there(device: Device) -> None:
    with pytest.raises(EngineError, match=r"device: 2; this machine has 1 \(0 is the first\)"):
        Cuda.open(2)
    device.count = 0
    with pytest.raises(EngineError, match="no GPU here: cuInit failed: no CUDA-capable device"):
        Cuda.open()


@pytest.mark.parametrize("missing", ["pycuda", "pytools"])
def test_pycuda_or_what_it_needs_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, missing: str
) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text("import pytools_that_nobody_has")
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if missing == "pycuda":
        monkeypatch.setitem(sys.modules, "pycuda", None)
        wanted = "pycuda"
    else:
        monkeypatch.syspath_prepend(tmp_path)
        wanted = "pytools_that_nobody_has"
    with pytest.raises(MissingExtraError) as raised:
        Cuda.open()
    hint = "pip install 'tigerfg[tensorrt-rtx]'"
    assert str(raised.value) == f"a TensorRT engine needs the package {wanted}: {hint}"
    sys.modules.pop("pycuda", None)


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    lines = "raise ImportError('libcuda.so.1: cannot open shared object file')"
    (tmp_path / "pycuda" / "driver.py").write_text(lines)
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"no GPU here: the NVIDIA driver is not .*libcuda\.so"):
        Cuda.open()
    sys.modules.pop("pycuda", None)


# the stand-in itself: it must see what a GPU would crash on


def test_stand_in_sees_misuse(cuda: Cuda, device: Device) -> None:
    driver = sys.modules["pycuda.driver"]
    with pytest.raises(AttributeError):
        _ = driver.mem_alloc_pitch
    with pytest.raises(IllegalError, match="without the context"):
        driver.mem_alloc(64)
    buffer, stream, pinned = cuda.buffer(64, "a test"), cuda.stream(), cuda.pinned(64)
    with cuda.active():
        with pytest.raises(AssertionError):  # not page-locked
            stream.upload(buffer.address, np.zeros(4, np.uint8))
        with pytest.raises(IllegalError, match="no 65 bytes"):
            stream.clear(buffer.address, 65)
        stream.upload(buffer.address, pinned.array)
        with pytest.raises(IllegalError, match="before the work"):
            buffer._memory.free()
        stream.synchronize()
        buffer.free()
        with pytest.raises(IllegalError, match="freed twice"):
            buffer._memory.free()
        other = driver.Stream(1)
    del other
    gc.collect()
    assert device.problems == ["a stream destroyed without the context active"]
    device.problems.clear()


def test_stand_in_sees_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError), pretended_cuda(monkeypatch) as device:
        Cuda.open().buffer(64, "a test")
    assert list(device.live.values()) == ["64 bytes of device memory"]
