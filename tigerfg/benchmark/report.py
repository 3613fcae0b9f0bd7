"""Evaluations as tables, and as one markdown file with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tigerfg.benchmark.evaluation import Evaluation, Interval
from tigerfg.files import write_whole

Cell = str | int | float | Interval | None


class Table(NamedTuple):
    """A title, column names and rows; shares are in [0, 1], an interval is a pair of them."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def tables(results: Sequence[Evaluation]) -> list[Table]:
    """The tables of at least one evaluation: scores first, then what else there is to show."""
    made = (_scores, _differences, _grounding, _curves, _costs)
    return [table for table in (make(results) for make in made) if table.rows]


def write_markdown(results: Sequence[Evaluation], file: Path) -> None:
    """Write all tables and the conditions as markdown; shares in %."""
    parts = []
    for title, columns, rows in tables(results):
        lines = [
            f"| {' | '.join(_escaped(name) for name in columns)} |",
            f"|{'---|' * len(columns)}",
            *(f"| {' | '.join(_escaped(_shown(cell)) for cell in row)} |" for row in rows),
        ]
        parts.append("\n".join([f"{_escaped(title[0].upper() + title[1:])}.", "", *lines]))
    parts.append("\n".join(f"- {_escaped(line)}" for line in conditions(results)))
    write_whole(file, "\n\n".join(parts) + "\n")


def conditions(results: Sequence[Evaluation]) -> list[str]:
    """What the figures must be read with, one line each, repeats left out."""
    lines = []
    for result in results:
        own = result.conditions
        lines.append(
            f"model {own['model']} ({own['fingerprint'][:12]}): {own['engine']} "
            f"{own['precision']}, {own['threads']} threads, {own['cpu']}, tigerfg {own['tigerfg']}"
        )
        lines.append(f"{result.data}: item texts of {result.text_words:.1f} words on average")
        lines += [f"{result.data}: {note}" for note in result.notes]
        if result.items_without_box:
            whole = result.items + len(result.rejected_items)
            lines.append(
                f"{result.data}, {result.label}: {result.items_without_box} of {whole} items have "
                "no box and were taken whole"
            )
    return list(dict.fromkeys(lines))


def models(results: Sequence[Evaluation]) -> dict[str, str]:
    """Names for the tables by fingerprint: the model's own, numbered where several share it."""
    names: dict[str, str] = {}
    for result in results:
        name, fingerprint = result.conditions["model"], result.conditions["fingerprint"]
        if fingerprint not in names:
            same = sum(other.split(" #")[0] == name for other in names.values())
            names[fingerprint] = f"{name} #{same + 1}" if same else name
    return names


def _scores(results: Sequence[Evaluation]) -> Table:
    columns = ("data", "mode", "queries of", "model", "queries", "items")
    columns += ("R@1", "95 %", "R@5", "R@10", "mAP")
    one_to_many = any(max(result.answers.correct) > 1 for result in results)
    columns += ("mAP@R",) if one_to_many else ()  # else the same as R@1
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        kinds = result.per_kind if len(result.per_kind) > 1 else {}
        for kind, scores in {"all kinds": result.overall, **kinds}.items():
            ends = scores.intervals and scores.intervals["recall@1"]
            first, *others = (scores.recall[k] for k in sorted(scores.recall))
            rows.append(
                (
                    *(result.data, result.label, kind, _model(result, results)),
                    *(scores.queries, result.items, first, ends, *others, scores.map),
                    *((scores.map_at_r,) if one_to_many else ()),
                )
            )
    return Table("recall and mean average precision", columns, rows)


def _differences(results: Sequence[Evaluation]) -> Table:
    columns = ("data", "mode", "model", "against", "queries", "R@1 change", "95 %", "p")
    columns += ("mAP change", "p", "only first hits", "only this hits", "McNemar p")
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        found = result.comparison
        if found is None:
            continue
        changes: tuple[Cell, ...] = (None,) * 5
        if found.differences:
            recall, average = found.differences["recall@1"], found.differences["map"]
            changes = (recall.value, (recall.low, recall.high), _p(recall.p))
            changes += (average.value, _p(average.p))
        own = (*_row(result, results), found.against, found.queries)
        test = found.mcnemar
        rows.append((*own, *changes, test.only_first, test.only_second, _p(test.p)))
    return Table("paired with the first row of the same data", columns, rows)


def _grounding(results: Sequence[Evaluation]) -> Table:
    columns = ("data", "mode", "model", "items", "pointing", "95 %", "mass", "IoU", "chance")
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        found = result.grounding
        if found:
            ends = found.intervals and found.intervals["pointing"]
            shares = (found.pointing, ends, found.mass, found.iou, found.chance)
            rows.append((*_row(result, results), found.items, *shares))
    title = (
        "grounding maps: strongest cell in the target box, share of the map in it, IoU of the "
        "map's box with it; chance: the target's share of the picture"
    )
    return Table(title, columns, rows)


def _curves(results: Sequence[Evaluation]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        own = _row(result, results)
        rows += [(*own, point.size, point.recall, point.interval) for point in result.curve]
    title = "Recall@1 in smaller galleries, the mean of all random ones of that size"
    return Table(title, ("data", "mode", "model", "gallery", "R@1", "95 %"), rows)


def _costs(results: Sequence[Evaluation]) -> Table:
    columns = ("model", "mode", "data", "item ms", "query ms", "item MFLOP", "query MFLOP")
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        cost = result.cost
        times = (f"{cost.item_ms:.2f}", f"{cost.query_ms:.2f}")
        flops = (_mega(cost.item_flops), _mega(cost.query_flops))
        own = (_model(result, results), result.label, result.data)
        rows.append((*own, *times, *flops))
    notes = "; ".join(dict.fromkeys(result.cost.note for result in results))
    return Table(f"cost a picture; ms with reading and decoding; {notes}", columns, rows)


def _row(result: Evaluation, results: Sequence[Evaluation]) -> tuple[str, str, str]:
    return result.data, result.label, _model(result, results)


def _model(result: Evaluation, results: Sequence[Evaluation]) -> str:
    return models(results)[result.conditions["fingerprint"]]


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _mega(flops: int | None) -> str:
    return "-" if flops is None else f"{flops / 1e6:.1f}"


def _shown(cell: Cell) -> str:
    """A cell of the markdown: shares in %."""
    if cell is None:
        return "-"
    if isinstance(cell, tuple):
        return " to ".join(f"{100 * end:.1f}" for end in cell)
    return f"{100 * cell:.1f}" if isinstance(cell, float) else str(cell)


def _escaped(text: str) -> str:
    """One line that markdown and HTML read as plain text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for character in "\\`*_<>[]|":
        line = line.replace(character, f"\\{character}")
    return line
