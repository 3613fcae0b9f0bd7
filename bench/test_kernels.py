"""Kernels on a CUDA device beside what one writes without them, by CUDA events with a cold L2.

`pytest bench/test_kernels.py --benchmark-only` prints a table and writes kernels.json, kernels.csv
and kernels.png to $RESULTS_DIR, or to bench/results/; see kernel_report.Results for how runs are
merged. pytest-benchmark's own table has the same times. Without a CUDA device everything here is
skipped: what an interpreter or a CPU takes says nothing about a kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conditions import conditions
from gpu_timing import (
    REPLAYED_BATCH,
    CudaClock,
    copy_bandwidth,
    device_conditions,
    launch_empty,
    measure,
    replays,
    samples,
)
from kernel_report import Results, write_report
from kernel_shapes import EMBEDDINGS, PHOTOS, SHAPES, TOWER
from peers import Case, GroundingCase
from tower_peers import EmbeddingCase, PoolingCase, PreprocessCase

DEVICE = "cuda"
CLOCK = CudaClock()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no CUDA device: kernel speed is not measured on a CPU",
    ),
    pytest.mark.benchmark(timer=CLOCK),
]
CASES = [
    *((GroundingCase, shape) for shape in (*SHAPES, TOWER)),
    *((kind, shape) for kind in (EmbeddingCase, PoolingCase) for shape in EMBEDDINGS),
    *((PreprocessCase, photos) for photos in PHOTOS),
]


def contenders(compiled: bool) -> list[Any]:
    """(kind, shape, contender) of the contenders that are compiled, or of the others."""
    cases = CASES
    if compiled:  # half a minute each: what no aim speaks of comes last
        cases = sorted(cases, key=lambda case: case[1].batch == 1)
    return [
        pytest.param(kind, shape, contender, id=f"{kind.op}-{shape}-{contender}")
        for kind, shape in cases
        for contender in (kind.compiled if compiled else kind.eager)
    ]


class Summary:
    """A pytest plugin that ends the session with the report, also one that is interrupted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if (self._folder / "kernels.json").exists():
            terminalreporter.section("kernels")
            for line in write_report(self._folder):
                terminalreporter.line(line)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Results:
    folder = Path(os.environ.get("RESULTS_DIR") or Path(__file__).parent / "results")
    run = {**conditions(), **device_conditions(), "copy_gb_s": copy_bandwidth(CLOCK)}
    run["empty_replay_ms"] = replays(CLOCK, launch_empty)["ms"]
    request.config.pluginmanager.register(Summary(folder))
    return Results(folder, run)


@pytest.fixture
def record(
    results: Results, benchmark: Any, request: pytest.FixtureRequest
) -> Callable[[Case, str], None]:
    def run(case: Case, contender: str) -> None:
        def timed(call: Callable[[], object], rounds: int) -> list[float]:
            benchmark.group = f"{case.op} {case.label}"
            benchmark.pedantic(call, setup=CLOCK.flush, rounds=rounds)
            if benchmark.stats is None:  # --benchmark-disable
                return samples(CLOCK, call, rounds)
            return list(benchmark.stats.stats.data)

        replay = case.op == "grounding" and case.shape["batch"] <= REPLAYED_BATCH
        row = measure(case, contender, CLOCK, timed, replay)
        results.add({**row, "test": request.node.nodeid})

    return run


@lru_cache(maxsize=1)
def inputs(kind: type[Case], shape: Any) -> Case:
    return kind(shape, device=DEVICE)


@pytest.mark.parametrize(("kind", "shape", "contender"), contenders(compiled=False))
def test_launched(kind: Any, shape: Any, contender: str, record: Callable[..., None]) -> None:
    record(inputs(kind, shape), contender)


@pytest.mark.parametrize(("kind", "shape", "contender"), contenders(compiled=True))
def test_compiled(kind: Any, shape: Any, contender: str, record: Callable[..., None]) -> None:
    record(inputs(kind, shape), contender)
