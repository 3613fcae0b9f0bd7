"""``tigerfg search``: a photo in, the catalogue's best items out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, print_table, shown_path
from tigerfg.cli.outputs import check_output

if TYPE_CHECKING:
    from tigerfg.searcher import Hit


def command(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="The query photo.", exists=True, dir_okay=False)
    ],
    catalog: options.Catalog = "catalog",
    box: Annotated[
        str | None, typer.Option("--box", help="Search only this part: x0,y0,x1,y1 in pixels.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    where: options.Where = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a contact sheet with heat maps here.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="The same as one picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    require_gpu: options.RequireGpu = False,
    model: options.MovedModel = None,
) -> None:
    """Find the catalogue items that a photo shows."""
    crop, condition = options.parse_box(box), options.parse_where(where)
    for file in (html, png):
        check_output(file, [image])

    from tigerfg.searcher import Searcher

    with Searcher.open(
        catalog,
        model=model,
        engine=engine,
        precision=precision,
        threads=threads,
        read_only=True,
        gpu="require" if require_gpu else "auto",
    ) as searcher:
        hits = searcher.search(image, box=crop, k=k, where=condition)
        size = len(searcher)
    if as_json:
        typer.echo(json.dumps([_as_dict(rank, hit) for rank, hit in enumerate(hits, start=1)]))
    elif hits:
        _print_hits(hits)
    else:
        typer.echo(f"no item matches ({plural(size, 'item')} in {shown_path(catalog)})")
    _write_sheets(image, crop, hits, html, png)


def _as_dict(rank: int, hit: Hit) -> dict[str, object]:
    return {
        "rank": rank,
        "item_id": hit.item_id,
        "score": round(float(hit.score), 6),
        "item": hit.item.to_dict(),
    }


def _print_hits(hits: list[Hit]) -> None:
    from tigerfg.sheet import item_price

    rows = [
        (
            rank,
            float(hit.score),
            hit.item_id,
            hit.item.title,
            item_price(hit.item),
            hit.item.category,
        )
        for rank, hit in enumerate(hits, start=1)
    ]
    print_table("", ["#", "score", "item", "title", "price", "category"], rows)


def _write_sheets(
    image: Path,
    crop: tuple[float, float, float, float] | None,
    hits: list[Hit],
    html: Path | None,
    png: Path | None,
) -> None:
    if html is None and png is None:
        return
    from tigerfg import sheet

    rows = [sheet.SheetRow(query=image, hits=hits, box=crop, caption=image.name)]
    for path, write in ((html, sheet.write_html), (png, sheet.write_png)):
        if path is not None:
            write(rows, path, title=f"tigerfg search {image.name}")
            typer.echo(f"contact sheet: {shown_path(path)}", err=True)
