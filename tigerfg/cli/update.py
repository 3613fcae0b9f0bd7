"""``tigerfg update``: other fields of stored items, without their pictures."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import ingest_progress, print_report
from tigerfg.errors import InputError


def command(
    changes: Annotated[
        Path,
        typer.Argument(
            metavar="CHANGES", help=".jsonl, .csv or .parquet: item_id and the fields to change."
        ),
    ],
    catalog: options.Catalog = "catalog",
    model: options.MovedModel = None,
) -> None:
    """Change fields that the model does not read, such as prices: nothing is encoded.

    Empty cells leave a field as it is; null in a .jsonl file takes it away. Changes of a picture or
    of texts are listed and left out: `tigerfg index --upsert` takes them.
    The exit code is 0 if at least one change was good, else 1.
    """
    from tigerfg.catalog import read_changes
    from tigerfg.searcher import Searcher

    given = read_changes(changes)
    first = next(given, None)
    if first is None:
        raise InputError(f"{changes}: no change")
    with Searcher.open(catalog, model) as searcher:
        with ingest_progress("updating") as report:
            result = searcher.update(chain([first], given), progress=report)
        print_report(result, searcher)
    if not result.stored:
        raise typer.Exit(1)
