"""Checkpoints: a directory with config.json, model.safetensors and tokenizer.json. No pickle.

A bundle that holds its parameters serves as one: `tigerfg.model.bundled`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tigerfg.bundle import MANIFEST_FILE, Bundle, shipped
from tigerfg.errors import InputError
from tigerfg.files import publish
from tigerfg.model.bundled import bundle_config, bundle_weights
from tigerfg.model.config import ModelConfig
from tigerfg.model.towers import TigerFG

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CARD = "MODEL_CARD.md"


def save_checkpoint(
    model: TigerFG, tokenizer_file: str | Path, directory: str | Path, card: str | None = None
) -> Path:
    """Write a checkpoint directory whole or not at all; an older one there is replaced.

    Args:
        model: the model; weights are stored as float32.
        tokenizer_file: a tokenizer.json of the `tokenizers` library.
        directory: where the checkpoint goes.
        card: its MODEL_CARD.md.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temp:
        staged = Path(temp) / "checkpoint"
        staged.mkdir()
        (staged / CONFIG).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        (staged / WEIGHTS).write_bytes(save(parameters(model)))  # readable as any new file is
        if card is not None:
            (staged / CARD).write_text(card, encoding="utf-8")
        shutil.copyfile(tokenizer_file, staged / TOKENIZER)
        publish(staged, directory, Path(temp) / "old")
    return directory


def parameters(model: TigerFG) -> dict[str, Tensor]:
    """Name -> the model's parameters as they are stored: float32, contiguous, on the CPU."""
    return {
        name: value.detach().float().contiguous().cpu()
        for name, value in model.state_dict().items()
    }


def find_checkpoint(source: str | Path) -> Path:
    """The directory of a checkpoint, or of a bundle that serves as one.

    tokenizer.json, MODEL_CARD.md and training_log.jsonl lie in both.

    Args:
        source: the directory, or the name of a shipped bundle. A directory goes before a name.

    Raises:
        InputError: neither. BundleError: that of a shipped bundle, see `Bundle.open`.
    """
    path = Path(source)
    if (path / CONFIG).is_file() or (path / MANIFEST_FILE).is_file():
        return path.resolve()  # a path, even where a shipped bundle has this name
    names = f"a checkpoint or bundle directory, or the name of a shipped model, {shipped()}"
    if path.is_dir():
        raise InputError(f"checkpoint: {path} has no {CONFIG} or {MANIFEST_FILE}; give {names}")
    if str(source) in shipped():
        return Bundle.open(str(source)).path
    raise InputError(f"checkpoint: {path} is no directory; give {names}")


def load_config(source: str | Path) -> ModelConfig:
    """The configuration of a checkpoint or bundle, arguments and errors as of `load_checkpoint`."""
    directory = find_checkpoint(source)
    return _read_config(directory, _bundle(directory))


def load_checkpoint(source: str | Path) -> TigerFG:
    """Load a checkpoint to a float32 model in evaluation mode on the CPU.

    Args:
        source: a checkpoint directory, a bundle's, or the name of a shipped bundle.

    Raises:
        InputError: not a checkpoint, a file missing or damaged, or weights that do not fit.
        BundleError: a damaged bundle, or one that holds no float32 parameters.
    """
    directory = find_checkpoint(source)
    bundle = _bundle(directory)
    model = TigerFG(_read_config(directory, bundle))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = bundle_weights(bundle, shapes) if bundle else _read_weights(directory, shapes)
    model.load_state_dict(weights)  # copied: what safetensors reads is not aligned in memory
    return model.eval().requires_grad_(False)


def _bundle(directory: Path) -> Bundle | None:
    """The bundle there; None where it is a checkpoint."""
    return None if (directory / CONFIG).is_file() else Bundle.open(directory)


def _read_config(directory: Path, bundle: Bundle | None) -> ModelConfig:
    if bundle is not None:
        return bundle_config(bundle)
    file = directory / CONFIG
    try:
        return ModelConfig.from_dict(json.loads(file.read_bytes()))
    except InputError as error:
        raise InputError(f"checkpoint: {directory}: {error}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"checkpoint: {file} cannot be read as JSON ({error})") from error


def _read_weights(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    for name in (WEIGHTS, TOKENIZER):
        if not (directory / name).is_file():
            raise InputError(f"checkpoint: {directory} has no {name}; give a checkpoint directory")
    content = (directory / WEIGHTS).read_bytes()
    try:
        weights = load(content)
    except SafetensorError as error:
        raise InputError(f"checkpoint: {directory / WEIGHTS} is damaged ({error})") from error
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != found:
        wrong = sorted(shapes.keys() ^ found.keys()) or sorted(
            name for name in shapes if shapes[name] != found[name]
        )
        raise InputError(
            f"checkpoint: {directory / WEIGHTS} does not fit config.json (e.g. {wrong[0]}); "
            "take both files from one training run"
        )
    return weights


def fingerprint(source: str | Path) -> str:
    """SHA-256 over config, weights and tokenizer: two checkpoints agree if they embed alike.

    Of a bundle it is that of the checkpoint it was made of.

    Raises:
        InputError: a file of the checkpoint is missing or cannot be read.
    """
    directory = find_checkpoint(source)
    if (bundle := _bundle(directory)) is not None:
        return bundle.fingerprint
    digest = hashlib.sha256()
    try:
        for name in (CONFIG, WEIGHTS, TOKENIZER):
            digest.update(hashlib.sha256((directory / name).read_bytes()).digest())
    except OSError as error:
        raise InputError(
            f"checkpoint: {error.filename} cannot be read ({error.strerror}); give a checkpoint "
            "directory"
        ) from error
    return digest.hexdigest()
