"""``tigerfg stats``: what a catalogue is, and what answers its searches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, print_table, shown_path


def command(
    catalog: options.Catalog = "catalog",
    build: Annotated[
        bool, typer.Option("--build", help="Build the index that the settings ask for first.")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            exists=True,
            help="With --build: sample photos, a queries.jsonl or its directory. The index is "
            "tuned to the target recall of such photos, now and (but in Milvus) later.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show the size of a catalogue, its index, and the recall and speed measured for that."""
    from tigerfg.index.places import open_collection

    if queries is not None:
        if not build:
            raise typer.BadParameter("give --build as well", param_hint="--queries")
        _tune(catalog, queries)
        build = False  # done
    collection = open_collection(catalog, read_only=not build)
    try:
        stats = collection.optimize() if build else collection.stats()
        meta, place, size = collection.meta, collection.path, collection.size_bytes
    finally:
        collection.close()
    if as_json:
        facts = {**dataclasses.asdict(meta), **dataclasses.asdict(stats), "size_bytes": size}
        typer.echo(json.dumps(facts))
        return
    shown = "" if size is None else f", {size / 1e6:.1f} MB"
    typer.echo(f"{shown_path(place)}: {plural(stats.items, 'item')}{shown}")
    typer.echo(f"model {meta.model} ({meta.fingerprint[:12]}), {meta.embedding_dim} dimensions")
    if stats.recall is None:
        how = "exact" if stats.nprobe is None else f"nprobe {stats.nprobe}, recall not measured"
        typer.echo(f"index {stats.kind} (asked for: {stats.setting}): {how}")
        return
    typer.echo(
        f"index {stats.kind} (asked for: {stats.setting}): recall@10 {stats.recall:.3f}, "
        f"{stats.ms:.2f} ms a query at nprobe {stats.nprobe}, measured when it was built with "
        + (plural(stats.queries, "sample query") if stats.queries else "queries made of items")
    )
    rows = [(p["nprobe"], p["factor"], p["recall"], p["ms"]) for p in stats.curve]
    print_table("", ["nprobe", "candidates a result", "recall@10", "ms a query"], rows)


def _tune(catalog: str, queries: Path) -> None:
    """Build the index for the photos of a queries.jsonl."""
    from tigerfg.catalog import Query, Rejected, read_queries
    from tigerfg.errors import InputError
    from tigerfg.searcher import Searcher

    rejected: list[Rejected] = []
    photos: list[Query | Rejected] = [*read_queries(queries, on_reject=rejected.append), *rejected]
    if not photos:
        raise InputError(f"--queries: {shown_path(queries)} holds none")
    with Searcher.open(catalog) as searcher:
        searcher.optimize(photos)
