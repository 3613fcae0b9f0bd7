"""``tigerfg train``: train a model; needs the extra ``train``."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tigerfg.cli import options
from tigerfg.cli.console import shown_path
from tigerfg.cli.training_extra import need_torch

if TYPE_CHECKING:
    from tigerfg.training.config import TrainConfig


def command(
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The run's directory.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Model preset: tiny, small, lite or base. Without: the model of --init, or tiny.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            exists=True,
            dir_okay=False,
            help='JSON with fields of the training configuration, e.g. {"products": 2000, '
            '"model": {"item_tower": "global"}}; "model" changes that of --preset or --init.',
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            exists=True,
            file_okay=False,
            help="Real photos beside the rendered products: a catalogue directory, or one that "
            "holds standard/ and cluttered/; repeat for several.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="What to start from: a checkpoint or bundle directory, or a shipped model's name.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the state in --out.")
    ] = False,
    shards: Annotated[
        Path | None,
        typer.Option(
            "--shards",
            exists=True,
            file_okay=False,
            help="A suite made by `tigerfg suite`: train on its shards, not on rendered products.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="fp32, bf16, or auto: bf16 where the hardware has it."),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            min=1,
            help="Encode so many rows at once: same gradient, less memory, a second forward pass.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="frozen, or ema: follows the trained weights."),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option("--layer-decay", help="Each block learns this much slower than the next."),
    ] = None,
    threads: options.Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Processes that make batches ahead; cores to spare on a GPU, none on the CPU.",
        ),
    ] = None,
) -> None:
    """Train a model in stages; writes its checkpoints, log and state to --out.

    Over several processes: torchrun --nproc-per-node=2 -m tigerfg.cli train ...
    """
    need_torch("tigerfg train")
    from tigerfg.training.loop import train

    logging.basicConfig(format="%(message)s")
    logging.getLogger("tigerfg").setLevel(logging.INFO)
    told = {
        "photos": data or None,
        "init": init,
        "threads": threads,
        "workers": workers,
        "shards": shards,
        "precision": precision,
        "micro_batch": micro_batch,
        "teacher": teacher,
        "layer_decay": layer_decay,
    }
    settings = train_config(config, preset, out, {k: v for k, v in told.items() if v is not None})
    checkpoint = train(settings, resume=resume)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"checkpoint: {shown_path(checkpoint)}")


def train_config(
    file: Path | None, preset: str | None, out: Path, told: dict[str, Any]
) -> TrainConfig:
    """The training configuration: the preset or init's model, changed by the file and ``told``.

    Raises:
        InputError: the file is no JSON object, or a field does not exist or has a wrong value; no
            such init; shards that cannot be trained on.
    """
    from tigerfg.errors import InputError
    from tigerfg.model.checkpoint import load_config
    from tigerfg.model.config import preset as model_preset
    from tigerfg.settings import build
    from tigerfg.training.config import TrainConfig
    from tigerfg.training.shards import training_manifest

    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except ValueError as error:
        raise InputError(f"{file}: no JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: no JSON object with training settings")
    if "out" in values:
        raise InputError("out: it is no setting of a file; give --out")
    changes = values.pop("model", {})
    if not isinstance(changes, dict):
        raise InputError(f"{file}: model is no JSON object that changes a model")
    values |= told
    init = values.get("init")
    further = not preset and isinstance(init, (str, Path))  # what else it is, build refuses
    start = load_config(init) if further else model_preset(preset or "tiny")
    model = start.to_dict()
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(model.get(name), dict)
        model[name] = {**model[name], **value} if both else value
    config = build(TrainConfig, {**values, "out": out, "model": model}, own=["out"])
    if config.shards is not None:
        training_manifest(config.shards)  # refused now, not after pictures were rendered
    return config
