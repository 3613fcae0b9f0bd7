"""``tigerfg load``: vectors that ``tigerfg encode`` wrote, into a catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import ingest_progress, print_report


def command(
    vectors: Annotated[str, typer.Argument(metavar="VECTORS", help="What `encode` wrote to.")],
    catalog: options.Catalog = "catalog",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Of a new catalogue: the model's bundle, if it has moved."),
    ] = None,
    upsert: Annotated[
        bool, typer.Option("--upsert", help="Replace items that changed instead of refusing them.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Load what is there of a job that is not complete.")
    ] = False,
) -> None:
    """Store encoded items in a catalogue, which is created where there is none.

    Items that are there already, unchanged, are skipped, so an interrupted run is simply repeated.
    The exit code is 1 if every item was refused.
    """
    from tigerfg.bulk.job import read_manifest
    from tigerfg.bulk.load import results_of
    from tigerfg.bulk.storage import Storage
    from tigerfg.bundle import Bundle
    from tigerfg.index.places import holds_catalog
    from tigerfg.searcher import Searcher

    if not holds_catalog(catalog):  # what cannot be loaded is refused before one is made
        storage = Storage(vectors)
        model = model or read_manifest(storage)["model"]
        results_of(storage, model, Bundle.open(model).fingerprint, partial)
    with Searcher.create(catalog, model=model, exist_ok=True) as searcher:
        with ingest_progress("loading") as advance:
            report = searcher.load(vectors, replace=upsert, partial=partial, progress=advance)
        print_report(report, searcher)
    if report.rejected and not report.stored:
        raise typer.Exit(1)
