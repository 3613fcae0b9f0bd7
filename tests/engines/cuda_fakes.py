"""A CUDA device without a GPU: stand-ins for pycuda.driver and for TensorRT's runtime classes.

Both have the names that our code may use and no others. Device memory is host memory at real
addresses, poisoned; work on a stream is done when the stream is synchronised and no sooner; an
engine "file" names an ONNX graph that ONNX Runtime runs; a launched kernel is the real Triton
kernel in Triton's interpreter, on the addresses that were packed for it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tigerfg.engines import cuda
from tigerfg.kernels.aot import SCRATCH, c_type
from tigerfg.kernels.variant import Variant

POISON = 0xFF  # NaN in every floating type, -1 as an integer
TORCH_TYPES = {
    **{"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32},
    **{"i8": torch.int8, "u8": torch.uint8, "i32": torch.int32},
}


class Error(Exception):
    """pycuda.driver.Error."""


class OutOfMemoryError(Error):
    """pycuda.driver.MemoryError."""


class LogicError(Error):
    """pycuda.driver.LogicError."""


class IllegalError(AssertionError):
    """What a real device would crash on, or silently get wrong."""


class Device:
    """The memory, streams and contexts of one pretended GPU.

    Attributes:
        memory: bytes it has.
        launches: (kernel's name, programs, block, shared memory, bytes of arguments) in order.
        live: what was made and not freed yet.
        problems: what was destroyed at a wrong time; nobody can raise where that happens.
    """

    def __init__(self, sm: int = 89, multiprocessors: int = 20, memory: int = 1 << 30) -> None:
        self.sm, self.multiprocessors, self.memory = sm, multiprocessors, memory
        self.launches: list[tuple[str, int, tuple[int, ...], int, int]] = []
        self.live: dict[int, str] = {}
        self.problems: list[str] = []
        self.variants: dict[str, Variant] = {}  # by the content of their "cubins"
        # work to do, and the addresses that it uses
        self.streams: dict[int, list[tuple[Callable[[], None], tuple[int, ...]]]] = {0: []}
        self.count = 1
        self._blocks: dict[int, np.ndarray] = {}  # address -> memory
        self._pinned: dict[int, int] = {}
        self._threads = threading.local()
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.contexts = 0  # retained
        self.retained: Any = None

    # contexts

    @property
    def stack(self) -> list[Any]:
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        return self._threads.stack

    def need_context(self) -> None:
        if not self.stack:
            raise IllegalError("called without the context active")

    # things that must be freed

    def made(self, what: str) -> int:
        number = next(self._numbers)
        self.live[number] = what
        return number

    def gone(self, number: int) -> None:
        if self.live.pop(number, None) is None:
            raise IllegalError("freed twice")

    def dropped(self, number: int) -> None:
        """Destroyed by Python with the last reference, as pycuda does with streams and modules."""
        if number not in self.live:
            return
        if not self.stack:
            self.problems.append(f"{self.live[number]} destroyed without the context active")
        del self.live[number]

    # memory

    def allocate(self, size: int) -> int:
        raw = np.full(size + 512, POISON, np.uint8)
        start = -raw.ctypes.data % 256
        block = raw[start : start + size]
        self._blocks[block.ctypes.data] = block
        return block.ctypes.data

    def used(self) -> int:
        return sum(len(block) for block in self._blocks.values())

    def release(self, address: int) -> None:
        if address not in self._blocks:
            raise IllegalError("freed twice")
        block = self._blocks[address]
        for _, used in (entry for work in list(self.streams.values()) for entry in work):
            if any(address <= other < address + len(block) for other in used):
                raise IllegalError("device memory freed before the work that uses it is done")
        self._blocks.pop(address)[:] = POISON

    def bytes_at(self, address: int, size: int | None = None) -> np.ndarray:
        """Device memory from an address on, up to its block's end where no size is given."""
        for start, block in self._blocks.items():
            if start <= address < start + len(block):
                rest = block[address - start :]
                if size is None:
                    return rest
                if size <= len(rest):
                    return rest[:size]
        raise IllegalError(f"no {size} bytes of device memory at {address:#x}")

    def is_pinned(self, array: np.ndarray) -> bool:
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        return any(base <= start and end <= base + size for base, size in self._pinned.items())

    # work

    def enqueue(self, stream: int, work: Callable[[], None], *addresses: int) -> None:
        self.need_context()
        with self._lock:
            self.streams[stream].append((work, addresses))

    def finish(self, stream: int) -> None:
        self.need_context()
        with self._lock:  # one after the other: Triton's interpreter runs in one thread at a time
            work, self.streams[stream] = self.streams[stream], []
            for task, _ in work:
                task()

    def tensor_at(self, address: int, kind: str) -> torch.Tensor:
        dtype = TORCH_TYPES[kind]
        memory = self.bytes_at(address)
        return torch.from_numpy(memory[: len(memory) // dtype.itemsize * dtype.itemsize]).view(
            dtype
        )


def driver_module(device: Device) -> ModuleType:
    """What `import pycuda.driver` gives."""
    driver = ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            device.stack.append(self)

        @staticmethod
        def pop() -> None:
            device.stack.pop()

        def detach(self) -> None:
            device.contexts -= 1

        @staticmethod
        def synchronize() -> None:
            for stream in list(device.streams):
                device.finish(stream)

    class PhysicalDevice:
        def __init__(self, ordinal: int) -> None:
            assert ordinal < device.count

        @staticmethod
        def count() -> int:
            return device.count

        def name(self) -> str:
            return "Pretended GPU"

        def compute_capability(self) -> tuple[int, int]:
            return divmod(device.sm, 10)

        def get_attribute(self, attribute: str) -> int:
            return {"multiprocessors": device.multiprocessors}[attribute]

        def retain_primary_context(self) -> Context:
            device.contexts += 1
            device.retained = Context()
            return device.retained

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            device.need_context()
            if device.used() + size > device.memory:
                raise OutOfMemoryError("cuMemAlloc failed: out of memory")
            self._address = device.allocate(size)
            self._number = device.made(f"{size} bytes of device memory")

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            device.need_context()
            device.release(self._address)
            device.gone(self._number)

    class PagelockedHostAllocation:
        """Kept alive by the array over it, through ctypes as numpy's own base would."""

        def __init__(self, size: int) -> None:
            device.need_context()
            self.memory = np.full(size, POISON, np.uint8)
            self.__array_interface__ = self.memory.__array_interface__
            device._pinned[self.memory.ctypes.data] = size
            self._number = device.made(f"{size} bytes of page-locked memory")

        def free(self) -> None:
            device.need_context()
            device.gone(self._number)
            del device._pinned[self.memory.ctypes.data]
            self.memory[:] = POISON

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            device.need_context()
            assert flags == 1
            self._number = device.made("a stream")
            self.handle = self._number
            device.streams[self.handle] = []

        def synchronize(self) -> None:
            device.finish(self.handle)

        def __del__(self) -> None:
            if device.streams.pop(self.handle, None):
                device.problems.append("a stream was destroyed with work to do")
            device.dropped(self._number)

    class Module:
        def __init__(self, content: bytes) -> None:
            self.content = content
            self._number = device.made("a module")

        def get_function(self, name: str) -> Function:
            variant = device.variants[self.content.decode()]
            assert name == variant.kernel.__name__
            return Function(self, variant)

        def __del__(self) -> None:
            device.dropped(self._number)

    class Function:
        def __init__(self, module: Module, variant: Variant) -> None:
            self._module, self._variant = module, variant
            self._format, self._most_shared = None, 48 * 1024

        def set_attribute(self, attribute: str, value: int) -> None:
            assert attribute == "shared"
            self._most_shared = value

        def prepare(self, arg_types: list[str]) -> Function:
            self._format = "".join(arg_types)
            return self

        def prepared_async_call(
            self,
            grid: tuple[int, ...],
            block: tuple[int, ...],
            stream: Stream,
            *args: int,
            shared_size: int = 0,
        ) -> None:
            packed = struct.pack(self._format, *args)
            assert shared_size <= self._most_shared
            assert grid[0] > 0
            assert grid[1:] in ((), (1,), (1, 1))
            variant, values = self._variant, struct.unpack(self._format, packed)
            device.launches.append((variant.name, grid[0], block, shared_size, len(packed)))

            def work() -> None:
                assert values[-2:] == (0, 0)  # Triton's scratch
                arguments = [
                    device.tensor_at(value, kind[1:]) if kind.startswith("*") else value
                    for value, kind in zip(values, variant.arguments.values(), strict=False)
                ]
                variant.launch((grid[0],), *arguments)

            pointers = [
                value
                for value, kind in zip(values, variant.arguments.values(), strict=False)
                if kind.startswith("*")
            ]
            device.enqueue(stream.handle, work, *pointers)

    def pagelocked_empty(shape: tuple[int, ...], dtype: type, mem_flags: int = 0) -> np.ndarray:
        assert np.dtype(dtype) == np.uint8
        allocation = PagelockedHostAllocation(shape[0])
        array = np.asarray(allocation)
        assert array.base is allocation
        return array

    def memcpy_htod(address: int, source: np.ndarray) -> None:
        content = source.tobytes()  # staged now, on the device when the null stream is done
        memory = device.bytes_at(address, len(content))
        copied = np.frombuffer(content, np.uint8)
        device.enqueue(0, lambda: np.copyto(memory, copied), address)

    def memcpy_htod_async(address: int, source: np.ndarray, stream: Stream) -> None:
        assert device.is_pinned(source)
        assert source.flags.c_contiguous
        memory, host = device.bytes_at(address, source.nbytes), source.reshape(-1).view(np.uint8)
        device.enqueue(stream.handle, lambda: np.copyto(memory, host), address)

    def memcpy_dtoh_async(target: np.ndarray, address: int, stream: Stream) -> None:
        assert device.is_pinned(target)
        assert target.flags.c_contiguous
        memory, host = device.bytes_at(address, target.nbytes), target.reshape(-1).view(np.uint8)
        host[:] = POISON  # whoever reads it before the stream is done reads this
        device.enqueue(stream.handle, lambda: np.copyto(host, memory), address)

    def memset_d8_async(address: int, value: int, count: int, stream: Stream) -> None:
        memory = device.bytes_at(address, count)
        device.enqueue(stream.handle, lambda: memory.fill(value), address)

    def mem_get_info() -> tuple[int, int]:
        device.need_context()
        return device.memory - device.used(), device.memory

    def module_from_buffer(content: bytes) -> Module:
        device.need_context()
        return Module(content)

    def init(flags: int = 0) -> None:
        if not device.count:
            raise LogicError("cuInit failed: no CUDA-capable device is detected")

    vars(driver).update(
        Error=Error,
        MemoryError=OutOfMemoryError,
        LogicError=LogicError,
        Context=Context,
        Device=PhysicalDevice,
        Stream=Stream,
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT="multiprocessors"),
        function_attribute=SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"),
        get_driver_version=lambda: 13000,
        init=init,
        mem_alloc=DeviceAllocation,
        mem_get_info=mem_get_info,
        memcpy_htod=memcpy_htod,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memset_d8_async=memset_d8_async,
        module_from_buffer=module_from_buffer,
        pagelocked_empty=pagelocked_empty,
    )
    return driver


@contextlib.contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """pycuda on a pretended device inside; afterwards all of it must have been freed properly."""
    device = Device()
    driver = driver_module(device)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(cuda, "_contexts", {})
    yield device
    gc.collect()
    assert not device.live
    assert not device.problems
    assert not device.stack


def description(variant: Variant, arch: int, shared: int = 65536) -> dict[str, Any]:
    """What `tigerfg.kernels.aot` writes of a variant, without compiling it; `path` is to come."""
    arguments = [(*pair, pair[0] in variant.aligned) for pair in variant.arguments.items()]
    arguments += [(name, "*i8", True) for name in SCRATCH]
    return {
        "name": variant.name,
        "arch": arch,
        "target": "sm_90a" if arch == 90 else f"sm_{arch}",
        "entry": variant.kernel.__name__,
        "num_warps": variant.num_warps,
        "shared": shared,
        "arguments": [
            {"name": name, "type": kind, "c_type": c_type(name, kind), "aligned": aligned}
            for name, kind, aligned in arguments
        ],
        "constexprs": json.loads(json.dumps(variant.constexprs)),
    }


# TensorRT's runtime


def engine_content(
    graph: Path, profiles: Any, max_text_length: int, low: str, seed: int = 0
) -> bytes:
    """The engine "file" of a float32 ONNX graph whose outputs but `token_weights` are `low`."""
    fields = {"graph": str(graph), "profiles": [list(profile) for profile in profiles]}
    return json.dumps({**fields, "length": max_text_length, "low": low, "seed": seed}).encode()


def trt_module(device: Device, rtx: bool = True) -> Any:
    """A module of TensorRT's name with the classes of its runtime; `rtx`: those of RTX too."""

    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        def __init__(self) -> None:
            pass

    ILogger.Severity = Severity

    class Runtime:
        def __init__(self, log: Any) -> None:
            device.need_context()
            self._log, self._number = log, device.made("a runtime")

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            device.need_context()
            try:
                fields = json.loads(data)
            except ValueError:
                self._log.log(Severity.ERROR, "Serialization assertion failed:\nmagic tag")
                return None
            return Engine(self, fields)

        def __del__(self) -> None:
            device.dropped(self._number)

    class Engine:
        def __init__(self, runtime: Runtime, fields: dict[str, Any]) -> None:
            self._runtime, self._fields = runtime, fields
            self.log = runtime._log
            self.session = onnxruntime.InferenceSession(
                fields["graph"], providers=["CPUExecutionProvider"]
            )
            self.low = fields["low"]
            self._inputs = [entry.name for entry in self.session.get_inputs()]
            self._outputs = [entry.name for entry in self.session.get_outputs()]
            self.num_io_tensors = len(self._inputs) + len(self._outputs)
            self.num_optimization_profiles = len(fields["profiles"])
            self.device_memory_size_v2 = fields.get("memory", 1 << 20)
            self._number = device.made("an engine")

        def get_tensor_name(self, index: int) -> str:
            return [*self._inputs, *self._outputs][index]

        def get_tensor_mode(self, name: str) -> Any:
            return SimpleNamespace(name="INPUT" if name in self._inputs else "OUTPUT")

        def get_tensor_dtype(self, name: str) -> Any:
            if name in self._inputs:
                types = {entry.name: entry.type for entry in self.session.get_inputs()}
                names = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
                return SimpleNamespace(name=names[types[name]])
            return SimpleNamespace(name=self.low if name in LOW else "FLOAT")

        def shapes(self, name: str) -> list[int]:
            entries = (*self.session.get_inputs(), *self.session.get_outputs())
            shape = next(entry.shape for entry in entries if entry.name == name)
            return [size if isinstance(size, int) else -1 for size in shape]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            length = self._fields["length"]
            rest = self.shapes(name)[1:]
            ends = zip(
                self._fields["profiles"][profile], (1, max(1, length // 2), length), strict=True
            )
            return [(batch, *(text if size < 0 else size for size in rest)) for batch, text in ends]

        def create_execution_context(self, config: Any = None) -> ExecutionContext:
            device.need_context()
            assert (config is not None) == rtx
            return ExecutionContext(self)

        if rtx:

            def create_runtime_config(self) -> IRuntimeConfig:
                return IRuntimeConfig()

        def __del__(self) -> None:
            device.dropped(self._number)

    class ExecutionContext:
        def __init__(self, engine: Engine) -> None:
            self._engine, self._profile = engine, 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._number = device.made("an execution context")

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            device.need_context()
            assert stream in device.streams
            self._profile = profile
            self._shapes.clear()
            return 0 <= profile < self._engine.num_optimization_profiles

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
            fits = len(shape) == len(low) and all(
                a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
            )
            if not fits:
                self._engine.log.log(Severity.ERROR, f"Static dimension mismatch of {name}")
                return False
            self._shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = self._shapes["pixels"][0]
            length = self._shapes["token_ids"][1] if "token_ids" in self._shapes else -1
            rest = self._engine.shapes(name)[1:]
            return (batch, *(length if size < 0 else size for size in rest))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return address % 256 == 0

        def execute_async_v3(self, stream: int) -> bool:
            shapes, addresses, engine = dict(self._shapes), dict(self._addresses), self._engine

            def work() -> None:
                feeds = {}
                for entry in engine.session.get_inputs():
                    kind = {"tensor(int64)": np.int64, "tensor(bool)": np.bool_}
                    dtype = np.dtype(kind.get(entry.type, np.float32))
                    size = dtype.itemsize * int(np.prod(shapes[entry.name]))
                    memory = device.bytes_at(addresses[entry.name], size)
                    assert dtype != np.bool_ or memory.max() <= 1, entry.name
                    feeds[entry.name] = memory.view(dtype).reshape(shapes[entry.name])
                    assert np.isfinite(feeds[entry.name]).all(), entry.name  # all rows were given
                names = [entry.name for entry in engine.session.get_outputs()]
                for name, value in zip(names, engine.session.run(names, feeds), strict=True):
                    content = lowered(value, engine.low if name in LOW else "FLOAT")
                    device.bytes_at(addresses[name], len(content))[:] = content

            device.enqueue(stream, work, *addresses.values())
            return True

        def __del__(self) -> None:
            device.dropped(self._number)

    module = ModuleType("pretended_tensorrt")
    vars(module).update(
        Runtime=Runtime, ILogger=ILogger, ICudaEngine=Engine, IExecutionContext=ExecutionContext
    )
    if rtx:

        class IRuntimeCache:
            def __init__(self) -> None:
                self.content = b"compiled"

            def serialize(self) -> bytes:
                device.need_context()
                return self.content

            def deserialize(self, blob: bytes) -> bool:
                device.need_context()
                if not blob.startswith(b"compiled"):
                    return False
                self.content = blob
                return True

        class IRuntimeConfig:
            cuda_graph_strategy = "disabled"

            def create_runtime_cache(self) -> IRuntimeCache:
                return IRuntimeCache()

            def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
                self._cache = cache
                return True

        vars(module).update(
            IRuntimeCache=IRuntimeCache,
            IRuntimeConfig=IRuntimeConfig,
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        )
    return module


LOW = ("patches", "queries", "text")  # outputs of a backbone in the engine's low precision


def lowered(value: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of a float32 array in one of TensorRT's types."""
    dtype = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}[kind]
    tensor = torch.from_numpy(np.ascontiguousarray(value)).to(dtype).contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy()
