"""A dry run of bench/'s scripts: tuner, sanitizer's launches, the one command, and the skip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bench_fakes
import gpu
import kernel_report
import peers
import pytest
import repack_kernels
import sanitize_kernels
import torch
import tune_kernels
from bench_fakes import DEVICE, REPOSITORY, RUN, SMALL_PHOTOS, FakeClock, perfect
from kernel_shapes import Shape

from tigerfg.bundle import Bundle
from tigerfg.errors import BundleError
from tigerfg.kernels import tuning

TINY = Shape(1, 5, 4, "float16", width=64, heads=4)


@pytest.fixture(autouse=True)
def _kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bench_fakes.run_the_kernels(monkeypatch)


def grounding_clock() -> FakeClock:
    """The more patches in a block the faster, by 10 %; the transposed form is twice as fast."""

    def seconds() -> float:
        use = tuning.table(90)["grounding"][0]["use"]
        return 0.1 * 0.9 ** (use["BLOCK_N"] / 16) * (1 if use["QUERY_AXIS"] else 2)

    return FakeClock(seconds)


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A table for the tuner to change: two rules of grounding."""
    use = {"QUERY_AXIS": 0, "BLOCK_N": 16, "BLOCK_Q": 16, "BLOCK_D": 64, "num_warps": 4}
    use["num_stages"] = 1
    rules = [{"up_to": {"bytes": 2}, "use": use}, {"up_to": {"bytes": 4}, "use": use}]
    table = {"measured": None, "grounding": json.loads(json.dumps(rules))}
    monkeypatch.setattr(tuning, "table", lambda arch: table)
    grid = {"QUERY_AXIS": (0, 1), "BLOCK_N": (16, 32, 64)}
    monkeypatch.setitem(tune_kernels.GRIDS, "grounding", grid)
    return table


def test_tuner_finds_the_fastest_correct_parameters(
    own_table: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = peers.GroundingCase(TINY, DEVICE)
    plain = peers.grounding

    def partly_broken(*args: Any) -> Any:
        use = own_table["grounding"][0]["use"]
        if use["QUERY_AXIS"] and use["BLOCK_N"] == 64:
            raise RuntimeError("out of resource: shared memory")
        p, grounding_map = plain(*args)
        return (p * 1.02, grounding_map) if not use["QUERY_AXIS"] else (p, grounding_map)

    said: list[str] = []
    monkeypatch.setattr(peers, "grounding", partly_broken)
    own_table["grounding"][0]["use"]["QUERY_AXIS"] = 1
    found = tune_kernels.tune("grounding", [case], 90, grounding_clock(), 60, said.append)
    best = own_table["grounding"][0]["use"]
    assert (best["QUERY_AXIS"], best["BLOCK_N"]) == (1, 32)
    assert found == [pytest.approx(100 * 0.9**2), None]
    text = "\n".join(said)
    assert "dropped" in text
    assert "out of resource: shared memory" in text
    assert "relative error 2.0e-02 of p" in text  # within what a benchmark lets pass
    assert "rule 1 {'bytes': 4}: serves none" in text
    measured_on = {"gpu": "none", "ms": {"grounding": found}}
    file = tune_kernels.write_table(90, tmp_path, measured_on)
    written = json.loads(file.read_text())
    assert written["measured"] == measured_on
    assert written["grounding"][0]["use"] == best
    own_table["measured"] = measured_on
    tune_kernels.write_table(90, tmp_path, {"gpu": "none", "ms": {"tail": [1.0]}})
    assert set(json.loads(file.read_text())["measured"]["ms"]) == {"grounding", "tail"}


def test_tuner_stops_at_its_time_limit(own_table: dict[str, Any]) -> None:
    case, said = peers.GroundingCase(TINY, DEVICE), []
    tune_kernels.tune("grounding", [case], 90, grounding_clock(), 0, said.append)
    assert own_table["grounding"][0]["use"]["BLOCK_N"] == 16
    assert "stopped at its time limit" in "\n".join(said)


@pytest.mark.parametrize("operator", tune_kernels.GRIDS)
@pytest.mark.parametrize("arch", tuning.ARCHITECTURES)
def test_tuner_knows_every_parameter_of_the_tables(operator: str, arch: int) -> None:
    for rule in tuning.table(arch)[operator]:
        assert set(rule["use"]) == set(tune_kernels.GRIDS[operator])


def test_sanitizer_script_launches_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Shape(2, 9, 4, "float16", 64, 4, tower=True)
    monkeypatch.setattr(sanitize_kernels, "PATCHES", [tower])  # one of the two for other forms
    monkeypatch.setattr(sanitize_kernels, "PICTURES", [SMALL_PHOTOS])
    ran = {title: kernels for title, kernels, right in sanitize_kernels.launches(DEVICE) if right}
    photos = str(SMALL_PHOTOS)
    assert list(ran) == [
        f"grounding {tower}", f"grounding {tower} per query", f"grounded_embedding {tower}",
        f"pooled_embedding {tower}", f"grounded_embedding {tower}-attention",
        f"pooled_embedding {tower}-attention", f"pooled_embedding {tower}-cls",
        f"preprocess {photos}", f"preprocess {photos}-bicubic", f"preprocess {photos}-lanczos",
    ]  # fmt: skip
    assert len({tuple(kernels) for kernels in ran.values()}) == len(ran) - 1  # attention's tail
    for title, kernels in ran.items():
        assert kernels, title
    view = torch.arange(24.0).view(2, 3, 4)[:, 1:]
    moved = sanitize_kernels.to_device(view, DEVICE)
    assert moved.stride() == view.stride()
    assert torch.equal(moved.cpu(), view)


def test_new_kernels_come_into_a_bundle_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(Bundle.open("tiny").path, tmp_path / "tiny")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    old = Bundle.open(path).manifest["gpu"]["kernels"]

    def compiled(folder: Path, *_: Any, stops: bool = False) -> tuple[Path, dict[str, Path]]:
        """The old ones but one, which changed; where it stops, half of them are there."""
        files = {}
        for file, entry in list(old["files"].items())[1:]:
            files[file] = folder / entry["file"]
            files[file].write_bytes(before[entry["file"]] + bytes(not files))
            if stops and len(files) == 9:
                raise KeyboardInterrupt
        (folder / "kernels.json").write_bytes(before["kernels.json"])
        return folder / "kernels.json", files

    monkeypatch.setattr(repack_kernels, "load_checkpoint", lambda name: None)
    monkeypatch.setattr(repack_kernels, "tail_kernels", partial(compiled, stops=True))
    with pytest.raises(KeyboardInterrupt):
        repack_kernels.repack(str(path))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    monkeypatch.setattr(repack_kernels, "tail_kernels", compiled)
    monkeypatch.setattr(repack_kernels, "write_whole", lambda *_: None)  # the old manifest
    with pytest.raises(BundleError):
        repack_kernels.repack(str(path))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.setattr(repack_kernels, "load_checkpoint", lambda name: None)
    monkeypatch.setattr(repack_kernels, "tail_kernels", compiled)
    repack_kernels.repack(str(path))
    Bundle.open(path).verify()
    first, *_ = old["files"].values()
    assert set(before) - {file.name for file in path.iterdir()} == {first["file"]}
    assert list(tmp_path.iterdir()) == [path]


def test_script_keeps_failures_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    planned = [
        gpu.Step("bad", python("print('why it failed'); raise SystemExit(3)"), 30),
        gpu.Step("slow", python(stubborn), 1.5),
        gpu.Step("absent", ["no-such-sanitizer"], 30),
        gpu.Step(
            "rest", python("import os; print('env', os.environ['ADDED'])"), None, {"ADDED": "1"}
        ),
    ]
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "steps", lambda *arguments: planned)
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "SHORTEST", 1)
    assert gpu.main(["--minutes", "1"]) == 1
    outcomes = {one["name"]: one for one in json.loads((tmp_path / "gpu.json").read_text())}
    assert [outcomes[name]["result"] for name in ("bad", "slow", "rest")] == [
        "failed", "time limit", "passed",
    ]  # fmt: skip
    assert outcomes["bad"]["code"] == 3
    assert outcomes["absent"]["result"] == "skipped: no-such-sanitizer is not installed"
    log = (tmp_path / "gpu.log").read_text()
    assert "why it failed" in log
    assert "env 1" in log
    assert "slow" in capsys.readouterr().out
    assert gpu.main(["--minutes", "0"]) == 1  # nothing has time left
    planned[:] = [gpu.Step("cut", python("import time; time.sleep(60)"), None)]
    assert gpu.main(["--minutes", "0.05"]) == 0  # what has no limit of its own may follow later


