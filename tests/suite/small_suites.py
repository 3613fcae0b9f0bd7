"""Small suites, and what is needed to compare them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pyarrow import parquet

from tigerfg.benchmark.suite import Pair, Settings


def small(pairs: int = 128, eval_products: int = 6, **changes) -> Settings:
    """Settings whose pictures are made in no time; row groups as ever, 64 pairs a shard."""
    sizes = {"query_size": 32, "item_size": 48, "shard_pairs": 64}
    return Settings(pairs, eval_products, **{**sizes, **changes})


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file of a suite but the lock and the cut-outs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "cutouts" not in path.name
    }


def pairs_of(folder: Path) -> list[Pair]:
    """All pairs of a suite, as read from its shards."""
    rows = [
        row
        for path in sorted((folder / "train").glob("*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]
    return [Pair.from_row(row) for row in rows]
