"""``tigerfg eval``: Recall@1/5/10 and mAP of models on data, with intervals and comparisons."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tigerfg.cli import options
from tigerfg.cli.console import plural, print_table, progress, say, shown_path
from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tigerfg.benchmark.cost import Flops
    from tigerfg.benchmark.datasets import EvalSet
    from tigerfg.benchmark.evaluate import Row
    from tigerfg.benchmark.evaluation import Evaluation
    from tigerfg.benchmark.heatmaps import MapSample
    from tigerfg.encoder import Encoder

SHOWN_REJECTS = 3


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
    ] = ["tiny"],  # noqa: B006 - typer reads the default, nobody changes it
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
    output.check(maps="item" in mode and bool(directories))

    from tigerfg.benchmark.evaluation import read_results

    rows = _rows(mode, box_iou or [], boxes)
    settings = Settings(dataset, split, tuple(query_kind or ()), item_filter, sizes)
    found: list[Found] = []
    try:
        for place, path in enumerate(data):
            if not path.is_dir():
                found += [Found((place, 0), result, None) for result in read_results(path)]
        for number, name in enumerate(dict.fromkeys(model) if directories else ()):
            with _opened(name, engine, precision, threads) as (encoder, flops):
                for place, directory in directories:
                    asked = [_with_maps(row, heatmaps and heatmap_count) for row in rows]
                    with progress(f"{name} {shown_path(directory)}") as report:
                        results = settings.evaluate(directory, encoder, asked, flops, report)
                        for row, result in zip(asked, results, strict=True):
                            found.append(Found((place, number), result, row.on_map))
    except BaseException:
        # whatever happens to a later directory, the results so far are shown and written
        _finish(found, output, compare=False)
        raise
    _finish(found, output, compare)


class Found(NamedTuple):
    """An evaluation, its place in the tables (of the data, of the model) and its sampled maps."""

    place: tuple[int, int]
    result: Evaluation
    sample: MapSample | None


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


class Output(NamedTuple):
    """The files that are wanted."""

    json_file: Path | None
    markdown: Path | None
    plot: Path | None
    heatmaps: Path | None

    def check(self, maps: bool) -> None:
        """Refuse before the work what could not be written after it."""
        for file in self:
            if file is not None and not file.absolute().parent.is_dir():
                raise typer.BadParameter(f"{file}: there is no such folder to write into")
        if self.plot is not None:
            from tigerfg.benchmark.plot import check_plot

            check_plot(self.plot)
        if self.heatmaps is not None and not maps:
            raise typer.BadParameter(
                "needs --mode item and a directory: only there the model makes maps",
                param_hint="--heatmaps",
            )

    def write(self, found: Sequence[Found]) -> None:
        """Write them, and say where they are."""
        results = [one.result for one in found]
        if self.json_file is not None:
            from tigerfg.benchmark.evaluation import write_results

            write_results(results, self.json_file)
            say(f"results: {shown_path(self.json_file)}")
        if self.markdown is not None:
            from tigerfg.benchmark.report import write_markdown

            write_markdown(results, self.markdown)
            say(f"tables: {shown_path(self.markdown)}")
        if self.plot is not None:
            from tigerfg.benchmark.plot import write_plot

            write_plot(results, self.plot)
            say(f"plot: {shown_path(self.plot)}")
        if self.heatmaps is not None:
            self._write_heatmaps(found)

    def _write_heatmaps(self, found: Sequence[Found]) -> None:
        from tigerfg.benchmark.heatmaps import write_heatmaps

        sections = [(o.result, o.sample) for o in found if o.sample and o.result.grounding]
        if sections:
            write_heatmaps(sections, self.heatmaps)
            say(f"heat maps: {shown_path(self.heatmaps)}")
        else:
            say("no heat maps: no item has a target box")


@contextlib.contextmanager
def _opened(
    name: str, engine: str, precision: str, threads: int | None
) -> Iterator[tuple[Encoder, Flops]]:
    """A model ready to encode, and its towers' operations."""
    from tigerfg.benchmark.cost import count_flops
    from tigerfg.bundle import Bundle
    from tigerfg.encoder import Encoder
    from tigerfg.engines import open_engine

    bundle = Bundle.open(name)
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


def _finish(found: list[Found], output: Output, compare: bool) -> None:
    """Show and write the results, the data sets in the order in which they were given."""
    if not found:
        return
    from tigerfg.benchmark.compare import compare_all

    found.sort(key=lambda one: one.place)
    results = [one.result for one in found]
    failed = None
    if compare:
        try:
            compare_all(results)
        except InputError as error:
            failed = error
    try:
        _print(results)
    finally:  # also when nobody reads the tables to their end
        output.write(found)
    if failed:
        raise failed


def _print(results: list[Evaluation]) -> None:
    from tigerfg.benchmark.report import conditions, tables

    for title, columns, rows in tables(results):
        print_table(title, columns, [[_cell(cell) for cell in row] for row in rows])
    print_table("", ["conditions"], [[line] for line in conditions(results)])
    for result in results:
        _print_left_out(result)


def _cell(value: object) -> object:
    """Intervals as text; the console knows the rest."""
    return " to ".join(f"{end:.3f}" for end in value) if isinstance(value, tuple) else value


def _print_left_out(result: Evaluation) -> None:
    """One line on stderr per kind of thing that could not be evaluated."""
    place = f"{result.data} {result.label}"
    if result.queries_without_item:
        left = plural(result.queries_without_item, "query")
        say(f"{place}: {left} skipped, no correct item in the gallery")
    for noun, rejected in (("item", result.rejected_items), ("query", result.rejected_queries)):
        if rejected:
            reasons = "; ".join(r.reason for r in rejected[:SHOWN_REJECTS])
            say(f"{place}: {plural(len(rejected), noun)} left out: {reasons}")
