"""manifest.json of a bundle: what it is, its files with their hashes, and how it was made."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tigerfg.bundle import BUNDLE_FORMAT
from tigerfg.engines.cpu import cpu
from tigerfg.files import sha256_file
from tigerfg.model import TigerFG

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers", "numpy")


def graph_file(tower: str, precision: str, cut: str = "tower") -> str:
    """Name of a graph: "query.onnx" (fp32), "query.int8.onnx", "query.backbone.fp16.onnx"."""
    parts = [tower]
    if cut != "tower":
        parts.append(cut)
    if precision != "fp32":
        parts.append(precision)
    return ".".join([*parts, "onnx"])


def record(file: Path) -> dict[str, Any]:
    """Name, SHA-256 and size of a file."""
    return {"file": file.name, "sha256": sha256_file(file), "bytes": file.stat().st_size}


def manifest(
    model: TigerFG,
    fingerprint: str,
    towers: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Mapping[str, Any]],
    gpu: Mapping[str, Any] | None,
    parity: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a bundle's files.

    Args:
        fingerprint: of the checkpoint.
        towers: tower -> precision -> record of the graphs for CPUs.
        shared: records of the weights and the tokenizer, and where the parameters lie.
        gpu: the part that `tigerfg.gpu_bundle.GpuPart` reads; None without one.
        parity: the report.
    """
    config = model.config
    content = {
        "format": BUNDLE_FORMAT,
        "name": config.name,
        "fingerprint": fingerprint,
        "embedding_dim": config.embedding_dim,
        "max_text_length": config.text.max_length,
        "vocab_size": model.vocab_size,
        "preprocessing": config.preprocessing.to_dict(),
        "towers": towers,
        **shared,
        "parity": parity,
        "tools": {
            "tigerfg": importlib.metadata.version("tigerfg"),
            **{package: importlib.metadata.version(package) for package in TOOLS},
            "cpu": cpu()._asdict(),
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": config.to_dict(),
    }
    if config.attention_crop:
        content["attention_crop"] = asdict(config.attention_crop)
    return content if gpu is None else {**content, "gpu": gpu}
