"""A dry run of the training benchmark on the CPU: its rows, what a cut leaves, what it refuses."""

# ruff: noqa: E402
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))  # scripts beside the package, not part of it
sys.path.append(str(ROOT / "tests" / "training"))

import tiny_run
import training_bench

from tigerfg.model import ModelConfig
from tigerfg.training.prepare import rendered_pool


def rows_of(folder: Path) -> list[tuple[str, str]]:
    rows = json.loads((folder / "training_cpu.json").read_text())["rows"]
    return [(row["preset"], row["precision"]) for row in rows]


def run(folder: Path, *options: str) -> int:
    small = ("--batch", "4", "--products", "6", "--seconds", "0.01", "--device", "cpu")
    return training_bench.main([*options, *small, "--results", str(folder)])


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Presets are models of a few thousand weights; holds the sizes of every pool rendered."""
    sizes: list[tuple[int, ...]] = []

    def preset(name: str) -> ModelConfig:
        return replace(tiny_run.MODEL, name=name)

    def render(products: int, seed: int, *of: int, workers: int, **options: Any) -> Any:
        sizes.append(of)
        return rendered_pool(products, seed, *of, workers=1, **options)

    monkeypatch.setattr(training_bench, "preset", preset)
    monkeypatch.setattr(training_bench, "rendered_pool", render)
    training_bench.training_pictures.cache_clear()
    return sizes


def test_rows_are_written_one_by_one_the_most_telling_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rendered: list[tuple[int, ...]],
) -> None:
    measure, folder = training_bench.measure, tmp_path / "new" / "folder"

    def cut_off(config: ModelConfig, precision: str, *rest: Any) -> dict[str, Any]:
        if precision == "fp32":
            raise KeyboardInterrupt
        return measure(config, precision, *rest)

    monkeypatch.setattr(training_bench, "measure", cut_off)
    assert run(folder, "--presets", "tiny", "base") == 1
    assert rows_of(folder) == [("tiny", "bf16"), ("base", "bf16")]
    assert rendered == [(32, 64)]  # once for both
    printed = capsys.readouterr().out
    assert "cut off" in printed
    assert printed.count(" bf16 |") == 2

    monkeypatch.setattr(training_bench, "measure", measure)
    assert run(folder, "--presets", "tiny", "--precisions", "fp32") == 0
    assert rows_of(folder) == [("tiny", "bf16"), ("base", "bf16"), ("tiny", "fp32")]
    row = json.loads((folder / "training_cpu.json").read_text())["rows"][-1]
    assert row["step_s"] > 0
    assert row["loop_s"] > 0


def test_an_unknown_preset_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "new", "--presets", "tiny", "nope") == 1
    assert capsys.readouterr().out.splitlines() == [
        "preset: 'nope' is unknown; choose tiny, small, lite or base"
    ]
    assert not (tmp_path / "new").exists()
