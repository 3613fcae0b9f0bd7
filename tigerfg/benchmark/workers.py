"""Worker processes that end with their parent, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.synchronize import Event
from typing import Any

from tigerfg.errors import TigerfgError

_stop: Event | None = None


class StoppedError(Exception):
    """The parent asked its workers to stop in the middle of a task."""


class Workers:
    """A pool of spawned processes, or this process alone for one worker. Use it with ``with``.

    Leaving the block by an exception stops the tasks that call `check_stop` at their next call.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> Workers:
        self._pool = None
        if self._count > 1:
            context = multiprocessing.get_context("spawn")
            self._event = context.Event()
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=context, initializer=_start, initargs=(self._event,)
            )
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._pool is not None:
            if kind is not None:
                self._event.set()
            self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise TigerfgError(
                "a worker process ended before its work: killed, perhaps for want of memory (run "
                "it again with fewer workers), or begun by a script without "
                "`if __name__ == '__main__':`, which every worker runs as well"
            ) from error

    def each(
        self, function: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """(task, result) as they are finished, few of them waiting at a time."""
        if self._pool is None:
            yield from ((task, function(task)) for task in tasks)
            return
        waiting: dict[Future, Any] = {}
        left = iter(tasks)
        while True:
            for task in left:
                waiting[self._pool.submit(function, task)] = task
                if len(waiting) >= 2 * self._count:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()

    def map(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], chunk: int
    ) -> Iterator[Any]:
        """Results in the order of the tasks; `chunk` of them go to a worker together."""
        if self._pool is None:
            yield from map(function, tasks)
            return
        # Few waiting at a time, and none cancelled here: the pool's own thread, which tells all of
        # them that a worker was killed, dies of one that is cancelled meanwhile.
        waiting: deque[Future] = deque()
        left = iter(tasks)
        while part := list(islice(left, chunk)):
            waiting.append(self._pool.submit(_each_of, function, part))
            if len(waiting) > 2 * self._count:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _each_of(function: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
    results = []
    for task in tasks:
        check_stop()
        results.append(function(task))
    return results


def check_stop() -> None:
    """Raise `StoppedError` in a worker whose parent has given up."""
    if _stop is not None and _stop.is_set():
        raise StoppedError


def _start(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to report
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
