"""An encoding job: what is to be encoded, in units that are done or not; noted beside the result.

A unit is a range of rows of one input file and becomes one file, written whole or not at all. So
a job is resumed by doing the units whose file is missing, and a unit that was done twice is done
once; its file is the same, byte for byte, whoever makes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tigerfg.bulk.storage import Storage
from tigerfg.bundle import DEFAULT_MODEL, Bundle
from tigerfg.errors import InputError
from tigerfg.settings import whole_number

FORMAT = 2
MANIFEST = "encode.json"
VECTORS, REJECTS = ".vectors.parquet", ".rejects.jsonl"
_END = 1 << 16  # bytes of an input's end that tell it from others: places and sizes of all columns


@dataclass(frozen=True)
class Unit:
    """Rows ``start`` to ``start + rows`` of an input file; its results are named ``name``."""

    name: str
    file: str
    start: int
    rows: int


@dataclass(frozen=True)
class Settings:
    """What the vectors of a job depend on, and the units it is cut into.

    Attributes:
        model, fingerprint, embedding_dim: the bundle: what it was asked for by, and what it is.
        engine, precision: as `tigerfg.engines.open_engine` takes them.
        batch_size: items encoded at once. unit_rows: rows of a unit, at most.
    """

    model: str
    fingerprint: str
    embedding_dim: int
    engine: str
    precision: str
    batch_size: int
    unit_rows: int


@dataclass(frozen=True)
class Job:
    """What is encoded, how, and where the results go."""

    settings: Settings
    units: list[Unit]
    out: str

    def to_do(self, retry_rejects: bool = False) -> list[Unit]:
        """The units that are not done yet; with ``retry_rejects`` also those that have rejects."""
        there = set(Storage(self.out).names())
        return [
            unit
            for unit in self.units
            if unit.name + VECTORS not in there or (retry_rejects and unit.name + REJECTS in there)
        ]


def plan_job(
    items: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    model: str | os.PathLike = DEFAULT_MODEL,
    engine: str = "onnx",
    precision: str = "fp32",
    batch_size: int = 32,
    unit_rows: int = 4096,
) -> Job:
    """Cut the input into units, and note the job in ``out``.

    Args:
        items: parquet files, or directories of them, with the columns that `read_items` knows;
            images are embedded bytes, addresses, or paths that every node has, relative ones as
            `read_items` takes them.
        engine, precision: with "auto" every actor decides by a measurement of its own: the vectors
            agree as closely as the bundle's parity report says (but where the window of an
            attention crop moves), the files not to the byte.
        out: a directory, new or of the same job, and none of the inputs: the job's own results
            would be its input when it goes on.

    Raises:
        InputError: no input, ``out`` is one, or holds another job; names what differs.
        BundleError: the model cannot be used.
    """
    batch_size = whole_number(batch_size, "batch_size")
    unit_rows = whole_number(unit_rows, "unit_rows")
    storage = Storage(out)
    if any(storage.same(Storage(place)) for place in items):
        raise InputError(
            f"out {storage.place}: the items are read from there, and the results would be taken "
            "for items when the job goes on; name another directory, such as one inside it"
        )
    bundle = Bundle.open(model)
    name = os.fspath(model)
    if os.path.isdir(name):
        name = os.path.abspath(name)
    settings = Settings(
        name, bundle.fingerprint, bundle.embedding_dim, engine, precision, batch_size, unit_rows
    )
    inputs = [found for place in items for found in _parquet_files(place)]
    if not inputs:
        raise InputError(f"items: no parquet file in {', '.join(map(str, items)) or 'nothing'}")
    units = [
        Unit(name, place, start, rows)
        for number, (place, noted) in enumerate(inputs)
        for name, start, rows in _parts(number, noted["rows"], unit_rows)
    ]
    storage.make()
    manifest = {
        "format": FORMAT,
        **asdict(settings),
        "inputs": [noted for _, noted in inputs],
    }
    _note(storage, manifest)
    return Job(settings, units, storage.place)


def read_manifest(storage: Storage) -> dict:
    """What a job was, from the directory of its results.

    Raises:
        InputError: no job there, or one of a newer tigerfg.
    """
    if MANIFEST not in storage.names():
        raise InputError(f"{storage.place} holds no {MANIFEST}: give what `tigerfg encode` wrote")
    try:
        manifest = json.loads(storage.read(MANIFEST))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{storage.place}/{MANIFEST} is damaged: {error}") from error
    if found != FORMAT:
        raise InputError(
            f"{storage.place} has format {found}, this tigerfg reads {FORMAT}: take the one that "
            "wrote it, or encode again into another directory"
        )
    return manifest


def unit_names(manifest: dict) -> list[str]:
    """Names of all units of a job."""
    return [
        name
        for number, noted in enumerate(manifest["inputs"])
        for name, _, _ in _parts(number, noted["rows"], manifest["unit_rows"])
    ]


def _note(storage: Storage, manifest: dict) -> None:
    if MANIFEST not in storage.names():
        storage.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        return
    there = read_manifest(storage)
    for name, value in manifest.items():
        if there.get(name) != value:
            raise InputError(
                f"{storage.place} holds the results of another job: its {name} is "
                f"{json.dumps(there.get(name))[:200]}, now {json.dumps(value)[:200]}; name another "
                "directory"
            )


def _parquet_files(place: str | os.PathLike) -> list[tuple[str, dict[str, Any]]]:
    """Paths or addresses of a parquet file, or of those right in a directory, by name; and what the
    job's manifest notes of each: another file of that name is another job."""
    storage = Storage(place)
    from pyarrow import ArrowException, fs, parquet

    if storage.files.get_file_info(storage.path).type == fs.FileType.NotFound:
        raise InputError(f"items: {storage.place}: no such file or directory")
    names = storage.names()
    if names == [storage.path.rpartition("/")[2]]:
        places = {names[0]: (storage.place, storage.path)}
    else:
        wanted = [name for name in names if name.endswith(".parquet")]
        places = {
            name: (f"{storage.place.rstrip('/')}/{name}", storage.child(name)) for name in wanted
        }
    found = []
    for shown, path in places.values():
        try:
            with storage.files.open_input_file(path) as file:
                rows, size = parquet.ParquetFile(file).metadata.num_rows, file.size()
                end = min(size, _END)
                digest = hashlib.blake2b(file.read_at(end, size - end), digest_size=16).hexdigest()
                noted = {"file": shown.rpartition("/")[2], "rows": rows, "bytes": size}
                found.append((shown, {**noted, "end_blake2b": digest}))
        except (ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{shown}: not a readable parquet file: {reason}") from error
    return found


def _parts(number: int, rows: int, most: int) -> list[tuple[str, int, int]]:
    """Name, first row and rows of an input's units."""
    return [
        (f"part-{number:05d}-{start:010d}", start, min(most, rows - start))
        for start in range(0, rows, most)
    ]
