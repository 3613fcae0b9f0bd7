"""The way of items into a catalogue: checks, content hashes, encoding, rejects, a report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerfg.download import Fetcher, FetchLimits, is_address
from tigerfg.errors import InputError
from tigerfg.index.fate import Fate, fate_of
from tigerfg.index.store import Known, Record
from tigerfg.prepare import Prepared, prepare
from tigerfg.records import Item, Rejected
from tigerfg.results import AddReport
from tigerfg.stage_clock import StageClock

if TYPE_CHECKING:
    from tigerfg.encoder import EncodedItem, Encoder
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection

REJECTS_FILE = "rejects.jsonl"

Entry = Item | Mapping[str, Any] | Rejected
OnProgress = bool | Callable[["AddReport"], object] | None

_NOTIFY_EVERY = 256  # skipped items, between the batches

logger = logging.getLogger("tigerfg")


def _address(entry: Entry) -> str | None:
    """Where an item's picture is to be fetched from, None if it is not behind an address."""
    image = entry.get("image") if isinstance(entry, Mapping) else getattr(entry, "image", None)
    return image if is_address(image) else None


@dataclass
class Ingest:
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

    def __enter__(self) -> Ingest:
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
        self, collection: Collection | MilvusCollection, documents: Mapping[str, str]
    ) -> None:
        """Store other JSON forms of items, of which nothing is encoded."""
        if documents:
            with self.clock.measure("store"):
                self.updated += collection.update(documents)
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


def ingest(
    entries: Iterable[Entry],
    encoder: Encoder,
    collection: Collection | MilvusCollection,
    *,
    replace: bool,
    batch_size: int,
    progress: OnProgress,
    limits: FetchLimits | None = None,
) -> AddReport:
    """Check, encode and store items; reading, fetching, decoding, encoding and storing overlap.

    One call at a time for a collection.
    """
    if isinstance(entries, (str, bytes, os.PathLike, Mapping, Item)):
        raise InputError(
            f"items is one {type(entries).__name__}: give an iterable of Item or dict; "
            "tigerfg.catalog.read_items reads files"
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size {batch_size!r} must be a whole number, at least 1")
    total = len(entries) if isinstance(entries, Sized) else None
    failure: list[Exception] = []

    def source() -> Iterator[Entry]:
        try:
            yield from entries
        except Exception as error:  # what was read before it is kept: raised again at the end
            failure.append(error)

    with Ingest(collection.folder, progress, total) as run, Fetcher(limits) as fetcher:
        way = _Way(run, encoder, collection, replace, batch_size)
        read = run.clock.pulling("read", source())
        fetched = fetcher.ahead(read, _address, run.clock)
        way.store(encoder.ahead(way.prepare, fetched, batch_size))
        while way.held:
            way.store(way.take_held())
        if failure:
            raise failure[0]
        return run.report()


class _Way:
    """The way of one call's items, from their checks into the collection."""

    def __init__(
        self,
        run: Ingest,
        encoder: Encoder,
        collection: Collection | MilvusCollection,
        replace: bool,
        batch_size: int,
    ) -> None:
        self.run, self.encoder, self.collection = run, encoder, collection
        self.replace, self.batch_size = replace, batch_size
        self.in_flight: set[str] = set()  # ids on their way to the store
        self.held: list[Prepared] = []  # of such an id: decided when the first is stored or refused
        self.held_ids: set[str] = set()

    def take_held(self) -> list[Prepared]:
        """The entries that waited, in their order."""
        held, self.held, self.held_ids = self.held, [], set()
        return held

    def prepare(self, pair: tuple[Entry, bytes | InputError | None]) -> Prepared | Rejected:
        with self.run.clock.measure("check"):
            return prepare(*pair)

    def store(self, checked: Iterable[Prepared | Rejected]) -> None:
        """Encode what is to be stored; a batch is written while the next one is encoded."""
        batches = self.encoder.stream_items(self._wanted(checked), self.batch_size, self.run.clock)
        with ThreadPoolExecutor(1, "tigerfg-store") as writer:
            writing: tuple[Future[int], list[str], int] | None = None
            try:
                for batch in batches:
                    records, ids = self._records(batch), [p.item.item_id for p, _ in batch]
                    self._settle(writing)
                    writing = None
                    writing = writer.submit(self._put, records), ids, len(records)
            finally:
                self._settle(writing)

    def _put(self, records: list[Record]) -> int:
        with self.run.clock.measure("store"):
            return self.collection.put(records, self.replace)

    def _settle(self, writing: tuple[Future[int], list[str], int] | None) -> None:
        """Wait until a batch is on the disk, and tell it."""
        if writing is None:
            return
        future, ids, count = writing
        replaced = future.result()
        self.in_flight.difference_update(ids)
        self.run.stored(count, replaced)

    def _records(self, batch: Iterable[tuple[Prepared, EncodedItem | InputError]]) -> list[Record]:
        records = []
        for prepared, encoded in batch:
            item_id = prepared.item.item_id
            if isinstance(encoded, InputError):
                self.run.reject(Rejected(item_id, str(encoded)))
            else:
                records.append(Record(item_id, prepared.content_hash, prepared.document, *encoded))
        return records

    def _wanted(self, checked: Iterable[Prepared | Rejected]) -> Iterator[tuple[Item, Prepared]]:
        """What is neither stored already nor refused."""
        checked = iter(checked)
        while chunk := list(islice(checked, self.batch_size)):
            good = [entry for entry in chunk if isinstance(entry, Prepared)]
            # Ids whose fate is not known when the hashes are looked up wait for a later round.
            open_ids = self.in_flight | self.held_ids
            stored = self.collection.known({p.item.item_id for p in good} - open_ids)
            updates: dict[str, str] = {}
            for entry in chunk:
                if isinstance(entry, Rejected):
                    self.run.reject(entry)
                    continue
                item_id = entry.item.item_id
                if item_id in open_ids:
                    self.held.append(entry)
                    self.held_ids.add(item_id)
                    continue
                given = Known(entry.content_hash, entry.document)
                try:
                    fate = fate_of(given, stored.get(item_id), self.collection, self.replace)
                except InputError as error:
                    self.run.reject(Rejected(item_id, str(error)))
                    continue
                if fate is Fate.UNCHANGED:
                    self.run.skip_unchanged()
                    continue
                open_ids.add(item_id)
                if fate is Fate.UPDATE:
                    updates[item_id] = entry.document
                else:
                    self.in_flight.add(item_id)
                    yield entry.item, entry
            self.run.update(self.collection, updates)


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
