"""The writing half of a Searcher: items stored, changed and deleted, the index built."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.errors import InputError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.index.collection import Collection
from tigerfg.index.index_stats import IndexStats
from tigerfg.index.stored import checked_id
from tigerfg.index.where import always, parse_filter
from tigerfg.ingest import ingest
from tigerfg.ingest_run import OnProgress
from tigerfg.lazy_encoder import LazyEncoder
from tigerfg.query_sample import query_embeddings
from tigerfg.reader import CatalogReader
from tigerfg.records import Item, Query, Rejected
from tigerfg.results import AddReport
from tigerfg.update import update

if TYPE_CHECKING:
    from tigerfg.index.milvus import MilvusCollection

logger = logging.getLogger("tigerfg")


class CatalogWriter(CatalogReader):
    """What can be changed of an open catalogue; `Searcher` makes, opens and closes it."""

    def __init__(self, collection: Collection | MilvusCollection, encoder: LazyEncoder) -> None:
        super().__init__(collection, encoder)
        self._writing = threading.RLock()  # one add, upsert, update or load at a time
        self._optimizing = threading.RLock()  # what one call changes, the next goes on from

    def add(
        self,
        items: Iterable[Item | Mapping[str, Any] | Rejected],
        batch_size: int = 32,
        progress: OnProgress = None,
        limits: FetchLimits | None = None,
        refetch: bool = True,
    ) -> AddReport:
        """Encode and store new items, batch after batch; a batch that is stored stays.

        Items that cannot be used and items whose id is taken are left out with their reason (in
        the report and in the catalogue's rejects.jsonl); an item that is stored already just
        as it is given is passed over. A `Rejected` among the items, as readers give them, is noted
        like the others.

        Args:
            items: any iterable of `Item` or dict; read as it is needed.
            batch_size: items encoded at once and stored in one transaction.
            progress: True for a progress bar, or a function that gets an `AddReport` after each
                batch has reached the disk.
            limits: for pictures behind addresses (http, https), which are fetched meanwhile; one
                that the others have to wait for is overtaken by them, and stored later.
            refetch: False: an address stands for its picture. Where the stored item has the same
                address and text, its picture is taken to be the same too and is not fetched.

        Raises:
            CatalogError: the disk is full or refuses; the batches before are kept.
        """
        return self._ingest(items, batch_size, progress, limits, refetch, replace=False)

    def upsert(
        self,
        items: Iterable[Item | Mapping[str, Any] | Rejected],
        batch_size: int = 32,
        progress: OnProgress = None,
        limits: FetchLimits | None = None,
        refetch: bool = True,
    ) -> AddReport:
        """As `add`, but an item whose id is taken replaces the stored one.

        Where its picture and the text that the model reads (title, category, attributes,
        description) are as they were, nothing is encoded: only its record, with a new price for
        example, is stored.
        """
        return self._ingest(items, batch_size, progress, limits, refetch, replace=True)

    def update(
        self, changes: Iterable[Mapping[str, Any] | Rejected], progress: OnProgress = None
    ) -> AddReport:
        """Change fields of stored items that the model does not read, such as prices.

        Pictures are not needed: nothing is encoded, and the index has nothing to follow.

            searcher.update([{"item_id": "mug-1", "price": 9.5, "stock": 0}])

        Args:
            changes: any iterable of dicts: an item_id, and the fields to change; None takes a
                field away. Other fields stay, as do those that are NaN, a cell empty in pandas.
            progress: as in `add`; a thousand items are one transaction.

        Returns:
            How many changed something, and those left out, with the reason: unknown ids, and
            changes of the picture or of the text (attributes are part of it), which take an
            `upsert`. In Milvus, another process that writes the same item meanwhile may be undone:
            let one process write an item.

        Raises:
            CatalogError: the disk is full or refuses; the transactions before are kept.
        """
        self._collection.require_writer("update items")
        with self._writing:
            return update(changes, self._collection, progress)

    def load(
        self,
        path: str | os.PathLike,
        replace: bool = False,
        partial: bool = False,
        progress: OnProgress = None,
    ) -> AddReport:
        """Store items that `tigerfg encode` encoded, without encoding anything.

        Args:
            path: the directory or address that it wrote to.
            replace: as `upsert`; else as `add`. A call that was interrupted is simply repeated.
            partial: take what is there of a job that is not complete, instead of raising.
            progress: as in `add`.

        Raises:
            InputError: no such results there, damaged ones, or not all of them.
            CatalogError: they were made with another model, or the catalogue refuses.
        """
        self._collection.require_writer("store items")
        from tigerfg.bulk.load import load

        with self._writing:
            return load(
                os.fspath(path),
                self._collection,
                replace=replace,
                partial=partial,
                progress=progress,
            )

    def delete(
        self, item_ids: str | Iterable[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> int:
        """Delete items in one transaction; returns how many.

        Args:
            item_ids: one id or many; unknown ones are logged and passed.
            where: in place of ids: a filter (see `tigerfg.index.where`) that all of them match. In
                Milvus they are found first, and then deleted.

        Raises:
            InputError: an id is no string, ``item_ids`` no iterable of them, the filter cannot be
                used or asks for nothing, as {} and {"$nin": []} do, or not one of both was given.
        """
        if (item_ids is None) == (where is None):
            raise InputError("delete takes item_ids or where: give one of them")
        if where is not None:
            if always(parse_filter(where)):
                raise InputError(
                    "where asks for nothing, so that every item matches: to delete all of them "
                    'give {"item_id": {"$exists": true}}'
                )
            return self._collection.delete_matching(where)
        if isinstance(item_ids, Mapping):
            raise InputError("item_ids is an object: give ids, or a filter as where=")
        if not isinstance(item_ids, Iterable):
            raise InputError(f"item_ids is of type {type(item_ids).__name__}: give ids")
        wanted = {item_ids} if isinstance(item_ids, str) else set(map(checked_id, item_ids))
        deleted = self._collection.delete(wanted)
        if deleted < len(wanted):
            logger.warning(
                "delete: %d of %d item ids are not in %s",
                len(wanted) - deleted,
                len(wanted),
                self._collection.path,
            )
        return deleted

    def flush(self) -> None:
        """Write the index file, so that the next start is quick; items are safe without it."""
        self._collection.flush()

    def optimize(
        self,
        queries: Iterable[Query | Mapping[str, Any] | Rejected] | np.ndarray | None = None,
        *,
        index: str | None = None,
        target_recall: float | None = None,
        memory_budget: int | None = None,
    ) -> IndexStats:
        """Build the index that the catalogue's settings ask for now; see `Collection.optimize`.

        It is built by itself in the background when the catalogue has grown or changed enough, and
        when it is closed; call this after a large `add` to search fast at once, or to have the
        catalogue searched in another way: `searcher.optimize(target_recall=0.99)`.

        Args:
            queries: sample photos, as shoppers take them: `Query` or dict, or embeddings (Q, E) of
                unit length. The target recall is then that of such photos, not of queries made of
                stored items. They are kept with the catalogue for every index built later, until
                an empty list goes back to those; in Milvus they count for this call.
            index, target_recall, memory_budget: as in `create`, from now on; None leaves what it
                has, a memory_budget of 0 takes the limit away. Processes that read the catalogue
                follow at their next search. In Milvus another index takes the place of the one
                there, and nothing can be searched until it is built.

        Raises:
            InputError: none of the queries can be used, or the settings cannot be met.
            CatalogError: open for reading only, or the disk refuses. Nothing has changed then.
        """
        self._collection.require_writer("build an index")
        embeddings = None
        if queries is not None:
            dim = self.model.embedding_dim
            embeddings = query_embeddings(queries, self._get_encoder, dim)
        with self._optimizing:
            settings = self._collection.meta.settings.changed(index, target_recall, memory_budget)
            return self._collection.optimize(embeddings, settings)

    def _ingest(
        self,
        items: Iterable[Item | Mapping[str, Any] | Rejected],
        batch_size: int,
        progress: OnProgress,
        limits: FetchLimits | None,
        refetch: bool,
        replace: bool,
    ) -> AddReport:
        self._collection.require_writer("store items")
        with self._writing:
            return ingest(
                items,
                self._get_encoder(),
                self._collection,
                replace=replace,
                batch_size=batch_size,
                progress=progress,
                limits=limits,
                refetch=refetch,
            )
