"""``tigerfg-export``: a checkpoint in, a checked ONNX bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli.app import OneLineCommand
from tigerfg.cli.console import say, shown_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=OneLineCommand)
def command(
    ctx: typer.Context,
    ckpt: Annotated[
        Path, typer.Option("--ckpt", exists=True, file_okay=False, help="Checkpoint directory.")
    ],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Bundle directory.")],
    fp32: Annotated[bool, typer.Option("--fp32", help="Only float32, unless with --int8.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Only int8, unless with --fp32.")] = False,
    parity_data: Annotated[
        Path | None,
        typer.Option(
            "--parity-data",
            exists=True,
            help="Items and queries for int8 calibration and the parity check; else rendered ones.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Export a checkpoint to an ONNX bundle; fails if the towers do not match torch."""
    ctx.command.debug = debug
    from tigerfg.export import PRECISIONS, export_bundle

    asked = [name for name, wanted in (("fp32", fp32), ("int8", int8)) if wanted]
    export_bundle(ckpt, out, asked or PRECISIONS, parity_data=parity_data, progress=say)
    typer.echo(f"bundle: {shown_path(out)}")


def main() -> None:
    """Entry point of ``tigerfg-export``."""
    app(prog_name="tigerfg-export")
