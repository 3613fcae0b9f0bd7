"""The training loop end to end at toy size: it learns, resumes to the bit, refuses bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tigerfg.errors import InputError
from tigerfg.model import load_checkpoint
from tigerfg.model.config import ModelConfig, TextConfig, VisionConfig
from tigerfg.training import loop
from tigerfg.training.loop import Stage, TrainConfig, train
from tigerfg.training.pool import Pool
from tigerfg.training.prepare import photo_pool, rendered_pool

SMALL = ModelConfig(
    vision=VisionConfig(width=40, depth=2, kernel=3),
    text=TextConfig(width=32, depth=1, vocab_size=600),
    query_size=32,
    item_size=64,
)
STAGES = (
    Stage("crops", 3, 8, 1e-3),
    Stage("regions", 3, 8, 1e-3),
    Stage("map", 3, 8, 1e-3),
    Stage("joint", 3, 8, 1e-3),
)


def config(out: Path, **changes: object) -> TrainConfig:
    values = {"model": SMALL, "stages": STAGES, "products": 24, "threads": 1, "save_seconds": 0.0}
    return TrainConfig(out=out, **{**values, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    train(config(out), show_progress=False)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def test_run_leaves_checkpoint_log_and_state(finished: Path) -> None:
    model = load_checkpoint(finished / "checkpoint")
    assert model.config == SMALL
    rows = [json.loads(line) for line in (finished / "training_log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"crops", "regions", "map", "joint"}
    assert {"nce", "region", "dense", "map", "relation"} <= set().union(*rows)
    assert any("cluttered_pointing" in row for row in rows)
    card = (finished / "checkpoint" / "MODEL_CARD.md").read_text()
    assert "24 procedurally rendered products" in card
    assert "No real photos." in card
    assert (finished / "checkpoint" / "training_log.jsonl").is_file()


@pytest.mark.parametrize("stop_at", [2, 4, 8, 10], ids=["crops", "regions", "map", "joint"])
def test_interrupted_run_resumes_to_the_bit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "pools").symlink_to(finished / "pools")
    saves = 0

    def interrupt(*args: object) -> None:
        nonlocal saves
        original(*args)
        saves += 1
        if saves == stop_at:
            raise KeyboardInterrupt

    original = loop.save_state
    monkeypatch.setattr(loop, "save_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(out), show_progress=False)
    monkeypatch.undo()
    train(config(out), resume=True, show_progress=False)
    for name, value in weights(finished).items():
        assert torch.equal(value, weights(out)[name]), name


def test_every_part_of_the_model_is_trained(finished: Path) -> None:
    torch.manual_seed(0)
    start = loop.start_model(config(finished)).state_dict()
    same = [name for name, value in weights(finished).items() if torch.equal(value, start[name])]
    # One text query a head starts at zero and only moves with the text's gradient; nothing
    # may stay as it was.
    assert same == []


def test_existing_run_is_not_overwritten_and_nothing_is_not_resumed(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="add --resume"):
        train(config(finished), show_progress=False)
    with pytest.raises(InputError, match="no state to resume"):
        train(config(tmp_path / "none"), resume=True, show_progress=False)


def test_joint_stage_alone_needs_a_teacher(tmp_path: Path) -> None:
    alone = config(tmp_path / "alone", stages=STAGES[3:])
    with pytest.raises(InputError, match="teacher"):
        train(alone, show_progress=False)


def test_clip_baseline_trains_from_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(SMALL, item_tower="global")
    init = finished / "checkpoint-1-regions"
    out = train(
        config(tmp_path / "clip", model=model, stages=STAGES[3:], init=init), show_progress=False
    )
    assert load_checkpoint(out).config.item_tower == "global"


def test_rendered_pool_is_the_same_for_any_number_of_workers() -> None:
    one = rendered_pool(10, 3, 32, 64, workers=1)
    two = rendered_pool(10, 3, 32, 64, workers=2)
    for field in dataclasses.fields(Pool):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert (a == b) if field.name == "texts" else np.array_equal(a, b)
    assert one.crops.shape == (30, 32, 32, 3)
    assert one.scenes.shape == (30, 64, 64, 3)
    inside = one.scene_boxes <= np.tile(one.scene_extents, (1, 2)) + 1.0
    assert inside.all()
    assert (one.scene_boxes[:, 2:] > one.scene_boxes[:, :2]).all()


def test_twins_come_together() -> None:
    pool = rendered_pool(60, 3, 16, 32, views=1, cluttered=1)
    rng = np.random.default_rng(0)
    together = 0
    for _ in range(50):
        chosen = set(pool.pick_products(20, rng).tolist())
        together += sum(int(pool.twins[p]) in chosen for p in chosen if pool.twins[p] >= 0)
        assert len(chosen) == 20
    twins = int((pool.twins >= 0).sum())
    # By chance a product's twin is among 20 of 60 in a third of the draws: 50 · twins / 9.
    assert together > 1.3 * 50 * twins / 9


@pytest.mark.data
@pytest.mark.slow
def test_photo_pool_holds_only_its_split(shared_data: Path) -> None:
    pool = photo_pool(shared_data / "grocery", "train", 32, 64, crops_per_photo=1, collages=20)
    assert pool.products == 81
    assert all(texts and texts[0] for texts in pool.texts)
    assert len(pool.crops) == 972 + 243 + 81
    assert len(pool.scenes) == 972 + 243 + 81 + 324 + 20


def test_photo_pool_refuses_a_split_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "standard").mkdir()
    for name in ("items", "queries"):
        (tmp_path / "standard" / f"{name}.jsonl").write_text("")
    with pytest.raises(InputError, match="split"):
        photo_pool(tmp_path, "train", 32, 64)
