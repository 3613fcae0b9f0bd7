"""A TensorRT engine on a device: deserialised, checked, and the maker of execution contexts."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tigerfg.engines import sidecar
from tigerfg.engines.cuda import Cuda
from tigerfg.engines.trt_library import library_log
from tigerfg.errors import EngineError

SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "BOOL": 1}  # bytes of an element

logger = logging.getLogger("tigerfg")


class Tensor(NamedTuple):
    """A tensor by TensorRT's name of its type, and its shape without the batch; -1: text length."""

    kind: str
    row: tuple[int, ...]

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        return (batch, *(length if size < 0 else size for size in self.row))

    def bytes(self, batch: int, length: int) -> int:
        return SIZES[self.kind] * math.prod(self.shape(batch, length))


class BatchRange(NamedTuple):
    """What one optimisation profile takes: its number and its smallest and largest batch."""

    profile: int
    smallest: int
    largest: int


class LoadedEngine:
    """A deserialised engine. Calls are made with the device active.

    Args:
        module: the TensorRT library, `tensorrt` or `tensorrt_rtx`.
        data: the engine file's content.
        name: of the engine in messages.
        cache: file of the kernels that TensorRT-RTX compiles on this machine, read if it is there;
            unused with a library without such a cache.

    Attributes:
        ranges: the batches of the optimisation profiles, smallest first.
        max_text_length: the longest text, tokens; 0 for an engine without one.
        inputs: names of those of `check` that the engine has.

    Raises:
        EngineError: the library refuses the engine, or there is no memory for it.
    """

    def __init__(self, cuda: Cuda, module: Any, data: bytes, name: str, cache: Path) -> None:
        self._cuda, self._module, self._name = cuda, module, name
        self._log = library_log(module)
        self._config = self._kernels = None
        self._cache, self._cached = cache, b""
        self._log.errors.clear()
        self._runtime = module.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(f"{name}: cannot be deserialised{self.problem()}")
        self.ranges = self._batch_ranges()
        self.inputs: tuple[str, ...] = ()
        self.max_text_length = 0
        if "token_ids" in self._names("INPUT"):
            self.max_text_length = self._bounds("token_ids", 0)[1][1]
        if hasattr(module, "IRuntimeCache"):  # TensorRT-RTX
            self._configure()

    def check(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """EngineError unless these are the engine's tensors.

        It may lack an input: the tail's own, or one that its graph does not use.
        """
        for mode, wanted in (("INPUT", inputs), ("OUTPUT", outputs)):
            found = self._names(mode)
            kinds = {name: tensor.kind for name, tensor in wanted.items()}
            lacking = kinds.keys() - found.keys() if mode == "OUTPUT" else ()
            if lacking or not found.items() <= kinds.items():
                raise EngineError(
                    f"{self._name}: its {mode.lower()}s are {found}, wanted {kinds}: build it "
                    "again from this bundle"
                )
        self.inputs = tuple(self._names("INPUT"))

    def context(self) -> Any:
        """A new execution context, whose memory is asked for before TensorRT takes it."""
        size = getattr(self._engine, "device_memory_size_v2", 0)
        self._cuda.require(size, f"an execution context of {self._name}")
        if self._config is None:
            context = self._engine.create_execution_context()
        else:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError(f"{self._name}: no execution context{self.problem()}")
        return context

    def problem(self) -> str:
        """The library's last error messages, to be appended to one of ours."""
        errors = list(self._log.errors)
        self._log.errors.clear()
        return f": {'; '.join(errors[-3:])}" if errors else ""

    def save_kernels(self) -> None:
        """Keep what TensorRT-RTX has compiled so far, so that the next start need not."""
        if self._kernels is None:
            return
        with self._cuda.active():
            content = self._kernels.serialize()
            data = b"" if content is None else bytes(memoryview(content))
        if data in (b"", self._cached):
            return
        try:
            sidecar.write_file(self._cache, data)
            self._cached = data
        except EngineError as error:
            logger.info("compiled kernels are not kept: %s", error)

    def free(self) -> None:
        """Drop the engine; its execution contexts must be gone."""
        with self._cuda.active():
            self._config = self._kernels = None
            self._engine = None
            self._runtime = None

    def _configure(self) -> None:
        """TensorRT-RTX: keep compiled kernels, and replay each known shape as a CUDA graph."""
        self._config = self._engine.create_runtime_config()
        self._kernels = self._config.create_runtime_cache()
        try:
            data = self._cache.read_bytes()
        except OSError:
            data = b""
        if data and self._kernels.deserialize(data):  # else of another machine or version: remade
            self._cached = data
        self._config.set_runtime_cache(self._kernels)
        self._config.cuda_graph_strategy = self._module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def _names(self, mode: str) -> dict[str, str]:
        """Names and types of the inputs or outputs."""
        names = map(self._engine.get_tensor_name, range(self._engine.num_io_tensors))
        return {
            name: self._engine.get_tensor_dtype(name).name
            for name in names
            if self._engine.get_tensor_mode(name).name == mode
        }

    def _bounds(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Smallest and largest shape of an input in a profile."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def _batch_ranges(self) -> list[BatchRange]:
        ranges = []
        for profile in range(self._engine.num_optimization_profiles):
            smallest, largest = self._bounds("pixels", profile)
            ranges.append(BatchRange(profile, smallest[0], largest[0]))
        return sorted(ranges, key=lambda entry: (entry.largest, entry.smallest))
