"""Pictures behind addresses: fetched asynchronously, apart from decoding and encoding."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tigerfg.decoding import describe_source
from tigerfg.errors import InputError, MissingExtraError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.stage_clock import StageClock

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

T = TypeVar("T")

SCHEMES = ("http://", "https://")
PATIENCE = 1.0  # seconds that a picture may let the others wait


@dataclass(eq=False)
class _Awaited(Generic[T]):
    """A value whose picture may be on its way; late: the others have waited for it already."""

    value: T
    future: Future | None
    late: bool = False

    @property
    def there(self) -> bool:
        return self.future is None or self.future.done()


class Fetcher:
    """Fetches pictures on a thread of its own with one event loop; a context manager."""

    def __init__(self, limits: FetchLimits | None = None) -> None:
        self.limits = limits or FetchLimits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = None

    def ahead(
        self,
        values: Iterable[T],
        address: Callable[[T], str | None],
        clock: StageClock | None = None,
        same: Callable[[T], Hashable] | None = None,
    ) -> Iterator[tuple[T, bytes | InputError | None]]:
        """Every value with its picture, the next ones being fetched meanwhile.

        In order; with ``same``, a picture which has let the others wait for a second is overtaken.

        Args:
            address: of a value's picture; None for none.
            clock: gets the time of waiting, as the stage fetch.
            same: values for which it gives the same stay in their order; None: all.

        Yields:
            The value, and its picture's bytes, or why there are none; None without an address.
        """
        waiting: list[_Awaited[T]] = []
        clock = clock or StageClock()
        same = same or (lambda value: None)
        most = max(self.limits.ahead, self.limits.connections)

        def done() -> tuple[T, bytes | InputError | None]:
            entry = _next(waiting, same, clock)
            waiting.remove(entry)
            return entry.value, None if entry.future is None else entry.future.result()

        try:
            for value in values:
                url = address(value)
                waiting.append(_Awaited(value, None if url is None else self._submit(url)))
                # values without an address are not held back by those that have one
                while waiting and (len(waiting) > most or waiting[0].future is None):
                    yield done()
            while waiting:
                yield done()
        finally:
            for entry in waiting:
                if entry.future is not None:
                    entry.future.cancel()

    def _submit(self, url: str) -> Future:
        if self._loop is None:
            self._start()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def _start(self) -> None:
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("fetching pictures", "httpx and tenacity", "url") from error
        limits = self.limits
        self._free = asyncio.Semaphore(limits.connections)
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=limits.connections),
            timeout=httpx.Timeout(limits.timeout, pool=None),
            follow_redirects=True,
            max_redirects=5,
        )
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="tigerfg-fetch", daemon=True
        )
        try:
            self._thread.start()
        except BaseException:  # of a signal's handler: it may run
            loop.call_soon_threadsafe(loop.stop)
            raise
        self._loop = loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: until the loop is stopped, then it ends what goes on there."""
        try:
            loop.run_forever()
            loop.run_until_complete(self._stop())
        finally:
            loop.close()

    async def _stop(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._client is not None
        await self._client.aclose()

    async def _fetch(self, url: str) -> bytes | InputError:
        import httpx
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.limits.attempts),
            retry=retry_if_exception(_worth_another_try),
            wait=self._pause,
            reraise=True,
        )
        try:
            return await retrying(self._get, url)
        except httpx.HTTPStatusError as error:
            answer = error.response
            return InputError(f"{url}: HTTP {answer.status_code} {answer.reason_phrase}".rstrip())
        except InputError as error:
            return error
        except asyncio.TimeoutError:
            return InputError(f"{url}: not there after {self.limits.deadline:g} s")
        except Exception as error:  # of an address alone a dozen kinds, some of them in groups
            return InputError(f"{describe_source(url)}: {_reason(error)}")

    async def _get(self, url: str) -> bytes:
        async with self._free:  # waiting for others does not count
            return await asyncio.wait_for(self._read(url), self.limits.deadline)

    async def _read(self, url: str) -> bytes:
        assert self._client is not None
        most = self.limits.max_bytes
        too_large = InputError(f"{url}: more than {most} bytes")
        async with self._client.stream("GET", url) as answer:
            answer.raise_for_status()
            said = answer.headers.get("content-length", "")
            if said.isdecimal() and int(said) > most:
                raise too_large
            content = bytearray()
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > most:
                    raise too_large
            return bytes(content)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next try: what the server asks for, else 0.5, 1, 2, ... and some."""
        answer = getattr(state.outcome.exception(), "response", None)
        asked = "" if answer is None else answer.headers.get("retry-after", "")
        wait = float(asked) if asked.isdecimal() else 0.5 * 2 ** (state.attempt_number - 1)
        return min(wait * random.uniform(1.0, 1.25), self.limits.longest_wait)


def _next(
    waiting: list[_Awaited[T]], same: Callable[[T], Hashable], clock: StageClock
) -> _Awaited[T]:
    """The first entry that is there, after some patience with those before it."""
    while True:
        first: dict[Hashable, _Awaited[T]] = {}  # of those that stay in their order
        for entry in waiting:
            if first.setdefault(same(entry.value), entry) is not entry:
                continue
            if not entry.there and not entry.late:
                with clock.measure("fetch"):
                    wait([entry.future], PATIENCE)
                entry.late = not entry.there
            if entry.there:
                return entry
        with clock.measure("fetch"):
            wait([entry.future for entry in first.values()], return_when=FIRST_COMPLETED)


def _reason(error: BaseException) -> str:
    """Why a fetch failed, in one line: what the system said, if it did."""
    while parts := getattr(error, "exceptions", None):
        error = parts[0]
    cause: BaseException | None = error  # "All connection attempts failed" has one
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return " ".join(str(cause).split())
        parts = getattr(cause, "exceptions", None)
        cause = parts[0] if parts else cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _worth_another_try(error: BaseException) -> bool:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError) and not isinstance(
        error, httpx.UnsupportedProtocol
    )


def is_address(image: object) -> bool:
    """Whether an image source is an address that can be fetched."""
    return isinstance(image, str) and image.lower().startswith(SCHEMES)
