"""Finds launch parameters on the GPU at hand and writes kernels/tuning/sm_XX.json.

`python bench/tune_kernels.py [OPERATOR ...] [--budget SECONDS] [--out FOLDER ...]`

Each rule of an operator's table is improved one parameter at a time, starting from what it has. A
candidate counts only after its results were checked against the float64 oracle; one that is wrong
or does not launch is dropped with a line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from conditions import conditions
from gpu_timing import Clock, CudaClock, device_conditions, measure
from kernel_shapes import PHOTOS, Shape
from peers import Case, GroundingCase
from tower_peers import EmbeddingCase, PoolingCase, PreprocessCase

from tigerfg.kernels import tuning

Parameters = dict[str, int]
WORTH = 0.98  # a candidate must be this much faster: less is noise
TABLES = Path(tuning.__file__).parent / "tuning"

GRIDS: dict[str, dict[str, tuple[int, ...]]] = {
    "grounding": {
        "QUERY_AXIS": (0, 1),
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_Q": (16, 32, 64),
        "BLOCK_D": (64, 128, 256),
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3, 4),
    },
    "tail": {
        "BLOCK_I": (16, 32),
        "BLOCK_D": (32, 64, 128),
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2, 3, 4),
    },
    "pooling": {
        "ROWS": (4, 8, 16),
        "BLOCK_D": (64, 128, 256),
        "STAGES": (1, 2, 3, 4, 6),
        "BLOCK_K": (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    "preprocess": {
        "BLOCK_H": (16, 32),
        "BLOCK_W": (16, 32),
        "BLOCK_ROWS": (16, 32),
        "BLOCK_COLUMNS": (16, 32, 64),
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3),
    },
}
PATCHES = [Shape(batch, 196, 12, dtype) for dtype in ("float16", "float32") for batch in (8, 256)]
MANY_QUERIES = [Shape(batch, 196, 48, "float16") for batch in (8, 256)]
WIDE = [Shape(batch, 196, 12, "float16", 1280, 20) for batch in (8, 256)]
PROBES: dict[str, tuple[type[Case], list[Any]]] = {
    "grounding": (GroundingCase, [*PATCHES, *MANY_QUERIES, *WIDE]),
    "tail": (EmbeddingCase, PATCHES),
    "pooling": (PoolingCase, PATCHES),
    "preprocess": (PreprocessCase, PHOTOS[:2]),
}


class Rule(dict):
    """A rule of a table that knows whether its parameters were asked for."""

    used = False

    def __getitem__(self, field: str) -> Any:
        self.used = self.used or field == "use"
        return super().__getitem__(field)


def tune(
    operator: str,
    cases: Sequence[Case],
    arch: int,
    clock: Clock,
    budget: float,
    say: Callable[[str], None] = print,
) -> list[float | None]:
    """Improve the rules of an operator in the table in memory, within `budget` seconds.

    Returns:
        For each rule the milliseconds that its cases take with it (geometric mean), None for a
        rule that serves none of the cases.
    """
    rules = [Rule(rule) for rule in tuning.table(arch)[operator]]
    tuning.table(arch)[operator] = rules
    served: list[list[Case]] = [[] for _ in rules]
    for case in cases:
        for rule in rules:
            rule.used = False
        _forget_launches()
        case.call("tigerfg")()
        next(mine for rule, mine in zip(rules, served, strict=True) if rule.used).append(case)
    found: list[float | None] = []
    deadline = time.monotonic() + budget
    for number, (rule, mine) in enumerate(zip(rules, served, strict=True)):
        title = f"{operator} rule {number} {rule['up_to']}"
        if not mine:
            say(f"{title}: serves none of the measured shapes, left as it is")
            found.append(None)
            continue
        share = (deadline - time.monotonic()) / (len(rules) - number)
        best, milliseconds = _descend(rule, mine, GRIDS[operator], clock, share, title, say)
        rule["use"] = best
        _forget_launches()
        found.append(milliseconds)
    tuning.table(arch)[operator] = [dict(rule) for rule in rules]
    return found


def _descend(
    rule: Rule,
    cases: Sequence[Case],
    grid: dict[str, tuple[int, ...]],
    clock: Clock,
    budget: float,
    title: str,
    say: Callable[[str], None],
) -> tuple[Parameters, float]:
    """Change one parameter at a time as long as that helps: the best and its milliseconds."""
    deadline = time.monotonic() + budget
    best = dict(rule["use"])
    least = _score(rule, best, cases, clock)
    say(f"{title}: {1000 * least:.1f} us with {best}")
    tried, improved = {json.dumps(best)}, True
    while improved:
        improved = False
        for candidate in _neighbours(best, grid):
            if json.dumps(candidate) in tried:
                continue
            if time.monotonic() > deadline:
                say(f"{title}: stopped at its time limit")
                return best, least
            tried.add(json.dumps(candidate))
            try:
                milliseconds = _score(rule, candidate, cases, clock)
            except Exception as error:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # raises again where the device is beyond use
                say(f"{title}: dropped {candidate}: {' '.join(str(error).split())[:120]}")
                continue
            if milliseconds < WORTH * least:
                best, least, improved = candidate, milliseconds, True
                say(f"{title}: {1000 * least:.1f} us with {best}")
                break  # go on from there
    return best, least


def _neighbours(use: Parameters, grid: dict[str, tuple[int, ...]]) -> Iterator[Parameters]:
    for name, values in grid.items():
        for value in values:
            if value != use[name]:
                yield {**use, name: value}


def _score(rule: Rule, use: Parameters, cases: Sequence[Case], clock: Clock) -> float:
    """Geometric mean of the cases' medians; ValueError for a wrong result."""
    rule["use"] = use
    _forget_launches()
    logarithms = []
    for case in cases:
        row = measure(case, "tigerfg", clock)
        for name, error in row["error"].items():
            # twice torch's own error in this dtype; float32 kernels sum in another order
            if error > 2 * row["torch_error"][name] + 1e-5:
                raise ValueError(f"{case.label}: relative error {error:.1e} of {name}")
        logarithms.append(math.log(row["ms"]))
    return math.exp(sum(logarithms) / len(logarithms))


