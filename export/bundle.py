"""One call from a checkpoint to a bundle: graphs, engines, parity, manifest; all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from tigerfg.bundle import MANIFEST_FILE, TOKENIZER_FILE, TOWERS, Bundle
from tigerfg.errors import InputError, TigerfgError
from tigerfg.export.gpu import GpuGraphs, GpuRequest
from tigerfg.export.gpu_part import GpuPartWriter
from tigerfg.export.graph import tower_graph
from tigerfg.export.manifest import graph_file, manifest, record
from tigerfg.export.parity import BATCHES, reference
from tigerfg.export.quantize import int8_graph
from tigerfg.export.report import Report
from tigerfg.export.samples import Samples, load_samples
from tigerfg.export.weights import WEIGHTS, write_models
from tigerfg.files import is_movable, publish
from tigerfg.model import TigerFG, load_checkpoint
from tigerfg.model.checkpoint import CARD, find_checkpoint, fingerprint, parameters
from tigerfg.text import TextTokenizer

PRECISIONS = ("fp32", "int8")
CALIBRATION = 64  # pictures that set the int8 ranges; none of them is in the parity set
DOCUMENTS = (CARD, "training_log.jsonl")

Progress = Callable[[str], None]


def export_bundle(
    ckpt: str | os.PathLike,
    out: str | os.PathLike,
    precisions: Sequence[str] = PRECISIONS,
    parity_data: str | os.PathLike | None = None,
    progress: Progress | None = None,
    *,
    gpu: GpuRequest | None = None,
) -> Path:
    """Export a checkpoint as a bundle directory and prove that it gives what the model gives.

    Args:
        ckpt: checkpoint directory, a bundle that holds its parameters, or the name of a shipped
            one; its MODEL_CARD.md and training_log.jsonl are copied along.
        out: the bundle directory; an existing bundle there is replaced, anything else refused.
        precisions: of the graphs for CPUs: "fp32", "int8" or both. With "fp32" the bundle holds the
            parameters: it can be trained further and exported anew.
        parity_data: directory with items.jsonl and queries.jsonl that the quantisers are
            calibrated and parity measured on; None renders products.
        progress: called with one line per step.
        gpu: what to export for GPUs; None for nothing.

    Returns:
        The bundle's path.

    Raises:
        InputError, BundleError: not a checkpoint or bundle, a damaged one, an unknown precision, an
            unusable `out`.
        EngineError: a tower whose parity is below the threshold of its precision, an engine that
            cannot be built; nothing is written then.
        MissingExtraError: engines are wanted, and no builder is installed.
    """
    say = progress or (lambda line: None)
    checkpoint, out = find_checkpoint(ckpt), Path(out).resolve()
    precisions = _check_precisions(precisions)
    _check_target(out)
    if out == checkpoint and "fp32" not in precisions:
        raise InputError(
            f"out: {out} is what is exported, and would lose its float32 parameters; add --fp32, "
            "or choose another directory"
        )
    builder = gpu.builder() if gpu else None
    model = load_checkpoint(checkpoint)
    tokenizer = TextTokenizer.from_file(checkpoint / TOKENIZER_FILE, model.config.text.max_length)
    say("samples: preparing pictures")
    count = max(BATCHES.values()) + CALIBRATION
    samples = load_samples(model.config.preprocessing, tokenizer, count, parity_data)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temp:
            staged = Path(temp) / "bundle"
            staged.mkdir()
            for document in (TOKENIZER_FILE, *DOCUMENTS):
                if (checkpoint / document).is_file():
                    shutil.copyfile(checkpoint / document, staged / document)
            part = GpuPartWriter(staged, model, gpu, builder, say) if gpu else None
            _fill(staged, model, fingerprint(checkpoint), precisions, samples, part, say)
            Bundle.open(staged).verify()
            publish(staged, out, Path(temp) / "old")
    except OSError as error:
        raise TigerfgError(
            f"export: cannot write {error.filename or out}: {error.strerror or error}; nothing was "
            "changed"
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
        names = {path.name for path in out.iterdir()}
        own = _files_of_bundle(out)
        if names and not own:
            raise InputError(f"out: {out} exists and is no bundle; choose another directory")
        own |= {f"{name}.json" for name in own}  # sidecars of engines
        if others := sorted(names - own):
            raise InputError(
                f"out: {out} would be replaced, and holds {others[0]!r}, which is not of that "
                "bundle; move it, or choose another directory"
            )
        if not is_movable(out):
            raise InputError(
                f"out: {out} cannot be replaced (a mount point or the current directory); choose "
                "a directory inside it"
            )
    elif out.exists():
        raise InputError(f"out: {out} is no directory; choose another path")


def _files_of_bundle(folder: Path) -> set[str]:
    """Names of a bundle's files, but for engines' sidecars; none where there is no manifest of
    ours: others keep a manifest.json too."""
    names = {MANIFEST_FILE, TOKENIZER_FILE, *DOCUMENTS}

    def note(entry: dict[str, Any]) -> dict[str, Any]:
        names.add(str(entry.get("file")))
        return entry

    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes(), object_hook=note)
    except (OSError, ValueError):
        return set()
    ours = isinstance(content, dict) and {"format", "fingerprint", "towers"} <= content.keys()
    return names if ours else set()


def _fill(
    folder: Path,
    model: TigerFG,
    identity: str,
    precisions: tuple[str, ...],
    samples: Samples,
    part: GpuPartWriter | None,
    say: Progress,
) -> None:
    total = min(len(samples.query["pixels"]), len(samples.item["pixels"]))
    calibration, held_out = samples.split(max(1, min(CALIBRATION, total // 3)))
    graphs: dict[str, onnx.ModelProto] = {}
    typed = GpuGraphs(model, calibration, say) if part else None
    for tower in TOWERS:
        say(f"{tower} tower: exporting")
        graph = tower_graph(model, tower)
        if "int8" in precisions:
            say(f"{tower} tower: calibrating int8")
            graphs[graph_file(tower, "int8")] = int8_graph(graph, getattr(calibration, tower))
        if typed:
            typed.add(tower, graph, part.request.precisions)
        if "fp32" in precisions:
            graphs[graph_file(tower, "fp32")] = graph
    # Before the weights go to their file, which leaves the graphs without them.
    say("reference: encoding the parity pictures in float32")
    report = Report(model, held_out, reference(model, held_out), say)
    if part:
        report.emulated(typed, part.request.precisions, part.cuts())
    weights = write_models({**graphs, **(part.graph_files(typed) if part else {})}, folder)
    shared: dict[str, Mapping[str, Any]] = {}
    if "fp32" in precisions:
        arrays = {name: value.numpy() for name, value in parameters(model).items()}
        shared["parameters"] = weights.add_parameters(arrays)
    report.cpu_runtimes(folder, precisions)
    towers = {
        tower: {name: record(folder / graph_file(tower, name)) for name in precisions}
        for tower in TOWERS
    }
    shared["weights"] = record(folder / WEIGHTS)
    shared["tokenizer"] = record(folder / TOKENIZER_FILE)
    if part:
        part.fill(held_out)

    def save() -> None:
        entry = part.entry if part else None
        content = manifest(model, identity, towers, shared, entry, report.entries)
        (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    save()
    if part:  # engines are built from, and checked in, a complete bundle
        part.build()
        save()
        part.measure(report)
        save()
