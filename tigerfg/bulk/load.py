"""Vectors that were encoded elsewhere, into a catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerfg.bulk.digest import DIGEST, records_digest
from tigerfg.bulk.job import VECTORS, read_manifest, unit_names
from tigerfg.bulk.storage import Storage
from tigerfg.errors import CatalogError, InputError
from tigerfg.index.fate import Fate, fate_of
from tigerfg.index.stored import Known, Record
from tigerfg.ingest_run import IngestRun, OnProgress
from tigerfg.records import Rejected

if TYPE_CHECKING:
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection
    from tigerfg.results import AddReport

BATCH = 1000  # records of a transaction


def load(
    place: str,
    collection: Collection | MilvusCollection,
    *,
    replace: bool,
    partial: bool,
    progress: OnProgress = None,
) -> AddReport:
    """See `Searcher.load`."""
    storage, meta = Storage(place), collection.meta
    names = results_of(storage, meta.model, meta.fingerprint, partial)
    with IngestRun(collection.folder, progress) as run:
        for batch in _batches(storage, names, meta.embedding_dim):
            _load(batch, collection, replace, run)
        return run.report()


def _load(
    batch: list[Record], collection: Collection | MilvusCollection, replace: bool, run: IngestRun
) -> None:
    stored = collection.known(record.item_id for record in batch)
    wanted: dict[str, Record] = {}
    updates: dict[str, str] = {}
    for record in batch:
        item_id, given = record.item_id, Known(record.content_hash, record.document)
        if replace:  # the last of an id counts
            wanted.pop(item_id, None)
            updates.pop(item_id, None)
        try:
            fate = fate_of(given, stored.get(item_id), replace, collection.objection)
        except InputError as error:
            run.reject(Rejected(item_id, str(error)))
            continue
        if fate is Fate.UNCHANGED:
            run.skip_unchanged()
        elif fate is Fate.UPDATE:
            updates[item_id] = record.document
        else:
            wanted[item_id] = record
            if not replace:  # the first of an id counts
                stored[item_id] = given
    run.update(collection, updates)
    if wanted:
        run.stored(len(wanted), collection.put(list(wanted.values()), replace))


def results_of(storage: Storage, model: str, fingerprint: str, partial: bool) -> list[str]:
    """Names of a job's results, for a catalogue of that model.

    Raises:
        InputError: there is no job, or some results are missing, unless ``partial``.
        CatalogError: another model made them.
    """
    manifest = read_manifest(storage)
    if manifest["fingerprint"] != fingerprint:
        raise CatalogError(
            f"{storage.place} was encoded by the model {manifest['model']} "
            f"({manifest['fingerprint'][:12]}), the catalogue's is {model} ({fingerprint[:12]}): "
            "encode it again with that one"
        )
    wanted, there = [name + VECTORS for name in unit_names(manifest)], set(storage.names())
    missing = [name for name in wanted if name not in there]
    if missing and not partial:
        raise InputError(
            f"{storage.place} is not complete: {len(missing)} of {len(wanted)} units are missing, "
            f"such as {missing[0]}; repeat `tigerfg encode`, or load what is there (--partial)"
        )
    return [name for name in wanted if name in there]


def _batches(storage: Storage, names: list[str], dim: int) -> Iterator[list[Record]]:
    for name in names:
        records = _unit(storage, name, dim)
        for start in range(0, len(records), BATCH):
            yield records[start : start + BATCH]


def _unit(storage: Storage, name: str, dim: int) -> list[Record]:
    """All records of a file, which are those that were written."""
    from pyarrow import ArrowException, parquet

    try:
        with storage.files.open_input_file(storage.child(name)) as stream:
            file = parquet.ParquetFile(stream, page_checksum_verification=True)
            batches = file.iter_batches(batch_size=BATCH)
            records = [record for batch in batches for record in _records(batch, dim)]
            told = (file.schema_arrow.metadata or {}).get(DIGEST.encode(), b"").decode()
        if records_digest(records) != told:
            raise ValueError("its rows are not those that were written")
    # of a flipped bit in the footer: other types, nothing in place of a value
    except (ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{storage.place}/{name} is damaged ({reason}): delete it and encode again"
        ) from error
    return records


def _records(batch: Any, dim: int) -> list[Record]:
    vectors = batch.column("vector").flatten().to_numpy().reshape(-1, dim).astype(np.float32)
    columns = ["item_id", "content_hash", "document", "grounding_map", "map_rows", "map_columns"]
    rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    return [
        Record(
            item_id,
            content_hash,
            document,
            vector,
            np.array(values, np.float32).reshape(height, width),
        )
        for vector, (item_id, content_hash, document, values, height, width) in zip(
            vectors, rows, strict=True
        )
    ]
