"""One CUDA device through pycuda: memory, streams and compiled kernels. No other file uses pycuda.

Everything runs in the device's primary context, the one that torch, faiss and TensorRT use too. It
is pushed around calls only (`Cuda.active`) and kept until the process ends: were it the last to be
released, a thread of another library could be left with a dead context.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tigerfg.errors import EngineError, MissingExtraError

# C types of kernel arguments -> letters of `struct`, and the largest addresses, sizes and counts.
FORMATS = {"void *": "P", "int32_t": "i", "int64_t": "q"}
LARGEST = {"void *": 2**64 - 1, "int32_t": 2**31 - 1, "int64_t": 2**63 - 1}
SCRATCH = ("global_scratch", "profile_scratch")  # Triton's own: null, see tigerfg.kernels.aot
WARP = 32  # threads
PLAIN_SHARED = 48 * 1024  # bytes of shared memory that a block has without asking for more
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for what others put on the null stream

_contexts: dict[int, Any] = {}  # device ordinal -> its primary context, for the whole process
_contexts_lock = threading.Lock()


class Memory(NamedTuple):
    """Device memory in bytes."""

    free: int
    total: int


class Cuda:
    """One device. Safe from several threads; whoever calls `close` sees to it that none uses it.

    Attributes:
        name: of the device.
        sm: compute capability, 89 for 8.9.
        multiprocessors: how many it has.
        driver: the newest CUDA version that the driver runs, e.g. "13.0".
    """

    def __init__(self, driver: Any, device: Any, context: Any) -> None:
        self._driver, self._context = driver, context
        self._resources: dict[int, Buffer | Pinned | Stream | Kernel] = {}
        self._lock = threading.Lock()
        self._closed = False
        with self.active():
            self.name: str = device.name()
            major, minor = device.compute_capability()
            self.sm: int = 10 * major + minor
            attribute = driver.device_attribute.MULTIPROCESSOR_COUNT
            self.multiprocessors: int = device.get_attribute(attribute)
            version = driver.get_driver_version()
        self.driver = f"{version // 1000}.{version % 1000 // 10}"

    @classmethod
    def open(cls, ordinal: int = 0) -> Cuda:
        """Open the device of that number.

        Raises:
            MissingExtraError: pycuda is not installed.
            EngineError: no driver, or no such device.
        """
        driver = _import_driver()
        try:
            driver.init()
            count = driver.Device.count()
            if not 0 <= ordinal < count:
                raise EngineError(f"device: {ordinal}; this machine has {count} (0 is the first)")
            device = driver.Device(ordinal)
            with _contexts_lock:
                if ordinal not in _contexts:
                    _contexts[ordinal] = device.retain_primary_context()
                    # pycuda's own destructor would take it for a context that is not shared
                    atexit.register(_contexts[ordinal].detach)
            return cls(driver, device, _contexts[ordinal])
        except driver.Error as error:
            raise EngineError(f"no GPU here: {error}") from error

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The device is the calling thread's current one inside; may be nested.

        Errors of CUDA become an EngineError that names the call.
        """
        if self._closed:
            raise EngineError("the CUDA device is closed; open it again")
        driver = self._driver
        try:
            self._context.push()
            try:
                yield
            finally:
                driver.Context.pop()
        except driver.Error as error:
            raise EngineError(f"CUDA: {error}") from error

    def memory(self) -> Memory:
        """What is free now, and all there is."""
        with self.active():
            return Memory(*self._driver.mem_get_info())

    def require(self, size: int, what: str) -> None:
        """EngineError unless so many bytes of device memory are free."""
        if size > self.memory().free:
            raise self._out_of_memory(size, what)

    def buffer(self, size: int, what: str) -> Buffer:
        """Device memory of `size` bytes; `what` names it in the error if there is not enough."""
        with self.active():
            try:
                memory = self._driver.mem_alloc(size)
            except self._driver.MemoryError as error:
                raise self._out_of_memory(size, what) from error
            return self._keep(Buffer(self, memory, size))

    def pinned(self, size: int) -> Pinned:
        """Page-locked host memory of `size` bytes, which the device copies from and to by itself.

        Raises:
            EngineError: the machine has not enough memory that can be locked.
        """
        with self.active():
            try:
                array = self._driver.pagelocked_empty((size,), np.uint8)
            except self._driver.MemoryError as error:
                raise EngineError(
                    f"out of page-locked host memory: {_mib(size)} were asked for; use smaller "
                    "batches or an engine with smaller profiles"
                ) from error
            return self._keep(Pinned(self, array))

    def stream(self) -> Stream:
        """A stream of its own."""
        with self.active():
            return self._keep(Stream(self, self._driver.Stream(NON_BLOCKING)))

    def upload(self, array: np.ndarray, what: str) -> Buffer:
        """A copy of an array in device memory, complete when this returns."""
        array = np.ascontiguousarray(array)
        buffer = self.buffer(array.nbytes, what)
        with self.active():
            self._driver.memcpy_htod(buffer.address, array)
            self._driver.Context.synchronize()  # other streams do not wait for this one
        return buffer

    def kernel(self, description: Mapping[str, Any], cubin: bytes) -> Kernel:
        """Load a compiled kernel.

        Args:
            description: as `tigerfg.kernels.aot` writes it.
            cubin: code that this device runs.
        """
        with self.active():
            module = self._driver.module_from_buffer(cubin)
            function = module.get_function(description["entry"])
            if description["shared"] > PLAIN_SHARED:
                attribute = self._driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                function.set_attribute(attribute, description["shared"])
            return self._keep(Kernel(self, description, module, function))

    def close(self) -> None:
        """Free what is left of this device's memory, streams and kernels, the newest first."""
        if self._closed:
            return
        try:
            with self.active():
                for resource in reversed(list(self._resources.values())):
                    resource.free()
        finally:
            self._closed = True

    def _keep(self, resource: Any) -> Any:
        with self._lock:
            self._resources[id(resource)] = resource
        return resource

    def _forget(self, resource: Any) -> bool:
        """Whether it was still kept: each is freed once."""
        with self._lock:
            return self._resources.pop(id(resource), None) is not None

    def _out_of_memory(self, size: int, what: str) -> EngineError:
        free = self.memory().free
        return EngineError(
            f"out of GPU memory: {what} needs {_mib(size)}, {_mib(free)} are free on {self.name}; "
            "use smaller batches, an engine with smaller profiles, or free memory of other programs"
        )


