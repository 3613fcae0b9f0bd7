"""``tigerfg stats``: what a catalogue is, and what answers its searches."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, print_table, shown_path

if TYPE_CHECKING:
    from tigerfg.index.index_stats import IndexStats


def command(
    catalog: options.Catalog = "catalog",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show the size of a catalogue, its index, and the recall and speed measured for that."""
    from tigerfg.index.places import open_collection

    collection = open_collection(catalog, read_only=True)
    try:
        stats = collection.stats()
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
    print_index(stats)


def print_index(stats: IndexStats) -> None:
    """What answers searches, and what was measured when it was built."""
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
