"""``tigerfg average``: the mean of models that were trained on from one start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli.console import shown_path
from tigerfg.cli.training_extra import need_torch


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT CKPT...",
            help="Checkpoint or bundle directories, or names of shipped models.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The mean's checkpoint: a new directory.")],
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of a model, in their order; repeat. Without: all alike."),
    ] = None,
) -> None:
    """Average models' weights, e.g. of a fine-tuned one and the one it began from."""
    need_torch("tigerfg average")
    from tigerfg.model.average import average_checkpoints

    checkpoint = average_checkpoints(sources, out, weight)
    typer.echo(f"checkpoint: {shown_path(checkpoint)}")
