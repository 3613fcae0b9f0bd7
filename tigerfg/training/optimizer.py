"""The optimiser of a stage: AdamW, its parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from tigerfg.training.config import Stage
from tigerfg.training.stages import Trainee

WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.98)
LOWEST = 0.02  # of the stage's rate, at its end


def make_optimizer(trainee: Trainee, stage: Stage, layer_decay: float = 1.0) -> torch.optim.AdamW:
    """AdamW; no decay on vectors; the backbone with its own rate; only what the stage trains.

    Args:
        layer_decay: factor of the rate from one block of an encoder to the one below it.
    """
    rates = {
        f"model.{part}.{name}": rate
        for part in ("vision", "text")
        for name, rate in layer_rates(getattr(trainee.model, part), layer_decay).items()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if stage.kind == "map" and not name.startswith(("model.text", "model.grounding")):
            continue
        rate = rates.get(name, 1.0)
        if name.startswith("model.vision"):
            rate *= stage.backbone_rate
        decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "rate": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=stage.lr, betas=BETAS, foreach=True)


def layer_rates(encoder: nn.Module, decay: float) -> dict[str, float]:
    """Learning-rate factor of every parameter of an encoder by its depth.

    With L blocks (the encoder's longest ModuleList), block i of 0..L-1 learns at decay^(L-i), what
    comes before the blocks (embeddings, stem) at decay^(L+1), what comes after them at 1.
    """
    lists = [(name, m) for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        return {}
    prefix, blocks = max(lists, key=lambda entry: len(entry[1]))
    inside = f"{prefix}."
    rates: dict[str, float] = {}
    power = len(blocks) + 1
    for name, _ in encoder.named_parameters():  # in the order in which the modules were made
        if name.startswith(inside):
            power = len(blocks) - int(name.removeprefix(inside).split(".")[0])
        elif power <= len(blocks):
            power = 0
        rates[name] = decay**power
    return rates


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> None:
    """Linear warm-up over a twentieth of the stage, then cosine to LOWEST."""
    warm = max(1, stage.steps // 20)
    if step < warm:
        factor = (step + 1) / warm
    else:
        part = (step - warm) / (stage.steps - warm)
        factor = LOWEST + (1.0 - LOWEST) * 0.5 * (1 + math.cos(math.pi * part))
    for group in optimizer.param_groups:
        group["lr"] = stage.lr * factor * group["rate"]
