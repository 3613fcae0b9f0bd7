"""What was measured of engines, as a file that grows row by row, a table, and the aims beside it.

`python bench/engine_report.py FOLDER` prints the table of FOLDER/engines.json again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

FILE = "engines.json"
IDENTITY = ("model", "tower", "batch", "contender")
SAME_MACHINE = ("gpu", "driver", "cuda", "triton")
OURS = "tigerfg engine"  # contenders that the aims speak of begin so
AIMED_BATCH = 256
LEAST_IMAGES_S, MOST_MS, LEAST_GAIN, LEAST_COSINE = 16_000, 0.6, 1.4, 0.998


class Results:
    """Rows of this run, merged into what the file already has from the same machine.

    A row replaces one of the same identity; each names its run, which has the conditions. The file
    is written after every row, so that a run that is cut short leaves all it measured.

    Args:
        file: the JSON file; what it has from another machine is left out.
        run: the conditions of this run, with its "date".
        identity: fields that tell rows apart.
        same: fields of a run that must be equal on the same machine.
    """

    def __init__(
        self, file: Path, run: Mapping[str, Any], identity: Sequence[str], same: Sequence[str]
    ) -> None:
        self._file, self._run, self._identity = file, run["date"], tuple(identity)
        self.runs: dict[str, Any] = {run["date"]: dict(run)}
        self.rows: list[Row] = []
        if file.exists():
            kept = json.loads(file.read_text())
            last = list(kept["runs"].values())[-1]
            if all(last[field] == run[field] for field in same):
                self.runs, self.rows = {**kept["runs"], **self.runs}, kept["rows"]

    def find(self, **identity: Any) -> Row | None:
        """The row of that identity."""
        wanted = tuple(identity[field] for field in self._identity)
        return next((row for row in self.rows if self._key(row) == wanted), None)

    def add(self, row: Row) -> None:
        """Take in a row and write the file."""
        row = {**row, "run": self._run}
        self.rows = [old for old in self.rows if self._key(old) != self._key(row)] + [row]
        used = {kept["run"] for kept in self.rows}
        self.runs = {date: run for date, run in self.runs.items() if date in used}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.write_text(json.dumps({"runs": self.runs, "rows": self.rows}, indent=1) + "\n")
        os.replace(partial, self._file)

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._identity)


class Aim(NamedTuple):
    """status: reached, missed or not measured; found: the value, or what is missing."""

    name: str
    status: str
    found: str


def aims(rows: Sequence[Row], runs: Mapping[str, Any]) -> list[Aim]:
    """What was to be reached with the base model's query tower on an H200. Never asserted."""

    def best(precision: str, batch: int) -> Row | None:
        """Our faster engine; of the whole tower, or with the fused tail."""
        ours = [
            row
            for row in rows
            if row["status"] == "measured"
            and (row["model"], row["tower"], row["batch"]) == ("base", "query", batch)
            and row["contender"].startswith(OURS)
            and row["precision"] == precision
            and "H200" in runs[row["run"]]["gpu"]
        ]
        return min(ours, key=lambda row: row["device"]["p50"], default=None)

    found = []
    fp16, fp8 = best("fp16", AIMED_BATCH), best("fp8", AIMED_BATCH)
    name = f"H200, base query tower, fp16: >= {LEAST_IMAGES_S:,} images/s at batch {AIMED_BATCH}"
    if fp16 is None:
        found.append(Aim(name, "not measured", "no such row"))
    else:
        speed = fp16["images_s"]
        found.append(
            Aim(name, _status(speed >= LEAST_IMAGES_S), f"{speed:,.0f} ({fp16['contender']})")
        )
    name = f"H200, base query tower, fp16: <= {MOST_MS} ms at batch 1 (device, median)"
    one = best("fp16", 1)
    if one is None:
        found.append(Aim(name, "not measured", "no such row"))
    else:
        value = one["device"]["p50"]
        text = f"{value:.3f} ms, end to end {one['end_to_end']['p50']:.3f} ms ({one['contender']})"
        found.append(Aim(name, _status(value <= MOST_MS), text))
    name = (
        f"H200, base query tower: fp8 >= {LEAST_GAIN}x fp16 at batch {AIMED_BATCH}, worst cosine "
        f">= {LEAST_COSINE}"
    )
    if fp16 is None or fp8 is None:
        found.append(Aim(name, "not measured", "no such rows"))
    elif fp16["run"] != fp8["run"]:
        found.append(Aim(name, "not measured", "the two were measured in different runs"))
    else:
        gain, cosine = fp8["images_s"] / fp16["images_s"], fp8["cosine_min"]
        text = f"{gain:.2f}x at cosine min {cosine:.5f}, mean {fp8['cosine_mean']:.5f}"
        found.append(Aim(name, _status(gain >= LEAST_GAIN and cosine >= LEAST_COSINE), text))
    return found


def _status(reached: bool) -> str:
    return "reached" if reached else "missed"


def report(folder: Path) -> list[str]:
    """The lines to print of FOLDER/engines.json."""
    data = json.loads((folder / FILE).read_text())
    rows, runs = data["rows"], data["runs"]
    lines = [
        *map(conditions_line, runs.values()),
        "device: CUDA events around a call, inputs and outputs on the device, cold L2.",
        "end to end: wall clock, float32 numpy arrays in and out through page-locked memory.",
        "cosine: with the float32 model on the same pictures; random weights, smooth pictures.",
        "p99 only of 100 rounds or more.",
    ]
    for model, tower in dict.fromkeys((row["model"], row["tower"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["tower"]) == (model, tower)]
        lines += ["", f"### {model}, {tower} tower", "", *tower_table(chosen)]
        lines += ["", *problems(chosen)]
    lines += [f"{aim.status:<13} {aim.name}: {aim.found}" for aim in aims(rows, runs)]
    return lines


def conditions_line(run: Mapping[str, Any]) -> str:
    """One line about a run."""
    versions = ", ".join(
        f"{name} {version}" for name, version in run["versions"].items() if version is not None
    )
    return (
        f"{run['date']}: {run['gpu']}, driver {run['driver']}, CUDA {run['cuda']}, commit "
        f"{run['commit']}; {versions}"
    )


def tower_table(rows: Sequence[Row]) -> list[str]:
    """A line for each measured contender, by batch, the fastest first."""
    header = (
        "batch", "contender", "runtime", "images/s", "device ms p50", "p99", "end to end ms p50",
        "p99", "images/s", "cosine mean", "min",
    )  # fmt: skip
    measured = [row for row in rows if row["status"] == "measured"]
    measured.sort(key=lambda row: (row["batch"], row["device"]["p50"]))
    body = []
    for row in measured:
        device, whole = row["device"], row["end_to_end"]
        body.append(
            (
                str(row["batch"]), row["contender"], row["runtime"], f"{row['images_s']:.0f}",
                _ms(device["p50"]), _ms(device["p99"]), _ms(whole["p50"]), _ms(whole["p99"]),
                f"{row['end_to_end_images_s']:.0f}", f"{row['cosine_mean']:.5f}",
                f"{row['cosine_min']:.5f}",
            )
        )  # fmt: skip
    return markdown(header, body) if body else ["nothing measured"]


def problems(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each contender and reason why it has no figures, with the batches."""
    batches: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "measured":
            key = (row["status"], row["contender"], row["reason"])
            batches.setdefault(key, []).append(str(row["batch"]))
    for (status, contender, reason), found in batches.items():
        yield f"{status}: {contender}, batch {' '.join(found)}: {reason}"


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (header, rule, *body)
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    print("\n".join(report(Path(sys.argv[1]))))
