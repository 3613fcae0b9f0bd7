"""The table and figures of bench/claim.py: mean and standard deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claim_evaluation import BEFORE
from engine_report import markdown

from tigerfg.errors import InputError

Key = tuple[str, str]  # variant, row
Results = dict[Key, dict[str, list[dict[str, Any]]]]  # -> data -> seeds
Content = dict[str, Any]

_QUERY_TOWER = {  # rows of TIGER-FG's own checkpoint and of its towers, in the table's order
    "oracle": "`oracle`: true box, query tower, no text",
    "iou 0.9": "`detect`: noisy true box, IoU 0.9",
    "iou 0.7": "`detect`: noisy true box, IoU 0.7",
    "iou 0.5": "`detect`: noisy true box, IoU 0.5",
    "detector with text": "`detect`: trained box head that reads the text",
    "detector": "`detect`: trained box head, no text",
    "global": "whole picture in the query tower, no text",
}
DERIVED = {
    **_QUERY_TOWER,
    "text": "text alone (blank picture)",
    "item tower": "item tower, without its attention crop",
    **{
        BEFORE + row: f"{title} (towers before the joint stage)"
        for row, title in _QUERY_TOWER.items()
    },
}
SUITE = ("standard", "cluttered")


def read_results(folder: Path) -> dict[str, Content]:
    """The results in a folder by file name; none where there is no folder.

    Raises:
        InputError: a file was not written by this version of bench/claim.py.
    """
    found = {}
    for file in sorted(folder.glob("*-*.json")):
        try:
            content = json.loads(file.read_text())
            known = {"variant", "settings", "seconds", "rows"} <= content.keys()
        except (ValueError, AttributeError):
            known = False
        if not known:
            raise InputError(f"{file}: not a result of this bench/claim.py: move it away")
        found[file.name] = content
    return found


def check_alike(files: Mapping[str, Content]) -> None:
    """Whether results may stand in one table.

    Raises:
        InputError: they differ in products, photos, preset, the towers' stages, data or precision,
            or those of one variant in what was trained.
    """
    first: dict[tuple[str, str], tuple[str, Any]] = {}
    for name, content in files.items():
        settings = content["settings"]
        common = {key: settings[key] for key in ("products", "photos", "preset", "towers")}
        common |= {f"data {data}": digest for data, digest in settings["data"].items()}
        if content["rows"]:
            common["precision"] = content["rows"][0]["precision"]
        own = {key: settings[key] for key in ("stages", "model", "weights")}
        compared = {("", key): value for key, value in common.items()}
        compared |= {(content["variant"], key): value for key, value in own.items()}
        for key, value in compared.items():
            other, there = first.setdefault(key, (name, value))
            if there != value:
                raise InputError(
                    f"{other} and {name} differ in {key[1]}: {json.dumps(there)} and "
                    f"{json.dumps(value)}; keep such results in folders of their own"
                )


def write_report(folder: Path) -> None:
    """Write claim.md into the folder, made if need be, from the JSON files in it.

    Raises:
        InputError: as `read_results` and `check_alike`.
    """
    files = read_results(folder)
    check_alike(files)
    titles: dict[Key, str] = {}
    results: Results = defaultdict(lambda: defaultdict(list))
    for content in files.values():
        for row in content["rows"]:
            key = (content["variant"], row["row"])
            titles[key] = DERIVED.get(row["row"], content["title"])
            results[key][row["data"]].append({**row, "seconds": _seconds(content, row["row"])})
    order = [("tiger", "item"), ("clip", "item"), ("clip-nce", "item")]
    order += [("tiger", name) for name in DERIVED]
    keys = [key for key in order if key in results]
    keys += [key for key in results if key not in order]
    lines = _conditions(list(files.values())) if files else ["No results yet."]
    for data in sorted({name for found in results.values() for name in found}, key=_place):
        lines += ["", f"## {data}", "", *_table(results, titles, keys, data)]
    for title, field, unit in (
        ("Recall@1 by distractors in the picture, cluttered", "distractors", "others"),
        ("Recall@1 by gallery size, cluttered", "gallery", "items"),
    ):
        if curve := _curve(results, titles, keys, field, unit):
            lines += ["", f"## {title}", "", *curve]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claim.md").write_text("\n".join(lines) + "\n")


def _seconds(content: Content, row: str) -> float | None:
    """Of training after the towers, of which a row of the towers alone has none."""
    return None if row.startswith(BEFORE) else content["seconds"]["variant"]


def _place(name: str) -> tuple[bool, str]:
    return (name not in SUITE, name if name not in SUITE else str(SUITE.index(name)))


def _conditions(files: Sequence[Content]) -> list[str]:
    """What the numbers were measured with; stages are those of TIGER-FG, and whose differ."""
    seeds = sorted({content["seed"] for content in files})
    one = next((c for c in files if c["variant"] == "tiger"), files[0])
    settings = one["settings"]
    photos = settings["photos"]
    cpus = sorted({content["conditions"]["cpu"] for content in files})
    threads = sorted({str(content["threads"] or "all") for content in files})
    commits = sorted({str(content["training_commit"]) for content in files})
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; model {settings['preset']}; "
        f"{settings['products']} rendered products"
        f"{f' and the photos {photos}' if photos else ''} to train on; "
        f"evaluated in {one['rows'][0]['precision']}; {', '.join(cpus)}, "
        f"threads: {', '.join(threads)}; trained at commit {', '.join(commits)}.",
        "",
        f"Towers: {_stages(settings['towers'])}, "
        f"{_mean(content['seconds']['towers'] for content in files)} s. "
        f"Then {one['title']}: {_stages(settings['stages'])}.",
    ]
    others = {c["title"]: _stages(c["settings"]["stages"]) for c in files}
    own = _stages(settings["stages"])
    lines += [f"{title}: {told}." for title, told in others.items() if told != own]
    return [
        *lines,
        "",
        "Recall@1 in %, mean ± standard deviation over seeds. Training: seconds after the towers.",
    ]


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{s['kind']} {s['steps']} x {s['batch']}" for s in stages)


def _mean(values: Any) -> str:
    return f"{statistics.mean(values):.0f}"


def _table(results: Results, titles: dict[Key, str], keys: list[Key], data: str) -> list[str]:
    columns: dict[str, Callable[[dict[str, Any]], Any]] = {
        "Recall@1": lambda row: row["r1"],
        "Recall@5": lambda row: row["r5"],
        "Recall@10": lambda row: row["r10"],
        "pointing (chance)": lambda row: row.get("grounding", {}).get("pointing"),
        "map's IoU": lambda row: row.get("grounding", {}).get("iou"),
    }
    body = []
    for key in keys:
        rows = results[key].get(data)
        if not rows:
            continue
        line = [titles[key], str(len(rows)), *(_spread(rows, get) for get in columns.values())]
        if "grounding" in rows[0]:
            line[5] += f" ({rows[0]['grounding']['chance']:.0f})"
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        body.append([*line, _mean(seconds) if seconds else "–"])
    sizes = {(row["items"], row["queries"]) for key in keys for row in results[key].get(data, [])}
    items, queries = max(sizes)
    return [
        f"{items} items, {queries} queries.",
        "",
        *markdown(["", "seeds", *columns, "training s"], body),
    ]


def _curve(
    results: Results, titles: dict[Key, str], keys: list[Key], field: str, unit: str
) -> list[str]:
    """Recall@1 at every value of what varies; nothing where nothing does."""
    found = {key: results[key].get("cluttered", []) for key in keys}
    values = sorted({int(n) for rows in found.values() for row in rows for n in row[field]})
    if not values:
        return []
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
