"""One call from a checkpoint to a bundle: graphs, int8, parity, manifest; all or nothing."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from tigerfg.bundle import BUNDLE_FORMAT, MANIFEST_FILE, TOKENIZER_FILE, TOWERS, Bundle
from tigerfg.engines.cpu import cpu, thread_count
from tigerfg.engines.onnx import OnnxRunner
from tigerfg.errors import InputError, TigerfgError
from tigerfg.export.graph import tower_graph
from tigerfg.export.parity import BATCHES, check, measure, reference
from tigerfg.export.quantize import int8_graph
from tigerfg.export.samples import Samples, load_samples
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.model import TigerFG, load_checkpoint
from tigerfg.model.checkpoint import fingerprint
from tigerfg.text import TextTokenizer

PRECISIONS = ("fp32", "int8")
CALIBRATION = 64  # pictures that set the int8 ranges; none of them is in the parity set
DOCUMENTS = ("MODEL_CARD.md", "training_log.jsonl")
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "numpy")

Progress = Callable[[str], None]


def export_bundle(
    ckpt: str | os.PathLike,
    out: str | os.PathLike,
    precisions: Sequence[str] = PRECISIONS,
    parity_data: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint as a bundle directory and prove that it gives what the model gives.

    Args:
        ckpt: checkpoint directory; its MODEL_CARD.md and training_log.jsonl are copied along.
        out: the bundle directory; an existing bundle there is replaced, anything else refused.
        precisions: "fp32", "int8" or both.
        parity_data: directory with items.jsonl and queries.jsonl that int8 is calibrated and
            parity measured on; None renders products.
        progress: called with one line per step.

    Returns:
        The bundle's path.

    Raises:
        InputError: not a checkpoint, a damaged one, an unknown precision, an unusable `out`.
        EngineError: a tower whose parity is below the threshold of its precision; nothing is
            written then.
    """
    say = progress or (lambda line: None)
    checkpoint, out = Path(ckpt), Path(out)
    precisions = _check_precisions(precisions)
    _check_target(out)
    model = load_checkpoint(checkpoint)
    tokenizer = TextTokenizer.from_file(checkpoint / TOKENIZER_FILE, model.config.text.max_length)
    say("samples: preparing pictures")
    count = max(BATCHES.values()) + CALIBRATION
    samples = load_samples(model.config.preprocessing, tokenizer, count, parity_data)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temp:
            staged = Path(temp) / "bundle"
            staged.mkdir()
            _fill(staged, out.name, model, checkpoint, precisions, samples, say)
            Bundle.open(staged).verify()
            _publish(staged, out, Path(temp) / "old")
    except OSError as error:
        raise TigerfgError(
            f"export: cannot write {out}: {error.strerror or error}; nothing was changed"
        ) from error
    return out


def _check_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    wanted = (precisions,) if isinstance(precisions, str) else tuple(precisions)
    for name in wanted:
        if name not in PRECISIONS:
            raise InputError(f"precision: {name!r} is unknown; choose {', '.join(PRECISIONS)}")
    if not wanted:
        raise InputError(f"precision: none given; choose {', '.join(PRECISIONS)}")
    return tuple(name for name in PRECISIONS if name in wanted)


def _check_target(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
            raise InputError(f"out: {out} exists and is no bundle; choose another directory")
    elif out.exists() or out.is_symlink():
        raise InputError(f"out: {out} is no directory; choose another path")


def _publish(staged: Path, out: Path, old: Path) -> None:
    """Put the staged bundle in place; the one that was there is back if that fails."""
    os.chmod(staged, 0o777 & ~_umask())
    replaced = out.exists()
    if replaced:
        os.rename(out, old)
    try:
        os.rename(staged, out)
    except OSError:
        if replaced:
            os.rename(old, out)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fill(
    folder: Path,
    name: str,
    model: TigerFG,
    checkpoint: Path,
    precisions: tuple[str, ...],
    samples: Samples,
    say: Progress,
) -> None:
    total = len(samples.query["pixels"])
    calibration, held_out = samples.split(min(CALIBRATION, total // 3))
    graphs: dict[str, onnx.ModelProto] = {}
    for tower in TOWERS:
        say(f"{tower} tower: exporting")
        graph = tower_graph(model, tower)
        if "int8" in precisions:
            say(f"{tower} tower: calibrating int8")
            graphs[_file(tower, "int8")] = int8_graph(graph, getattr(calibration, tower))
        if "fp32" in precisions:
            graphs[_file(tower, "fp32")] = graph
    write_models(graphs, folder)
    say("reference: encoding the parity pictures in float32")
    expected = reference(model, held_out)
    parity: dict[str, Any] = {"data": samples.source}
    for tower in TOWERS:
        parity[tower] = {}
        for precision in precisions:
            file = folder / _file(tower, precision)
            runner = OnnxRunner(file, tower, precision, thread_count(None))
            result = measure(runner.run, tower, held_out, expected)
            say(
                f"{tower} tower {precision}: cosine mean {result['cosine_mean']:.5f}, min "
                f"{result['cosine_min']:.5f}, centred {result['centred_cosine_mean']:.4f}, "
                f"top-10 overlap {result['top10_overlap']:.3f}"
            )
            check(tower, precision, result)
            parity[tower][precision] = result
    shutil.copyfile(checkpoint / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    for document in DOCUMENTS:
        if (checkpoint / document).is_file():
            shutil.copyfile(checkpoint / document, folder / document)
    manifest = _manifest(folder, name, model, fingerprint(checkpoint), precisions, parity)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _file(tower: str, precision: str) -> str:
    return f"{tower}.onnx" if precision == "fp32" else f"{tower}.{precision}.onnx"


def _manifest(
    folder: Path,
    name: str,
    model: TigerFG,
    identity: str,
    precisions: tuple[str, ...],
    parity: dict[str, Any],
) -> dict[str, Any]:
    config = model.config
    tools = {package: importlib.metadata.version(package) for package in TOOLS}
    return {
        "format": BUNDLE_FORMAT,
        "name": config.name,
        "fingerprint": identity,
        "embedding_dim": config.embedding_dim,
        "max_text_length": config.text.max_length,
        "vocab_size": _vocab_size(model),
        "preprocessing": config.preprocessing.to_dict(),
        "towers": {
            tower: {
                precision: _record(folder / _file(tower, precision)) for precision in precisions
            }
            for tower in TOWERS
        },
        "weights": _record(folder / WEIGHTS),
        "tokenizer": _record(folder / TOKENIZER_FILE),
        "parity": parity,
        "tools": {
            "tigerfg": importlib.metadata.version("tigerfg"),
            **tools,
            "cpu": cpu()._asdict(),
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": config.to_dict(),
    }


def _vocab_size(model: TigerFG) -> int:
    if model.config.text.type == "hf":
        return model.text.model.config.vocab_size
    return model.config.text.vocab_size


def _record(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": file.name, "sha256": digest, "bytes": file.stat().st_size}
