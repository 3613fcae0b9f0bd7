"""``tigerfg demo``: render, index, search, and show a picture that a person can judge."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigerfg.bundle import DEFAULT_MODEL, Bundle
from tigerfg.cli import options
from tigerfg.cli.console import ingest_progress, plural, print_table, progress, shown_path

if TYPE_CHECKING:
    from tigerfg.catalog import Query
    from tigerfg.searcher import Hit

LAYOUTS = ("standard", "cluttered")
IMAGE_SIZE = 256  # the largest item side of the shipped models, enough for the sheet
SHOWN_PER_LAYOUT = 3
HITS = 5


def command(
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Everything goes here.")
    ] = Path("demo"),
    n: Annotated[int, typer.Option("--n", min=10, help="Number of products.")] = 400,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other products.")] = 2026,
    model: options.Model = DEFAULT_MODEL,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
) -> None:
    """Render a small catalogue, index it, search it and draw the result.

    Half of the products are shown alone in their item picture, half in a cluttered scene. All
    queries count for the printed Recall@1; the sheet shows a few, evenly spaced and not chosen.
    """
    from tigerfg.catalog import read_items, read_queries
    from tigerfg.searcher import Searcher

    made_with = Bundle.open(model).fingerprint[:12]  # a newer model gets a catalogue of its own
    started = time.perf_counter()
    folders = _render(out / f"products-{n}-{seed}", n, seed)
    queries = {layout: list(read_queries(folder)) for layout, folder in folders.items()}
    rendered = time.perf_counter()
    catalog = out / f"catalog-{n}-{seed}-{made_with}"
    with Searcher.create(
        catalog, model=model, engine=engine, precision=precision, threads=threads, exist_ok=True
    ) as searcher:
        for layout, folder in folders.items():
            with ingest_progress(f"indexing {layout}", len(queries[layout])) as report:
                searcher.add(read_items(folder), progress=report)
        indexed = time.perf_counter()
        found = {
            layout: searcher.search_batch([query.image for query in asked], k=HITS)
            for layout, asked in queries.items()
        }
        searched = time.perf_counter()
        size = len(searcher)
    asked = sum(map(len, queries.values()))
    typer.echo(
        f"{plural(size, 'item')} and {plural(asked, 'query')}: rendered in "
        f"{rendered - started:.1f} s, indexed in {indexed - rendered:.1f} s, searched in "
        f"{searched - indexed:.1f} s"
    )
    _report(queries, found, out)


def _render(data: Path, n: int, seed: int) -> dict[str, Path]:
    """Render n products, half of them in each layout, unless an earlier run did; their folders."""
    from tigerfg.benchmark.render.catalog import write_catalog

    folders = {layout: data / layout for layout in LAYOUTS}
    counts = (n - n // 2, n // 2)
    for number, (layout, folder) in enumerate(folders.items()):
        if (folder / "queries.jsonl").is_file():  # written last
            continue
        with progress(f"rendering {layout}") as report:
            # another seed gives other products with other ids
            write_catalog(
                folder,
                n=counts[number],
                seed=2 * seed + number,
                layout=layout,
                image_size=IMAGE_SIZE,
                progress=report,
            )
    return folders


def _report(queries: dict[str, list[Query]], found: dict[str, list[list[Hit]]], out: Path) -> None:
    """Print scores and some searches, and draw the sheet."""
    from tigerfg import sheet

    scores, searches, rows = [], [], []
    for layout in LAYOUTS:
        pairs = list(zip(queries[layout], found[layout], strict=True))
        first = sum(hits[0].item_id in query.item_ids for query, hits in pairs)
        among = sum(any(h.item_id in query.item_ids for h in hits) for query, hits in pairs)
        scores.append((layout, len(pairs), first / len(pairs), among / len(pairs)))
        for query, hits in pairs[:: max(1, len(pairs) // SHOWN_PER_LAYOUT)][:SHOWN_PER_LAYOUT]:
            ranks = [r for r, hit in enumerate(hits, start=1) if hit.item_id in query.item_ids]
            best = hits[0]
            searches.append(
                (layout, query.query_id, best.item.title, float(best.score), *(ranks or ["-"]))
            )
            rows.append(
                sheet.SheetRow(query.image, hits, query.box, set(query.item_ids), f"{layout} item")
            )
    print_table("", ["item pictures", "queries", "R@1", f"R@{HITS}"], scores)
    columns = ["item picture", "query", "first hit", "score", "rank of the right item"]
    print_table("", columns, searches)
    title = "tigerfg demo: each query, its first hits, and where the item tower looked"
    sheet.write_png(rows, out / "sheet.png", title=title)
    sheet.write_html(rows, out / "sheet.html", title=title)
    typer.echo(f"look at {shown_path(out / 'sheet.png')} or {shown_path(out / 'sheet.html')}")
