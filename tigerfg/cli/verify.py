"""``tigerfg verify``: is a catalogue what it should be?"""

from __future__ import annotations

from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, say, shown_path


def command(
    catalog: options.Catalog = "catalog",
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Items to encode again and compare; 0: none.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sample.")] = 0,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    model: options.MovedModel = None,
) -> None:
    """Check a catalogue's checksums and counts, and stored vectors against their pictures.

    Every problem is a line on stderr; the exit code is 1 if there is any.
    """
    from tigerfg.searcher import Searcher

    with Searcher.open(
        catalog, model=model, engine=engine, precision=precision, threads=threads, read_only=True
    ) as searcher:
        report = searcher.verify(sample, seed)
    for problem in report.problems:
        say(f"problem: {problem}")
    told = f"{shown_path(catalog)}: {plural(report.items, 'item')}, "
    told += "no problem" if report.ok else plural(len(report.problems), "problem")
    if report.least_cosine is not None:
        told += f"; {report.compared} encoded again, least cosine {report.least_cosine:.4f}"
    if report.moved:
        told += f"; {report.moved} may have another attention crop in this precision"
    told += "".join(f"; {count} not compared: {why}" for why, count in report.skipped.items())
    typer.echo(f"{told}; {report.seconds:.1f} s")
    if not report.ok:
        raise typer.Exit(1)
