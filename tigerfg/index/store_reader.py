"""Reading a catalogue's SQLite file: items, vectors, filters, and what is damaged of them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.errors import CatalogError
from tigerfg.index.database import StoreMeta, explained, read_meta
from tigerfg.index.filters import matching
from tigerfg.index.store_check import WITHOUT_VECTOR, problems_of
from tigerfg.index.stored import CHUNK, Known, Row, Sampled, checked_id, in_chunks, parse_document
from tigerfg.index.where import Group, Scalar

QUERIES = "queries"  # table of sample queries
LOGGED = 1_000_000  # write numbers whose removals are logged; so many rows take 20 MB


class StoreReader:
    """What can be read of a store, through one connection; see `Store`."""

    def __init__(self, path: Path, db: sqlite3.Connection, meta: StoreMeta) -> None:
        self.path, self.meta = path, meta
        self._db = db

    def read_meta(self) -> None:
        """See how the catalogue is searched by now, as a writer may have changed."""
        with self._reading("read"):
            self.meta = read_meta(self.path, self._db)

    @property
    def number(self) -> int:
        """Number of the last write."""
        with self._reading("read"):
            return self._db.execute("SELECT number FROM counter").fetchone()[0]

    def __len__(self) -> int:
        with self._reading("count"):
            return self._db.execute("SELECT count(*) FROM items").fetchone()[0]

    def known(self, item_ids: Iterable[str]) -> dict[str, Known]:
        """The stored ones of these items, by item id."""
        found = {}
        for chunk in in_chunks(list(map(checked_id, item_ids))):
            with self._reading("look up items"):
                for item_id, *known in self._db.execute(
                    "SELECT item_id, content_hash, document FROM items "
                    f"WHERE item_id IN ({_marks(chunk)})",
                    chunk,
                ):
                    found[item_id] = Known(*known)
        return found

    def document(self, item_id: str) -> dict[str, Any] | None:
        """A stored item's JSON form, None when there is none of this id."""
        rows = self._by_item_id([item_id])
        return self._parsed(rows[0][0], rows[0][2]) if rows else None

    def documents_after(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """The next items' JSON forms in the order of storing, and the last one's internal id."""
        with self._reading("read items"):
            rows = self._db.execute(
                "SELECT id, document FROM items WHERE id > ? ORDER BY id LIMIT ?", (number, CHUNK)
            ).fetchall()
        return (rows[-1][0] if rows else number), [self._parsed(*row) for row in rows]

    def documents_of(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Items' JSON forms by internal id, in the order of storing; ids not there are passed."""
        return [self._parsed(number, document) for number, _, document in self._by_id(ids)]

    def rows(self, ids: Sequence[int]) -> dict[int, Row]:
        """Items and grounding maps by internal id, of items that are stored."""
        found = {}
        for chunk in in_chunks(ids):
            with self._reading("read items"):
                rows = self._db.execute(
                    "SELECT id, document, grounding_map, rows, columns FROM items "
                    f"JOIN encodings USING (id) WHERE id IN ({_marks(chunk)})",
                    chunk,
                ).fetchall()
            for number, document, grounding_map, *shape in rows:
                try:
                    grid = np.frombuffer(grounding_map, "<f2").astype(np.float32).reshape(shape)
                except (TypeError, ValueError):
                    raise self.damaged(number, "grounding map") from None
                found[number] = Row(self._parsed(number, document), grid)
        for number in ids:
            if number not in found:
                raise self.damaged(number, "row")
        return found

    def select(self, term: Group) -> np.ndarray:
        """Internal ids int64 of the items that match a filter of `parse_filter`, ascending."""
        with self._reading("filter"):
            return matching(term, self._numbers, self.ids)

    def ids(self) -> np.ndarray:
        """Internal ids int64 of all items, ascending."""
        with self._reading("read items"):
            return np.sort(self._numbers("SELECT id FROM items"))  # unordered: from an index alone

    def require_vectors(self) -> None:
        """CatalogError if an item's vector is lost."""
        with self._reading("read vectors"):
            lost = self._db.execute(f"SELECT min(id) FROM {WITHOUT_VECTOR}").fetchone()[0]
        if lost is not None:
            raise self.damaged(lost, "vector")

    def removed_since(self, number: int, held: Callable[[], np.ndarray]) -> np.ndarray:
        """Internal ids int64, at most `number`, that were removed after that write number.

        Args:
            held: gives the ids (N,) that whoever asks has, each once; called where the log of
                removals does not reach back so far, and they are compared with those stored.
        """
        if self.number - number > LOGGED:
            return np.setdiff1d(held(), self.ids(), assume_unique=True)
        with self._reading("read removals"):
            sql = "SELECT id FROM removals WHERE number > ? AND id <= ?"
            return self._numbers(sql, [number, number])

    def vectors_since(
        self, number: int, chunk: int = 16_384
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids int64 (n,) ascending and vectors float32 (n, E) stored after a write number."""
        while True:
            with self._reading("read vectors"):
                rows = self._db.execute(
                    "SELECT id, vector FROM encodings WHERE id > ? ORDER BY id LIMIT ?",
                    (number, chunk),
                ).fetchall()
            if not rows:
                return
            number = rows[-1][0]
            ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
            try:
                vectors = self._vectors([row[1] for row in rows])
            except (TypeError, ValueError):
                wrong = next(number for number, vector in rows if not self._is_vector(vector))
                raise self.damaged(wrong, "vector") from None
            yield ids, vectors

    def queries(self) -> np.ndarray:
        """The sample queries float32 (Q, E), Q = 0 where none were given."""
        with self._reading("read sample queries"):
            known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (QUERIES,))
            # the table is made by `Store.keep`: a new catalogue has none
            there = known.fetchone() is not None
            rows = self._db.execute(f"SELECT vector FROM {QUERIES}").fetchall() if there else []
        try:
            return self._vectors([vector for (vector,) in rows])
        except (TypeError, ValueError):
            raise CatalogError(
                f"{self.path} is damaged: its sample queries; give them again, or none, to optimize"
            ) from None

    def sample(self, count: int, seed: int) -> list[Sampled]:
        """At most ``count`` different items at random, in the order of storing; without those that
        are damaged."""
        with self._reading("sample items"):
            ids = self.ids()
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(ids, min(count, len(ids)), replace=False)).tolist()
            rows = [
                row
                for chunk in in_chunks(chosen)
                for row in self._db.execute(
                    "SELECT document, content_hash, vector FROM items "
                    f"JOIN encodings USING (id) WHERE id IN ({_marks(chunk)}) ORDER BY id",
                    chunk,
                )
            ]
        read = ((parse_document(text), digest, vector) for text, digest, vector in rows)
        return [
            Sampled(document, digest, self._vectors([vector])[0])
            for document, digest, vector in read
            if document is not None and self._is_vector(vector)
        ]

    def check(self) -> list[str]:
        """Look for damage: one line each, an empty list when all is well; call it inside a
        snapshot where others may write meanwhile."""
        return problems_of(self._db, self.vectors_since(0))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside sees one state of the catalogue, whatever others write."""
        with self._reading("read"):
            self._require_outermost()
            try:  # a signal's exception may be raised as BEGIN returns
                self._db.execute("BEGIN")
                yield
            finally:
                self.leave_transaction()

    def _require_outermost(self) -> None:
        if self._db.in_transaction:
            raise CatalogError(
                f"{self.path} is in the middle of another call of this thread: a signal's handler "
                "may only close it"
            )

    def leave_transaction(self) -> None:
        """Undo what an interrupted call left open."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _by_item_id(self, item_ids: Iterable[str]) -> list[tuple[int, str, str]]:
        """(id, item_id, document) of the stored ones among some item ids."""
        found = []
        for chunk in in_chunks(list(map(checked_id, item_ids))):
            with self._reading("look up items"):
                found += self._db.execute(
                    f"SELECT id, item_id, document FROM items WHERE item_id IN ({_marks(chunk)})",
                    chunk,
                ).fetchall()
        return found

    def _by_id(self, ids: Sequence[int]) -> list[tuple[int, str, str]]:
        """As `_by_item_id` for at most `CHUNK` internal ids, ascending."""
        with self._reading("look up items"):
            return self._db.execute(
                f"SELECT id, item_id, document FROM items WHERE id IN ({_marks(ids)}) ORDER BY id",
                ids,
            ).fetchall()

    def _numbers(self, sql: str, parameters: Sequence[Scalar] = ()) -> np.ndarray:
        """The column `id` of a query, int64, in any order.

        As one text: row by row, Python takes four times as long. SQLite makes none of more than 1
        GB, which some 90 million ids are.
        """
        try:
            try:
                selected = f"SELECT group_concat(id, ' ') FROM ({sql})"
                [[text]] = self._db.execute(selected, parameters)
            except sqlite3.DataError:
                return np.fromiter((row[0] for row in self._db.execute(sql, parameters)), np.int64)
            return np.fromstring(text or "", np.int64, sep=" ")
        except (TypeError, ValueError, OverflowError):
            raise CatalogError(
                f"{self.path} is damaged: an internal id is no number; restore a snapshot"
            ) from None

    def _parsed(self, number: int, text: str) -> dict[str, Any]:
        """An item's JSON form; CatalogError if it is damaged."""
        document = parse_document(text)
        if document is None:
            raise self.damaged(number, "record")
        return document

    def damaged(self, number: int, part: str) -> CatalogError:
        """What to raise where a part of a stored item is not what was stored."""
        with self._reading("look up items"):
            row = self._db.execute("SELECT item_id FROM items WHERE id = ?", [number]).fetchone()
        name = f"item {row[0]!r}" if row else f"the item with internal id {number}"
        return CatalogError(
            f"{self.path} is damaged: the {part} of {name}; delete that item and add it again, or "
            "restore a snapshot"
        )

    def _vectors(self, stored: Sequence[bytes]) -> np.ndarray:
        """Stored vectors as float32 (n, E); TypeError or ValueError if one has another size."""
        halves = np.frombuffer(b"".join(stored), "<f2")
        return halves.astype(np.float32).reshape(len(stored), self.meta.embedding_dim)

    def _is_vector(self, stored: object) -> bool:
        return isinstance(stored, bytes) and len(stored) == 2 * self.meta.embedding_dim

    def _reading(self, action: str) -> contextlib.AbstractContextManager[None]:
        return explained(self.path, action)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
