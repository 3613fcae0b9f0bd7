"""``tigerfg eval``: Recall@1/5/10 and mAP of models on data, with intervals and comparisons."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tigerfg.bundle import DEFAULT_MODEL, Bundle
from tigerfg.cli import options
from tigerfg.cli.console import progress, shown_path
from tigerfg.cli.eval_output import Found, Output, finish

if TYPE_CHECKING:
    from tigerfg.benchmark.cost import Flops
    from tigerfg.benchmark.datasets import EvalSet
    from tigerfg.benchmark.evaluate import Row
    from tigerfg.benchmark.evaluation import Evaluation
    from tigerfg.encoder import Encoder


def command(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Directories with items.jsonl and queries.jsonl (or of --dataset), one row each; "
            "or JSON files that --json wrote, to be shown and compared again.",
            exists=True,
        ),
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="Only items and queries with this split.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Read the directories in the layout of a public benchmark: sop, inshop, "
            "product1m, shopee, abo, products10k, grocery.",
        ),
    ] = None,
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="Model bundle: a directory, or the name of a shipped one; repeat for more rows.",
        ),
    ] = [DEFAULT_MODEL],  # noqa: B006 - typer reads the default, nobody changes it
    mode: Annotated[
        list[str],
        typer.Option(
            "--mode",
            help="How items are embedded: item (picture and text), or for reference text (blank "
            "picture), global (query tower on the whole picture), oracle (on the target box), "
            "detect (on the boxes of --box-iou or --boxes). Repeat it for more rows.",
        ),
    ] = ["item"],  # noqa: B006
    box_iou: Annotated[
        list[float] | None,
        typer.Option(
            "--box-iou",
            help="Mode detect: random boxes of exactly this IoU with the target box; repeat.",
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes",
            help="Mode detect: a detector's boxes, lines of item_id and box.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    query_kind: Annotated[
        list[str] | None, typer.Option("--query-kind", help="Only queries of this kind; repeat.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only items with key=value, e.g. image_kind=iconic; repeat."),
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option("--gallery", help="Recall@1 in smaller galleries too, e.g. 100,500,1000."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Test each row against the first one of the same data."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all results, ranks and conditions here."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw Recall@1 here: .png, .svg or .pdf.")
    ] = None,
    heatmaps: Annotated[
        Path | None,
        typer.Option("--heatmaps", help="Write an HTML page of items under their maps here."),
    ] = None,
    heatmap_count: Annotated[
        int, typer.Option("--heatmap-count", min=1, help="Items on that page, of each row.")
    ] = 12,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
) -> None:
    """Evaluate models: Recall@1/5/10, mAP, how well the grounding maps point, and what it costs."""
    item_filter = options.parse_filters(filters or [])
    sizes = _sizes(gallery)
    directories = [(place, path) for place, path in enumerate(data) if path.is_dir()]
    _check_boxes(mode, box_iou or [], boxes, len(directories))
    output = Output(json_file, markdown, plot, heatmaps)
    output.check(_inputs(data, boxes), maps="item" in mode and bool(directories))

    from tigerfg.benchmark.evaluation import read_results

    rows = _rows(mode, box_iou or [], boxes)
    settings = Settings(dataset, split, tuple(query_kind or ()), item_filter, sizes)
    found: list[Found] = []
    try:
        for place, path in enumerate(data):
            if not path.is_dir():
                found += [Found((place, 0), result, None) for result in read_results(path)]
        bundles = {name: Bundle.open(name) for name in model} if directories else {}
        for number, (name, bundle) in enumerate(bundles.items()):
            with _opened(bundle, engine, precision, threads) as (encoder, flops):
                for place, directory in directories:
                    asked = [_with_maps(row, heatmaps and heatmap_count) for row in rows]
                    with progress(f"{name} {shown_path(directory)}") as report:
                        results = settings.evaluate(directory, encoder, asked, flops, report)
                        for row, result in zip(asked, results, strict=True):
                            found.append(Found((place, number), result, row.on_map))
    except BaseException:
        # whatever happens to a later directory, the results so far are shown and written
        finish(found, output, compare=False)
        raise
    finish(found, output, compare)


class Settings(NamedTuple):
    """What is evaluated, the same for every model and row."""

    dataset: str | None
    split: str | None
    query_kinds: tuple[str, ...]
    item_filter: dict[str, str]
    sizes: list[int]

    def evaluate(
        self,
        directory: Path,
        encoder: Encoder,
        rows: Sequence[Row],
        flops: Flops,
        report: Callable[[int, int | None], None],
    ) -> Iterator[Evaluation]:
        """The evaluations of a directory, one a row."""
        from tigerfg.benchmark.evaluate import evaluate_rows

        data: Path | EvalSet = directory
        if self.dataset:
            from tigerfg.benchmark.datasets import load_dataset

            data = load_dataset(self.dataset, directory, self.split)
        return evaluate_rows(
            data,
            encoder,
            rows,
            split=self.split,
            query_kinds=self.query_kinds,
            item_filter=self.item_filter,
            gallery_sizes=self.sizes,
            flops=flops,
            progress=report,
        )


@contextlib.contextmanager
def _opened(
    bundle: Bundle, engine: str, precision: str, threads: int | None
) -> Iterator[tuple[Encoder, Flops]]:
    """A model ready to encode, and its towers' operations."""
    from tigerfg.benchmark.cost import count_flops
    from tigerfg.encoder import Encoder
    from tigerfg.engines import open_engine

    with contextlib.ExitStack() as stack:
        running = open_engine(bundle, engine=engine, precision=precision, threads=threads)
        stack.callback(running.close)
        encoder = stack.enter_context(contextlib.closing(Encoder(bundle, running)))
        yield encoder, count_flops(bundle)


def _sizes(text: str | None) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        sizes = [0]
    if any(size < 1 for size in sizes):
        raise typer.BadParameter(f"{text!r} is not like 100,500,1000", param_hint="--gallery")
    return sizes


def _check_boxes(
    modes: Sequence[str], ious: Sequence[float], boxes: Path | None, directories: int
) -> None:
    if ("detect" in modes) != bool(ious or boxes):
        raise typer.BadParameter(
            "--mode detect goes with --box-iou or --boxes", param_hint="--mode"
        )
    if boxes is not None and directories > 1:
        raise typer.BadParameter("a file of boxes is for one directory", param_hint="--boxes")


def _inputs(data: Sequence[Path], boxes: Path | None) -> list[Path]:
    """The files that are read; of directories those of their records."""
    from tigerfg.catalog import record_file

    found = [boxes]
    for path in data:
        stems = ("items", "queries")
        found += [record_file(path, stem) for stem in stems] if path.is_dir() else [path]
    return [file for file in found if file is not None]


def _rows(modes: Sequence[str], ious: Sequence[float], boxes: Path | None) -> list[Row]:
    """One row a mode, but one for each kind of boxes in mode detect."""
    from tigerfg.benchmark.boxsource import noisy_boxes, predicted_boxes
    from tigerfg.benchmark.evaluate import Row

    rows = []
    for mode in dict.fromkeys(modes):
        if mode == "detect":
            rows += [Row(mode, noisy_boxes(iou)) for iou in ious]
            rows += [Row(mode, predicted_boxes(boxes))] if boxes else []
        else:
            rows.append(Row(mode))
    return rows


def _with_maps(row: Row, count: int | None) -> Row:
    """The row with a sample of its maps, if it makes any and ``count`` of them are wanted."""
    if not count or row.mode != "item":
        return row
    from tigerfg.benchmark.heatmaps import MapSample

    return row._replace(on_map=MapSample(count))
