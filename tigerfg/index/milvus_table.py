"""The calls to Milvus that a collection is made of: rows by key, counts, neighbours, properties."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import CatalogError
from tigerfg.index.collection import Match
from tigerfg.index.milvus_address import MilvusAddress, explained
from tigerfg.index.milvus_filters import COLUMN
from tigerfg.index.milvus_schema import METRIC, MOST_BYTES, MilvusIndex, from_row
from tigerfg.index.stored import in_chunks

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MOST_RESULTS = 16_384  # of a query, by Milvus
_AT_ONCE = 2_000  # rows of one call: some 5 kB each, and a message may have 64 MiB
_STRONG = "Strong"  # consistency: every write that has returned is seen


class MilvusTable:
    """A connection to one collection of a server. Safe for threads; errors are CatalogError."""

    def __init__(self, address: MilvusAddress) -> None:
        self.address, self._name = address, address.collection
        self._client: MilvusClient | None = address.connect()

    def there(self) -> bool:
        """Whether the server has a collection of this name."""
        with self._server("look for a catalogue") as client:
            return client.has_collection(self._name)

    def create(self, index: MilvusIndex, dim: int, properties: Mapping[str, str]) -> None:
        """Make it, indexed and loaded; there must be none of this name, and where it fails none is
        left."""
        from pymilvus import DataType

        with self._server("create a catalogue") as client:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
            schema.add_field("number", DataType.INT64)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            schema.add_field("content_hash", DataType.VARCHAR, max_length=64)
            schema.add_field(COLUMN, DataType.JSON)
            schema.add_field("document", DataType.VARCHAR, max_length=MOST_BYTES)
            schema.add_field("grounding_map", DataType.VARCHAR, max_length=MOST_BYTES)
            client.create_collection(
                self._name,
                schema=schema,
                consistency_level=_STRONG,
                properties=dict(properties),  # at once: without, it could not be opened
            )
            try:
                self._complete(client, index)
            except BaseException:
                there = client.describe_collection(self._name)["properties"]
                if properties.items() <= there.items():  # not another's, made at the same time
                    client.drop_collection(self._name)
                raise

    def replace_index(self, index: MilvusIndex) -> None:
        """Have another index in the place of the one there; until it is loaded nobody searches."""
        with self._server("replace the index") as client:
            client.release_collection(self._name)
            for name in client.list_indexes(self._name):
                client.drop_index(self._name, name)
            client.create_index(self._name, _parameters(client, index))
            client.load_collection(self._name)

    def load(self, index: MilvusIndex | None) -> None:
        """Have the server load it, with this index if it has none: who made it, or replaced its
        index, was stopped in between. Without one: as it is."""
        with self._server("open the catalogue") as client:
            if index is not None:
                self._complete(client, index)
            else:
                client.load_collection(self._name)

    def properties(self) -> Mapping[str, str]:
        """What was noted with it."""
        with self._server("open the catalogue") as client:
            return client.describe_collection(self._name)["properties"]

    def note(self, properties: Mapping[str, str]) -> None:
        """Set properties."""
        with self._server("note what was measured") as client:
            client.alter_collection_properties(self._name, dict(properties))

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        """Store rows, in place of those of their keys, in one call."""
        with self._server("store items") as client:
            client.upsert(self._name, rows)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove rows."""
        for chunk in in_chunks(keys):
            with self._server("delete items") as client:
                client.delete(self._name, ids=chunk)

    def count(self, expression: str = "") -> int:
        """How many rows match."""
        with self._server("count items") as client:
            rows = client.query(
                self._name,
                filter=expression,
                output_fields=["count(*)"],
                consistency_level=_STRONG,
            )
        return rows[0]["count(*)"]

    def rows(self, keys: Sequence[str], fields: list[str]) -> list[Any]:
        """Rows of these keys, those that are there, in no order."""
        found: list[Any] = []
        for chunk in in_chunks(keys):
            names = ", ".join(f'"{key}"' for key in chunk)
            with self._server("read items") as client:
                found += client.query(
                    self._name,
                    filter=f"key in [{names}]",
                    output_fields=fields,
                    consistency_level=_STRONG,
                )
        return found

    def numbers(self, expression: str = "") -> Iterator[tuple[int, str]]:
        """(number, key) of all rows that match; Milvus gives them in the order of their keys."""
        last = ""
        matching = f" and ({expression})" if expression else ""
        while True:
            with self._server("read items") as client:
                rows = client.query(
                    self._name,
                    filter=f'key > "{last}"{matching}',
                    output_fields=["key", "number"],
                    limit=MOST_RESULTS,
                    consistency_level=_STRONG,
                )
            yield from ((row["number"], row["key"]) for row in rows)
            if len(rows) < MOST_RESULTS:
                return
            last = max(row["key"] for row in rows)

    def nearest(
        self, embeddings: np.ndarray, k: int, expression: str, index: MilvusIndex, nprobe: int
    ) -> list[list[Match]]:
        """The k best of each query that match, among the probed lists, ranked by exact scores."""
        coarse = index.factor > 1
        limit = min(int(k) * index.factor, MOST_RESULTS)
        fields = ["number", "document", "grounding_map", *(["vector"] if coarse else [])]
        params = {"nprobe": min(nprobe, index.lists)} if index.lists else {}
        lines = []
        for part in in_chunks(list(embeddings), max(1, _AT_ONCE // limit)):
            with self._server("search") as client:
                found = client.search(
                    self._name,
                    data=part,
                    filter=expression,
                    limit=limit,
                    output_fields=fields,
                    search_params={"metric_type": METRIC, "params": params},
                    consistency_level=_STRONG,
                )
            lines += [
                _ranked(query, hits, k, coarse) for query, hits in zip(part, found, strict=True)
            ]
        return lines

    def pending(self) -> int:
        """Rows that the index does not hold yet; 0 where there is none."""
        with self._server("describe the index") as client:
            states = [client.describe_index(self._name, n) for n in client.list_indexes(self._name)]
            return sum(int(state.get("pending_index_rows", 0)) for state in states if state)

    def build_index(self, index: MilvusIndex) -> None:
        """Seal what was written and wait until it is indexed; by this index if there is none."""
        with self._server("build an index") as client:
            self._complete(client, index)
            client.flush(self._name)
        while self.pending():
            time.sleep(0.2)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._client is None

    def close(self) -> None:
        """Disconnect; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _complete(self, client: MilvusClient, index: MilvusIndex) -> None:
        """Make the index if there is none, and load the collection."""
        if not client.list_indexes(self._name):
            client.create_index(self._name, _parameters(client, index))
        client.load_collection(self._name)

    @contextmanager
    def _server(self, action: str) -> Iterator[MilvusClient]:
        client = self._client
        if client is None:
            raise CatalogError(f"{self.address} is closed: open it again")
        with explained(self.address, action):
            yield client


def _parameters(client: MilvusClient, index: MilvusIndex) -> Any:
    wanted = client.prepare_index_params()
    wanted.add_index("vector", index_type=index.kind, metric_type=METRIC, params=dict(index.params))
    return wanted


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
