"""A training shard on disk: written row group by row group, there when it is whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tigerfg.errors import InputError
from tigerfg.files import sha256_file, whole_file

from .schema import PAIRS_A_GROUP, Pair, pair_schema


def shard_path(out: Path, shard: int) -> Path:
    return out / "train" / f"{shard:05d}.parquet"


def write_shard(
    path: Path, pairs: Iterable[Pair], after_group: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Write pairs as a shard, one row group in memory at a time, and describe it (`describe`).

    ``after_group`` is called after each row group; what it raises ends the writing, and no file
    is left.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema, pairs = pair_schema(), iter(pairs)
    with (
        whole_file(path) as part,
        parquet.ParquetWriter(
            part,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        while group := list(itertools.islice(pairs, PAIRS_A_GROUP)):
            rows = [pair.to_row() for pair in group]
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=PAIRS_A_GROUP)
            if after_group is not None:
                after_group()
    return describe(path)


def describe(path: Path) -> dict[str, Any]:
    """Name, rows, bytes and sha256 of a shard, as the manifest has them.

    Raises:
        InputError: the file is damaged.
    """
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_metadata(path).num_rows
    except ArrowException as error:
        raise InputError(f"{path}: not a whole shard: delete it, it will be made again") from error
    return {
        "name": f"train/{path.name}",
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }
