"""The way of items into a catalogue: checks, content hashes, encoding, storing."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tigerfg.download import Fetcher, is_address
from tigerfg.errors import InputError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.index.fate import Fate, fate_of
from tigerfg.index.stored import Known, Record
from tigerfg.ingest_run import Given, IngestRun, OnProgress
from tigerfg.prepare import Prepared, as_stored, at_address, prepare
from tigerfg.records import Item, Rejected, plain_id
from tigerfg.results import AddReport
from tigerfg.settings import whole_number

if TYPE_CHECKING:
    from tigerfg.encoder import EncodedItem, Encoder
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection

Entry = Item | Mapping[str, Any] | Rejected

# entries, or batches of them, that may wait, pictures and all, for others of their items
HELD, HELD_BATCHES = 512, 16


def _address(entry: Entry | Prepared) -> str | None:
    """Where an item's picture is to be fetched from, None if it is not."""
    image = entry.get("image") if isinstance(entry, Mapping) else getattr(entry, "image", None)
    return image if is_address(image) else None


def _same(entry: Entry | Prepared) -> Hashable:
    """Entries of one item are stored in their order, whichever picture is there first."""
    one = entry.item if isinstance(entry, Prepared) else entry
    name = one.get("item_id") if isinstance(one, Mapping) else getattr(one, "item_id", None)
    name = plain_id(name)
    return name if isinstance(name, str) else id(entry)


def ingest(
    entries: Iterable[Entry],
    encoder: Encoder,
    collection: Collection | MilvusCollection,
    *,
    replace: bool,
    batch_size: int,
    progress: OnProgress,
    limits: FetchLimits | None = None,
    refetch: bool = True,
    in_order: bool = False,
) -> AddReport:
    """Check, encode and store items; reading, fetching, decoding, encoding and storing overlap.

    One call at a time for a collection.

    Args:
        refetch: False: an address stands for its picture, see `Searcher.add`.
        in_order: a picture that the others have to wait for is not overtaken.
    """
    hint = "give an iterable of Item or dict; tigerfg.catalog.read_items reads files"
    given = Given(entries, "items", hint)
    batch_size = whole_number(batch_size, "batch_size")
    with IngestRun(collection.folder, progress, given.total) as run, Fetcher(limits) as fetcher:
        way = _Way(run, encoder, collection, replace, batch_size)
        source = run.clock.pulling("read", given)
        entries: Iterable[Entry | Prepared] = way.until_many_wait(source)
        while True:
            if not refetch:
                entries = way.recognised(entries)
            fetched = fetcher.ahead(entries, _address, run.clock, None if in_order else _same)
            way.store(encoder.ahead(way.prepare, fetched, batch_size))
            if not way.held:
                break
            entries = chain(way.take_held(), way.until_many_wait(source))
        given.raise_failure()
        return run.report()


class _Way:
    """The way of one call's items, from their checks into the collection."""

    def __init__(
        self,
        run: IngestRun,
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

    def until_many_wait(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The entries until so many wait that this round ends: then these come first."""
        while len(self.held) < max(HELD, HELD_BATCHES * self.batch_size):
            try:
                yield next(entries)
            except StopIteration:
                return

    def take_held(self) -> list[Item | Prepared]:
        """The entries that waited, in their order; those without their picture to begin again."""
        held, self.held, self.held_ids = self.held, [], set()
        return [entry.item if entry.unfetched else entry for entry in held]

    def recognised(self, entries: Iterable[Entry | Prepared]) -> Iterator[Entry | Prepared]:
        """The entries; prepared those of stored items with the same address and text.

        Until such an entry's fate is decided, another of its item, or of another process, may be
        stored: `_wanted` looks whether it is still right.
        """
        entries = iter(entries)
        while chunk := list(islice(entries, self.batch_size)):
            with self.run.clock.measure("check"):
                items = [at_address(entry) for entry in chunk]
                stored = self.collection.known({item.item_id for item in items if item})
                for place, item in enumerate(items):
                    if item and (known := stored.get(item.item_id)):
                        chunk[place] = as_stored(item, known) or chunk[place]
            yield from chunk

    def prepare(
        self, pair: tuple[Entry | Prepared, bytes | InputError | None]
    ) -> Prepared | Rejected:
        with self.run.clock.measure("check"):
            return prepare(*pair)

    def store(self, checked: Iterable[Prepared | Rejected]) -> None:
        """Encode what is to be stored; a batch is written while the next one is encoded."""
        batches = self.encoder.stream_items(self._wanted(checked), self.batch_size, self.run.clock)
        with ThreadPoolExecutor(1, "tigerfg-store") as writer:
            # A thread whose start is interrupted is not waited for: it has nothing to store yet.
            writer.submit(int).result()
            writing: tuple[Future[int], list[str], int] | None = None
            try:
                for batch in batches:
                    records, ids = self._records(batch), [p.item.item_id for p, _ in batch]
                    before, writing = writing, None
                    self._settle(before)
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
                address = json.loads(prepared.document)["image"]
                where = f"{address}: " if is_address(address) else ""
                origin = prepared.item.origin
                self.run.reject(Rejected(item_id, f"{where}{encoded}", *origin))
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
                known = stored.get(item_id)
                outdated = entry.unfetched and not (
                    known and known.content_hash == entry.content_hash
                )
                if item_id in open_ids or outdated:
                    open_ids.add(item_id)
                    self.held.append(entry)
                    self.held_ids.add(item_id)
                    continue
                given = Known(entry.content_hash, entry.document)
                try:
                    fate = fate_of(given, known, self.replace, self.collection.objection)
                except InputError as error:
                    self.run.reject(Rejected(item_id, str(error), *entry.item.origin))
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
