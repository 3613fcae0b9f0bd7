"""One run of the TensorRT builder: parse the graph, configure, build, cancel on Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tigerfg.engines.trt_library import Builder, Gpu, library_log
from tigerfg.errors import EngineError

SHOWN = 3  # errors of the library that an exception quotes

_log = logging.getLogger("tigerfg")
_building = threading.Lock()  # one at a time: a build takes all cores, and the log is shared
_DONE = object()
_OUT_OF_MEMORY = re.compile(r"out_?\s?of_?\s?memory|insufficient memory|bad_alloc", re.IGNORECASE)
_REQUESTED = re.compile(r"Requested size was (\d+) bytes")


@dataclass(frozen=True)
class Job:
    """What a build is given.

    Attributes:
        what: names the build in errors and progress lines, "query fp16 backbone".
        graph: the ONNX file.
        profiles: (smallest, best, largest) batch of each optimisation profile.
        targets: names in the library's ComputeCapability; empty where it has no such choice.
        gpu: the GPU to build on, None to build without.
        timing_cache: file with full TensorRT's measurements, None to measure anew.
    """

    what: str
    graph: Path
    builder: Builder
    profiles: tuple[tuple[int, int, int], ...]
    max_text_length: int
    targets: tuple[str, ...]
    gpu: Gpu | None
    timing_cache: Path | None


class Plan(NamedTuple):
    """A built engine (bytes-like) and the measurements to keep, None where there are none."""

    engine: Any
    timings: bytes | None


class OutOfMemory(Exception):  # noqa: N818  (not an error yet: the next build takes less)
    """A build ran out of memory.

    Attributes:
        limit: the workspace it could take, bytes; 0 if it had not come to that.
        requested: bytes that did not fit, None if the library does not say.
    """

    def __init__(self, limit: int, requested: int | None) -> None:
        super().__init__(limit, requested)
        self.limit, self.requested = limit, requested


def run(job: Job, workspace: int | None, say: Callable[[str], None]) -> Plan:
    """Build once, with a workspace in bytes (None: the library's default).

    The build runs in a thread of its own, so that this one hears Ctrl-C and can tell the build to
    stop, which it does at its next step. `say` is called in this thread.

    Raises:
        OutOfMemory: memory does not suffice.
        EngineError: the library refuses the graph or the settings; quotes its errors.
    """
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    monitor = _monitor(job.builder.module, events)
    results: list[Any] = []

    def work() -> None:
        try:
            with job.gpu.borrowed() if job.gpu else contextlib.nullcontext():
                results.append(_build(job, workspace, monitor))
        except BaseException as error:
            results.append(error)
        finally:
            events.put(_DONE)

    with _building:
        thread = threading.Thread(target=work, name="tensorrt build", daemon=True)
        try:
            thread.start()
            while (event := events.get()) is not _DONE:
                say(f"{job.what}: {event}")
        finally:
            monitor.cancelled = True
            with contextlib.suppress(RuntimeError):  # interrupted before it started
                thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _monitor(trt: Any, events: queue.SimpleQueue[Any]) -> Any:
    """Tells the steps of the outermost phase; stops the build once `cancelled` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._outermost: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._outermost:
                events.put(f"step {step + 1} of {self._outermost[phase_name]}")
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self._outermost.pop(phase_name, None)

    return Monitor()


def _build(job: Job, workspace: int | None, monitor: Any) -> Plan:
    trt = job.builder.module
    log = library_log(trt)
    log.errors.clear()
    limit = 0
    try:
        library = trt.Builder(log)
        network = library.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(job.graph)):
            raise EngineError(f"{job.what}: {job.builder} cannot read {_parse_errors(job, parser)}")
        config = library.create_builder_config()
        config.progress_monitor = monitor
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32, not its first 10 bits
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        limit = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        _set_targets(job, trt, config)
        for profile in job.profiles:
            _add_profile(job, profile, library, network, config)
        cache = _timing_cache(job, config)
        engine = library.build_serialized_network(network, config)
        if engine is None:
            raise EngineError(f"{job.what}: {job.builder} built no engine: {_logged(log)}")
        if log.errors:
            _log.warning("%s: %s built it, but said: %s", job.what, job.builder, _logged(log))
        return Plan(engine, None if cache is None else bytes(memoryview(cache.serialize())))
    except MemoryError as error:
        raise OutOfMemory(limit, None) from error
    except EngineError:
        messages = "\n".join(log.errors)
        if _OUT_OF_MEMORY.search(messages):
            requested = _REQUESTED.findall(messages)
            raise OutOfMemory(limit, int(requested[-1]) if requested else None) from None
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # a constructor that gave nothing, ...
        raise EngineError(
            f"{job.what}: {job.builder} does not work: {_logged(log)} ({error})"
        ) from error


def _parse_errors(job: Job, parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [
        f"node {error.node_name() or error.node()} ({error.node_operator() or 'no operator'}): "
        f"{' '.join(error.desc().split())}"
        for error in errors[:SHOWN]
    ]
    return f"{job.graph.name}: {_listed(lines, len(errors))}"


def _logged(log: Any) -> str:
    return _listed(log.errors[:SHOWN], len(log.errors))


def _listed(lines: list[str], count: int) -> str:
    more = [f"and {count - len(lines)} more"] if count > len(lines) else []
    return "; ".join([*lines, *more]) or "it does not say why"


def _set_targets(job: Job, trt: Any, config: Any) -> None:
    if not job.targets:
        return
    config.num_compute_capabilities = len(job.targets)
    for index, name in enumerate(job.targets):
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name], index):
            raise EngineError(f"{job.what}: {job.builder} does not take {name} as a target")


def _add_profile(
    job: Job, profile: tuple[int, int, int], library: Any, network: Any, config: Any
) -> None:
    """Shapes of the graph's own inputs: dim 0 is the batch, dim 1 of a token_* input the length."""
    shapes = library.create_optimization_profile()
    lengths = (1, max(1, job.max_text_length // 2), job.max_text_length)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = list(tensor.shape)[1:]
        text = tensor.name.startswith("token_") and rest[:1] == [-1]
        if tensor.shape[0] != -1 or -1 in rest[text:]:
            raise EngineError(
                f"{job.what}: input {tensor.name} has the shape {tuple(tensor.shape)}; only the "
                "batch and the text length may vary: export the model again"
            )
        shapes.set_shape(
            tensor.name,
            *(
                (batch, *([length, *rest[1:]] if text else rest))
                for batch, length in zip(profile, lengths, strict=True)
            ),
        )
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{job.what}: {job.builder} does not take the profile {profile}")


def _timing_cache(job: Job, config: Any) -> Any | None:
    """The cache in use: the file's content, or an empty one if it is of another GPU or version."""
    if job.timing_cache is None:
        return None
    try:
        content = job.timing_cache.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise EngineError(f"{job.timing_cache}: cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        _log.info("%s is of another GPU or TensorRT: measuring anew", job.timing_cache)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache
