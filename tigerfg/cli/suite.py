"""``tigerfg suite``: training pairs in shards and two evaluation sets, from renders or cut-outs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tigerfg.cli.console import plural, print_table, progress, say, shown_path


def command(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The suite's directory.", file_okay=False)
    ],
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Training pairs.")] = 200_000,
    evaluation: Annotated[
        int, typer.Option("--eval", min=0, help="Products of the evaluation sets.")
    ] = 5000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same bytes.")] = 0,
    catalog: Annotated[
        Path | None,
        typer.Option(
            "--catalog",
            exists=True,
            help="Your products instead of rendered ones: items.jsonl, .parquet, .csv or a folder; "
            "pictures with an alpha channel, a target_box or a white background.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; all cores unless told.")
    ] = None,
    query_size: Annotated[
        int, typer.Option("--query-size", min=16, help="Longest side of the crops in pixels.")
    ] = 96,
    item_size: Annotated[
        int, typer.Option("--item-size", min=32, help="Longest side of item pictures in pixels.")
    ] = 192,
    cluttered: Annotated[
        float,
        typer.Option("--cluttered", min=0, max=1, help="Share of cluttered training pictures."),
    ] = 0.5,
    items_per_product: Annotated[
        int,
        typer.Option("--items-per-product", min=1, help="Right answers of an evaluation query."),
    ] = 1,
    wrong_text: Annotated[
        float, typer.Option("--wrong-text", min=0, max=1, help="Share with another's text.")
    ] = 0.0,
    wrong_box: Annotated[
        float, typer.Option("--wrong-box", min=0, max=1, help="Share with a wrong target_box.")
    ] = 0.0,
    missing_attributes: Annotated[
        float,
        typer.Option("--missing-attributes", min=0, max=1, help="Share without attributes."),
    ] = 0.0,
    noise_in: Annotated[
        Literal["train", "eval", "both"],
        typer.Option("--noise-in", help="Which part has the wrong texts and boxes."),
    ] = "both",
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the hashes of the suite in OUT.")
    ] = False,
) -> None:
    """Build a training set and two evaluation sets; run it again to go on after a stop."""
    from tigerfg.benchmark.suite import Settings, build

    if verify:
        _verify(out)
        return
    settings = Settings(
        pairs,
        evaluation,
        seed,
        query_size=query_size,
        item_size=item_size,
        cluttered=cluttered,
        items_per_product=items_per_product,
        wrong_text=wrong_text,
        wrong_box=wrong_box,
        missing_attributes=missing_attributes,
        noise_in=noise_in,
    )
    start = time.perf_counter()
    with progress("composing") as bar:
        report = build(
            out,
            settings,
            catalog=catalog,
            workers=workers,
            progress=lambda what, done, total: bar(done, total),
        )
    if report.rejected:
        rows = [(count, why, example) for why, (count, example) in report.rejected.items()]
        print_table("rows left out", ("rows", "reason", "first"), rows)
    typer.echo(
        f"{plural(report.pairs, 'pair')} of {plural(report.products, 'product')}, "
        f"{plural(evaluation, 'evaluation product')} in {shown_path(out)}: "
        f"{_shown_size(report.bytes)} of shards"
    )
    if report.made < report.pairs:
        typer.echo(
            f"{plural(report.pairs - report.made, 'pair')} in shards that were there, with the "
            "right size: --verify compares their bytes"
        )
    if report.made:
        typer.echo(
            f"{plural(report.made, 'pair')} made at {report.made / report.shard_seconds:.0f} a "
            f"second, {report.bytes / report.pairs / 1e3:.1f} GB a million; "
            f"{time.perf_counter() - start:.0f} s in all"
        )


def _shown_size(size: int) -> str:
    """Bytes as `1.23 GB`, or as `4.5 MB` where that is less than one."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _verify(out: Path) -> None:
    from tigerfg.benchmark.suite import Manifest
    from tigerfg.benchmark.suite import verify as problems_of

    problems = problems_of(out)
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(1)
    manifest = Manifest.load(out)
    typer.echo(
        f"{shown_path(out)}: {plural(manifest.pairs, 'pair')} in "
        f"{plural(len(manifest.shards), 'shard')} and the evaluation sets are as the manifest says"
    )
