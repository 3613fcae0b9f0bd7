"""Searcher: a catalogue on disk that answers "which items does this cropped photo show?"."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tigerfg.bundle import DEFAULT_MODEL
from tigerfg.catalog_model import Model, as_bundle, open_with_model, recorded_name
from tigerfg.errors import CatalogError, InputError
from tigerfg.index.collection import Collection
from tigerfg.index.gpu import GpuSettings
from tigerfg.index.places import Place, create_collection, holds_catalog
from tigerfg.index.plan import IndexSettings
from tigerfg.index.snapshot import copy_catalog
from tigerfg.lazy_encoder import LazyEncoder
from tigerfg.results import AddReport, Hit, SearcherInfo, VerifyReport
from tigerfg.settings import whole_number
from tigerfg.verify import verify
from tigerfg.writer import CatalogWriter

if TYPE_CHECKING:
    from tigerfg.engines import Engine
    from tigerfg.index.milvus import MilvusCollection

__all__ = ["AddReport", "Hit", "Searcher", "SearcherInfo", "VerifyReport"]

logger = logging.getLogger("tigerfg")


class Searcher(CatalogWriter):
    """A catalogue with its model. Make one with `Searcher.create` or `Searcher.open`.

    Safe to use from several threads; a search sees every write that has returned, in this process
    or another. One process at a time can have a catalogue open for writing, any number to read.

        with Searcher.create("shop") as searcher:
            searcher.add([Item("mug-1", "mug.jpg", title="Blue mug")])
            hits = searcher.search("photo.jpg", box=(40, 60, 300, 340), k=5)
    """

    def __init__(self, collection: Collection | MilvusCollection, encoder: LazyEncoder) -> None:
        super().__init__(collection, encoder)
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
            BundleError, EngineError: the model or the engine cannot be used.
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
        encoder = LazyEncoder(bundle, engine, precision, threads)
        collection = create_collection(
            path,
            model=recorded_name(model, bundle),
            fingerprint=bundle.fingerprint,
            embedding_dim=bundle.embedding_dim,
            settings=settings,
            gpu=_gpu(gpu),
        )
        return cls(collection, encoder)

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
            BundleError, EngineError: the model or the engine cannot be used.
        """
        collection, bundle = open_with_model(path, model, read_only, _gpu(gpu))
        try:
            return cls(collection, LazyEncoder(bundle, engine, precision, threads))
        except BaseException:
            collection.close()
            raise

    def snapshot(self, path: str | os.PathLike) -> Path:
        """Copy the catalogue, at one state of it, to a new or empty directory; returns that.

        Searches and writes, of this process and others, go on meanwhile; a write that returned
        before the call is in the copy. The copy is opened like any catalogue.

        Raises:
            InputError: path is none.
            CatalogError: the directory is neither new nor empty, or cannot be written: nothing of
                the copy stays.
        """
        self._collection.require_open()
        if self._collection.folder is None:
            raise CatalogError(f"{self._collection.path}: make backups with Milvus's own tools")
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"path {path!r}: give a new or empty directory")
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
            InputError: sample or seed is negative. Damage is reported, never raised.
        """
        sample, seed = whole_number(sample, "sample", 0), whole_number(seed, "seed", 0)
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


def _gpu(gpu: str | GpuSettings) -> GpuSettings:
    return gpu if isinstance(gpu, GpuSettings) else GpuSettings(gpu)
