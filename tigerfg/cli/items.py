"""``tigerfg items``: what a catalogue holds, as records that `tigerfg index` reads."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tigerfg.cli import options


def command(
    catalog: options.Catalog = "catalog",
    where: options.Where = None,
    count: Annotated[bool, typer.Option("--count", help="Print only how many they are.")] = False,
    model: options.MovedModel = None,
) -> None:
    """Print the items of a catalogue, or those that match a filter, as lines of JSON.

    In the order in which they were stored, in the form of an items.jsonl, without their vectors.
    """
    condition = options.parse_where(where)

    from tigerfg.searcher import Searcher

    with Searcher.open(catalog, model, read_only=True) as searcher:
        if count:
            typer.echo(searcher.count(condition))
            return
        for item in searcher.items(condition):
            typer.echo(json.dumps(item.to_dict(), ensure_ascii=False))
