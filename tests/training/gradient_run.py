"""The gradient of one step of every stage in float64, in one process or as a rank of torchrun.

As a program: `gradient_run.py FILE MICRO_BATCH` writes the summed gradients of all stages.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import tiny_run
import torch
from safetensors.torch import save_file
from torch import Tensor

from tigerfg.attention_crop import AttentionCrop
from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import BatchMaker, Draw
from tigerfg.training.config import LossWeights
from tigerfg.training.distributed import World, joined
from tigerfg.training.gradients import step_gradients
from tigerfg.training.item_stages import JointStage, RegionStage
from tigerfg.training.map_stage import MapStage
from tigerfg.training.stages import CropStage, Trainee, TrainingStage

# what items are looked at again by; stages without L_crop do not care
MODEL = dataclasses.replace(tiny_run.MODEL, attention_crop=AttentionCrop(0.3, 0.75))
KINDS = ("crops", "regions", "map", "joint")
SIZE, STEP = 11, 3  # rows of the batch: odd, so that ranks and chunks are of unequal size
ALONE = World(0, 1, torch.device("cpu"))


class Words:
    """Tokens without a tokenizer file."""

    def __call__(self, texts: list[str]) -> tuple[Any, Any]:
        ids = torch.tensor([[1 + tiny_run.WORDS.index(w) for w in t.split()] for t in texts])
        return ids.numpy(), torch.ones_like(ids, dtype=torch.bool).numpy()


def wide(value: Any) -> Any:
    """A (nested) dataclass of tensors with its floating-point tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    parts = {f.name: wide(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **parts)


class WideMaker(BatchMaker):
    """Batches in float64."""

    def start(self, *args: Any) -> Draw:
        draw = super().start(*args)
        crops, scenes = draw.crops, draw.scenes
        draw.crops, draw.scenes = lambda: wide(crops()), lambda: wide(scenes())
        return draw


def trainee() -> Trainee:
    """Random towers in which text and gates matter."""
    torch.manual_seed(0)
    made = Trainee(TigerFG(MODEL)).double()
    with torch.no_grad():
        for gate in (made.model.gate_pool, made.model.gate_text):
            gate.normal_(std=0.3)
    return made


def teacher() -> TigerFG:
    torch.manual_seed(1)
    return TigerFG(MODEL).double().requires_grad_(False)


def stage(kind: str, world: World = ALONE, weights: LossWeights | None = None) -> TrainingStage:
    pool = tiny_run.pool()
    pool.unknown_words = 0.0
    maker = WideMaker([pool], [1.0], MODEL, Words())
    if kind == "map":
        made = MapStage(trainee().model, maker, 5, 24, SIZE, world)
        make = made.make
        made.make = lambda *args: wide(make(*args))
        return made
    if kind == "joint":
        weights = weights or LossWeights(crop=0.5)
        return JointStage(maker, 5, SIZE, world.device, teacher(), weights)
    return (CropStage if kind == "crops" else RegionStage)(maker, 5, SIZE, world.device)


def gradients(
    kind: str, micro_batch: int | None, world: World = ALONE
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter that has one."""
    trained = trainee()
    losses = step_gradients(trained, stage(kind, world), STEP, SIZE, micro_batch, world)
    world.sum_gradients(list(trained.parameters()))
    named = trained.named_parameters()
    return losses, {name: p.grad for name, p in named if p.grad is not None}


def main() -> None:
    file, micro_batch = sys.argv[1], int(sys.argv[2]) or None
    found: dict[str, Tensor] = {}
    with joined("cpu", 60.0) as world:
        for kind in KINDS:
            losses, grads = gradients(kind, micro_batch, world)
            found |= {f"{kind}.loss.{name}": value for name, value in losses.items()}
            found |= {f"{kind}.{name}": value.contiguous() for name, value in grads.items()}
    save_file(found, f"{file}-{world.rank}")


if __name__ == "__main__":
    main()
