"""A dry run of bench/test_kernels.py: the peers agree; timing, files and aims do what they say.

No speed is measured: times come from a clock that invents them.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_fakes
import gpu_timing
import kernel_aims
import kernel_plot
import kernel_report
import peers
import pytest
import torch
import tower_peers
from bench_fakes import DEVICE, FOUND, RUN, SMALL, SMALL_PHOTOS, FakeClock, perfect
from kernel_shapes import SHAPES

from tigerfg.kernels import grounding

CASES = {
    "grounding fp16": (peers.GroundingCase, SMALL),
    "grounding bf16 tower": (peers.GroundingCase, replace(SMALL, dtype="bfloat16", tower=True)),
    "embedding": (tower_peers.EmbeddingCase, SMALL),
    "pooling": (tower_peers.PoolingCase, SMALL),
    "preprocess": (tower_peers.PreprocessCase, SMALL_PHOTOS),
}
FORMS = {
    "embedding attention": (partial(tower_peers.EmbeddingCase, attention=True), SMALL),
    "pooling attention": (partial(tower_peers.PoolingCase, kind="attention"), SMALL),
    "pooling cls": (partial(tower_peers.PoolingCase, kind="cls"), SMALL),
    "preprocess bicubic": (
        partial(tower_peers.PreprocessCase, interpolation="bicubic"),
        SMALL_PHOTOS,
    ),
}


@pytest.mark.parametrize("name", CASES | FORMS)
def test_every_contender_computes_what_the_oracle_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_fakes.run_the_kernels(monkeypatch)
    # what torch.compile makes of them needs a GPU; that it takes them whole is seen here
    monkeypatch.setattr(peers, "MAX_AUTOTUNE", {"backend": "aot_eager", "fullgraph": True})
    kind, shape = (CASES | FORMS)[name]
    case = kind(shape, device=DEVICE)
    # rounding of a few sums to 11 or 8 bits, and of resized pixels to one level of 256
    bound = 0.02 if "bf16" in name or "preprocess" in name else 0.003
    for contender in (*case.eager, *case.compiled):
        with gpu_timing.launched_kernels() as kernels:
            outputs = case.call(contender)()
        assert bool(kernels) == contender.startswith("tigerfg"), contender
        errors = case.errors(contender, outputs)
        assert max(errors.values()) < bound, f"{contender}: {errors}"
        assert list(errors) == case.computes(contender).split("-> ")[1].split(", ")
        assert set(errors) <= set(case.torch_errors(contender))
        assert case.bytes(contender) > 0


def test_bytes_are_counted_once() -> None:
    case = peers.GroundingCase(SMALL, "cpu")
    x, v, weights, grounding_map = 2 * 8 * 64 * 2, 2 * 9 * 64 * 2, 3 * 64 * 64 * 2, 2 * 9 * 4
    assert case.bytes("tigerfg") == x + v + x + grounding_map
    q, g = 2 * 8 * 16 * 2, 2 * 64 * 2
    assert case.bytes("usual compiled") == q + v + weights + g + grounding_map
    assert case.bytes("usual sdpa") == q + v + weights + g


def test_a_wrong_contender_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case, clock = peers.GroundingCase(SMALL, DEVICE), FakeClock()
    plain = peers.grounding
    monkeypatch.setattr(peers, "grounding", lambda *args: (1.1 * plain(*args)[0], plain(*args)[1]))
    with pytest.raises(AssertionError, match=r"grounding tigerfg float16-B2-N9-Q8-D64.*'p'"):
        gpu_timing.measure(case, "tigerfg", clock)
    assert clock.log == []
    monkeypatch.setattr(peers, "grounding", grounding)  # the public function of a CPU
    monkeypatch.setattr(case, "device", "cuda")
    if DEVICE == "cpu":
        with pytest.raises(AssertionError, match="grounding: the reference ran"):
            gpu_timing.measure(case, "tigerfg", clock)
    broken = torch.full((2, 8, 64), float("nan"))
    assert peers.relative_error(broken, torch.ones(2, 8, 64)) == float("inf")


def test_samples_flush_before_every_measurement() -> None:
    clock = FakeClock(iter([0.001, 0.003, 0.002]).__next__)
    assert gpu_timing.samples(clock, lambda: clock.log.append("call"), 3) == [0.001, 0.003, 0.002]
    assert clock.log == ["flush", "start", "call", "end"] * 3
    times = gpu_timing.quantiles([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    assert times == pytest.approx({"ms": 3.5, "p20": 2.0, "p80": 5.0})


def test_copy_bandwidth_counts_reads_and_writes() -> None:
    assert gpu_timing.copy_bandwidth(FakeClock(), "cpu", 1 << 12) == pytest.approx(8192 / 0.1 / 1e9)


def test_aims_are_met_missed_incomplete_or_without_data() -> None:
    def statuses(rows: list[dict[str, Any]], shapes: Any = FOUND) -> list[str]:
        return [aim.status for aim in kernel_aims.aims(rows, {RUN["date"]: RUN}, shapes)]

    assert statuses(perfect()) == ["met"] * 6
    assert statuses([]) == ["no data"] * 6
    # the shapes of the issue: all but two are missing
    assert statuses(perfect(), SHAPES) == ["incomplete"] * 6


@pytest.mark.parametrize(
    ("number", "contender", "change"),
    [
        (0, "tigerfg", {"copy_percent": 84.9}),
        (1, "absorbed compiled", {"ms": 1.49}),
        (2, "usual compiled", {"ms": 4.9}),
        (3, "tigerfg + projections", {"ms": 1.3}),
        (4, "tigerfg", {"replay_ms": 0.0081}),
        (5, "tigerfg", {"error": {"p": 1e-9, "map": 2.1e-3}, "torch_error": {"p": 1, "map": 1e-3}}),
    ],
)
def test_each_aim_can_be_missed(number: int, contender: str, change: dict[str, Any]) -> None:
    rows = [{**row, **change} if row["contender"] == contender else row for row in perfect()]
    aims = kernel_aims.aims(rows, {RUN["date"]: RUN}, FOUND)
    assert aims[number].status == "missed"
    assert "0 of " in aims[number].found
    assert "float16-B" in aims[number].found


def test_rows_become_json_csv_table_and_plot(tmp_path: Path) -> None:
    results = kernel_report.Results(tmp_path, RUN)
    for kind, shape in CASES.values():
        case = kind(shape, device=DEVICE)
        for contender in case.eager:
            results.add(gpu_timing.measure(case, contender, FakeClock()))
    for row in perfect():
        results.add(row)
    data = json.loads((tmp_path / "kernels.json").read_text())
    assert data["runs"] == {RUN["date"]: RUN}
    row = data["rows"][0]
    assert (row["ms"], row["rounds"]) == (100, 5)  # the clock's 100 ms, half a second in all
    assert row["gb_s"] == pytest.approx(row["bytes"] / 0.1 / 1e9)
    assert row["copy_percent"] == pytest.approx(row["gb_s"] / 10)  # of 1000 GB/s
    lines = kernel_report.write_report(tmp_path)
    table = list(csv.DictReader((tmp_path / "kernels.csv").open()))
    assert [float(one["ms"]) for one in table] == [one["ms"] for one in data["rows"]]
    assert table[-1]["kernels"] == "first second"
    assert {one["op"] for one in table} == {kind.op for kind, _ in CASES.values()}
    printed = "\n".join(lines)
    assert re.search(r"\| +fp16 \| +256 \| +196 \| +12 \| +1000 \(1000-1000\) \| +900 \|", printed)
    assert "2.00x" in printed  # absorbed compiled over ours
    assert "missed     percent" not in printed
    assert "pillow, 1 thread" in printed
    if kernel_plot.plot(data["rows"], data["runs"], tmp_path / "again.png") == "again.png":
        assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no plot: matplotlib is not installed" in lines[-1]


def test_runs_are_merged_on_one_machine_only(tmp_path: Path) -> None:
    first = kernel_report.Results(tmp_path, RUN)
    for row in perfect():
        first.add(row)
    later = {**RUN, "date": "2026-01-02", "copy_gb_s": 500.0}
    second = kernel_report.Results(tmp_path, later)
    second.add(perfect()[0])
    data = json.loads((tmp_path / "kernels.json").read_text())
    assert list(data["runs"]) == ["2026-01-01", "2026-01-02"]
    assert len(data["rows"]) == len(perfect())
    assert data["rows"][-1]["copy_percent"] == pytest.approx(180)  # of its own run's bandwidth
    assert "2.00x°" in "\n".join(kernel_report.write_report(tmp_path))
    for row in perfect():
        second.add(row)
    assert list(json.loads((tmp_path / "kernels.json").read_text())["runs"]) == ["2026-01-02"]
    other = kernel_report.Results(tmp_path, {**later, "gpu": "another"})
    assert other.rows == []


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no CUDA device")
def test_the_cuda_clock_sees_longer_work() -> None:
    clock = gpu_timing.CudaClock()
    short, long = (torch.randn(side, side, device="cuda") for side in (512, 8192))
    times = [
        gpu_timing.quantiles(gpu_timing.samples(clock, lambda m=m: m @ m, 5))["ms"]
        for m in (short, long)
    ]
    assert 0 < 5 * times[0] < times[1]
    assert gpu_timing.replays(clock, gpu_timing.launch_empty, 5)["ms"] < 1
    assert gpu_timing.device_conditions()["gpu"]
