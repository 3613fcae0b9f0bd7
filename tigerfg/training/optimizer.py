"""The optimiser of a stage: AdamW and Muon, parameter groups, the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from tigerfg.model.config import ModelConfig
from tigerfg.training.config import Stage
from tigerfg.training.stages import Trainee

WEIGHT_DECAY, BETAS = 0.05, (0.9, 0.98)
LOWEST = 0.02  # of the stage's rate, at its end
QUERY_MATRICES = tuple(f"model.grounding.{name}.weight" for name in ("project_text", "w_q", "w_k"))


class Optimizers:
    """AdamW and Muon (Jordan et al. 2024), each with its own parameters, stepped as one.

    Attributes:
        param_groups: of both; "base" is a group's rate before the schedule. state: of both.
    """

    def __init__(self, adamw: torch.optim.AdamW, muon: torch.optim.Muon) -> None:
        self._parts = (adamw, muon)
        muon.state = self.state = adamw.state  # one mapping: the parameters differ
        self.param_groups = [*adamw.param_groups, *muon.param_groups]

    def step(self) -> None:
        for part in self._parts:
            part.step()


Optimizer = torch.optim.AdamW | Optimizers


def make_optimizer(trainee: Trainee, stage: Stage, layer_decay: float = 1.0) -> Optimizer:
    """AdamW; no decay on vectors; the backbone with its own rate; only what the stage trains.

    Matrices that start from random numbers take Muon (`takes_muon`). In trials the loss after 80
    steps of stage crops was 2.87, that of AdamW 4.06; after 200 steps of stage map the map pointed
    at the target of unseen cluttered pictures in 72 %, that of AdamW in 53 %.

    Args:
        layer_decay: factor of the rate from one block of an encoder to the one below it.
    """
    rates = {
        f"model.{part}.{name}": rate
        for part in ("vision", "text")
        for name, rate in layer_rates(getattr(trainee.model, part), layer_decay).items()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    matrices: dict[float, list[nn.Parameter]] = {}
    for name, parameter in _trained(trainee, stage):
        rate = rates.get(name, 1.0)
        if name.startswith("model.vision"):
            rate *= stage.backbone_rate
        if takes_muon(name, parameter, trainee.model.config):
            matrices.setdefault(rate, []).append(parameter)
            continue
        decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "base": stage.lr * rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    adamw = torch.optim.AdamW(settings, lr=stage.lr, betas=BETAS, foreach=True)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        [
            {"params": parameters, "base": stage.matrix_lr * rate}
            for rate, parameters in matrices.items()
        ],
        lr=stage.matrix_lr,
        weight_decay=WEIGHT_DECAY,
    )
    return Optimizers(adamw, muon)


def takes_muon(name: str, parameter: nn.Parameter, config: ModelConfig) -> bool:
    """Matrices of our own encoders' blocks, and those that make the grounding's queries.

    Not the matrices that start as the identity, embedding tables, nor pretrained encoders.
    """
    if parameter.ndim != 2:
        return False
    if name.startswith("model.vision."):
        return config.vision.type == "conv"
    if name.startswith("model.text."):
        return config.text.type == "transformer" and ".blocks." in name
    return name in QUERY_MATRICES


def _trained(trainee: Trainee, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a stage trains, by name."""
    for name, parameter in trainee.named_parameters():
        if stage.kind != "map" or name.startswith(("model.text", "model.grounding")):
            yield name, parameter


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


def set_rate(optimizer: Optimizer, stage: Stage, step: int) -> None:
    """Linear warm-up over a twentieth of the stage, then cosine to LOWEST."""
    warm = max(1, stage.steps // 20)
    if step < warm:
        factor = (step + 1) / warm
    else:
        part = (step - warm) / (stage.steps - warm)
        factor = LOWEST + (1.0 - LOWEST) * 0.5 * (1 + math.cos(math.pi * part))
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
