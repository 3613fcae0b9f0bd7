"""Build a suite: in parallel, going on after any kind of end, the same bytes every time."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tigerfg.benchmark.workers import Workers, check_stop
from tigerfg.errors import InputError

from . import cutouts
from .catalog_source import CatalogSource
from .evalset import assemble, chunk_path, chunk_products, chunks, make_chunk, still_there
from .files import check_place, remove_parts, sole_builder
from .manifest import Manifest
from .pairs import shard_pairs
from .schema import LAYOUTS, pair_schema
from .settings import Settings
from .shard_file import describe, shard_path, write_shard
from .sources import RenderedSource, Source

Progress = Callable[[str, int, "int | None"], None]


@dataclass
class Report:
    """What a call of `build` did.

    Attributes:
        pairs: pairs of the suite. made: those that this call made, in ``shard_seconds`` of wall
            time.
        bytes: size of all shards. rejected: rows of the catalogue left out, reason ->
            (count, first example).
    """

    pairs: int
    made: int
    shard_seconds: float
    bytes: int
    products: int
    rejected: dict[str, tuple[int, str]] = field(default_factory=dict)


def build(
    out: Path,
    settings: Settings,
    *,
    catalog: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Make a suite in ``out``, or what is missing of it.

    A shard is a function of settings, source and its number; files appear whole, by renaming. So a
    call that was killed is continued by the same call, and the result is the same bytes as of one
    call, for any number of workers.

    Args:
        out: a directory: new, empty, or of a suite to go on with.
        catalog: a user's catalogue (`read_items`) instead of rendered products. Its cut-outs are
            kept in out/cutouts.sqlite.
        workers: processes, None for one a CPU.
        progress: called with (what, done, total): "cut-outs", "evaluation" (products), "pairs".

    Raises:
        InputError: ``out`` has a suite with other settings or other files, or another process is
            at it; the catalogue cannot be read or has too few usable products.
        MissingExtraError: pyarrow is not installed.
    """
    pair_schema()  # a missing pyarrow is told before anything is made
    check_place(out)
    told = progress or (lambda what, done, total: None)
    (out / "train").mkdir(parents=True, exist_ok=True)
    wanted = workers or os.cpu_count() or 1
    if catalog is None:
        wanted = min(wanted, max(1, settings.shards + chunks(settings)))  # one a task at most
    with sole_builder(out), Workers(wanted) as pool:
        remove_parts(out)
        source: Source = RenderedSource()
        rejected: dict[str, tuple[int, str]] = {}
        if catalog is not None:
            store = out / "cutouts.sqlite"
            size, tell = settings.sprite_size, partial(told, "cut-outs")
            cutouts.prepare(catalog, store, size, partial(pool.map, chunk=8), tell)
            rejected = cutouts.rejected(store)
            source = CatalogSource.open(store)
            source.check(settings)
        manifest = _begin(out, settings, source, {r: n for r, (n, _) in rejected.items()})
        _make_evaluation(out, settings, source, manifest, pool, told)
        start, before = time.perf_counter(), manifest.pairs
        _make_shards(out, settings, source, manifest, pool, told)
        seconds = time.perf_counter() - start
    return Report(
        manifest.pairs,
        manifest.pairs - before,
        seconds,
        sum(shard["bytes"] for shard in manifest.shards),
        manifest.products,
        rejected,
    )


def _begin(out: Path, settings: Settings, source: Source, rejected: dict[str, int]) -> Manifest:
    """The manifest of a new suite, or of the one that is there, with every whole shard in it.

    A shard that is listed is whole if its size is right: `verify` reads it.
    """
    wanted = Manifest.new(settings, source, rejected)
    if not (out / "manifest.json").exists():
        wanted.save(out)
        return wanted
    manifest = Manifest.load(out)
    manifest.check_same(wanted, out)
    listed = {shard["name"]: shard for shard in manifest.shards}
    found = []
    for number in range(settings.shards):
        path = shard_path(out, number)
        if path.exists():
            # One that appeared just before the builder was killed is not listed yet.
            entry = listed.get(f"train/{path.name}") or describe(path)
            whole = (settings.rows(number), path.stat().st_size)
            if (entry["rows"], entry["bytes"]) != whole:
                raise InputError(
                    f"{path}: not the shard that was made: delete it, it will be made again"
                )
            found.append(entry)
    manifest.shards = found
    return manifest


def _make_evaluation(
    out: Path, settings: Settings, source: Source, manifest: Manifest, pool: Workers, told: Progress
) -> None:
    records = chunk_path(out, 0).parent
    if manifest.evaluation is not None:
        shutil.rmtree(records, ignore_errors=True)  # of a build killed right before it did so
        if not still_there(manifest.evaluation, out):
            manifest.evaluation = None
            manifest.save(out)  # now, so that a build killed while it makes them goes on
    if manifest.evaluation is not None or not settings.eval_products:
        return
    for name in (*LAYOUTS, "queries"):
        (out / "images" / name).mkdir(parents=True, exist_ok=True)
    records.mkdir(exist_ok=True)
    total = settings.eval_products
    left = [c for c in range(chunks(settings)) if not chunk_path(out, c).exists()]
    missing = sum(len(chunk_products(settings, c)) for c in left)
    told("evaluation", total - missing, total)
    for chunk, _ in pool.each(partial(make_chunk, settings, source, out), left):
        missing -= len(chunk_products(settings, chunk))
        told("evaluation", total - missing, total)
    manifest.evaluation = assemble(settings, out)
    manifest.save(out)
    shutil.rmtree(records)


def _make_shards(
    out: Path, settings: Settings, source: Source, manifest: Manifest, pool: Workers, told: Progress
) -> None:
    there = {shard["name"] for shard in manifest.shards}
    left = [n for n in range(settings.shards) if f"train/{shard_path(out, n).name}" not in there]
    told("pairs", manifest.pairs, settings.pairs)
    for _, entry in pool.each(partial(_make_shard, settings, source, out), left):
        manifest.shards = sorted([*manifest.shards, entry], key=lambda shard: shard["name"])
        manifest.save(out)
        told("pairs", manifest.pairs, settings.pairs)
    manifest.save(out)


def _make_shard(settings: Settings, source: Source, out: Path, shard: int) -> dict:
    return write_shard(shard_path(out, shard), shard_pairs(settings, source, shard), check_stop)
