"""The training loop end to end on rendered products; `tests/training` has the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tigerfg.model import load_checkpoint
from tigerfg.model.config import ModelConfig, TextConfig, VisionConfig
from tigerfg.training.loop import Stage, TrainConfig, train

SMALL = ModelConfig(
    vision=VisionConfig(width=40, depth=2, kernel=3),
    text=TextConfig(width=32, depth=1, vocab_size=600),
    query_size=32,
    item_size=64,
)
STAGES = tuple(Stage(kind, 3, 8, 1e-3) for kind in ("crops", "regions", "map", "joint"))


@pytest.mark.slow
def test_run_renders_its_products_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = TrainConfig(out=out, model=SMALL, stages=STAGES, products=24, threads=1)
    train(settings, show_progress=False)
    assert load_checkpoint(out / "checkpoint").config == SMALL
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"crops", "regions", "map", "joint"}
    assert any("cluttered_pointing" in row for row in rows)
    card = (out / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "24 procedurally rendered products" in card
    assert "No real photos." in card
