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
    catalog: options.Catalog = Path("catalog"),
    build: Annotated[
        bool, typer.Option("--build", help="Build the index that the settings ask for first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show the size of a catalogue, its index, and the recall and speed measured for that."""
    from tigerfg.index.collection import Collection

    collection = Collection.open(catalog, read_only=not build)
    try:
        stats = collection.optimize() if build else collection.stats()
        meta = collection.meta
    finally:
        collection.close()
    size = sum(file.stat().st_size for file in catalog.iterdir() if file.is_file())
    if as_json:
        facts = {**dataclasses.asdict(meta), **dataclasses.asdict(stats), "size_bytes": size}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{shown_path(catalog)}: {plural(stats.items, 'item')}, {size / 1e6:.1f} MB")
    typer.echo(f"model {meta.model} ({meta.fingerprint[:12]}), {meta.embedding_dim} dimensions")
    if stats.recall is None:
        typer.echo(f"index {stats.kind} (asked for: {stats.setting}): exact")
        return
    typer.echo(
        f"index {stats.kind} (asked for: {stats.setting}): recall@10 {stats.recall:.3f}, "
        f"{stats.ms:.2f} ms a query at nprobe {stats.nprobe}, measured when it was built"
    )
    rows = [(p["nprobe"], p["factor"], p["recall"], p["ms"]) for p in stats.curve]
    print_table("", ["nprobe", "candidates a result", "recall@10", "ms a query"], rows)