def test_script_leaves_out_what_was_measured(tmp_path: Path) -> None:
    results = kernel_report.Results(tmp_path, RUN)
    for row in perfect():
        results.add(row)
    (step,) = gpu.steps(["benchmarks"], tmp_path, resume=True)
    left_out = [part for part in step.command if part.startswith("--deselect=")]
    assert len(left_out) == 4  # two peers of two shapes; ours is measured again
    assert not any("tigerfg" in part for part in left_out)
    (step,) = gpu.steps(["benchmarks"], tmp_path, resume=False)
    assert not any(part.startswith("--deselect=") for part in step.command)


def run_benchmarks(results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """bench/test_kernels.py in a pytest of its own, without the interpreter."""
    # not a worker of pytest-xdist, for which pytest-benchmark would measure nothing
    kept = (name for name in os.environ if not name.startswith("PYTEST_XDIST"))
    environment = {**{name: os.environ[name] for name in kept}, "RESULTS_DIR": str(results)}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-m", "pytest", "bench/test_kernels.py", "--benchmark-only", "-q"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *options], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="with a CUDA device the benchmarks are measured")
def test_benchmarks_are_skipped_with_the_reason_without_a_gpu(tmp_path: Path) -> None:
    done = run_benchmarks(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no CUDA device: kernel speed is not measured on a CPU" in done.stdout
    assert re.search(r"^\d{3} skipped in", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_benchmarks_run_to_their_report(tmp_path: Path) -> None:
    done = run_benchmarks(tmp_path, "-p", "bench_dry_run")
    assert done.returncode == 0, done.stdout + done.stderr
    # 2 shapes of 7 contenders, 2 operators of 3, preprocessing of 3
    assert re.search(r"^23 passed in", done.stdout, re.MULTILINE)
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert len({row["test"] for row in rows}) == len(rows) == 23
    assert {row["ms"] for row in rows} == {100}
    replayed = {row["label"] for row in rows if row["replay_ms"] == 0.004}
    assert replayed == {row["label"] for row in rows if row["op"] == "grounding"}
    assert (tmp_path / "kernels.csv").exists()
    summary = done.stdout.split(" kernels ")[1]
    assert "1000 GB/s" in summary
    assert "no data    percent of copy bandwidth" in summary  # no batch of 256
    assert "1 of 1 measured" in summary  # errors, at the one shape
