"""The table and figures of bench/claim.py: mean and standard deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine_report import markdown

Results = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]  # variant, row -> data -> seeds

DERIVED = {  # rows of TIGER-FG's own checkpoint, in the table's order
    "oracle": "`oracle`: true box, query tower (upper bound)",
    "iou 0.9": "`detect`: noisy true box, IoU 0.9",
    "iou 0.7": "`detect`: noisy true box, IoU 0.7",
    "iou 0.5": "`detect`: noisy true box, IoU 0.5",
    "detector with text": "`detect`: trained box head that reads the text",
    "detector": "`detect`: trained box head, no text",
    "global": "whole picture in the query tower, no text",
    "text": "text alone (blank picture)",
}
SUITE = ("standard", "cluttered")


def write_report(folder: Path) -> None:
    """Write claim.md into the folder from the JSON files in it."""
    files = [json.loads(file.read_text()) for file in sorted(folder.glob("*-*.json"))]
    titles: dict[tuple[str, str], str] = {}
    results: Results = defaultdict(lambda: defaultdict(list))
    for content in files:
        for row in content["rows"]:
            key = (content["variant"], row["row"])
            titles[key] = DERIVED.get(row["row"], content["title"])
            results[key][row["data"]].append(row)
    order = [("tiger", "item"), ("clip", "item"), *(("tiger", name) for name in DERIVED)]
    keys = [key for key in order if key in results]
    keys += [key for key in results if key not in order]
    lines = [*_conditions(files), "", "Recall@1 in %, mean ± standard deviation over seeds.", ""]
    for data in sorted({name for found in results.values() for name in found}, key=_place):
        lines += [f"## {data}", "", *_table(results, titles, keys, data), ""]
    for title, field, unit in (
        ("Recall@1 by distractors in the picture, cluttered", "distractors", "others"),
        ("Recall@1 by gallery size, cluttered", "gallery", "items"),
    ):
        lines += [f"## {title}", "", *_curve(results, titles, keys, field, unit), ""]
    (folder / "claim.md").write_text("\n".join(lines))


def _place(name: str) -> tuple[bool, str]:
    return (name not in SUITE, name if name not in SUITE else str(SUITE.index(name)))


def _conditions(files: Sequence[dict[str, Any]]) -> list[str]:
    seeds = sorted({content["seed"] for content in files})
    one = files[0]
    stages = ", ".join(f"{s['kind']} {s['steps']} x {s['batch']}" for s in one["stages"])
    cpus = sorted({content["conditions"]["cpu"] for content in files})
    return [
        f"Seeds {', '.join(map(str, seeds))}; {one['products']} rendered products"
        f"{' and real photos' if one['photos'] else ''} to train on; {stages}; "
        f"evaluated in {one['rows'][0]['precision']}; {', '.join(cpus)}."
    ]


def _table(
    results: Results, titles: dict[tuple[str, str], str], keys: list[Any], data: str
) -> list[str]:
    columns = {
        "Recall@1": lambda row: row["r1"],
        "Recall@5": lambda row: row["r5"],
        "Recall@10": lambda row: row["r10"],
        "pointing (chance)": lambda row: row.get("pointing"),
        "map's IoU": lambda row: row.get("iou"),
    }
    body = []
    for key in keys:
        rows = results[key].get(data)
        if not rows:
            continue
        line = [titles[key], str(len(rows)), *(_spread(rows, get) for get in columns.values())]
        if "chance" in rows[0]:
            line[5] += f" ({rows[0]['chance']:.0f})"
        body.append(line)
    sizes = {(row["items"], row["queries"]) for key in keys for row in results[key].get(data, [])}
    items, queries = sorted(sizes)[-1]
    return [
        f"{items} items, {queries} queries.",
        "",
        *markdown(["", "seeds", *columns], body),
    ]


def _curve(
    results: Results, titles: dict[tuple[str, str], str], keys: list[Any], field: str, unit: str
) -> list[str]:
    """Recall@1 at every value of what varies."""
    found = {key: results[key].get("cluttered", []) for key in keys}
    values = sorted({int(n) for rows in found.values() for row in rows for n in row[field]})
    body = [
        [titles[key], *(_spread(rows, lambda row, n=n: row[field].get(str(n))) for n in values)]
        for key, rows in found.items()
        if rows
    ]
    return markdown(["", *(f"{n} {unit}" for n in values)], body)


def _spread(rows: Sequence[dict[str, Any]], get: Callable[[dict[str, Any]], Any]) -> str:
    """Mean ± standard deviation of what the rows have; a dash where they have nothing."""
    values = [value for row in rows if (value := get(row)) is not None]
    if not values:
        return "–"
    mean = statistics.mean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"
