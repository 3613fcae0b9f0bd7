"""Files that a command writes when its work is done: refused before it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer


def check_output(file: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse before the work a file that could not be written after it.

    Args:
        inputs: what the command reads, which it does not overwrite.

    Raises:
        typer.BadParameter: names the file; None is never refused.
    """
    if file is None:
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise typer.BadParameter(f"{file}: there is no such folder to write into")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise typer.BadParameter(f"{file}: is a folder, or cannot be written")
    if any(read.exists() and file.exists() and read.samefile(file) for read in inputs):
        raise typer.BadParameter(f"{file}: is what the command reads; name another file to write")
