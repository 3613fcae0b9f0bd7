"""A training run of seconds: random pictures in the pools, a model of a few thousand weights.

As a program it trains, and kills itself or stops where it is told to:
`python tiny_run.py OUT MODEL RESUME WHAT [RANK STAGE STEP]`, MODEL: conv | conv-float32 (Muon in
float32) | hf-adamw (without Muon), WHAT: go | die | hang.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tigerfg.model.config import GroundingConfig, ModelConfig, TextConfig, VisionConfig
from tigerfg.training import loop, optimizer
from tigerfg.training.config import LossWeights, Stage, TrainConfig
from tigerfg.training.inputs import pool_names
from tigerfg.training.pool import Pool

MODEL = ModelConfig(
    vision=VisionConfig(width=40, depth=2, kernel=3),
    text=TextConfig(width=32, depth=1, vocab_size=400, max_length=16),
    grounding=GroundingConfig(heads=5),
    embedding_dim=32,
    query_size=32,
    item_size=64,
    item_levels=2,
)
TRANSFORMER = replace(
    MODEL,
    vision=VisionConfig(
        type="hf",
        width=40,
        hf_config={
            "model_type": "dinov3_vit",
            "patch_size": 8,
            "hidden_size": 40,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_register_tokens": 1,
        },
    ),
)
STAGES = tuple(Stage(kind, 4, 10, 1e-3) for kind in ("crops", "regions", "map", "joint"))
WORDS = ["red", "green", "blue", "round", "square", "tall", "tin", "bag", "shoe", "lamp"]


def pool(
    products: int = 30,
    views: int = 3,
    cluttered: int = 2,
    seed: int = 0,
    model: ModelConfig = MODEL,
) -> Pool:
    """Random pictures; one scene in seven has no box where there are several views."""
    rng = np.random.default_rng(seed)
    q, s, scenes = model.query_size, model.item_size, products * (1 + cluttered)
    owners = np.arange(scenes, dtype=np.int32) // (1 + cluttered)
    corner = rng.uniform(0, s // 2, (scenes, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, s // 2, (scenes, 2))], axis=1)
    others = rng.uniform(0, s, (scenes, 1)) * [0, 0, 1, 1] * (rng.random((scenes, 1)) < 0.6)
    if views > 1:
        boxes[rng.random(scenes) < 1 / 7] = 0.0

    def pictures(count: int, size: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)

    texts = [[" ".join(rng.choice(WORDS, 5)) for _ in range(4)] for _ in range(products)]
    return Pool(
        crops=pictures(products * views, q),
        crop_extents=np.full((products * views, 2), q, np.float32),
        crop_products=np.arange(products * views, dtype=np.int32) // views,
        scenes=pictures(scenes, s),
        scene_extents=np.full((scenes, 2), s, np.float32),
        scene_products=owners,
        scene_boxes=boxes.astype(np.float32),
        other_boxes=others.astype(np.float32),
        other_products=np.where(others.any(axis=1), np.roll(owners, -1 - cluttered), -1),
        cluttered=others.any(axis=1),
        twins=np.full(products, -1, np.int32),
        texts=texts,
        anchors=[[] for _ in texts],
    )


def write_pools(out: Path, model: ModelConfig = MODEL) -> None:
    """What the loop would render."""
    names = pool_names(config(out, model=model))
    pool(model=model).save(out / "pools" / names["rendered"])
    held_out = pool(8, views=1, cluttered=1, seed=1, model=model)
    held_out.save(out / "pools" / names["held_out"])


def config(out: Path, **changes: Any) -> TrainConfig:
    values = {
        "model": MODEL,
        "stages": STAGES,
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "save_seconds": 0.0,
        "rank_timeout": 60.0,
        "weights": LossWeights(relation=0.7),
    }
    return TrainConfig(out=out, **{**values, **changes})


def interrupt_at(what: str, rank: int, kind: str, step: int, marker: Path) -> None:
    """In the middle of this step of this rank: die by SIGKILL, or hang with every pid on file."""
    original = loop.step_gradients

    def interrupted(trainee: Any, stage: Any, at: int, *rest: Any) -> Any:
        result = original(trainee, stage, at, *rest)
        here = type(stage).__name__.lower().startswith(kind[:4])
        if here and at == step and int(os.environ.get("RANK", "0")) == rank:
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            marker.write_text("here")
            time.sleep(600)
        return result

    loop.step_gradients = interrupted


def main() -> None:
    out, model, resume, what, *where = sys.argv[1:]
    if what != "go":
        interrupt_at(what, int(where[0]), where[1], int(where[2]), Path(out) / "marker")
    (Path(out) / f"pid-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    if model == "hf-adamw":
        optimizer.takes_muon = lambda *_: False
    if model == "conv-float32":
        torch.Tensor.bfloat16 = torch.Tensor.float
    settings = config(Path(out), model=TRANSFORMER if model == "hf-adamw" else MODEL)
    loop.train(settings, resume == "resume", show_progress=False)


if __name__ == "__main__":
    main()
