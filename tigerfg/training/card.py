"""The model card of a training run: what the model learnt from, how well, and what it can't do."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tigerfg.model.checkpoint import CARD
from tigerfg.training.config import LossWeights
from tigerfg.training.journal import LOG

if TYPE_CHECKING:
    from tigerfg.model.config import VisionConfig
    from tigerfg.training.config import Stage, TrainConfig
    from tigerfg.training.state import Progress

HELD_OUT = 512  # rendered products for validation, at most
SCORES = ("r1", "crop", "bound", "whole", "pointing")  # of the log, in the table's order
LITE = "EfficientNet-Lite0 backbone, its stem and first blocks as ImageNet left them"

TEMPLATE = """# Model card: {name}

TIGER-FG towers (arXiv 2605.18434), trained by `tigerfg train`: a cropped product photo and a full
item picture with text are embedded in one {dim}-dimensional space.

- Towers: {vision}, patch {patch} px, width {width}; queries {query_size} px, items {item_size} px,
  at most {max_length} text tokens.
- Item tower: {item_tower}; the picture at {item_levels} scale(s), each half the one before.
- Attention crop: {attention_crop}.

## What it was trained on

- {rendered}
- {photos}
- {start}
- {skipped}

## How

{stages}
{losses}
{minutes:.0f} minutes on {machine}, making the training pictures not counted. Encoders in
{precision}, everything after them in float32.{machinery}
Full log: `{log}` beside this card.

## How well, on {held_out} rendered products it has not seen (in %, one query a product)

| item pictures | Recall@1 | with crop | true-map bound | whole, no text | map's peak in target |
|---|---|---|---|---|---|
{scores}

"True-map bound": the item's patches pooled with the true target region instead of the map.
Figures on real photos are in the project's README.

## What it can't do

- It is small and saw few real photos: it tells colours, patterns and coarse shapes apart, not
  lettering, logos' details, or faces of similar packaging. Expect a demonstration, not a shop.
- Text: English product words of the training texts; other words are read in pieces and mean little.
- A target smaller than about a fifth of the item picture's side is hardly seen.
- People, scenes and anything that is no product were not in the training pictures.
"""


def write_card(config: TrainConfig, progress: Progress, ranks: int, one_view: int) -> None:
    """Write MODEL_CARD.md and the training log into `out/checkpoint`.

    Args:
        progress: of the finished run. ranks: number of processes.
        one_view: how many products of the photos have a single one.
    """
    out = Path(config.out)
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    scores = [row for row in rows if "standard_r1" in row][-1]
    model = config.model
    fields: dict[str, Any] = {
        "name": model.name,
        "dim": model.embedding_dim,
        "vision": _vision(model.vision),
        "patch": model.vision.patch,
        "width": model.vision.width,
        "query_size": model.query_size,
        "item_size": model.item_size,
        "max_length": model.text.max_length,
        "item_tower": model.item_tower,
        "item_levels": model.item_levels,
        "attention_crop": model.attention_crop or "none",
        "held_out": min(config.products, HELD_OUT),
        **_data(config, progress, one_view),
        "stages": "".join(
            f"- {s.kind}: {s.steps} steps of {s.batch}, {_rates(config, s)}\n"
            for s in config.stages
        ),
        "losses": _losses(config),
        "minutes": progress.seconds / 60,
        "precision": progress.precision,
        "machine": _machine(config, ranks),
        "machinery": _machinery(config),
        "log": LOG,
        "scores": "\n".join(
            f"| {layout} | " + " | ".join(_score(scores, layout, what) for what in SCORES) + " |"
            for layout in ("standard", "cluttered")
        ),
    }
    (out / "checkpoint" / CARD).write_text(TEMPLATE.format(**fields))
    shutil.copyfile(out / LOG, out / "checkpoint" / LOG)


def _score(scores: dict[str, Any], layout: str, what: str) -> str:
    value = scores.get(f"{layout}_{what}")
    return "–" if value is None else f"{value:.1f}"


def _vision(vision: VisionConfig) -> str:
    if vision.type == "conv":
        return f"conv backbone with {vision.depth} blocks"
    return LITE if vision.type == "lite" else f"backbone {vision.name}"


def _data(config: TrainConfig, progress: Progress, one_view: int) -> dict[str, str]:
    rendered = (
        f"{config.products} procedurally rendered products (seed {config.product_seed}; "
        "`tigerfg.benchmark.render`)."
    )
    if config.shards is not None:
        rendered = f"The training shards of the suite `{config.shards.name}`."
    photos = "No real photos."
    if config.photos:
        pairs = zip(config.photos, config.photo_shares, strict=True)
        parts = ", ".join(f"{100 * share:.3g}% `{path.resolve().name}`" for path, share in pairs)
        photos = (
            f"Real photos, split `{config.photos_split}`, of every batch {parts}: "
            "the photos, random crops, and collages."
        )
    if one_view:
        photos += f" Products with one view, whose pairs are crops of that: {one_view}."
    start = f"Nothing pretrained: all weights start from random numbers (seed {config.seed})."
    if config.init is not None:
        start = f"Starts from the checkpoint `{config.init.name}` (seed {config.seed})."
    elif config.pretrained:
        names = [part.name for part in (config.model.vision, config.model.text) if part.name]
        if config.model.vision.type == "lite":
            names.insert(0, "the ImageNet weights of EfficientNet-Lite0")
        start = f"Starts from {' and '.join(names)} (seed {config.seed})."
    counts = ", ".join(f"{reason}: {n}" for reason, n in sorted(progress.skipped.items()))
    skipped = f"Left out because they cannot be used: {counts or 'none'}."
    return {"rendered": rendered, "photos": photos, "start": start, "skipped": skipped}


def _rates(config: TrainConfig, stage: Stage) -> str:
    """The optimisers of a stage with their learning rates, see `make_optimizer`."""
    rate = stage.backbone_rate
    slower = stage.kind != "map" and rate != 1.0  # stage map leaves the backbone as it is
    muon, adamw = f"{stage.matrix_lr:g}", f"{stage.lr:g}"
    if slower and config.model.vision.type == "conv":
        muon += f" ({stage.matrix_lr * rate:g} in the backbone)"
    if slower:
        adamw += f" ({stage.lr * rate:g} in the backbone)"
    return f"learning rates: Muon {muon} for matrices, AdamW {adamw} for the rest"


def _losses(config: TrainConfig) -> str:
    """The weights of the joint stages' losses that are not the usual ones."""
    usual, given = asdict(LossWeights()), asdict(config.weights)
    other = [f"{k} {v:g} (not {usual[k]:g})" for k, v in given.items() if v != usual[k]]
    return f"Loss weights: {', '.join(other) or 'the usual ones'}."


def _machine(config: TrainConfig, ranks: int) -> str:
    gpu = config.device != "cpu" and torch.cuda.is_available()
    one = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} CPU threads"
    return one if ranks == 1 else f"{ranks} processes, {one} each"


def _machinery(config: TrainConfig) -> str:
    told = []
    if config.micro_batch is not None:
        told.append(f"Gradient caching, {config.micro_batch} rows at once.")
    if config.teacher == "ema":
        told.append(f"The teacher follows with decay {config.teacher_decay:g}.")
    if config.layer_decay != 1.0:
        told.append(f"Layer-wise learning-rate decay {config.layer_decay:g}.")
    return "".join(f" {part}" for part in told)
