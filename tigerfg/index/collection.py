"""A collection: the store and its vector index as one thread-safe thing, without any model."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tigerfg.errors import CatalogError
from tigerfg.index.database import StoreMeta, is_catalog
from tigerfg.index.factory import require_ivf
from tigerfg.index.gpu import OFF, GpuSettings
from tigerfg.index.index_files import check_files
from tigerfg.index.index_stats import IndexStats
from tigerfg.index.keeper import IndexKeeper
from tigerfg.index.plan import AUTO, FLAT, IndexSettings
from tigerfg.index.selected import SelectedIds
from tigerfg.index.store import Store
from tigerfg.index.stored import Known, Record, Sampled, in_chunks
from tigerfg.index.where import parse_filter
from tigerfg.settings import whole_number

NO_GPU = GpuSettings(OFF)

logger = logging.getLogger("tigerfg")


class Match(NamedTuple):
    """One search result: cosine, the item's JSON form, and its map float32 (rows, columns)."""

    score: float
    document: dict[str, Any]
    grounding_map: np.ndarray


class Collection:
    """Stored items and the search among their vectors: exact, or by an index (`IndexSettings`).

    Every write is on the disk when its call returns, and every later search sees it, in this
    process or another. Errors are CatalogError; what raises has changed nothing.
    """

    def __init__(self, store: Store, gpu: GpuSettings) -> None:
        self._store, self._gpu = store, gpu
        self._changed = self._closed = False
        self._inside: int | None = None  # the thread that is in a call
        self._process = os.getpid()
        self._lock = threading.RLock()
        try:
            self._start()
        except BaseException:
            store.close()
            raise

    def _start(self) -> None:
        """Forget all that derives from the store."""
        self._selected = SelectedIds()
        self._keeper = IndexKeeper(self._store, self._lock, self._gpu)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        model: str,
        fingerprint: str,
        embedding_dim: int,
        settings: IndexSettings | None = None,
        gpu: GpuSettings = NO_GPU,
    ) -> Collection:
        """Make an empty one in a directory that is new or empty, open for writing.

        Raises:
            InputError: an index that cannot be. MissingExtraError: it is named, and faiss missing.
        """
        if settings is not None and settings.index not in (AUTO, FLAT):
            require_ivf(settings.index, embedding_dim)
        store = Store.create(
            path,
            model=model,
            fingerprint=fingerprint,
            embedding_dim=embedding_dim,
            settings=settings,
        )
        return cls(store, gpu)

    @classmethod
    def open(
        cls, path: str | os.PathLike, read_only: bool = False, gpu: GpuSettings = NO_GPU
    ) -> Collection:
        """Open an existing one; only one process at a time can have it open for writing."""
        return cls(Store.open(path, read_only), gpu)

    @staticmethod
    def exists(path: str | os.PathLike) -> bool:
        """Whether a directory holds one."""
        return is_catalog(path)

    @property
    def path(self) -> Path:
        """The catalogue's directory."""
        return self._store.path

    @property
    def folder(self) -> Path | None:
        """Where files beside the catalogue's own may be written."""
        return self._store.path

    @property
    def size_bytes(self) -> int | None:
        """Of all files in the directory; None where it is gone."""
        total = 0
        try:
            files = list(self.path.iterdir())
        except FileNotFoundError:
            return None
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                total += file.stat().st_size if file.is_file() else 0
        return total

    @property
    def meta(self) -> StoreMeta:
        """What the catalogue was made with."""
        return self._store.meta

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._store.read_only

    def require_open(self) -> None:
        """CatalogError if the collection is closed."""
        with self._exclusive():
            pass

    def require_writer(self, action: str) -> None:
        """CatalogError if the collection is closed or open for reading only."""
        with self._exclusive() as store:
            store.require_writer(action)

    def require_place(self, action: str) -> None:
        """CatalogError if the directory holds this catalogue no more."""
        self._store.require_place(action)

    def __len__(self) -> int:
        with self._exclusive() as store:
            return len(store)

    def put(self, records: Sequence[Record], replace: bool = False) -> int:
        """See `Store.put`."""
        with self._exclusive() as store:
            replaced = store.put(records, replace)
            self._changed = True
            self._keeper.maintain()
            return replaced

    def update(self, documents: Mapping[str, str]) -> int:
        """See `Store.update`."""
        with self._exclusive() as store:
            return store.update(documents)

    def delete(self, item_ids: Iterable[str]) -> int:
        """See `Store.delete`."""
        with self._exclusive() as store:
            deleted = store.delete(item_ids)
            self._changed = True
            self._keeper.maintain()
            return deleted

    def delete_matching(self, where: Mapping[str, Any]) -> int:
        """Remove the items that match a filter, in one transaction; returns how many."""
        term = parse_filter(where)
        with self._exclusive() as store:
            deleted = store.delete_matching(term)
            self._changed = True
            self._keeper.maintain()
            return deleted

    def objection(self, document: str) -> str | None:
        """Why an item of this JSON form cannot be stored here, or None: anything can."""
        return None

    def known(self, item_ids: Iterable[str]) -> dict[str, Known]:
        """The stored ones of these items, by item id."""
        with self._exclusive() as store:
            return store.known(item_ids)

    def document(self, item_id: str) -> dict[str, Any] | None:
        """A stored item's JSON form, None when there is none of this id."""
        with self._exclusive() as store:
            return store.document(item_id)

    def count(self, where: Mapping[str, Any]) -> int:
        """How many items match a filter."""
        with self._exclusive() as store, store.snapshot():
            return len(self._selected.of(store, where))

    def documents(self, where: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Items' JSON forms in the order of storing; writes may go on meanwhile.

        With a filter: of those that match it at the first one, without those that are removed or
        replaced before their turn.
        """
        if where is not None:
            with self._exclusive() as store, store.snapshot():
                ids = self._selected.of(store, where)
            for chunk in in_chunks(ids):
                with self._exclusive() as store:
                    documents = store.documents_of(chunk.tolist())
                yield from documents
            return
        last = 0
        while True:
            with self._exclusive() as store:
                last, documents = store.documents_after(last)
            if not documents:
                return
            yield from documents

    def search(
        self, embeddings: np.ndarray, k: int, where: Mapping[str, Any] | None = None
    ) -> list[list[Match]]:
        """The k best matches of each query, best first, equal scores in the order of storing.

        Exact, or, with an IVF index, about the k best, with exact scores.

        Args:
            embeddings: float32 (B, E), unit length.
            k: at least 1; fewer come back only if fewer items (that match) are stored.
            where: filter, see `tigerfg.index.where`.
        """
        with self._exclusive() as store, store.snapshot():
            allowed = self._selected.of(store, where) if where else None
            scores, ids = self._keeper.search(embeddings, k, allowed)
            rows = store.rows(np.unique(ids).tolist())
            self._keeper.maintain()
        scores = np.clip(scores, -1, 1)
        return [
            [Match(score, *rows[number]) for score, number in zip(*line, strict=True)]
            for line in zip(scores.tolist(), ids.tolist(), strict=True)
        ]

    def optimize(
        self, queries: np.ndarray | None = None, settings: IndexSettings | None = None
    ) -> IndexStats:
        """Build the index that the settings ask for now, while searches and writes go on.

        With exact search, also that of auto for few items, nothing is built.

        Args:
            queries: sample queries (Q, E), kept: this index and later ones are tuned with them;
                none of them (Q = 0): with such as are made of items again. None: as before.
            settings: in place of those before, kept when the index is there. None: as before.

        Raises:
            InputError: the settings cannot be met, for example for want of items to train an index
                that is named. Nothing has changed then.
        """
        with self._exclusive() as store, store.snapshot():
            store.require_writer("build an index")
            items, asked = len(self._keeper.current()), settings or store.meta.settings
        factory = asked.choose(items, store.meta.embedding_dim)
        self._keeper.build(factory, asked, queries, new=settings is not None)
        return self.stats()

    def stats(self) -> IndexStats:
        """What answers searches, and what was measured when it was built."""
        with self._exclusive() as store, store.snapshot():
            return self._keeper.stats()

    def inspect(self, sample: int, seed: int) -> tuple[int, list[str], list[Sampled]]:
        """Look for damage, through a connection of its own.

        Returns:
            How many items there are, what is wrong (a line each), and ``sample`` items at random.
        """
        with contextlib.closing(Store.open(self.path, read_only=True)) as store:
            self._store.require_place("check the catalogue")
            with store.snapshot():
                problems = store.check()
                count, chosen = len(store), store.sample(sample, seed) if sample else []
            try:
                problems += check_files(store)
            except CatalogError as error:  # what they are compared with is damaged: told already
                problems += {str(error)}.difference(problems)
            return count, problems, chosen

    def flush(self) -> None:
        """Write the index file, so that the next start is quick; items are safe without it.

        An index that is due to be built is built first.
        """
        self._write_index(build=True)

    def _write_index(self, build: bool) -> None:
        with self._exclusive() as store, store.snapshot():
            store.require_writer("write the index file")
            self._keeper.current()
            factory, asked = self._keeper.due() if build else None, store.meta.settings
            if factory is None:
                self._keeper.save()
        if factory is not None:
            self._keeper.build(factory, asked)

    def close(self, build: bool = True) -> None:
        """Close the files and let the next writer in; a second call does nothing.

        Args:
            build: wait for an index that is being built, and build one that is due. False: end
                soon, the next writer will see to it.
        """
        with self._lock:
            if self._closed:
                self._store.close()  # where that was interrupted
                return
            self._keeper.retire()
        try:
            build = build and not self._keeper.building_here
            if build:
                self._keeper.wait()
            stale = build and self._changed and self._keeper.stale
            if not self._closed and (self._keeper.unsaved or stale):  # by another thread meanwhile
                self._write_index(build)
        except Exception as error:
            logger.warning("%s closed without an index file: %s", self.path, error)
        finally:
            with self._lock:
                self._closed = True
                self._store.close()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[Store]:
        if os.getpid() != self._process:  # threads, locks and connections are that one's
            raise CatalogError(
                f"{self.path} was opened by process {self._process}: open it again after a fork"
            )
        with self._lock:
            if self._closed:
                raise CatalogError(f"{self.path} is closed: open it again")
            outer, self._inside = self._inside, threading.get_ident()
            try:
                if outer != self._inside:  # none of this thread's calls goes on around this one
                    self._store.leave_transaction()
                    if self._store.refresh():
                        self._keeper.retire()
                        self._start()
                yield self._store
            finally:
                self._inside = outer


def check_search(k: int, where: Mapping[str, Any] | None) -> int:
    """``k``; InputError if it or the filter of a search cannot be used."""
    k = whole_number(k, "k")
    if where is not None:
        parse_filter(where)
    return k
