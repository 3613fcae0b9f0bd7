"""What defines a training run, as JSON in its state: a run is resumed as what it was.

Ranks, threads and `micro_batch` may change: they are what a machine has room for, and only change
the order of sums.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tigerfg.errors import InputError
from tigerfg.model.checkpoint import fingerprint
from tigerfg.training.config import TrainConfig
from tigerfg.training.photos import photos_digest
from tigerfg.training.shards import manifest_digest

FIELDS = (
    "model",
    "stages",
    "weights",
    "seed",
    "products",
    "product_seed",
    "photos",
    "photos_split",
    "photo_share",
    "photo_crops",
    "photo_collages",
    "shards",
    "init",
    "pretrained",
    "teacher",
    "teacher_decay",
    "map_cache_gib",
    "layer_decay",
)


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """What a run's result depends on, but for precision and the order of sums, as JSON holds it.

    Of directories it is the name, with a digest of the data or of the weights that it starts from:
    a run may be moved together with them, and they must stay what they were.

    Raises:
        InputError: the data, or the weights, are not there.
    """
    values = dataclasses.asdict(config)
    values |= {"model": config.model.to_dict(), "weights": config.weights.to_dict()}
    if config.init is not None:
        values["init"] = _held(config.init, "weights", fingerprint(config.init)[:12])
    values["photos"] = [_held(photos, "data", photos_digest(photos)) for photos in config.photos]
    if config.shards is not None:
        values["shards"] = _held(config.shards, "data", manifest_digest(config.shards))
    return json.loads(json.dumps({name: values[name] for name in FIELDS}, default=_name))


def check_recipe(saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Compare a saved run's recipe with that of the run that is to go on.

    Raises:
        InputError: they differ; it names the first field that does.
    """
    before, now = _flat("", saved), _flat("", asked)
    if str(now.get("init")).startswith(f"{before.get('init')} with weights "):
        now["init"] = before["init"]  # of a run that noted the name alone
    for field in sorted(before | now):
        was, given = before.get(field, "absent"), now.get(field, "absent")
        if was != given:
            raise InputError(
                f"resume: {field} is {given}, and was {was} when the run began; resume it as it "
                "was, or start another in a new directory"
            )


def _held(path: Path, what: str, digest: str) -> str:
    return f"{_name(path)} with {what} {digest}"


def _name(path: Path) -> str:
    return path.resolve().name


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested dicts and lists as dotted names: {"stages.0.lr": 0.002, ...}."""
    if not isinstance(value, (dict, list)) or not value:
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    dot = f"{name}." if name else ""
    return {k: v for key, part in parts for k, v in _flat(f"{dot}{key}", part).items()}
