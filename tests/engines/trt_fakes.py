"""A stand-in for the builder half of a TensorRT module, where the real one cannot show a case.

Strict as the real bindings: what is not in its API raises AttributeError, read or set.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tigerfg.engines.builder import build_engine
from tigerfg.engines.sidecar import Sidecar
from tigerfg.engines.trt_library import Builder, Gpu

GPU = Gpu(sm=89, driver="CUDA 13.0", context=None)
ITEM_INPUTS = {
    "pixels": (-1, 3, 64, 64),
    "patch_mask": (-1, 16),
    "token_ids": (-1, -1),
    "token_mask": (-1, -1),
}

WHAT = {
    "tower": "item",
    "precision": "fp16",
    "cut": "backbone",
    "onnx_sha256": "a" * 64,
    "max_text_length": 24,
}


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


@dataclass
class Script:
    """What the library does, and what it was told.

    Attributes:
        inputs: of the graph: name -> shape.
        default_workspace: bytes, the library's own limit.
        fits: build runs out of memory with a larger workspace, bytes; None: always fits.
        requested: bytes that the message of running out names.
        parser_errors: (node name, operator, text) each; parsing fails if there are any.
        build_errors: logged by the build, which then gives nothing.
        build_raises: raised by the build.
        remarks: errors logged by a build that succeeds all the same.
        no_driver: the library's Builder cannot be made.
        steps: of the outermost phase.
        on_step: called before each of them.
        refused_timings: contents that are no timing cache of this GPU.
        engine: the content of engines.
        networks, profiles, workspaces, targets, timings, build_flags: what the library was told.
        flags: network creation flags, one entry a network.
    """

    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(ITEM_INPUTS))
    default_workspace: int = 4 << 30
    fits: int | None = None
    requested: int = 1 << 20
    parser_errors: list[tuple[str, str, str]] = field(default_factory=list)
    build_errors: list[str] = field(default_factory=list)
    build_raises: BaseException | None = None
    remarks: list[str] = field(default_factory=list)
    no_driver: bool = False
    steps: int = 3
    on_step: Callable[[int], None] = lambda step: None
    refused_timings: tuple[bytes, ...] = ()
    engine: bytes = b"an engine"
    flags: list[int] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    workspaces: list[int] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)
    build_flags: set[int] = field(default_factory=set)
    cancelled: bool = False


def fake_builder(script: Script, name: str = "tensorrt", version: str = "10.13.2.6") -> Builder:
    return Builder(name, version, fake_module(script, name == "tensorrt-rtx"))


def fake_build(folder: Path, builder: Builder, **options: Any) -> Sidecar:
    """folder/out/x.engine from an empty graph, for the text lengths and names of WHAT."""
    graph = folder / "graph.onnx"
    graph.touch()
    return build_engine(graph, folder / "out" / "x.engine", builder=builder, **{**WHAT, **options})


def fake_module(script: Script, rtx: bool) -> SimpleNamespace:
    """The module; TensorRT-RTX has compute capabilities and no use for timing caches."""

    class ILogger:
        pass

    ILogger.Severity = Severity

    class IProgressMonitor:
        pass

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class MemoryPoolType(enum.IntEnum):
        WORKSPACE = 0
        DLA_LOCAL_DRAM = 1

    class BuilderFlag(enum.IntEnum):
        TF32 = 5

    class ComputeCapability(enum.IntEnum):
        NONE, CURRENT, SM75, SM80, SM89, SM120 = 0, 1, 75, 80, 89, 120

    class Tensor:
        __slots__ = ("name", "shape")

        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape

    class ParserError:
        __slots__ = ("_error",)

        def __init__(self, error: tuple[str, str, str]) -> None:
            self._error = error

        def node(self) -> int:
            return 7

        def node_name(self) -> str:
            return self._error[0]

        def node_operator(self) -> str:
            return self._error[1]

        def desc(self) -> str:
            return self._error[2]

    class INetworkDefinition:
        __slots__ = ("_inputs",)

        def __init__(self) -> None:
            self._inputs = [Tensor(*item) for item in script.inputs.items()]

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        def get_input(self, index: int) -> Tensor:
            return self._inputs[index]

    class OnnxParser:
        __slots__ = ("_network",)

        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            assert isinstance(model, str)
            script.graphs.append(model)
            return not script.parser_errors

        @property
        def num_errors(self) -> int:
            return len(script.parser_errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(script.parser_errors[index])

    class IOptimizationProfile:
        __slots__ = ("_shapes",)

        def __init__(self) -> None:
            self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class IHostMemory(bytes):
        pass

    class ITimingCache:
        __slots__ = ("_content",)

        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content + b"+measured")

    class IBuilderConfig:
        __slots__ = ("_capabilities", "_flags", "_limit", "_profiles", "progress_monitor")

        def __init__(self) -> None:
            self._limit, self._profiles = script.default_workspace, []
            self._flags = {BuilderFlag.TF32}  # on by default

        def clear_flag(self, flag: BuilderFlag) -> None:
            self._flags.remove(BuilderFlag(flag))

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            assert pool is MemoryPoolType.WORKSPACE
            self._limit = pool_size

        def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
            assert pool is MemoryPoolType.WORKSPACE
            return self._limit

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            shapes = profile._shapes
            rising = all(
                all(low <= best <= high for low, best, high in zip(*sizes, strict=True))
                for sizes in shapes.values()
            )
            if shapes.keys() != script.inputs.keys() or not rising:
                return -1
            self._profiles.append(shapes)
            return len(self._profiles) - 1

        if rtx:

            @property
            def num_compute_capabilities(self) -> int:
                return len(self._capabilities)

            @num_compute_capabilities.setter
            def num_compute_capabilities(self, count: int) -> None:
                self._capabilities = [ComputeCapability.NONE] * count

            def set_compute_capability(
                self, compute_capability: ComputeCapability, index: int
            ) -> bool:
                if compute_capability is ComputeCapability.CURRENT and self._capabilities[1:]:
                    return False
                self._capabilities[index] = compute_capability
                return True

        else:

            def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
                script.timings.append(bytes(serialized_timing_cache))
                if serialized_timing_cache in script.refused_timings:
                    return None
                return ITimingCache(serialized_timing_cache)

            def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
                assert isinstance(cache, ITimingCache)
                assert ignore_mismatch is False  # times of another GPU mislead
                return True

    class LibraryBuilder:
        __slots__ = ("_logger",)

        def __init__(self, logger: ILogger) -> None:
            self._logger = logger
            if script.no_driver:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            script.flags.append(flags)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory | None:
            script.workspaces.append(config._limit)
            script.profiles = config._profiles
            script.build_flags = config._flags
            if rtx:
                script.targets = [entry.name for entry in config._capabilities]
            if not self._run_steps(config.progress_monitor):
                self._logger.log(Severity.ERROR, "Error Code 7: BuildCanceled")
                script.cancelled = True
                return None
            if script.build_raises is not None:
                raise script.build_raises
            errors = list(script.build_errors)
            if script.fits is not None and config._limit > script.fits:
                errors.append(
                    f"Error Code 2: OutOfMemory (Requested size was {script.requested} bytes.)"
                )
            for message in errors or script.remarks:
                self._logger.log(Severity.ERROR, message)
            self._logger.log(Severity.VERBOSE, "done")
            return None if errors else IHostMemory(script.engine)

        def _run_steps(self, monitor: IProgressMonitor) -> bool:
            monitor.phase_start("Building engine", None, script.steps)
            monitor.phase_start("Inner", "Building engine", 2)
            for step in range(script.steps):
                script.on_step(step)
                if not (
                    monitor.step_complete("Inner", 0)
                    and monitor.step_complete("Building engine", step)
                ):
                    return False
            monitor.phase_finish("Inner")
            monitor.phase_finish("Building engine")
            return True

    names = {
        "Builder": LibraryBuilder,
        "IBuilderConfig": IBuilderConfig,
        "IHostMemory": IHostMemory,
        "ILogger": ILogger,
        "INetworkDefinition": INetworkDefinition,
        "IOptimizationProfile": IOptimizationProfile,
        "IProgressMonitor": IProgressMonitor,
        "ITensor": Tensor,
        "ITimingCache": ITimingCache,
        "BuilderFlag": BuilderFlag,
        "MemoryPoolType": MemoryPoolType,
        "NetworkDefinitionCreationFlag": NetworkDefinitionCreationFlag,
        "OnnxParser": OnnxParser,
        "ParserError": ParserError,
    }
    if rtx:
        names["ComputeCapability"] = ComputeCapability
    return _Module(**names)


class _Module(SimpleNamespace):
    """Hashable by identity, as modules are."""

    __hash__ = object.__hash__