class Buffer:
    """Device memory; `address` is the device pointer, `size` in bytes."""

    def __init__(self, cuda: Cuda, memory: Any, size: int) -> None:
        self._cuda, self._memory = cuda, memory
        self.address, self.size = int(memory), size

    def free(self) -> None:
        if self._cuda._forget(self):
            with self._cuda.active():
                self._memory.free()


class Pinned:
    """Page-locked host memory; `array` is all of it as uint8, to be viewed but never kept."""

    def __init__(self, cuda: Cuda, array: np.ndarray) -> None:
        self._cuda, self.array = cuda, array

    def free(self) -> None:
        if self._cuda._forget(self):
            with self._cuda.active():
                array, self.array = self.array, None
                array.base.free()


class Stream:
    """A queue of the device's work; all but `synchronize` return before it is done.

    Call these with the device active.
    """

    def __init__(self, cuda: Cuda, stream: Any) -> None:
        self._cuda, self._stream = cuda, stream
        self.handle: int = stream.handle

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous page-locked array to the device; it must stay as it is until then."""
        self._cuda._driver.memcpy_htod_async(address, array, self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the device to a contiguous page-locked array."""
        self._cuda._driver.memcpy_dtoh_async(array, address, self._stream)

    def clear(self, address: int, size: int) -> None:
        """Set `size` bytes of device memory to zero."""
        self._cuda._driver.memset_d8_async(address, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        self._stream.synchronize()

    def free(self) -> None:
        if self._cuda._forget(self):
            with self._cuda.active():
                self._stream = None  # pycuda destroys it with its last reference


class Kernel:
    """A loaded kernel, launched by the names of its arguments."""

    def __init__(
        self, cuda: Cuda, description: Mapping[str, Any], module: Any, function: Any
    ) -> None:
        self._cuda, self._module, self._function = cuda, module, function
        self.name: str = description["name"]
        self._arguments = [
            (argument["name"], 16 if argument["aligned"] else 1, LARGEST[argument["c_type"]])
            for argument in description["arguments"]
        ]
        self._block = (WARP * description["num_warps"], 1, 1)
        self._shared: int = description["shared"]
        # pycuda packs by these letters of `struct`, in native alignment, as CUDA wants it
        function.prepare([FORMATS[argument["c_type"]] for argument in description["arguments"]])

    def launch(self, stream: Stream, programs: int, values: Mapping[str, int]) -> None:
        """Put the kernel on the stream; call it with the device active.

        Args:
            programs: of its one-dimensional grid.
            values: of every argument but Triton's scratch pointers: device addresses and integers.

        Raises:
            EngineError: a value is negative, does not fit its type, or is not the multiple of 16
                that the kernel was compiled for.
        """
        packed = []
        for name, multiple, largest in self._arguments:
            value = 0 if name in SCRATCH else values[name]
            if value % multiple:
                raise EngineError(f"{self.name}: {name} is {value}, no multiple of {multiple}")
            if not 0 <= value <= largest:
                raise EngineError(f"{self.name}: {name} is {value}, {largest} is the largest")
            packed.append(value)
        self._function.prepared_async_call(
            (programs, 1), self._block, stream._stream, *packed, shared_size=self._shared
        )

    def free(self) -> None:
        if self._cuda._forget(self):
            with self._cuda.active():
                self._function = None
                self._module = None  # pycuda unloads it with its last reference


class Arena:
    """A buffer that only grows, and then moves."""

    def __init__(self, cuda: Cuda, what: str) -> None:
        self._cuda, self._what = cuda, what
        self._buffer: Buffer | None = None

    def reserve(self, size: int) -> int:
        """Address of at least `size` bytes. What was there is lost if it grows; nothing may use it
        then."""
        if self._buffer is None or self._buffer.size < size:
            self.free()
            self._buffer = self._cuda.buffer(size, self._what)
        return self._buffer.address

    def free(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.free()


def _import_driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        package = (error.name or "pycuda").partition(".")[0]
        raise MissingExtraError("a TensorRT engine", package, "tensorrt-rtx") from error
    except ImportError as error:
        raise EngineError(f"no GPU here: the NVIDIA driver is not installed ({error})") from error


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
