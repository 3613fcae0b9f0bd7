"""The item store: a SQLite file that is the truth of a catalogue.

Every write is one transaction, acknowledged when its commit has reached the disk. Writes are
numbered: a stored item's internal id is the number of the write that stored it, and each removal is
logged under a number of its own, so that whatever derives from the store (the vector index) catches
up from the last number it has seen; the log reaches back `LOGGED` writes. Internal ids are never
used twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.errors import CatalogError
from tigerfg.index.database import (
    StoreMeta,
    create_database,
    explained,
    file_of,
    frozen_state,
    is_catalog,
    lock_for_writing,
    open_database,
    unlock,
)
from tigerfg.index.filters import field_rows
from tigerfg.index.plan import IndexSettings
from tigerfg.index.store_reader import LOGGED, QUERIES, StoreReader
from tigerfg.index.stored import Record, in_chunks
from tigerfg.index.where import Group

# of a record that was damaged into another, some may be there
_INSERT_FIELD = "INSERT OR IGNORE INTO fields VALUES (?, ?, ?)"
_DELETE_FIELD = "DELETE FROM fields WHERE key = ? AND value = ? AND id = ?"


class Store(StoreReader):
    """Open with `Store.create` or `Store.open`. Not thread-safe: the caller holds a lock.

    Every method raises CatalogError, with one line, when SQLite or the disk refuses, or what is
    stored is damaged; a write that raises has changed nothing.
    """

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        meta: StoreMeta,
        lock: FileIO | None,
        frozen: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(path, db, meta)
        self._frozen = frozen  # see `refresh`
        self._file = file_of(path)
        self._unlock = None if lock is None else weakref.finalize(self, unlock, lock, os.getpid())

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        model: str,
        fingerprint: str,
        embedding_dim: int,
        settings: IndexSettings | None = None,
    ) -> Store:
        """Make an empty catalogue in a directory that is new or empty, and open it for writing."""
        path, settings = Path(os.path.abspath(path)), settings or IndexSettings()
        return cls._open(path, create_database(path, model, fingerprint, embedding_dim, settings))

    @classmethod
    def open(cls, path: str | os.PathLike, read_only: bool = False) -> Store:
        """Open a catalogue; only one process at a time can have it open for writing."""
        path = Path(os.path.abspath(path))
        locking = not read_only and is_catalog(path)
        return cls._open(path, lock_for_writing(path) if locking else None)

    @classmethod
    def _open(cls, path: Path, lock: FileIO | None) -> Store:
        try:
            frozen = frozen_state(path) if lock is None else None
            return cls(path, *open_database(path, read_only=lock is None), lock, frozen)
        except BaseException:
            if lock is not None:
                lock.close()
            raise

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._unlock is None

    @property
    def replaced(self) -> bool:
        """Whether its directory was removed, or holds another catalogue by now, such as a copy of
        this one that went its own way: files there are not about this store."""
        return file_of(self.path) != self._file

    def require_place(self, action: str) -> None:
        """CatalogError if the directory holds this catalogue no more."""
        if self.replaced:
            raise CatalogError(
                f"cannot {action}: {self.path} was removed, or replaced by another catalogue"
            )

    def require_writer(self, action: str) -> None:
        """CatalogError if the catalogue is open for reading only."""
        if self.read_only:
            raise CatalogError(f"cannot {action}: {self.path} is open for reading only")

    def refresh(self) -> bool:
        """See what others wrote where a connection does not: one that cannot make WAL's files takes
        the store as unchanging (`frozen_state`).

        Returns whether it is another file now, perhaps of a copy that went its own way. One of
        another catalogue is not taken up.
        """
        if self._frozen is None or self._db.in_transaction:
            return False
        if self._frozen == (now := frozen_state(self.path)):
            return False
        db, meta = open_database(self.path, read_only=True)
        before = self._file
        if meta.catalog_id == self.meta.catalog_id:
            self._db, db = db, self._db
            self._file = file_of(self.path)
        db.close()
        self._frozen = now
        return self._file != before

    def put(self, records: Sequence[Record], replace: bool = False) -> int:
        """Store a batch in one transaction; on return it is on the disk.

        Args:
            records: distinct item ids; without ``replace`` none of them may be stored already.
            replace: remove the stored items of these ids in the same transaction.

        Returns:
            How many stored items were replaced.
        """
        with self._writing("store items"):
            replaced = 0
            if replace:
                replaced = self._remove(self._by_item_id(record.item_id for record in records))
            first = self._advance(len(records)) + 1
            numbered = list(enumerate(records, first))
            self._db.executemany(
                "INSERT INTO items VALUES (?, ?, ?, ?)",
                ((number, r.item_id, r.content_hash, r.document) for number, r in numbered),
            )
            self._db.executemany(
                "INSERT INTO encodings VALUES (?, ?, ?, ?, ?)",
                (
                    (n, _fp16(r.vector), _fp16(r.grounding_map), *r.grounding_map.shape)
                    for n, r in numbered
                ),
            )
            self._db.executemany(
                _INSERT_FIELD,
                (row for number, r in numbered for row in field_rows(number, r.document)),
            )
        return replaced

    def update(self, documents: Mapping[str, str]) -> int:
        """Give stored items other JSON forms, by item id, in one transaction.

        What was encoded of them stays, and so do their internal ids: nothing that derives from the
        vectors has to follow. Returns how many there were; unknown ids are passed.
        """
        with self._writing("update items"):
            found = self._by_item_id(documents)
            stale: set[tuple[str, Any, int]] = set()
            fresh: set[tuple[str, Any, int]] = set()
            for number, item_id, document in found:
                stale.update(self._fields(number, document))
                fresh.update(field_rows(number, documents[item_id]))
            self._db.executemany(_DELETE_FIELD, stale - fresh)
            self._db.executemany(_INSERT_FIELD, fresh - stale)
            self._db.executemany(
                "UPDATE items SET document = ? WHERE id = ?",
                ((documents[item_id], number) for number, item_id, _ in found),
            )
            if found:
                self._advance(1)  # filters select anew
        return len(found)

    def delete(self, item_ids: Iterable[str]) -> int:
        """Remove items in one transaction; returns how many there were, unknown ids are passed."""
        wanted = list(item_ids)
        with self._writing("delete items"):
            return sum(self._remove(self._by_item_id(chunk)) for chunk in in_chunks(wanted))

    def delete_matching(self, term: Group) -> int:
        """As `delete`, of the items that match a filter of `parse_filter`."""
        with self._writing("delete items"):
            found = self.select(term).tolist()
            return sum(self._remove(self._by_id(chunk)) for chunk in in_chunks(found))

    def keep(self, queries: np.ndarray | None, settings: IndexSettings | None) -> None:
        """Keep sample queries (Q, E) for tuning, and how the catalogue is searched, in place of
        those before; no query (Q = 0) forgets them, None leaves what is kept."""
        fresh = self.meta if settings is None else replace(self.meta, **asdict(settings))
        with self._writing("keep how it is searched"):
            rows = [(json.dumps(value), key) for key, value in asdict(fresh).items()]
            self._db.executemany("UPDATE meta SET value = ? WHERE key = ?", rows)
            if queries is not None:
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {QUERIES} (vector BLOB NOT NULL)")
                self._db.execute(f"DELETE FROM {QUERIES}")
                vectors = [(_fp16(vector),) for vector in queries]
                self._db.executemany(f"INSERT INTO {QUERIES} VALUES (?)", vectors)
        self.meta = fresh

    def close(self) -> None:
        """Close the file and let the next writer in."""
        try:
            self._db.close()
        finally:
            if self._unlock is not None:
                self._unlock()

    def _remove(self, found: Sequence[tuple[int, str, str]]) -> int:
        """Items by id, item_id and document; returns how many."""
        ids = [(number,) for number, _, _ in found]
        self._db.executemany("DELETE FROM items WHERE id = ?", ids)
        self._db.executemany("DELETE FROM encodings WHERE id = ?", ids)
        self._db.executemany(
            _DELETE_FIELD,
            (row for number, _, document in found for row in self._fields(number, document)),
        )
        first = self._advance(len(ids)) + 1
        self._db.executemany(
            "INSERT INTO removals VALUES (?, ?)",
            ((number, removed) for number, (removed,) in enumerate(ids, first)),
        )
        reach = first + len(ids) - 1 - LOGGED
        self._db.execute("DELETE FROM removals WHERE number <= ?", (reach,))
        return len(ids)

    def _fields(self, number: int, document: str) -> list[tuple[str, Any, int]]:
        """A stored item's rows of the table ``fields``."""
        try:
            return list(field_rows(number, document))
        except ValueError:  # its record is damaged: a scan, so that it can be replaced
            sql = "SELECT key, value, id FROM fields WHERE id = ?"
            return self._db.execute(sql, [number]).fetchall()

    def _advance(self, count: int) -> int:
        """Take ``count`` write numbers; returns the last one taken before."""
        last = self.number
        self._db.execute("UPDATE counter SET number = ?", (last + count,))
        return last

    @contextlib.contextmanager
    def _writing(self, action: str) -> Iterator[None]:
        self.require_writer(action)
        self.require_place(action)
        with explained(self.path, action):
            self._require_outermost()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # the first error counts
                    self.leave_transaction()
                raise


def _fp16(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, "<f2").tobytes()
