"""``tigerfg delete``: take items out of a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, shown_path
from tigerfg.errors import InputError


def command(
    item_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ITEM_ID]...", help="Items to delete.")
    ] = None,
    catalog: options.Catalog = "catalog",
    ids: Annotated[
        Path | None,
        typer.Option("--ids", exists=True, dir_okay=False, help="A file of ids, one a line."),
    ] = None,
    where: options.Where = None,
    model: options.MovedModel = None,
) -> None:
    """Delete items by their ids, or all that match a filter; unknown ids are passed.

    All of them at once or, where that fails, none. `tigerfg items --where ... --count` tells before
    how many match.
    """
    condition = options.parse_where(where)
    wanted = list(item_ids or [])
    if ids is not None:
        wanted += _ids_in(ids)
    if bool(wanted or ids) == (condition is not None):
        both = "not both" if wanted or ids else "there is neither"
        raise typer.BadParameter(
            f"give ids or a filter: {both}", param_hint="ITEM_ID, --ids or --where"
        )

    from tigerfg.searcher import Searcher

    with Searcher.open(catalog, model) as searcher:
        deleted = searcher.delete(wanted if condition is None else None, where=condition)
        held = len(searcher)
    typer.echo(
        f"{plural(deleted, 'item')} deleted; {shown_path(catalog)} holds {plural(held, 'item')}"
    )


def _ids_in(file: Path) -> list[str]:
    """Its lines without the spaces at their ends, which no id has; but for empty ones."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--ids: {shown_path(file)} is no UTF-8 text: {error}") from None
    # not `splitlines`: ids may hold what that takes for ends of lines, such as U+2028
    return [line for part in text.split("\n") if (line := part.strip())]
