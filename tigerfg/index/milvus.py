"""A collection in Milvus: what `Collection` is on a disk, for catalogues past one machine.

The same calls with the same meaning; any number of processes may write. Every search and read sees
all writes that have returned (consistency "Strong"). Filters always give k results where k items
match: a search whose probed lists hold fewer is repeated over all of them.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import CatalogError, InputError
from tigerfg.index.collection import Match
from tigerfg.index.database import StoreMeta
from tigerfg.index.keeper import IndexStats
from tigerfg.index.milvus_address import MilvusAddress, explained
from tigerfg.index.milvus_filters import COLUMN, compile_filter
from tigerfg.index.milvus_schema import (
    METRIC,
    MOST_BYTES,
    MilvusIndex,
    from_row,
    key_of,
    objection,
    to_row,
)
from tigerfg.index.milvus_tuning import measure
from tigerfg.index.plan import IndexSettings
from tigerfg.index.store import Record, Sampled

if TYPE_CHECKING:
    from pymilvus import MilvusClient

META, TUNED = "tigerfg.catalog", "tigerfg.tuned"  # properties of the collection, JSON
MOST_RESULTS = 16_384  # of a query, by Milvus
_AT_ONCE = 2_000  # rows of one call: some 5 kB each, and a message may have 64 MiB


class MilvusCollection:
    """Open with `MilvusCollection.create` or `MilvusCollection.open`. Safe for threads."""

    folder = None  # there is none

    def __init__(
        self,
        address: MilvusAddress,
        client: MilvusClient,
        meta: StoreMeta,
        tuned: dict[str, Any],
        read_only: bool,
    ) -> None:
        self.path, self.meta, self.read_only = str(address), meta, read_only
        self._address, self._tuned = address, tuned
        self._client: MilvusClient | None = client
        self._index = MilvusIndex.parse(meta.index, meta.embedding_dim, address.lite)
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
    ) -> MilvusCollection:
        """Make an empty one; its database and server must be there.

        Raises:
            CatalogError: there is a collection of this name already, or the server refuses.
        """
        address, settings = MilvusAddress.parse(place), settings or IndexSettings()
        if settings.memory_budget is not None:
            raise InputError("memory_budget: Milvus plans its own memory; leave it out")
        index = MilvusIndex.parse(settings.index, embedding_dim, address.lite)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        meta = StoreMeta(
            uuid.uuid4().hex, model, fingerprint, int(embedding_dim), created, **asdict(settings)
        )
        client = address.connect()
        try:
            with explained(address, "create a catalogue"):
                if client.has_collection(address.collection):
                    raise CatalogError(f"{address} is there already: open it, or name a new one")
                _make(client, address.collection, index, meta)
        except BaseException:
            client.close()
            raise
        return cls(address, client, meta, {}, read_only=False)

    @classmethod
    def open(cls, place: str, read_only: bool = False) -> MilvusCollection:
        """Open an existing one."""
        address = MilvusAddress.parse(place)
        client = address.connect()
        try:
            with explained(address, "open the catalogue"):
                if not client.has_collection(address.collection):
                    raise CatalogError(f"{address} is no catalogue: create one there first")
                properties = client.describe_collection(address.collection)["properties"]
                client.load_collection(address.collection)
            try:
                meta = StoreMeta(**json.loads(properties[META]))
                tuned = json.loads(properties.get(TUNED, "{}"))
            except (KeyError, TypeError, ValueError) as error:
                raise CatalogError(f"{address} was not made by this tigerfg") from error
        except BaseException:
            client.close()
            raise
        return cls(address, client, meta, tuned, read_only)

    @staticmethod
    def exists(place: str) -> bool:
        """Whether there is a collection of this name."""
        address = MilvusAddress.parse(place)
        client = address.connect()
        try:
            with explained(address, "look for a catalogue"):
                return client.has_collection(address.collection)
        finally:
            client.close()

    def require_open(self) -> None:
        """CatalogError if the collection is closed."""
        if self._client is None:
            raise CatalogError(f"{self.path} is closed: open it again")

    def require_writer(self, action: str) -> None:
        """CatalogError if the collection is closed or open for reading only."""
        self.require_open()
        if self.read_only:
            raise CatalogError(f"cannot {action}: {self.path} is open for reading only")

    def __len__(self) -> int:
        return self._count("")

    def objection(self, document: str) -> str | None:
        """Why an item of this JSON form cannot be stored here, or None."""
        return objection(document)

    def put(self, records: Sequence[Record], replace: bool = False) -> int:
        """See `Store.put`; a batch is one call to the server."""
        self.require_writer("store items")
        if not records:
            return 0
        stored = self.content_hashes([record.item_id for record in records])
        if stored and not replace:
            raise CatalogError(
                f"cannot store items in {self.path}: the id {min(stored)!r} is taken by another "
                "item: upsert replaces it"
            )
        first = self._number(len(records))
        rows = [to_row(record, number) for number, record in enumerate(records, first)]
        with self._server("store items") as client:
            client.upsert(self._address.collection, rows)
        return len(stored)

    def delete(self, item_ids: Iterable[str]) -> int:
        """See `Store.delete`."""
        self.require_writer("delete items")
        keys = {key_of(item_id): item_id for item_id in item_ids}
        there = [row["key"] for row in self._fetch(list(keys), ["key"])]
        with self._server("delete items") as client:
            for chunk in _chunks(there):
                client.delete(self._address.collection, ids=chunk)
        return len(there)

    def content_hashes(self, item_ids: Iterable[str]) -> dict[str, bytes]:
        """Content hashes of the stored ones of these items, by item id."""
        keys = {key_of(item_id): item_id for item_id in item_ids}
        rows = self._fetch(list(keys), ["key", "content_hash"])
        return {keys[row["key"]]: bytes.fromhex(row["content_hash"]) for row in rows}

    def document(self, item_id: str) -> dict[str, Any] | None:
        """A stored item's JSON form, None when there is none of this id."""
        rows = self._fetch([key_of(item_id)], ["document"])
        return json.loads(rows[0]["document"]) if rows else None

    def documents(self) -> Iterator[dict[str, Any]]:
        """All items' JSON forms in the order of storing; writes may go on meanwhile."""
        for chunk in _chunks([key for _, key in sorted(self._numbers())], 500):
            rows = self._fetch(chunk, ["number", "document"])
            yield from (json.loads(r["document"]) for r in sorted(rows, key=lambda r: r["number"]))

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
        expression = compile_filter(where) if where else ""
        probed = self._address.nprobe or self._tuned.get("nprobe") or self._default_nprobe
        found = self._nearest(embeddings, k, expression, probed)
        short = [n for n, line in enumerate(found) if len(line) < k]
        if short and self._index.lists and len(found[short[0]]) < self._count(expression):
            again = self._nearest(embeddings[short], k, expression, self._index.lists)
            for n, line in zip(short, again, strict=True):
                found[n] = line
        return found

    def optimize(self) -> IndexStats:
        """Have the server build its index of all items, and tune nprobe to the target recall."""
        self.require_writer("build an index")
        started = time.perf_counter()
        with self._server("build an index") as client:
            client.flush(self._address.collection)
            while _unindexed(client, self._address.collection):
                time.sleep(0.2)
        sample = self.sample(256, 0)
        if self._index.lists and sample:
            tuned = measure(
                lambda vectors, k, nprobe: self._nearest(vectors, k, "", nprobe),
                sample,
                self._index.lists,
                self.meta.target_recall,
            )
            tuned["seconds"] = {"build and tune": round(time.perf_counter() - started, 2)}
            with self._server("note what was measured") as client:
                client.alter_collection_properties(
                    self._address.collection, {TUNED: json.dumps(tuned)}
                )
            self._tuned = tuned
        return self.stats()

    def stats(self) -> IndexStats:
        """What answers searches, and what was measured when `optimize` was called last."""
        tuned = self._tuned
        nprobe = self._address.nprobe or tuned.get("nprobe")
        with self._server("describe the index") as client:
            building = bool(_unindexed(client, self._address.collection))
        return IndexStats(
            self.meta.index,
            str(self._index),
            len(self),
            nprobe or (self._default_nprobe if self._index.lists else None),
            tuned.get("recall") if nprobe == tuned.get("nprobe") else None,
            tuned.get("ms") if nprobe == tuned.get("nprobe") else None,
            tuned.get("curve", []),
            tuned.get("seconds", {}),
            building,
        )

    def sample(self, count: int, seed: int) -> list[Sampled]:
        """At most ``count`` different items at random, in the order of storing."""
        numbers = sorted(self._numbers())
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(numbers), min(count, len(numbers)), replace=False))
        keys = [numbers[n][1] for n in chosen]
        wanted = ["number", "document", "content_hash", "vector"]
        rows = sorted(self._fetch(keys, wanted), key=lambda row: row["number"])
        return [
            Sampled(
                json.loads(row["document"]),
                bytes.fromhex(row["content_hash"]),
                np.asarray(row["vector"], np.float32),
            )
            for row in rows
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

    def close(self) -> None:
        """Disconnect; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @property
    def _default_nprobe(self) -> int:
        return max(16, (self._index.lists or 0) // 16)

    def _nearest(
        self, embeddings: np.ndarray, k: int, expression: str, nprobe: int
    ) -> list[list[Match]]:
        """The k best of each query among the probed lists, ranked by exact scores."""
        coarse = self._index.factor > 1
        limit = min(int(k) * self._index.factor, MOST_RESULTS)
        fields = ["number", "document", "grounding_map", *(["vector"] if coarse else [])]
        params = {"nprobe": min(nprobe, self._index.lists)} if self._index.lists else {}
        lines = []
        for part in _chunks(list(embeddings), max(1, _AT_ONCE // limit)):
            with self._server("search") as client:
                found = client.search(
                    self._address.collection,
                    data=part,
                    filter=expression,
                    limit=limit,
                    output_fields=fields,
                    search_params={"metric_type": METRIC, "params": params},
                    consistency_level="Strong",
                )
            lines += [
                _ranked(query, hits, k, coarse) for query, hits in zip(part, found, strict=True)
            ]
        return lines

    def _count(self, expression: str) -> int:
        with self._server("count items") as client:
            rows = client.query(
                self._address.collection,
                filter=expression,
                output_fields=["count(*)"],
                consistency_level="Strong",
            )
        return rows[0]["count(*)"]

    def _fetch(self, keys: Sequence[str], fields: list[str]) -> list[Any]:
        """Rows of these keys, those that are there, in no order."""
        rows: list[Any] = []
        for chunk in _chunks(keys):
            names = ", ".join(f'"{key}"' for key in chunk)
            with self._server("read items") as client:
                rows += client.query(
                    self._address.collection,
                    filter=f"key in [{names}]",
                    output_fields=fields,
                    consistency_level="Strong",
                )
        return rows

    def _numbers(self) -> Iterator[tuple[int, str]]:
        """(number, key) of all items; Milvus gives rows in the order of their keys."""
        last = ""
        while True:
            with self._server("read items") as client:
                rows = client.query(
                    self._address.collection,
                    filter=f'key > "{last}"',
                    output_fields=["key", "number"],
                    limit=MOST_RESULTS,
                    consistency_level="Strong",
                )
            yield from ((row["number"], row["key"]) for row in rows)
            if len(rows) < MOST_RESULTS:
                return
            last = max(row["key"] for row in rows)

    def _number(self, count: int) -> int:
        """The first of ``count`` numbers that grow with time, over all processes that write."""
        with self._numbering:
            first = max(time.time_ns(), self._last + 1)
            self._last = first + count - 1
        return first

    @contextmanager
    def _server(self, action: str) -> Iterator[MilvusClient]:
        self.require_open()
        with explained(self._address, action):
            yield self._client


def _make(client: MilvusClient, name: str, index: MilvusIndex, meta: StoreMeta) -> None:
    """Create the collection, loaded, with its index."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("number", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=meta.embedding_dim)
    schema.add_field("content_hash", DataType.VARCHAR, max_length=64)
    schema.add_field(COLUMN, DataType.JSON)
    schema.add_field("document", DataType.VARCHAR, max_length=MOST_BYTES)
    schema.add_field("grounding_map", DataType.VARCHAR, max_length=MOST_BYTES)
    wanted = client.prepare_index_params()
    wanted.add_index("vector", index_type=index.kind, metric_type=METRIC, params=dict(index.params))
    client.create_collection(name, schema=schema, index_params=wanted, consistency_level="Strong")
    client.alter_collection_properties(name, {META: json.dumps(asdict(meta))})


def _unindexed(client: MilvusClient, name: str) -> int:
    """Rows that the index does not hold yet."""
    state = client.describe_index(name, client.list_indexes(name)[0]) or {}
    return int(state.get("pending_index_rows", 0))


def _ranked(query: np.ndarray, hits: Any, k: int, coarse: bool) -> list[Match]:
    """Hits of one query by exact score, equal ones in the order of storing."""
    entities = [hit["entity"] for hit in hits]
    scores = np.array([hit["distance"] for hit in hits], np.float32)
    if coarse and entities:
        vectors = np.array([entity["vector"] for entity in entities], np.float32)
        scores = vectors @ query
    order = sorted(range(len(entities)), key=lambda n: (-scores[n], entities[n]["number"]))
    best = np.clip(scores, -1, 1).tolist()
    return [Match(best[n], *from_row(entities[n])) for n in order[:k]]


def _chunks(values: Sequence[Any], size: int = 500) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
