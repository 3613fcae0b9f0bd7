"""One call that stores items: what it was given, its counts and rejects, who is told of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from tigerfg.errors import InputError
from tigerfg.records import Item, Rejected
from tigerfg.results import AddReport
from tigerfg.stage_clock import StageClock

if TYPE_CHECKING:
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection

REJECTS_FILE = "rejects.jsonl"

OnProgress = bool | Callable[["AddReport"], object] | None
T = TypeVar("T")

_NOTIFY_EVERY = 256  # skipped items, between the batches

logger = logging.getLogger("tigerfg")


class Given(Generic[T]):
    """An iterable of a caller's. If it fails, that ends it: what came before is stored, then
    `raise_failure` tells.

    Args:
        name, hint: what the caller calls it, and what it should be.

    Attributes:
        total: how many, if known.

    Raises:
        InputError: it is one thing, not an iterable of them.
    """

    def __init__(self, entries: Iterable[T], name: str, hint: str) -> None:
        one = isinstance(entries, (str, bytes, os.PathLike, Mapping, Item))
        if one or not isinstance(entries, Iterable):
            raise InputError(f"{name} is one {type(entries).__name__}: {hint}")
        self.total = len(entries) if isinstance(entries, Sized) else None
        self._entries = entries
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self._entries
        except Exception as error:
            self._failure = error

    def raise_failure(self) -> None:
        """Raise what the caller's iterable raised, if it did."""
        if self._failure is not None:
            raise self._failure


@dataclass
class IngestRun:
    """The running count of one call; a context manager that owns the progress bar.

    Args:
        folder: the catalogue's, to whose rejects.jsonl rejects are appended; None for none.
        progress: True for a bar in the terminal, or a function that gets an `AddReport` after each
            stored batch and, now and then, between.
        total: number of items, if known.
    """

    folder: Path | None
    progress: OnProgress = None
    total: int | None = None
    added: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rejects_file: Path | None = None

    def __enter__(self) -> IngestRun:
        self.clock = StageClock()
        self._start = time.perf_counter()
        self._skipped = 0
        self._stack = ExitStack()
        self._notify: Callable[[AddReport], object] | None = None
        if callable(self.progress):
            self._notify = self.progress
        elif self.progress:
            self._notify = self._stack.enter_context(_progress_bar(self.total))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def report(self) -> AddReport:
        """The counts so far."""
        seconds = time.perf_counter() - self._start
        return AddReport(
            self.added,
            self.replaced,
            self.updated,
            self.unchanged,
            self.rejected,
            seconds,
            self.rejects_file,
            self.clock.seconds,
        )

    def stored(self, count: int, replaced: int) -> None:
        """A batch is on the disk."""
        self.added += count - replaced
        self.replaced += replaced
        self._tell()

    def update(
        self,
        collection: Collection | MilvusCollection,
        documents: Mapping[str, str],
        changes: int | None = None,
    ) -> None:
        """Store other JSON forms of items, of which nothing is encoded.

        Args:
            changes: how many of the caller's they are; None: one an item.
        """
        changes = len(documents) if changes is None else changes
        if documents:
            with self.clock.measure("store"):
                changes -= len(documents) - collection.update(documents)
        if changes:
            self.updated += changes
            self._tell()

    def skip_unchanged(self) -> None:
        """An item is stored already with the same content."""
        self.unchanged += 1
        self._tell_sometimes()

    def reject(self, rejected: Rejected) -> None:
        """Note an item that is left out, here and in the rejects file."""
        self.rejected.append(rejected)
        if self.folder is not None:
            path = self.folder / REJECTS_FILE
            line = json.dumps(dataclasses.asdict(rejected))
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                self.rejects_file = path
            except OSError as error:
                if len(self.rejected) == 1:
                    logger.warning("%s cannot be written: %s", path, error.strerror)
        self._tell_sometimes()

    def _tell_sometimes(self) -> None:
        self._skipped += 1
        if self._skipped % _NOTIFY_EVERY == 0:
            self._tell()

    def _tell(self) -> None:
        if self._notify is not None:
            self._notify(self.report())


@contextmanager
def _progress_bar(total: int | None) -> Iterator[Callable[[AddReport], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("indexing", total=total, note="")

        def update(report: AddReport) -> None:
            done = report.stored + len(report.rejected)
            note = f"{report.images_per_second:.0f}/s"
            if report.rejected:
                note += f", {len(report.rejected)} rejected"
            bar.update(task, completed=done, note=note)

        yield update
