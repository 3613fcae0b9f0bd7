"""``tigerfg eval``: Recall@1/5/10 and mAP of a model on data directories."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, print_table, progress, say, shown_path

if TYPE_CHECKING:
    from tigerfg.benchmark.evaluate import Evaluation, Scores

SHOWN_REJECTS = 3


def command(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Directories with items.jsonl and queries.jsonl; one row each.",
            exists=True,
            file_okay=False,
        ),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="Only items and queries with this split.")
    ] = None,
    model: options.Model = "tiny",
    mode: Annotated[
        list[str],
        typer.Option(
            "--mode",
            help="How items are embedded: item (picture and text), or for reference text (blank "
            "picture), global (query tower on the whole picture), oracle (on the target box). "
            "Repeat it for more rows.",
        ),
    ] = ["item"],  # noqa: B006 - typer reads the default, nobody changes it
    query_kind: Annotated[
        list[str] | None, typer.Option("--query-kind", help="Only queries of this kind; repeat.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only items with key=value, e.g. image_kind=iconic; repeat."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results and conditions here.")
    ] = None,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
) -> None:
    """Evaluate a model: Recall@1/5/10, mAP, and how well the grounding maps point."""
    item_filter = options.parse_filters(filters or [])

    from tigerfg.benchmark.evaluate import evaluate
    from tigerfg.bundle import Bundle
    from tigerfg.encoder import Encoder
    from tigerfg.engines import open_engine

    bundle = Bundle.open(model)
    results: list[Evaluation] = []
    with contextlib.ExitStack() as stack:
        # whatever happens to a later directory, the results so far are shown and written
        stack.callback(_finish, results, json_file)
        running = open_engine(bundle, engine=engine, precision=precision, threads=threads)
        stack.callback(running.close)
        encoder = stack.enter_context(contextlib.closing(Encoder(bundle, running)))
        for directory, one_mode in itertools.product(directories, dict.fromkeys(mode)):
            with progress(f"{shown_path(directory)} {one_mode}") as report:
                result = evaluate(
                    directory,
                    encoder,
                    mode=one_mode,
                    split=split,
                    query_kinds=query_kind or (),
                    item_filter=item_filter,
                    progress=report,
                )
            results.append(result)


def _finish(results: list[Evaluation], json_file: Path | None) -> None:
    if not results:
        return
    _print(results)
    if json_file is not None:
        text = json.dumps([result.to_dict() for result in results], indent=1, allow_nan=False)
        json_file.write_text(text + "\n", encoding="utf-8")
        say(f"results: {shown_path(json_file)}")


def _print(results: list[Evaluation]) -> None:
    conditions = results[0].conditions
    header = (
        f"model {conditions['model']} ({conditions['fingerprint'][:12]}), engine "
        f"{conditions['engine']} {conditions['precision']}, "
        f"{plural(conditions['threads'], 'thread')}"
    )
    columns = ["data", "mode", "queries of", "queries", "items", "R@1", "R@5", "R@10", "mAP"]
    rows = []
    for result in results:
        kinds = result.per_kind if len(result.per_kind) > 1 else {}
        for name, scores in {"all kinds": result.overall, **kinds}.items():
            rows.append(_row(result, name, scores))
    print_table(header, columns, rows)
    grounded = [result for result in results if result.grounding]
    if grounded:
        print_table(
            "grounding maps: strongest cell in the target box, share of the map in it",
            ["data", "items", "pointing", "mass", "chance"],
            [
                (
                    shown_path(result.directory),
                    result.grounding.items,
                    result.grounding.pointing,
                    result.grounding.mass,
                    result.grounding.chance,
                )
                for result in grounded
            ],
        )
    for result in results:
        _print_left_out(result)


def _row(result: Evaluation, kind: str, scores: Scores) -> tuple[object, ...]:
    recalls = (scores.recall[k] for k in sorted(scores.recall))
    place = shown_path(result.directory)
    return (place, result.mode, kind, scores.queries, result.items, *recalls, scores.map)


def _print_left_out(result: Evaluation) -> None:
    """One line on stderr per kind of thing that could not be evaluated."""
    place = f"{shown_path(result.directory)} {result.mode}"
    if result.queries_without_item:
        left = plural(result.queries_without_item, "query")
        say(f"{place}: {left} skipped, no correct item in the gallery")
    for noun, rejected in (("item", result.rejected_items), ("query", result.rejected_queries)):
        if rejected:
            reasons = "; ".join(r.reason for r in rejected[:SHOWN_REJECTS])
            say(f"{place}: {plural(len(rejected), noun)} left out: {reasons}")