def _forget_launches() -> None:
    """Drop what kernel modules keep per shape, so that they ask the table again."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tigerfg.kernels."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear") and value is not tuning.table:
                    value.cache_clear()


def write_table(arch: int, folder: Path, measured: dict[str, Any]) -> Path:
    """The table in memory as sm_XX.json; milliseconds of operators not tuned now are kept."""
    table = tuning.table(arch)
    earlier = table["measured"] or {}
    if earlier.get("gpu") == measured["gpu"]:
        measured = {**measured, "ms": {**earlier["ms"], **measured["ms"]}}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"sm_{arch}.json"
    file.write_text(json.dumps({**table, "measured": measured}, indent=2) + "\n")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=", ".join(GRIDS))
    parser.add_argument("--budget", type=float, default=60, help="seconds for each operator")
    parser.add_argument(
        "--out", type=Path, nargs="+", default=[TABLES], help="folders that sm_XX.json goes to"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.operators) - set(GRIDS)
    if unknown:
        parser.error(f"no such operator: {', '.join(unknown)}; there are {', '.join(GRIDS)}")
    if not torch.cuda.is_available():
        parser.error("no CUDA device: launch parameters are not tuned on a CPU")
    arch = tuning.architecture(torch.device("cuda"))
    clock, milliseconds = CudaClock(), {}
    run = {**conditions(), **device_conditions()}
    for operator in arguments.operators or GRIDS:
        kind, shapes = PROBES[operator]
        cases = [kind(shape, device="cuda") for shape in shapes]
        milliseconds[operator] = tune(operator, cases, arch, clock, arguments.budget)
        measured = {field: run[field] for field in ("gpu", "driver", "triton", "commit", "date")}
        for folder in arguments.out:
            file = write_table(arch, folder, {**measured, "ms": milliseconds})
            print(f"{operator}: written to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
