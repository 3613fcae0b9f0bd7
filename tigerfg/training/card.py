"""The model card of a training run: what the model learnt from, how well, and what it can't do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tigerfg.training.loop import TrainConfig

HELD_OUT = 512  # rendered products for validation, at most
CARD, LOG = "MODEL_CARD.md", "training_log.jsonl"

TEMPLATE = """# Model card: {name}

TIGER-FG towers (arXiv 2605.18434), trained by `tigerfg train`: a cropped product photo and a full
item picture with text are embedded in one {dim}-dimensional space.

- Towers: {vision}, patch {patch} px, width {width}; queries {query_size} px, items {item_size} px,
  at most {max_length} text tokens.
- Item tower: {item_tower}.

## What it was trained on

- {products} procedurally rendered products (seed {product_seed}; `tigerfg.benchmark.render`).
- {photos}
- Nothing pretrained: all weights start from random numbers (seed {seed}).

## How

{stages}
{minutes:.0f} minutes on {threads} CPU threads, making the training pictures not counted.
Full log: `{log}` beside this card.

## How well, on {held_out} rendered products it has not seen (in %, one query a product)

| item pictures | Recall@1 | true-map bound | whole picture, no text | map's peak in target |
|---|---|---|---|---|
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


def write_card(config: TrainConfig, out: Path) -> None:
    """Write MODEL_CARD.md and the training log into `out/checkpoint`."""
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    scores = [row for row in rows if "standard_r1" in row][-1]
    model = config.model
    photos = "No real photos."
    if config.photos is not None:
        photos = (
            f"Real photos of `{config.photos.name}`, split `{config.photos_split}`, "
            f"{config.photo_share:.0%} of every batch: the photos, random crops, and collages."
        )
    fields: dict[str, Any] = {
        "name": model.name,
        "dim": model.embedding_dim,
        "vision": f"{model.vision.type} backbone with {model.vision.depth} blocks"
        if model.vision.type == "conv"
        else f"backbone {model.vision.name}",
        "patch": model.vision.patch,
        "width": model.vision.width,
        "query_size": model.query_size,
        "item_size": model.item_size,
        "max_length": model.text.max_length,
        "item_tower": model.item_tower,
        "products": config.products,
        "product_seed": config.product_seed,
        "held_out": min(config.products, HELD_OUT),
        "photos": photos,
        "seed": config.seed,
        "stages": "".join(
            f"- {s.kind}: {s.steps} steps of {s.batch}, learning rate {s.lr:g}\n"
            for s in config.stages
        ),
        "minutes": rows[-1]["s"] / 60,
        "threads": config.threads or "all",
        "log": LOG,
        "scores": "\n".join(
            f"| {layout} | "
            + " | ".join(f"{scores[f'{layout}_{k}']:.1f}" for k in ("r1", "bound", "whole"))
            + f" | {scores[f'{layout}_pointing']:.1f} |"
            for layout in ("standard", "cluttered")
        ),
    }
    (out / "checkpoint" / CARD).write_text(TEMPLATE.format(**fields))
    shutil.copyfile(out / LOG, out / "checkpoint" / LOG)
