"""The way of items into a catalogue: checks, content hashes, encoding, rejects, a report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tigerfg.download import Fetcher, FetchLimits, is_address
from tigerfg.errors import InputError
from tigerfg.index.store import Record
from tigerfg.records import Item, Rejected
from tigerfg.results import AddReport

if TYPE_CHECKING:
    from PIL import Image

    from tigerfg.encoder import Encoder
    from tigerfg.index.collection import Collection

REJECTS_FILE = "rejects.jsonl"

OnProgress = bool | Callable[["AddReport"], object] | None

_NOTIFY_EVERY = 256  # skipped items, between the batches
_BLOCK = 1 << 20

logger = logging.getLogger("tigerfg")


class Prepared(NamedTuple):
    """An item that passed its checks, ready to be encoded and stored."""

    item: Item
    document: str  # the item's JSON form, the image as an absolute path, an address or null
    content_hash: bytes


def prepare(
    entry: Item | Mapping[str, Any] | Rejected, fetched: bytes | InputError | None = None
) -> Prepared | Rejected:
    """Check one item and hash its record and its picture; a reject is handed through.

    Args:
        fetched: where the image is an address: its picture, or why there is none.
    """
    if isinstance(entry, Rejected):
        return entry
    item_id = None
    try:
        if isinstance(entry, Item):
            item = entry
        elif isinstance(entry, Mapping):
            item = Item.from_dict(entry)
        else:
            raise InputError(f"an item is an Item or a dict, not {type(entry).__name__}")
        item_id = item.item_id if isinstance(item.item_id, str) else None
        item.validate()
        if isinstance(item.image, (str, os.PathLike)):
            name = os.fsdecode(item.image)
            if "://" not in name:  # abspath would make a path of an address: decoding names it
                name = os.path.abspath(name)
            item = dataclasses.replace(item, image=name)
        document = json.dumps(item.to_dict(), ensure_ascii=False, allow_nan=False)
        if isinstance(fetched, InputError):
            raise fetched
        if fetched is not None:
            item = dataclasses.replace(item, image=fetched)
        return Prepared(item, document, _content_hash(item.image, document))
    except InputError as error:
        return Rejected(item_id, str(error))


def _address(entry: Item | Mapping[str, Any] | Rejected) -> str | None:
    """Where an item's picture is to be fetched from, None if it is not behind an address."""
    image = entry.get("image") if isinstance(entry, Mapping) else getattr(entry, "image", None)
    return image if is_address(image) else None


def _content_hash(image: Any, document: str) -> bytes:
    """BLAKE2b-128 of an item's record and picture.

    A picture that cannot be read adds nothing: decoding it next will say what is wrong.
    """
    digest = hashlib.blake2b(document.encode(), digest_size=16)
    if isinstance(image, str):
        try:
            if stat.S_ISREG(os.stat(image).st_mode):
                with open(image, "rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
        except (OSError, ValueError):
            pass
    elif isinstance(image, (bytes, bytearray, memoryview)):
        digest.update(image)
    elif isinstance(image, np.ndarray):
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).tobytes())
    elif hasattr(image, "tobytes"):
        digest.update(_picture_bytes(image))
    return digest.digest()


def _picture_bytes(image: Image.Image) -> bytes:
    try:
        return f"{image.mode} {image.size}".encode() + image.tobytes()
    except Exception:  # a lazily decoded file can fail here with whatever its decoder raises
        return b""


@dataclass
class Ingest:
    """The running count of one call; a context manager that owns the progress bar.

    Args:
        folder: the catalogue; rejects are appended to its rejects.jsonl.
        progress: True for a bar in the terminal, or a function that gets an `AddReport` after each
            stored batch and, now and then, between.
        total: number of items, if known.
    """

    folder: Path
    progress: OnProgress = None
    total: int | None = None
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rejects_file: Path | None = None

    def __enter__(self) -> Ingest:
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
            self.unchanged,
            self.rejected,
            seconds,
            self.rejects_file,
        )

    def stored(self, count: int, replaced: int) -> None:
        """A batch is on the disk."""
        self.added += count - replaced
        self.replaced += replaced
        self._tell()

    def skip_unchanged(self) -> None:
        """An item is stored already with the same content."""
        self.unchanged += 1
        self._tell_sometimes()

    def reject(self, rejected: Rejected) -> None:
        """Note an item that is left out, here and in the rejects file."""
        self.rejected.append(rejected)
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
    entries: Iterable[Item | Mapping[str, Any] | Rejected],
    encoder: Encoder,
    collection: Collection,
    *,
    replace: bool,
    batch_size: int,
    progress: OnProgress,
    limits: FetchLimits | None = None,
) -> AddReport:
    """Check, encode and store items; reading, fetching, decoding and encoding overlap.

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
    in_flight: set[str] = set()  # ids on their way to the store
    held: list[Prepared] = []  # entries of such an id: decided when the first is stored or rejected
    failure: list[Exception] = []

    def source() -> Iterator[Item | Mapping[str, Any] | Rejected]:
        try:
            yield from entries
        except Exception as error:  # what was read before it is kept: raised again at the end
            failure.append(error)

    def wanted(run: Ingest, checked: Iterable[Prepared | Rejected]) -> Iterator[Any]:
        for prepared in checked:
            if isinstance(prepared, Rejected):
                run.reject(prepared)
                continue
            item_id = prepared.item.item_id
            if item_id in in_flight:
                held.append(prepared)
                continue
            stored = collection.content_hash(item_id)
            if stored == prepared.content_hash:
                run.skip_unchanged()
            elif stored is not None and not replace:
                reason = "the id is taken by another item of this catalogue: upsert replaces it"
                run.reject(Rejected(item_id, reason))
            else:
                in_flight.add(item_id)
                yield prepared.item, prepared

    def store(run: Ingest, checked: Iterable[Prepared | Rejected]) -> None:
        for batch in encoder.stream_items(wanted(run, checked), batch_size):
            records: list[Record] = []
            for prepared, encoded in batch:
                item_id = prepared.item.item_id
                if isinstance(encoded, InputError):
                    run.reject(Rejected(item_id, str(encoded)))
                else:
                    records.append(
                        Record(item_id, prepared.content_hash, prepared.document, *encoded)
                    )
            replaced = collection.put(records, replace)
            in_flight.difference_update(prepared.item.item_id for prepared, _ in batch)
            run.stored(len(records), replaced)

    with Ingest(collection.path, progress, total) as run, Fetcher(limits) as fetcher:
        fetched = fetcher.ahead(source(), _address)
        store(run, encoder.ahead(lambda pair: prepare(*pair), fetched, batch_size))
        while held:
            again = list(held)
            held.clear()
            store(run, again)
        if failure:
            raise failure[0]
        return run.report()


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
            done = report.added + report.replaced + report.unchanged + len(report.rejected)
            note = f"{report.images_per_second:.0f}/s"
            if report.rejected:
                note += f", {len(report.rejected)} rejected"
            bar.update(task, completed=done, note=note)

        yield update
