"""Searcher: a catalogue on disk that answers "which items does this cropped photo show?"."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.bundle import DEFAULT_MODEL, Bundle
from tigerfg.catalog_model import Model, as_bundle, open_with_model, recorded_name
from tigerfg.errors import CatalogError, InputError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.index.collection import Collection
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.index_stats import IndexStats
from tigerfg.index.places import Place, create_collection, holds_catalog
from tigerfg.index.plan import IndexSettings
from tigerfg.index.snapshot import copy_catalog
from tigerfg.index.where import always, parse_filter
from tigerfg.ingest import ingest
from tigerfg.ingest_run import OnProgress
from tigerfg.lazy_encoder import LazyEncoder
from tigerfg.query_sample import query_embeddings
from tigerfg.reader import CatalogReader
from tigerfg.records import Item, Query, Rejected
from tigerfg.results import AddReport, Hit, SearcherInfo, VerifyReport
from tigerfg.settings import whole_number
from tigerfg.update import update
from tigerfg.verify import verify

if TYPE_CHECKING:
    from tigerfg.engines import Engine
    from tigerfg.index.milvus import MilvusCollection

__all__ = ["AddReport", "Hit", "Searcher", "SearcherInfo", "VerifyReport"]

logger = logging.getLogger("tigerfg")


class Searcher(CatalogReader):
    """A catalogue with its model. Make one with `Searcher.create` or `Searcher.open`.

    Safe to use from several threads; a search sees every write that has returned, in this process
    or another. One process at a time can have a catalogue open for writing, any number to read.

        with Searcher.create("shop") as searcher:
            searcher.add([Item("mug-1", "mug.jpg", title="Blue mug")])
            hits = searcher.search("photo.jpg", box=(40, 60, 300, 340), k=5)
    """

    def __init__(
        self,
        collection: Collection | MilvusCollection,
        model: Bundle,
        engine: str | Engine,
        precision: str,
        threads: int | None,
    ) -> None:
        super().__init__(collection, LazyEncoder(model, engine, precision, threads))
        self._writing = threading.RLock()  # one add, upsert, update or load at a time
        self._process = os.getpid()

    @classmethod
    def create(
        cls,
        path: Place,
        model: Model | None = None,
        engine: str | Engine = "auto",
        precision: str = "auto",
        threads: int | None = None,
        exist_ok: bool = False,
        index: str = "auto",
        target_recall: float = 0.95,
        memory_budget: int | None = None,
        gpu: str | GpuSettings = "auto",
    ) -> Searcher:
        """Make an empty catalogue in a new or empty directory and open it for writing.

        Args:
            path: the catalogue's directory, or where it is in Milvus:
                ``milvus://[user:password@]host[:port]/collection``, see `MilvusAddress`.
            model: a bundle, its directory, or the name of one that comes with tigerfg; None for
                "lite", or, of a catalogue that is there already, for the one it was made with.
            engine, precision, threads: as `tigerfg.engines.open_engine` takes them, or an engine
                that is open already (the caller closes it).
            exist_ok: open a catalogue that is there already instead of raising; it keeps its index
                settings, and others that are given are told in the log.
            index, target_recall, memory_budget: how it is searched, see
                `tigerfg.index.plan.IndexSettings`: "auto" is exact for small catalogues. In Milvus
                an index type of its, see `MilvusIndex`: "auto" is IVF_PQ.
            gpu: whether large catalogues are searched on GPUs: "auto", "require", "off", or
                `tigerfg.index.gpu.GpuSettings`. The engine's device is a matter of ``engine``.

        Raises:
            CatalogError: the directory is neither new nor empty, or cannot be written; the
                collection exists, or the server refuses.
            BundleError: the model cannot be used.
        """
        settings = IndexSettings(index, target_recall, memory_budget)
        if exist_ok and holds_catalog(path):
            searcher = cls.open(
                path, model, engine=engine, precision=precision, threads=threads, gpu=gpu
            )
            kept = searcher._collection.meta.settings
            if settings not in (kept, IndexSettings()):
                logger.warning("%s keeps its index settings, optimize changes them: %s", path, kept)
            return searcher
        model = DEFAULT_MODEL if model is None else model
        bundle = as_bundle(model)
        collection = create_collection(
            path,
            model=recorded_name(model, bundle),
            fingerprint=bundle.fingerprint,
            embedding_dim=bundle.embedding_dim,
            settings=settings,
            gpu=_gpu(gpu),
        )
        return cls(collection, bundle, engine, precision, threads)

    @classmethod
    def open(
        cls,
        path: Place,
        model: Model | None = None,
        read_only: bool = False,
        engine: str | Engine = "auto",
        precision: str = "auto",
        threads: int | None = None,
        gpu: str | GpuSettings = "auto",
    ) -> Searcher:
        """Open a catalogue.

        Args:
            model: None for the one it was made with; else that same model, wherever it lies now.
            read_only: search and read only, beside any number of others and one writer.
            engine, precision, threads, gpu: see `create`.

        Raises:
            CatalogError: no catalogue, damaged, made with another model, or open for writing
                elsewhere.
            BundleError: the model cannot be used.
        """
        collection, bundle = open_with_model(path, model, read_only, _gpu(gpu))
        return cls(collection, bundle, engine, precision, threads)

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
                field away. Other fields stay.
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
                    'give {"item_id": {"$exists": True}}'
                )
            return self._collection.delete_matching(where)
        if not isinstance(item_ids, Iterable):
            raise InputError(f"item_ids is of type {type(item_ids).__name__}: give ids")
        wanted = {item_ids} if isinstance(item_ids, str) else set(item_ids)
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
                has, a memory_budget of 0 takes the limit away. In Milvus another index takes the
                place of the one there, and nothing can be searched until it is built.

        Raises:
            InputError: none of the queries can be used, or the settings cannot be met.
            CatalogError: open for reading only, or the disk refuses. Nothing has changed then.
        """
        self._collection.require_writer("build an index")
        settings = self._collection.meta.settings.changed(index, target_recall, memory_budget)
        embeddings = None
        if queries is not None:
            dim = self.model.embedding_dim
            embeddings = query_embeddings(queries, self._get_encoder, dim)
        return self._collection.optimize(embeddings, settings)

    def snapshot(self, path: str | os.PathLike) -> Path:
        """Copy the catalogue, at one state of it, to a new or empty directory; returns that.

        Searches and writes, of this process and others, go on meanwhile; a write that returned
        before the call is in the copy. The copy is opened like any catalogue.

        Raises:
            CatalogError: the directory is neither new nor empty, or cannot be written: nothing of
                the copy stays.
        """
        self._collection.require_open()
        if self._collection.folder is None:
            raise CatalogError(f"{self._collection.path}: make backups with Milvus's own tools")
        target = Path(path).absolute()
        self._collection.require_place("write a snapshot")
        copy_catalog(self._collection.folder, target)
        return target

    def verify(self, sample: int = 64, seed: int = 0) -> VerifyReport:
        """Look for damage: the store, the index file, and vectors against re-encoded pictures.

        Args:
            sample: how many items are encoded again, at random; 0 for none, and no model is loaded.
            seed: of the sample.

        Raises:
            InputError: sample is negative. Damage is reported, never raised.
        """
        sample = whole_number(sample, "sample", least=0)
        self._collection.require_open()
        return verify(self._collection, self._get_encoder, sample, seed)

    def close(self) -> None:
        """Close the catalogue; a second call does nothing, nor does one in a forked process.

        An index that is due is built first. A call of another thread that is storing items ends
        with a CatalogError at its next batch; what was stored stays.
        """
        self._close(build=True)

    def _close(self, build: bool) -> None:
        if os.getpid() != self._process:
            return
        try:
            self._collection.close(build)
        finally:
            self._encoder.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close(build=kind is None)  # Ctrl-C does not wait for an index

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


def _gpu(gpu: str | GpuSettings) -> GpuSettings:
    return gpu if isinstance(gpu, GpuSettings) else GpuSettings(gpu)
