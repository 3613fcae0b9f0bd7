"""``tigerfg render``: a procedural product catalogue, deterministic by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tigerfg.cli.console import plural, progress, shown_path


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where the catalogue goes.", file_okay=False)
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of products.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same pictures.")] = 0,
    layout: Annotated[
        Literal["standard", "cluttered", "both"],
        typer.Option("--layout", help="One product per picture, scenes of several, or both."),
    ] = "both",
    image_size: Annotated[
        int, typer.Option("--image-size", min=32, help="Side of the item pictures in pixels.")
    ] = 384,
    queries_per_product: Annotated[
        int, typer.Option("--queries-per-product", min=1, help="Query photos per product.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; all cores unless told.")
    ] = None,
) -> None:
    """Render products, their texts and query photos as items.jsonl and queries.jsonl."""
    from tigerfg.benchmark.render.catalog import write_catalog
    from tigerfg.errors import InputError

    for folder in (directory, directory / "standard", directory / "cluttered"):
        for name in ("items.jsonl", "queries.jsonl"):
            if (folder / name).exists():
                raise InputError(f"{folder / name} exists already: name a new directory")
    with progress("rendering") as report:
        write_catalog(
            directory,
            n=n,
            seed=seed,
            layout=layout,
            image_size=image_size,
            queries_per_product=queries_per_product,
            workers=workers,
            progress=report,
        )
    typer.echo(f"{plural(n, 'product')} ({layout}, seed {seed}) in {shown_path(directory)}")
