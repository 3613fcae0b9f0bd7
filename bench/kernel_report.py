"""What was measured of the kernels, as files and tables: kernels.json, kernels.csv, kernels.png.

`python bench/kernel_report.py FOLDER` writes CSV, plot and table again from FOLDER/kernels.json.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_report import markdown
from kernel_aims import Row, Rows, aims, by_shape, speed_up
from kernel_plot import plot

SAME_MACHINE = ("gpu", "driver", "cuda", "triton")
IDENTITY = ("op", "label", "contender")
COLUMNS = (
    *IDENTITY, "dtype", "batch", "patches", "queries", "width", "tower", "computes", "ms", "p20",
    "p80", "rounds", "host_ms", "replay_ms", "kernels", "bytes", "gb_s", "copy_percent", "error",
    "torch_error", "run",
)  # fmt: skip


class Results:
    """Rows of this run, merged into what FOLDER/kernels.json already has from the same machine.

    A row replaces one of the same contender and shape; each names its run, which has the
    conditions. The file is written after every row, so that a run that is cut short leaves all it
    measured.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self._run = folder, run["date"]
        self.runs: dict[str, Any] = {run["date"]: run}
        self.rows: list[Row] = []
        file = folder / "kernels.json"
        if file.exists():
            kept = json.loads(file.read_text())
            last = list(kept["runs"].values())[-1]
            if all(last[field] == run[field] for field in SAME_MACHINE):
                self.runs, self.rows = {**kept["runs"], **self.runs}, kept["rows"]

    def add(self, row: Row) -> None:
        """Take in a row as `gpu_timing.measure` makes it."""
        copy_percent = 100 * row["gb_s"] / self.runs[self._run]["copy_gb_s"]
        row = {**row, "copy_percent": copy_percent, "run": self._run}
        self.rows = [old for old in self.rows if _identity(old) != _identity(row)] + [row]
        used = {kept["run"] for kept in self.rows}
        self.runs = {date: run for date, run in self.runs.items() if date in used}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "kernels.json.partial"
        partial.write_text(json.dumps({"runs": self.runs, "rows": self.rows}, indent=1) + "\n")
        os.replace(partial, self.folder / "kernels.json")


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[field] for field in IDENTITY)


def write_report(folder: Path) -> list[str]:
    """CSV and plot from FOLDER/kernels.json, and the lines to print."""
    data = json.loads((folder / "kernels.json").read_text())
    rows, runs = data["rows"], data["runs"]
    with (folder / "kernels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            largest = {field: max(row[field].values()) for field in ("error", "torch_error")}
            writer.writerow({**row, **largest, "kernels": " ".join(row["kernels"])})
    drawn = plot(rows, runs, folder / "kernels.png")
    return [
        *map(conditions_line, runs.values()),
        "",
        *grounding_table(rows),
        "",
        *other_table(rows),
        "",
        *(f"{aim.status:<10} {aim.name}: {aim.found}" for aim in aims(rows, runs)),
        f"{folder}: kernels.json, kernels.csv, {drawn}",
    ]


def conditions_line(run: dict[str, Any]) -> str:
    return (
        f"{run['date']}: {run['gpu']}, driver {run['driver']}, CUDA {run['cuda']}, "
        f"torch {run['versions']['torch']}, triton {run['triton']}, commit {run['commit']}; copy "
        f"{run['copy_gb_s']:.0f} GB/s, replay of an empty kernel {_us(run['empty_replay_ms'])} us"
    )


def grounding_table(rows: Sequence[Row]) -> list[str]:
    """A line for each shape: our kernel, and how many times as long the others take."""
    header = (
        "dtype", "B", "N", "Q", "us (p20-p80)", "GB/s", "% copy", "absorbed¹", "usual¹", "sdpa",
        "usual²", "replay us", "error (torch's)",
    )  # fmt: skip
    body = []
    table = by_shape(rows)
    for shape in sorted(table, key=lambda s: (s.dtype, s.queries, s.patches, s.batch)):
        found = table[shape]
        if "tigerfg" not in found:
            continue
        ours = found["tigerfg"]
        spread = f"{_us(ours['ms'])} ({_us(ours['p20'])}-{_us(ours['p80'])})"
        peers = ("absorbed compiled", "usual compiled", "usual sdpa")
        dtype = shape.dtype.replace("bfloat", "bf").replace("float", "fp")
        body.append(
            (
                dtype, *(str(n) for n in (shape.batch, shape.patches, shape.queries)), spread,
                f"{ours['gb_s']:.0f}", f"{ours['copy_percent']:.0f}",
                *(_times(peer, "tigerfg", found) for peer in peers),
                _times("usual compiled", "tigerfg + projections", found),
                "" if ours["replay_ms"] is None else _us(ours["replay_ms"]),
                f"{max(ours['error'].values()):.1e} ({max(ours['torch_error'].values()):.1e})",
            )
        )  # fmt: skip
    notes = [
        "times as long as ours: ¹ compiled with max-autotune; ² the same, ours with absorption,",
        "value and output projections, so that both have the same inputs and outputs",
    ]
    if "°" in str(body):
        notes.append("° the two were measured in different runs")
    return [*markdown(header, body), *notes]


def other_table(rows: Sequence[Row]) -> list[str]:
    """A line for each contender of the other operators and of the tower's inputs."""
    header = ("operator", "shape", "contender", "us", "GB/s", "% of copy", "x ours", "error")
    others = [row for row in rows if row["op"] != "grounding" or row["tower"]]
    body = []
    for row in sorted(others, key=lambda r: (r["op"], r["label"])):
        ours = {
            other["contender"]: other
            for other in others
            if (other["op"], other["label"]) == (row["op"], row["label"])
        }
        body.append(
            (
                row["op"], row["label"], row["contender"], _us(row["ms"]), f"{row['gb_s']:.0f}",
                f"{row['copy_percent']:.0f}", _times(row["contender"], "tigerfg", ours),
                f"{max(row['error'].values()):.1e}",
            )
        )  # fmt: skip
    return markdown(header, body)


def _us(milliseconds: float) -> str:
    microseconds = 1000 * milliseconds
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def _times(slower: str, faster: str, rows: Rows) -> str:
    ratio = speed_up(slower, faster, rows)
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" + ("" if rows[slower]["run"] == rows[faster]["run"] else "°")


if __name__ == "__main__":
    print("\n".join(write_report(Path(sys.argv[1]))))
