"""What ``tigerfg eval`` prints and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from tigerfg.cli.console import plural, print_table, say, shown_path
from tigerfg.cli.outputs import check_output
from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tigerfg.benchmark.evaluation import Evaluation
    from tigerfg.benchmark.heatmaps import MapSample

SHOWN_REJECTS = 3


class Found(NamedTuple):
    """An evaluation, its place in the tables (of the data, of the model) and its sampled maps."""

    place: tuple[int, int]
    result: Evaluation
    sample: MapSample | None


class Output(NamedTuple):
    """The files that are wanted."""

    json_file: Path | None
    markdown: Path | None
    plot: Path | None
    heatmaps: Path | None

    def check(self, inputs: Sequence[Path], maps: bool) -> None:
        """Refuse before the work what could not be written after it, or is one of the inputs."""
        for file in self:
            check_output(file, inputs)
        if self.plot is not None:
            from tigerfg.benchmark.plot import check_plot

            check_plot(self.plot)
        if self.heatmaps is not None and not maps:
            raise typer.BadParameter(
                "needs --mode item and a directory: only there the model makes maps",
                param_hint="--heatmaps",
            )

    def write(self, found: Sequence[Found]) -> None:
        """Write them, each whole or not at all, and say where they are.

        Raises:
            OSError: of the first that cannot be written, when all were tried.
        """
        failed: OSError | None = None
        for what, file, write in self._writers(found):
            try:
                write(file)
                say(f"{what}: {shown_path(file)}")
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _writers(
        self, found: Sequence[Found]
    ) -> Iterator[tuple[str, Path, Callable[[Path], object]]]:
        """What is wanted: what it is, where it goes, what writes it."""
        results = [one.result for one in found]
        if self.json_file is not None:
            from tigerfg.benchmark.evaluation import write_results

            yield "results", self.json_file, partial(write_results, results)
        if self.markdown is not None:
            from tigerfg.benchmark.report import write_markdown

            yield "tables", self.markdown, partial(write_markdown, results)
        if self.plot is not None:
            from tigerfg.benchmark.plot import write_plot

            yield "plot", self.plot, partial(write_plot, results)
        if self.heatmaps is not None:
            from tigerfg.benchmark.heatmaps import write_heatmaps

            sections = [(o.result, o.sample) for o in found if o.sample and o.result.grounding]
            if sections:
                yield "heat maps", self.heatmaps, partial(write_heatmaps, sections)
            else:
                say("no heat maps: no item has a target box")


def finish(found: list[Found], output: Output, compare: bool) -> None:
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
