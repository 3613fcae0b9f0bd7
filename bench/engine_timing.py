"""Timing calls in turns, on a CUDA device or from the host, and what to do when one fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from engine_models import Unavailable
from gpu_timing import Clock, samples

from tigerfg.errors import TigerfgError

DEVICE_ROUNDS, HOST_ROUNDS = (30, 300), (10, 300)  # least and most
P99_ROUNDS = 100
WARM_UP = 5


class WallClock:
    """As `gpu_timing.CudaClock`, for calls that return when all is done: the host's clock."""

    def __init__(self) -> None:
        self._start: float | None = None

    def __call__(self) -> float:
        now = time.perf_counter()
        seconds = 0.0 if self._start is None else now - self._start
        self._start = now if self._start is None else None
        return seconds

    def flush(self) -> None:
        """The device is idle before the call."""
        self._start = None
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    streams: Mapping[str, int | None],
    clock: Clock,
    rounds: tuple[int, int],
    budget: float,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds of every call, all in turns; and what those raised that cannot be measured.

    Args:
        streams: handles of the CUDA streams that they work on, None for torch's current one.
        rounds: least and most; between them, for `budget` seconds in all.
    """
    failed: dict[str, Exception] = {}
    estimates: dict[str, float] = {}
    for name, call in calls.items():
        try:
            with on_stream(streams[name]):
                samples(clock, call, WARM_UP)
                estimates[name] = min(samples(clock, call, 3))
        except Exception as error:  # a contender may fail in any way; the others go on
            failed[name] = error
            check_device()
    count = int(np.clip(budget / max(sum(estimates.values()), 1e-9), *rounds))
    times: dict[str, list[float]] = {name: [] for name in estimates}
    for _ in range(count):
        for name, seconds in list(times.items()):
            try:
                with on_stream(streams[name]):
                    seconds += samples(clock, calls[name], 1)
            except Exception as error:
                failed[name] = error
                del times[name]
                check_device()
    return times, failed


@contextlib.contextmanager
def on_stream(handle: int | None) -> Iterator[None]:
    """Torch works on the stream of that handle inside."""
    if handle is None or not torch.cuda.is_available():
        yield
    else:
        with torch.cuda.stream(torch.cuda.ExternalStream(handle)):
            yield


def quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Milliseconds; the 99th percentile only of P99_ROUNDS or more."""
    p20, p50, p80, p99 = (1000 * np.quantile(seconds, (0.2, 0.5, 0.8, 0.99))).tolist()
    known = len(seconds) >= P99_ROUNDS
    return {
        **{"p50": p50, "p99": p99 if known else None, "p20": p20, "p80": p80},
        "rounds": len(seconds),
    }


def one_line(error: BaseException) -> str:
    """An exception in a line."""
    text = " ".join(str(error).split())[:300]
    return (
        text
        if isinstance(error, (TigerfgError, Unavailable))
        else f"{type(error).__name__}: {text}"
    )


def check_device() -> None:
    """SystemExit if the device is lost: what follows in this process would fail too."""
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise SystemExit(
            f"the CUDA device failed ({one_line(error)}); go on with --resume"
        ) from error
