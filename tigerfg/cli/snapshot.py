"""``tigerfg snapshot``: a consistent copy of a catalogue that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, shown_path


def command(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    catalog: options.Catalog = "catalog",
) -> None:
    """Copy a catalogue, at one state of it, while others search it and write to it."""
    from tigerfg.errors import CatalogError
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus_address import is_milvus
    from tigerfg.index.snapshot import copy_catalog

    if is_milvus(catalog):
        raise CatalogError(f"{catalog}: make backups with Milvus's own tools")
    copy_catalog(Path(catalog).absolute(), target.absolute())
    copy = Collection.open(target, read_only=True)
    try:
        typer.echo(f"{shown_path(target)} holds {plural(len(copy), 'item')}")
    finally:
        copy.close()
