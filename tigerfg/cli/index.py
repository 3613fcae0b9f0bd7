"""``tigerfg index``: put items into a catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import ingest_progress, print_report
from tigerfg.errors import InputError
from tigerfg.fetch_limits import FetchLimits

if TYPE_CHECKING:
    from tigerfg.catalog import Item, Rejected


def command(
    items: Annotated[
        Path,
        typer.Option(
            "--items",
            exists=True,
            help="items.jsonl, .csv or .parquet, a directory that has one, or a folder of images.",
        ),
    ],
    catalog: options.Catalog = "catalog",
    model: options.NewModel = None,
    upsert: Annotated[
        bool,
        typer.Option(
            "--upsert",
            help="Replace items that changed; encode those whose picture or text did.",
        ),
    ] = False,
    no_refetch: Annotated[
        bool,
        typer.Option(
            "--no-refetch",
            help="Stored items of the same address and text have the same picture: not fetched.",
        ),
    ] = False,
    split: Annotated[
        str | None, typer.Option("--split", help="Only items whose field split has this value.")
    ] = None,
    index: options.Index = "auto",
    target_recall: options.TargetRecall = 0.95,
    memory_budget: options.MemoryBudget = None,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    connections: options.Connections = options.LIMITS.connections,
    timeout: options.Timeout = options.LIMITS.timeout,
    deadline: options.Deadline = options.LIMITS.deadline,
    attempts: options.Attempts = options.LIMITS.attempts,
) -> None:
    """Add items to a catalogue, which is created where there is none, to be searched as --index,
    --target-recall and --memory-budget say (`tigerfg optimize` changes that later).

    Items that are there already, unchanged, are skipped, so an interrupted run is simply repeated.
    Items that cannot be used are listed and written to a rejects file; the others are kept. The
    exit code is 0 if at least one item was good, else 1.
    """
    from tigerfg.searcher import Searcher

    limits = FetchLimits(
        connections=connections, timeout=timeout, deadline=deadline, attempts=attempts
    )
    entries = _entries(items, split)
    first = next(entries, None)  # before a catalogue is made: what cannot be read comes first
    if first is None:
        raise InputError(f"{items}: no item" + (f" with split={split}" if split else ""))
    with Searcher.create(
        catalog,
        model=model,
        engine=engine,
        precision=precision,
        threads=threads,
        exist_ok=True,
        index=index,
        target_recall=target_recall,
        memory_budget=memory_budget or None,
    ) as searcher:
        with ingest_progress("indexing", _line_count(items) if split is None else None) as report:
            put = searcher.upsert if upsert else searcher.add
            given = chain([first], entries)
            result = put(given, progress=report, limits=limits, refetch=not no_refetch)
        print_report(result, searcher)
    if result.added + result.replaced:
        spent = sorted(result.stages.items(), key=lambda stage: -stage[1])
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent)
        typer.echo(f"stages, overlapping: {shown}")
    if not result.stored:
        raise typer.Exit(1)


def _entries(path: Path, split: str | None) -> Iterator[Item | Rejected]:
    from tigerfg.catalog import Rejected, read_entries

    for entry in read_entries(path):
        if split is None or isinstance(entry, Rejected) or str(entry.extra.get("split")) == split:
            yield entry


def _line_count(path: Path) -> int | None:
    """Number of lines of a .jsonl file, for the progress bar; None for anything else."""
    if path.is_dir():
        path /= "items.jsonl"
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    with open(path, "rb") as file:
        return sum(1 for _ in file)
