"""``tigerfg optimize``: build a catalogue's index now, or another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import shown_path
from tigerfg.cli.stats import print_index

if TYPE_CHECKING:
    from tigerfg.catalog import Query, Rejected


def command(
    catalog: options.Catalog = "catalog",
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            exists=True,
            help="Sample photos, a queries.jsonl or its directory. The index is tuned to the "
            "target recall of such photos, now and (but in Milvus) later.",
        ),
    ] = None,
    index: options.Index = None,
    target_recall: options.TargetRecall = None,
    memory_budget: options.MemoryBudget = None,
    model: options.MovedModel = None,
) -> None:
    """Build the index of a catalogue now, with the settings that it has or others from now on.

    By itself it is built in the background when the catalogue has grown or changed enough. Searches
    of other processes go on meanwhile (but in Milvus where another index is asked for).
    """
    photos = None if queries is None else _photos(queries)

    from tigerfg.searcher import Searcher

    with Searcher.open(catalog, model) as searcher:
        stats = searcher.optimize(
            photos, index=index, target_recall=target_recall, memory_budget=memory_budget
        )
    print_index(stats)


def _photos(queries: Path) -> list[Query | Rejected]:
    from tigerfg.catalog import read_queries
    from tigerfg.errors import InputError

    rejected: list[Rejected] = []
    photos = [*read_queries(queries, on_reject=rejected.append), *rejected]
    if not photos:
        raise InputError(f"--queries: {shown_path(queries)} holds none")
    return photos
