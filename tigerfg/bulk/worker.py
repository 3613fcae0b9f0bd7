"""One unit of an encoding job, from its rows to the file of its vectors."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tigerfg.bulk.digest import DIGEST, records_digest
from tigerfg.bulk.job import REJECTS, VECTORS, Settings, Unit
from tigerfg.bulk.storage import Storage
from tigerfg.bundle import Bundle
from tigerfg.catalog import located
from tigerfg.errors import BundleError, InputError
from tigerfg.fetch_limits import FetchLimits
from tigerfg.index.stored import Known, Record
from tigerfg.ingest import ingest
from tigerfg.lazy_encoder import LazyEncoder
from tigerfg.records import Rejected
from tigerfg.rows import parquet_rows

SHOWN = 5  # rejects of a unit that are told
_READ_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        unit: its name. vectors, rejected: how many of its rows gave which.
        shown: the first rejects, in words.
        seconds: it took, and by stage of the ingest. error: why there is no result, "" if there is.
        kept: it was done before, with no more rejects: those files stay.
    """

    unit: str
    vectors: int
    rejected: int
    seconds: float
    stages: Mapping[str, float]
    shown: Sequence[str] = ()
    error: str = ""
    kept: bool = False


class UnitEncoder:
    """Encodes units with one engine, which starts with the first of them.

    Args:
        threads: of the engine; None for all cores.
        limits: for pictures behind addresses.

    Raises:
        BundleError: the model here is not that of the job.
    """

    def __init__(
        self,
        settings: Settings,
        out: str,
        threads: int | None = None,
        limits: FetchLimits | None = None,
    ) -> None:
        bundle = Bundle.open(settings.model)
        if bundle.fingerprint != settings.fingerprint:
            raise BundleError(
                f"the model {settings.model} is another one here ({bundle.fingerprint[:12]}) than "
                f"where the job was begun ({settings.fingerprint[:12]})"
            )
        self._settings, self._out, self._limits = settings, Storage(out), limits
        self._encoder = LazyEncoder(bundle, settings.engine, settings.precision, threads)

    def encode(self, unit: Unit) -> Outcome:
        """Encode the rows and write the unit's files; what is wrong with the input is an error.

        The files of an earlier result stay, unless fewer rows are rejected now.
        """
        started = time.perf_counter()
        sink = _Sink()
        try:
            report = ingest(
                _entries(unit),
                self._encoder.get(),
                sink,
                replace=False,
                batch_size=self._settings.batch_size,
                progress=None,
                limits=self._limits,
                in_order=True,  # rows and batches are the same, however slow a server was
            )
            records = sink.records
            before = self._rejected_before(unit)
            kept = before is not None and before <= len(report.rejected)
            if not kept:
                self._write(unit, records, report.rejected, replace=before is not None)
        except InputError as error:
            return Outcome(unit.name, 0, 0, time.perf_counter() - started, {}, error=str(error))
        seconds = time.perf_counter() - started
        shown = [str(one) for one in report.rejected[:SHOWN]]
        counts = len(records), len(report.rejected)
        return Outcome(unit.name, *counts, seconds, report.stages, shown, kept=kept)

    def _rejected_before(self, unit: Unit) -> int | None:
        """How many rows an earlier result rejected; None if there is none."""
        if not self._out.has(unit.name + VECTORS):
            return None
        if not self._out.has(unit.name + REJECTS):
            return 0
        return self._out.read(unit.name + REJECTS).count(b"\n")

    def _write(
        self, unit: Unit, records: list[Record], rejected: list[Rejected], replace: bool
    ) -> None:
        """Write the files, in an order in which a crash forgets no rejects: the vectors make a unit
        done, so they come last, or first where they ``replace`` others that have more rejects."""
        if not replace:
            self._write_rejects(unit, rejected)
        self._out.write(unit.name + VECTORS, _as_parquet(records, self._settings))
        if replace:
            self._write_rejects(unit, rejected)

    def _write_rejects(self, unit: Unit, rejected: list[Rejected]) -> None:
        lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in rejected]
        if lines:
            self._out.write(unit.name + REJECTS, "".join(lines).encode())
        else:
            self._out.remove(unit.name + REJECTS)

    def close(self) -> None:
        """Stop the engine."""
        self._encoder.close()


class _Sink:
    """Where `ingest` puts the records of a unit."""

    folder = None

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}  # by item id

    @property
    def records(self) -> list[Record]:
        """In the order of the rows."""
        return list(self._records.values())

    def known(self, item_ids: Iterable[str]) -> dict[str, Known]:
        there = ((item_id, self._records.get(item_id)) for item_id in item_ids)
        return {name: Known(r.content_hash, r.document) for name, r in there if r is not None}

    def objection(self, document: str) -> None:
        return None

    def put(self, records: Sequence[Record], replace: bool) -> int:
        self._records |= {record.item_id: record for record in records}
        return 0


def _entries(unit: Unit) -> Iterator[Mapping[str, Any] | Rejected]:
    """The unit's rows as items, and what is wrong with the others."""
    from pyarrow import ArrowException, parquet

    storage = Storage(unit.file)
    folder = None if "://" in unit.file else Path(unit.file).absolute().parent
    number = unit.start
    try:
        with storage.files.open_input_file(storage.path) as stream:
            file = parquet.ParquetFile(stream, page_checksum_verification=True)
            groups, skipped = _row_groups(file, unit)
            batches = file.iter_batches(batch_size=_READ_ROWS, row_groups=groups)
            rows = (row for batch in batches for row in parquet_rows(batch))
            for position, values in enumerate(rows):
                if position < skipped:
                    continue
                if number == unit.start + unit.rows:
                    return
                number += 1
                if isinstance(values, str):
                    yield Rejected(None, values, number, unit.file)
                else:
                    yield located(values, folder, (number, unit.file))
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{unit.file}: not a readable parquet file: {reason}") from error


def _row_groups(file: Any, unit: Unit) -> tuple[list[int], int]:
    """The row groups that hold the unit's rows, and how many rows of them come before it."""
    groups, first, skipped = [], 0, 0
    for number in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if first + rows > unit.start and first < unit.start + unit.rows:
            if not groups:
                skipped = unit.start - first
            groups.append(number)
        first += rows
    return groups, skipped


def _as_parquet(records: Sequence[Record], settings: Settings) -> bytes:
    """Vectors and maps in float16, in the order of the rows."""
    import pyarrow as pa
    from pyarrow import parquet

    vectors = np.array([r.vector for r in records], np.float16).reshape(-1, settings.embedding_dim)
    maps = [np.asarray(r.grounding_map, np.float16) for r in records]
    table = pa.table(
        {
            "item_id": pa.array([r.item_id for r in records], pa.string()),
            "content_hash": pa.array([r.content_hash for r in records], pa.binary()),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1), pa.float16()), settings.embedding_dim
            ),
            "grounding_map": pa.array([m.reshape(-1) for m in maps], pa.list_(pa.float16())),
            "map_rows": pa.array([m.shape[0] for m in maps], pa.int16()),
            "map_columns": pa.array([m.shape[1] for m in maps], pa.int16()),
            "document": pa.array([r.document for r in records], pa.string()),
        },
        metadata={"tigerfg.fingerprint": settings.fingerprint, DIGEST: records_digest(records)},
    )
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.getvalue()
