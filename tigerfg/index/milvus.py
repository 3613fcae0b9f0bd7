"""A collection in Milvus: what `Collection` is on a disk, for catalogues past one machine.

The same calls with the same meaning; any number of processes may write. Every search and read sees
all writes that have returned (consistency "Strong"). Filters always give k results where k items
match: a search whose probed lists hold fewer is repeated over all of them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.collection import Match
from tigerfg.index.database import StoreMeta
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.index_stats import IndexStats
from tigerfg.index.milvus_address import MilvusAddress
from tigerfg.index.milvus_filters import compile_filter
from tigerfg.index.milvus_schema import (
    ENCODED,
    MilvusIndex,
    key_of,
    objection,
    of_document,
    to_row,
)
from tigerfg.index.milvus_table import MOST_RESULTS, MilvusTable
from tigerfg.index.milvus_tuning import measure
from tigerfg.index.photo_like import photo_like
from tigerfg.index.plan import IndexSettings
from tigerfg.index.stored import Known, Record, Sampled

META, TUNED = "tigerfg.catalog", "tigerfg.tuned"  # properties of the collection, JSON
READ = 500  # documents read at once
SAMPLE = 256  # stored items of which queries are made to tune nprobe with


class MilvusCollection:
    """Open with `MilvusCollection.create` or `MilvusCollection.open`. Safe for threads."""

    folder = None  # there is none

    def __init__(
        self, table: MilvusTable, meta: StoreMeta, tuned: dict[str, Any], read_only: bool
    ) -> None:
        self.path, self.meta, self.read_only = str(table.address), meta, read_only
        self._table, self._tuned = table, tuned
        self._index = MilvusIndex.parse(meta.index, meta.embedding_dim, table.address.lite)
        self._numbering = threading.Lock()
        self._last = 0

    @classmethod
    def create(
        cls,
        place: str,
        *,
        model: str,
        fingerprint: str,
        embedding_dim: int,
        settings: IndexSettings | None = None,
        gpu: GpuSettings | None = None,
    ) -> MilvusCollection:
        """Make an empty one; its server and database must be there.

        Args:
            settings: its `index` names an index type of Milvus.
            gpu: the server's own business: `index` names a type that it keeps on GPUs.

        Raises:
            CatalogError: there is a collection of this name already, or the server refuses.
        """
        address, settings = MilvusAddress.parse(place), settings or IndexSettings()
        index = _index(settings, embedding_dim, address)
        meta = StoreMeta.new(model, fingerprint, embedding_dim, settings)
        table = MilvusTable(address)
        try:
            if table.there():
                raise CatalogError(f"{address} is there already: open it, or name a new one")
            table.create(index, meta.embedding_dim, {META: json.dumps(asdict(meta))})
        except BaseException:
            table.close()
            raise
        return cls(table, meta, {}, read_only=False)

    @classmethod
    def open(
        cls, place: str, read_only: bool = False, gpu: GpuSettings | None = None
    ) -> MilvusCollection:
        """Open an existing one."""
        address = MilvusAddress.parse(place)
        table = MilvusTable(address)
        try:
            if not table.there():
                raise CatalogError(f"{address} is no catalogue: create one there first")
            properties = table.properties()
            try:
                meta = StoreMeta(**json.loads(properties[META]))
                tuned = json.loads(properties.get(TUNED, "{}"))
            except (KeyError, TypeError, ValueError) as error:
                raise CatalogError(f"{address} was not made by this tigerfg") from error
            index = _index(meta.settings, meta.embedding_dim, address)
            table.load(None if read_only else index)
        except BaseException:
            table.close()
            raise
        return cls(table, meta, tuned, read_only)

    @staticmethod
    def exists(place: str) -> bool:
        """Whether there is a collection of this name."""
        table = MilvusTable(MilvusAddress.parse(place))
        try:
            return table.there()
        finally:
            table.close()

    def require_open(self) -> None:
        """CatalogError if the collection is closed."""
        if self._table.closed:
            raise CatalogError(f"{self.path} is closed: open it again")

    def require_writer(self, action: str) -> None:
        """CatalogError if the collection is closed or open for reading only."""
        self.require_open()
        if self.read_only:
            raise CatalogError(f"cannot {action}: {self.path} is open for reading only")

    def __len__(self) -> int:
        return self._table.count()

    def objection(self, document: str) -> str | None:
        """Why an item of this JSON form cannot be stored here, or None."""
        return objection(document)

    def put(self, records: Sequence[Record], replace: bool = False) -> int:
        """See `Store.put`; a batch is one call to the server."""
        self.require_writer("store items")
        if not records:
            return 0
        keys = {key_of(record.item_id): record.item_id for record in records}
        stored = [keys[row["key"]] for row in self._table.rows(list(keys), ["key"])]
        if stored and not replace:
            raise CatalogError(
                f"cannot store items in {self.path}: the id {min(stored)!r} is taken by another "
                "item: upsert replaces it"
            )
        first = self._number(len(records))
        self._table.upsert([to_row(record, number) for number, record in enumerate(records, first)])
        return len(stored)

    def update(self, documents: Mapping[str, str]) -> int:
        """See `Store.update`; a batch is one call to the server."""
        self.require_writer("update items")
        wanted = {key_of(item_id): document for item_id, document in documents.items()}
        rows = self._table.rows(list(wanted), list(ENCODED))
        if rows:
            self._table.upsert([{**row, **of_document(wanted[row["key"]])} for row in rows])
        return len(rows)

    def delete(self, item_ids: Iterable[str]) -> int:
        """See `Store.delete`."""
        self.require_writer("delete items")
        keys = list({key_of(item_id) for item_id in item_ids})
        there = [row["key"] for row in self._table.rows(keys, ["key"])]
        self._table.delete(there)
        return len(there)

    def delete_matching(self, where: Mapping[str, Any]) -> int:
        """Remove the items that match a filter now; returns how many."""
        self.require_writer("delete items")
        keys = [key for _, key in self._table.numbers(compile_filter(where))]
        self._table.delete(keys)
        return len(keys)

    def known(self, item_ids: Iterable[str]) -> dict[str, Known]:
        """The stored ones of these items, by item id."""
        keys = {key_of(item_id): item_id for item_id in item_ids}
        rows = self._table.rows(list(keys), ["key", "content_hash", "document"])
        return {
            keys[row["key"]]: Known(bytes.fromhex(row["content_hash"]), row["document"])
            for row in rows
        }

    def document(self, item_id: str) -> dict[str, Any] | None:
        """A stored item's JSON form, None when there is none of this id."""
        rows = self._table.rows([key_of(item_id)], ["document"])
        return json.loads(rows[0]["document"]) if rows else None

    def count(self, where: Mapping[str, Any]) -> int:
        """How many items match a filter."""
        return self._table.count(compile_filter(where))

    def documents(self, where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """See `Collection.documents`; without a filter as well, of those that are there at the
        first one."""
        expression = compile_filter(where) if where else ""
        keys = [key for _, key in sorted(self._table.numbers(expression))]
        for start in range(0, len(keys), READ):
            rows = self._table.rows(keys[start : start + READ], ["number", "document"])
            rows.sort(key=lambda row: row["number"])
            yield from (json.loads(row["document"]) for row in rows)

    def search(
        self, embeddings: np.ndarray, k: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Match]]:
        """See `Collection.search`.

        Raises:
            InputError: k is more than Milvus gives.
        """
        self.require_open()
        if k > MOST_RESULTS:
            raise InputError(f"k {k}: Milvus gives at most {MOST_RESULTS} results")
        if not len(embeddings):
            return []
        table, index = self._table, self._index
        expression = compile_filter(where) if where else ""
        found = table.nearest(embeddings, k, expression, index, self._nprobe)
        if not index.lists or all(len(line) == k for line in found):
            return found
        most = min(k, table.count(expression))
        if short := [n for n, line in enumerate(found) if len(line) < most]:
            again = table.nearest(embeddings[short], k, expression, index, index.lists)
            for n, line in zip(short, again, strict=True):
                found[n] = line
        return found

    def optimize(
        self, queries: np.ndarray | None = None, settings: IndexSettings | None = None
    ) -> IndexStats:
        """Have the server build its index of all items, and tune nprobe to the target recall.

        Args:
            queries: sample queries (Q, E) to tune with, this once; None, or none of them: such as
                photos might be, made of stored items.
            settings: in place of those before; another index is built in the place of the one
                there, and until then the collection cannot be searched.
        """
        self.require_writer("build an index")
        started = time.perf_counter()
        if settings is not None:
            self._change(settings)
        self._table.build_index(self._index)
        given = 0 if queries is None else len(queries)
        if self._index.lists and not given:
            vectors = [item.vector for item in self.sample(SAMPLE, 0)]
            queries = photo_like(np.array(vectors).reshape(-1, self.meta.embedding_dim))
        if self._index.lists and len(queries):
            tuned = measure(
                lambda vectors, k, nprobe: self._table.nearest(vectors, k, "", self._index, nprobe),
                queries,
                self._index.lists,
                self.meta.target_recall,
            )
            tuned["queries"] = given
            tuned["seconds"] = {"build and tune": round(time.perf_counter() - started, 2)}
            self._table.note({TUNED: json.dumps(tuned)})
            self._tuned = tuned
        return self.stats()

    def stats(self) -> IndexStats:
        """What answers searches, and what was measured when `optimize` was called last."""
        tuned = self._tuned
        measured = bool(tuned) and self._nprobe == tuned["nprobe"]
        return IndexStats(
            self.meta.index,
            str(self._index),
            len(self),
            self._nprobe if self._index.lists else None,
            tuned["recall"] if measured else None,
            tuned["ms"] if measured else None,
            tuned.get("curve", []),
            tuned.get("seconds", {}),
            bool(self._table.pending()),
            tuned.get("queries", 0),
        )

    def sample(self, count: int, seed: int) -> list[Sampled]:
        """At most ``count`` different items at random, in the order of storing."""
        keys = [key for _, key in sorted(self._table.numbers())]
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(keys), min(count, len(keys)), replace=False)
        wanted = ["number", "document", "content_hash", "vector"]
        rows = self._table.rows([keys[n] for n in chosen], wanted)
        return [
            Sampled(
                json.loads(row["document"]),
                bytes.fromhex(row["content_hash"]),
                np.asarray(row["vector"], np.float32),
            )
            for row in sorted(rows, key=lambda row: row["number"])
        ]

    def inspect(self, sample: int, seed: int) -> tuple[int, list[str], list[Sampled]]:
        """See `Collection.inspect`; what the server keeps is the server's to check."""
        return len(self), [], self.sample(sample, seed) if sample else []

    @property
    def size_bytes(self) -> int | None:
        """Not known: the server keeps it."""
        return None

    def flush(self) -> None:
        """Nothing to do: what was written is safe with the server."""
        self.require_writer("flush")

    def close(self, build: bool = True) -> None:
        """Disconnect; a second call does nothing. ``build``: the server does."""
        self._table.close()

    def _change(self, settings: IndexSettings) -> None:
        """Have other settings; an interrupted call is simply repeated."""
        index = _index(settings, self.meta.embedding_dim, self._table.address)
        if index != self._index:
            self._table.replace_index(index)
        meta = replace(self.meta, **asdict(settings))
        self._table.note({META: json.dumps(asdict(meta)), TUNED: "{}"})
        self.meta, self._index, self._tuned = meta, index, {}

    @property
    def _nprobe(self) -> int:
        """Of the address, else as tuned, else a sixteenth of the lists."""
        default = max(16, (self._index.lists or 0) // 16)
        return self._table.address.nprobe or self._tuned.get("nprobe") or default

    def _number(self, count: int) -> int:
        """The first of ``count`` numbers that grow with time, over all processes that write."""
        with self._numbering:
            first = max(time.time_ns(), self._last + 1)
            self._last = first + count - 1
        return first


def _index(settings: IndexSettings, dim: int, address: MilvusAddress) -> MilvusIndex:
    """What the settings ask for; InputError for what Milvus cannot have."""
    if settings.memory_budget is not None:
        raise InputError("memory_budget: Milvus plans its own memory; leave it out")
    return MilvusIndex.parse(settings.index, dim, address.lite)
