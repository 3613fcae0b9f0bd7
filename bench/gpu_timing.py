"""Time on a CUDA device: events around a call, with a cold L2 cache, beside a copy's bandwidth."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import triton

from tigerfg.kernels.variant import Variant

FLUSH_BYTES = 1 << 30
COPY_BYTES = 2 << 30
REPLAYED_BATCH = 8  # up to this batch launches may take longer than the work: graphs are timed too


class Clock(Protocol):
    """What a measurement needs; tests have one that invents its times."""

    def __call__(self) -> float: ...

    def flush(self) -> None: ...


class CudaClock:
    """A timer for pytest-benchmark: one call starts a measurement, the next one ends it.

    `flush` comes before each measurement. It reads a buffer many times the L2 cache, so that
    nothing of the inputs is left in it and no dirty line has to be written back inside the measured
    time. Reading takes a fraction of a millisecond, during which the host queues the events and
    launches of the call: what lies between the events is then the device's time, without gaps,
    unless launching takes the host longer still (`host_ms` of a row).
    """

    def __init__(self) -> None:
        self._running = False

    def __call__(self) -> float:
        """Seconds since the measurement started: 0.0 when this call starts it."""
        self._running = not self._running
        if self._running:
            self._start = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)
            self._start.record()
            return 0.0
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000

    def flush(self) -> None:
        """Queue the reading of the buffer; forgets a measurement that an exception cut off."""
        self._running = False
        if not hasattr(self, "_buffer"):
            cache = torch.cuda.get_device_properties("cuda").L2_cache_size
            self._buffer = torch.ones(max(FLUSH_BYTES, 2 * cache) // 4, device="cuda")
        torch.sum(self._buffer)


def device_conditions() -> dict[str, Any]:
    """The first CUDA device and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size >> 20,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def samples(clock: Clock, call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of `rounds` calls."""
    seconds = []
    for _ in range(rounds):
        clock.flush()
        start = clock()
        call()
        seconds.append(clock() - start)
    return seconds


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 20th and 80th percentile in milliseconds."""
    middle, low, high = np.quantile(seconds, (0.5, 0.2, 0.8)) * 1000
    return {"ms": float(middle), "p20": float(low), "p80": float(high)}


def copy_bandwidth(clock: Clock, device: str = "cuda", size: int = COPY_BYTES) -> float:
    """GB/s, read and written bytes counted, of copies of `size` random bytes on the device."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    samples(clock, lambda: target.copy_(source), 3)
    seconds = samples(clock, lambda: target.copy_(source), 20)
    return 2 * size / float(np.median(seconds)) / 1e9


@triton.jit
def empty_kernel():
    pass


def launch_empty() -> None:
    empty_kernel[(1,)]()


def replays(clock: Clock, call: Callable[[], object], rounds: int = 100) -> dict[str, float]:
    """Quantiles of replays of a CUDA graph that holds one call.

    The warm-up compiles and loads what the call launches, which a capture does not allow. Counters
    that a kernel keeps are the graph's own and are cleared by every replay (`kernels/arrival.py`):
    that is part of its time.
    """
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    samples(clock, graph.replay, 5)
    return quantiles(samples(clock, graph.replay, rounds))


@contextmanager
def launched_kernels() -> Iterator[list[str]]:
    """Names of our kernels that are launched inside the block."""
    names: list[str] = []
    plain = Variant.launch

    def launch(variant: Variant, grid: tuple[int, ...], *arguments: Any) -> None:
        names.append(variant.name)
        plain(variant, grid, *arguments)

    Variant.launch = launch  # type: ignore[method-assign]
    try:
        yield names
    finally:
        Variant.launch = plain  # type: ignore[method-assign]


Timed = Callable[[Callable[[], object], int], list[float]]


def measure(
    case: Any, contender: str, clock: Clock, timed: Timed | None = None, replay: bool = False
) -> dict[str, Any]:
    """One row: a contender on a case's inputs, its errors over the float64 oracle, its times.

    What is off is not timed: an AssertionError names the output and the error, or says that a
    contender of ours ran the reference on a CUDA device.

    Args:
        case: operator, shape, inputs, contenders and oracle, see `peers.Case`.
        timed: ``timed(call, rounds)`` gives the seconds of each round; `samples` if None.
        replay: time the replays of a CUDA graph too.
    """
    call = case.call(contender)
    with launched_kernels() as kernels:
        outputs = call()
    ours = contender.startswith("tigerfg")
    assert kernels or not ours or case.device != "cuda", f"{case.op}: the reference ran"
    errors = case.errors(contender, outputs)
    wrong = {name: error for name, error in errors.items() if not error < case.allowed_error}
    assert not wrong, f"{case.op} {contender} {case.label}: relative errors {wrong}"
    host: list[float] = []

    def observed() -> object:
        start = time.perf_counter()
        result = call()
        host.append(time.perf_counter() - start)
        return result

    estimate = min(samples(clock, call, 3))
    rounds = int(np.clip(0.5 / max(estimate, 1e-6), 5, 100))
    timed = timed or (lambda function, count: samples(clock, function, count))
    times = quantiles(timed(observed, rounds))
    return {
        "op": case.op,
        "contender": contender,
        "computes": case.computes(contender),
        "label": case.label,
        **case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        **times,
        "rounds": rounds,
        "host_ms": quantiles(host)["ms"],
        "kernels": kernels,
        "replay_ms": replays(clock, call)["ms"] if replay else None,
        "bytes": case.bytes(contender),
        "gb_s": case.bytes(contender) / times["ms"] / 1e6,
        "error": errors,
        "torch_error": case.torch_errors(contender),
    }
