"""Where the time of an ingest goes: seconds by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StageClock:
    """Sums seconds by the name of a stage, over all threads: stages overlap, so together they may
    take longer than the whole, and the busiest one is what limits it."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time of the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + spent

    def pulling(self, stage: str, values: Iterable[T]) -> Iterator[T]:
        """The values, counting the time until each comes."""
        values = iter(values)
        while True:
            with self.measure(stage):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        with self._lock:
            return dict(self._seconds)
