"""Training state on disk: one safetensors file, replaced atomically; no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tigerfg.errors import InputError
from tigerfg.files import whole_file
from tigerfg.training.optimizer import Optimizer
from tigerfg.training.stages import Trainee
from tigerfg.training.teacher import Teacher

STATE = "state.safetensors"


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        recipe: what defines the run, see `recipe_of`.
        stage, step: the stage in progress and the steps of it already done.
        learnt: whether a step of this stage had a gradient.
        seconds: of training, all stages. precision: what the encoders run in.
        log_bytes: length of the log. skipped: what data could not be used, reason -> count; what
            a process comes upon again after a resume, it counts again.
        told: whether the log tells of all that was skipped.
    """

    recipe: dict[str, Any]
    stage: int = 0
    step: int = 0
    learnt: bool = False
    seconds: float = 0.0
    precision: str = "fp32"
    log_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    told: bool = True


def save_state(
    file: Path,
    trainee: Trainee,
    optimizer: Optimizer,
    teacher: Teacher | None,
    progress: Progress,
) -> None:
    """Write model, optimiser, teacher and progress to `file`, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in trainee.state_dict().items()}
    for name, parameter in trainee.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    if teacher is not None:
        tensors |= {f"teacher.{name}": value for name, value in teacher.state().items()}
    metadata = {"progress": json.dumps(asdict(progress))}
    with whole_file(file) as part:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, metadata)


def load_progress(file: Path) -> Progress:
    """Read the progress of a saved state.

    Raises:
        InputError: no state there, or a damaged one.
    """
    try:
        with safe_open(file, "pt") as opened:
            return Progress(**json.loads((opened.metadata() or {})["progress"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"resume: {file} holds no training state ({error})") from error


def load_state(file: Path, trainee: Trainee, optimizer: Optimizer, teacher: Teacher | None) -> None:
    """Restore what `save_state` wrote, for the same model, stage and teacher.

    Raises:
        InputError: the state is of another model.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "teacher": {}}
    with safe_open(file, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a mapping
            kind, name = key.split(".", 1)
            groups[kind][name] = opened.get_tensor(key).clone()  # aligned like torch's own
    try:
        trainee.load_state_dict(groups["model"])
        if teacher is not None:
            teacher.restore(groups["teacher"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"resume: {file} is of another model: {reason}") from error
    device = trainee.log_scale.device
    parameters = dict(trainee.named_parameters())
    for key, value in groups["optimizer"].items():
        what, name = key.split(".", 1)
        # AdamW keeps its step count on the CPU
        value = value if what == "step" else value.to(device)
        optimizer.state.setdefault(parameters[name], {})[what] = value
