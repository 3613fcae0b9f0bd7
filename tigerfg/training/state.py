"""Training state on disk: safetensors and JSON, replaced atomically; no pickle."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tigerfg.errors import InputError
from tigerfg.training.stages import Trainee

STATE_TENSORS, STATE_JSON = "state.safetensors", "state.json"


@dataclass
class Progress:
    """Where training stands: the stage in progress and the steps of it already done."""

    stage: int
    step: int
    seconds: float


def save_state(
    directory: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write model, optimiser and progress to `directory`, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in trainee.state_dict().items()}
    for name, parameter in trainee.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    staged = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, staged / STATE_TENSORS)
    (staged / STATE_JSON).write_text(json.dumps(vars(progress)))
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.rename(directory, old)
    os.rename(staged, directory)
    shutil.rmtree(old, ignore_errors=True)


def load_progress(directory: Path) -> Progress:
    """Read the progress of a saved state."""
    try:
        data = json.loads((directory / STATE_JSON).read_text())
        return Progress(data["stage"], data["step"], data["seconds"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"resume: {directory} holds no training state ({error})") from error


def load_state(directory: Path, trainee: Trainee, optimizer: torch.optim.Optimizer) -> None:
    """Restore what `save_state` wrote; the optimiser must have the same parameter groups."""
    tensors = load_file(directory / STATE_TENSORS)
    trainee.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    for name, parameter in trainee.named_parameters():
        state = {
            key.split(".", 2)[1]: value.clone()  # aligned like the optimiser's own
            for key, value in tensors.items()
            if key.startswith("optimizer.") and key.split(".", 2)[2] == name
        }
        if state:
            optimizer.state[parameter] = state
