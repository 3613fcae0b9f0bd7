"""Checkpoints: a directory with config.json, model.safetensors and tokenizer.json. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tigerfg.errors import InputError
from tigerfg.model.config import ModelConfig
from tigerfg.model.towers import TigerFG

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def save_checkpoint(model: TigerFG, tokenizer_file: str | Path, directory: str | Path) -> Path:
    """Write a checkpoint directory whole or not at all; an older one there is replaced.

    Args:
        model: the model; weights are stored as float32.
        tokenizer_file: a tokenizer.json of the `tokenizers` library.
        directory: where the checkpoint goes.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temp:
        staged = Path(temp) / "checkpoint"
        staged.mkdir()
        (staged / CONFIG).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        weights = {
            name: value.detach().float().contiguous().cpu()
            for name, value in model.state_dict().items()
        }
        save_file(weights, staged / WEIGHTS)
        shutil.copyfile(tokenizer_file, staged / TOKENIZER)
        old = Path(temp) / "old"
        if directory.exists():
            os.rename(directory, old)
        os.rename(staged, directory)
    return directory


def load_checkpoint(directory: str | Path) -> TigerFG:
    """Load a checkpoint directory to a float32 model in evaluation mode on the CPU.

    Raises:
        InputError: not a checkpoint, a file missing or damaged, or weights that do not fit.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (directory / name).is_file():
            raise InputError(f"checkpoint: {directory} has no {name}; give a checkpoint directory")
    try:
        config = ModelConfig.from_dict(json.loads((directory / CONFIG).read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"checkpoint: {directory / CONFIG} is not JSON ({error})") from error
    try:
        weights = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint: {directory / WEIGHTS} is damaged ({error})") from error
    model = TigerFG(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(expected.keys() ^ found.keys()) or sorted(
            name for name in expected if expected[name] != found[name]
        )
        raise InputError(
            f"checkpoint: {directory / WEIGHTS} does not fit config.json (e.g. {wrong[0]}); "
            "take both files from one training run"
        )
    model.load_state_dict(weights)  # copied: what safetensors reads is not aligned in memory
    return model.eval().requires_grad_(False)


def fingerprint(directory: str | Path) -> str:
    """SHA-256 over config, weights and tokenizer: two checkpoints agree if they embed alike."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        digest.update(hashlib.sha256((Path(directory) / name).read_bytes()).digest())
    return digest.hexdigest()
