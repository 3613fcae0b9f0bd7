"""Evaluations as a picture: Recall@1 with its intervals, and over the size of the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tigerfg.benchmark.evaluation import Evaluation, Interval
from tigerfg.benchmark.report import models
from tigerfg.errors import InputError, MissingExtraError
from tigerfg.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
BAR = 0.34  # inches of height a bar
Bar = tuple[Evaluation, str, str]  # with its colour and its name
COLOURS = ("#12964a", "#2f6fb3", "#c4601c", "#7a4fa3", "#8a8f94", "#b03050", "#3aa6a6", "#c9a227")


def check_plot(file: Path) -> None:
    """Whether a plot can be written to this file, to be asked before the work.

    Raises:
        MissingExtraError: matplotlib is not installed. InputError: an unknown kind of file.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"plot {file}: the name must end in {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a plot", "matplotlib", "plot") from error


def write_plot(results: Sequence[Evaluation], file: Path) -> None:
    """Draw at least one evaluation: bars of Recall@1, and curves where galleries were asked.

    Raises:
        MissingExtraError, InputError: as :func:`check_plot`.
    """
    check_plot(file)
    from matplotlib.figure import Figure

    names = [_name(result, results) for result in results]
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(dict.fromkeys(names))}
    bars = list(zip(results, (colours[name] for name in names), names, strict=True))
    data = list(dict.fromkeys(result.data for result in results))
    curves = [[b for b in bars if b[0].data == name and b[0].curve] for name in data]
    curves = [panel for panel in curves if panel]
    height = 1.4 + BAR * (len(results) + len(data))
    figure = Figure((7 + 4.5 * len(curves), max(3.0, height)), dpi=150, layout="constrained")
    widths = [7.0, *(4.5 for _ in curves)]
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_bars(panels[0], bars)
    for axes, panel in zip(panels[1:], curves, strict=True):
        _draw_curves(axes, panel)
    with whole_file(file) as part:
        figure.savefig(part, format=file.suffix[1:].lower())


def _name(result: Evaluation, results: Sequence[Evaluation]) -> str:
    """The row's name, with the model where there are several."""
    named = models(results)
    model = f"{named[result.conditions['fingerprint']]} " if len(named) > 1 else ""
    return f"{model}{result.label}"


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    """Horizontal bars of Recall@1, the data sets one below the other."""
    place, ticks, data = 0.0, [], None
    for result, colour, name in bars:
        if result.data != data:
            data = result.data
            axes.text(0, place, _short(data), fontsize=9, fontweight="bold", va="center")
            place += 1
        value = 100 * result.overall.recall[1]
        ends = result.overall.intervals and result.overall.intervals["recall@1"]
        axes.barh(place, value, color=colour, height=0.72, xerr=_around(value, ends), capsize=3)
        ticks.append((place, name))
        place += 1
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("Recall@1 in %, 95 % bootstrap interval")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Axes, curves: Sequence[Bar]) -> None:
    """Recall@1 over the number of items in the gallery, of one data set, in the bars' colours."""
    for result, colour, _ in curves:
        sizes = [point.size for point in result.curve]
        values = [100 * point.recall for point in result.curve]
        axes.plot(sizes, values, color=colour, marker="o", markersize=3)
        if all(point.interval for point in result.curve):
            low, high = zip(*(point.interval for point in result.curve), strict=True)
            ends = [[100 * end for end in side] for side in (low, high)]
            axes.fill_between(sizes, *ends, color=colour, alpha=0.12, linewidth=0)
    ticks = sorted({point.size for result, _, _ in curves for point in result.curve})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.set_title(_short(curves[0][0].data), fontsize=9, fontweight="bold", loc="left")
    axes.set_xlabel("items in the gallery")
    axes.set_ylabel("Recall@1 in %")
    axes.spines[["top", "right"]].set_visible(False)


def _around(value: float, ends: Interval | None) -> list[list[float]] | None:
    """Distances from a bar's end to its interval's ends, in the form that matplotlib takes."""
    return (
        None if ends is None else [[max(0, value - 100 * ends[0])], [max(0, 100 * ends[1] - value)]]
    )


def _short(data: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(data).parts[-2:])
