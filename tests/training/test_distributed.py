"""Whole runs by torchrun on two CPU processes: one process's results, and resume after SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch import Tensor

from tigerfg.training.distributed import cores_of_rank
from tigerfg.training.loop import start_model
from tigerfg.training.prefetch import worker_count

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
PROGRAM = tiny_run.__file__


def command(
    out: Path, ranks: int, resume: bool, what: str = "go", *where: str, model: str = "conv"
) -> list[str]:
    launch = TORCHRUN if ranks > 1 else [sys.executable]
    return [*launch, PROGRAM, str(out), model, "resume" if resume else "new", what, *where]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    # a survivor that hung for ever would break the timeout
    return subprocess.run(
        command(*arguments, **options), capture_output=True, text=True, timeout=300
    )


def finished(out: Path, ranks: int, model: str = "conv") -> Path:
    done = run(out, ranks, False, model=model)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def fresh(tmp_path: Path, pools: Path) -> Path:
    out = tmp_path / "run"
    out.mkdir()
    (out / "pools").symlink_to(pools)
    return out


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pools")
    tiny_run.write_pools(out)
    return out / "pools"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> Path:
    """A run of two ranks that nobody disturbed."""
    return finished(fresh(tmp_path_factory.mktemp("two"), pools), 2)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, pools: Path) -> Path:
    return finished(fresh(tmp_path_factory.mktemp("one"), pools), 1)


def weights(out: Path, name: str = "checkpoint") -> dict[str, Tensor]:
    return load_file(out / name / "model.safetensors")


def log(out: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    for row in rows:
        del row["s"]
    return rows


def assert_same_losses(ours: Path, theirs: Path) -> None:
    rows, others = log(ours), log(theirs)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    curves = [
        (row, other)
        for row, other in zip(rows, others, strict=True)
        if "standard_r1" not in row  # a rank of an item may turn where two are nearly alike
    ]
    assert len(curves) == 2 * len(tiny_run.STAGES)
    for row, other in curves:
        assert row == pytest.approx(other, abs=5e-5)  # 1e-5 and less were seen


def test_a_rank_has_a_core_where_there_are_more_ranks_than_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert cores_of_rank() == 1
    assert worker_count(None, torch.device("cuda")) == 0


def test_two_ranks_train_like_one_process(tmp_path: Path, pools: Path) -> None:
    """The loss curve of all stages; test_gradients holds every step's gradient to 1e-12.

    Gradients differ by some 1e-7 of their norm. Muon orthogonalises them in bfloat16, where that
    may turn a digit, and makes up to a hundredth of a step of it: here it does so in float32.
    """
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = finished(fresh(tmp_path / "one", pools), 1, "conv-float32")
    two = finished(fresh(tmp_path / "two", pools), 2, "conv-float32")
    assert_same_losses(two, one)


@pytest.mark.slow
def test_two_ranks_train_the_weights_of_one_process(tmp_path: Path, pools: Path) -> None:
    """With AdamW alone, which orthogonalises nothing: the weights after every stage too.

    It divides a gradient by its own size, so a weight whose gradient is all rounding error
    moves by a random part of the learning rate: of the way that all weights went, less than a
    few thousandths may differ.
    """
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = finished(fresh(tmp_path / "one", pools), 1, "hf-adamw")
    two = finished(fresh(tmp_path / "two", pools), 2, "hf-adamw")
    assert_same_losses(two, one)
    torch.manual_seed(0)
    start = start_model(tiny_run.config(one, model=tiny_run.TRANSFORMER)).state_dict()
    for number, stage in enumerate(tiny_run.STAGES):
        a, b = (weights(out, f"checkpoint-{number}-{stage.kind}") for out in (two, one))
        differ = torch.cat([(a[name] - b[name]).flatten() for name in b]).norm()
        moved = torch.cat([(b[name] - start[name]).flatten() for name in b]).norm()
        assert differ <= 3e-3 * moved, stage.kind


def assert_undisturbed(out: Path, undisturbed: Path) -> None:
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(out)[name]), name
    assert log(out) == log(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_ranks_and_jobs_resume_to_the_bit(
    tmp_path: Path, pools: Path, two_ranks: Path
) -> None:
    """Killed once in every stage: now one rank, now the other, now everything."""
    out = fresh(tmp_path, pools)
    for resume, (rank, kind) in enumerate([("0", "crops"), ("1", "regions")]):
        done = run(out, 2, bool(resume), "die", rank, kind, "2")
        assert done.returncode != 0
        assert "SIGKILL" in done.stderr
        assert not (out / "checkpoint-2-map").exists()
    for kind in ("map", "joint"):
        kill_everything(out, kind)
    done = run(out, 2, True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_undisturbed(out, two_ranks)


def kill_everything(out: Path, kind: str) -> None:
    """Run until the middle of a stage, then SIGKILL torchrun and both ranks."""
    marker = out / "marker"
    marker.unlink(missing_ok=True)
    with open(out / "stderr.txt", "w") as errors:
        job = subprocess.Popen(command(out, 2, True, "hang", "0", kind, "1"), stderr=errors)
    deadline = time.monotonic() + 300
    while not marker.exists():
        assert job.poll() is None, (out / "stderr.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = [int((out / f"pid-{rank}").read_text()) for rank in range(2)]
    for pid in (job.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    job.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crops", "joint"])
def test_killed_process_resumes_to_the_bit(
    tmp_path: Path, pools: Path, one_rank: Path, kind: str
) -> None:
    out = fresh(tmp_path, pools)
    done = run(out, 1, False, "die", "0", kind, "2")
    assert done.returncode == -signal.SIGKILL
    done = run(out, 1, True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_undisturbed(out, one_rank)


@pytest.mark.slow
def test_command_runs_under_torchrun(tmp_path: Path, pools: Path) -> None:
    out = fresh(tmp_path, pools)
    settings = {
        "model": tiny_run.MODEL.to_dict(),
        "stages": [{"kind": "crops", "steps": 2, "batch": 6, "lr": 1e-3}],
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    told = ["--config", str(tmp_path / "settings.json"), "--precision", "bf16"]
    told += ["--micro-batch", "2", "--threads", "1"]
    done = subprocess.run(
        [*TORCHRUN, "-m", "tigerfg.cli", "train", "--out", str(out), *told],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint:") == 1
    card = (out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "bf16" in card
    assert "2 processes" in card
    assert list((out / "tensorboard").glob("events*"))
