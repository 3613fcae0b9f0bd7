"""Does an exported tower give what the float32 model gives? Measured on every export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tigerfg.engines.base import INPUTS, Arrays
from tigerfg.errors import EngineError
from tigerfg.export.samples import Samples
from tigerfg.model import TigerFG

# The smallest cosine with the float32 model that any sample may have.
THRESHOLDS = {"fp32": 0.9999, "int8": 0.99}
BATCHES = {1: 16, 3: 48, 16: 96}  # batch size -> samples encoded with it, at most
TOP = 10


def reference(model: TigerFG, samples: Samples) -> dict[str, Arrays]:
    """What the float32 PyTorch model gives, by tower, one batch of 16 at a time."""

    def run(tower: str) -> Callable[[Arrays], Arrays]:
        def encode(feeds: Arrays) -> Arrays:
            tensors = [torch.from_numpy(feeds[name]) for name in INPUTS[tower]]
            with torch.inference_mode():
                if tower == "query":
                    return {"embedding": model.encode_query(*tensors).numpy()}
                outputs = model.encode_item(*tensors)._asdict()
                return {name: value.numpy() for name, value in outputs.items()}

        return encode

    return {
        tower: encode_in_batches(run(tower), getattr(samples, tower), 16)
        for tower in ("query", "item")
    }


def encode_in_batches(
    encode: Callable[[Arrays], Arrays], feeds: Mapping[str, np.ndarray], batch: int
) -> Arrays:
    """All outputs but the token weights; every batch's texts are cut to its longest."""
    parts: list[Arrays] = []
    for start in range(0, len(feeds["pixels"]), batch):
        rows = {name: value[start : start + batch] for name, value in feeds.items()}
        if "token_mask" in rows:
            length = int(rows["token_mask"].any(axis=0).nonzero()[0].max()) + 1
            for name in ("token_ids", "token_mask"):
                rows[name] = np.ascontiguousarray(rows[name][:, :length])
        parts.append(encode(rows))
    names = [name for name in parts[0] if name != "token_weights"]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def measure(
    encode: Callable[[Arrays], Arrays],
    tower: str,
    samples: Samples,
    expected: Mapping[str, Arrays],
) -> dict[str, Any]:
    """Compare a tower with the reference at every batch size of BATCHES.

    Returns:
        cosine_mean, cosine_p1, cosine_min, centred_cosine_mean (reference mean subtracted from
        both), top10_overlap (of the other tower's float32 embeddings) over the largest batch;
        the item tower also map_distance (mean total variation). cosine_min is over all
        batches; "batches" has the cosines of each.
    """
    batches: dict[str, dict[str, float]] = {}
    result: dict[str, Any] = {}
    for batch, count in BATCHES.items():
        feeds = {name: value[:count] for name, value in getattr(samples, tower).items()}
        found = encode_in_batches(encode, feeds, batch)
        wanted = {name: value[: len(feeds["pixels"])] for name, value in expected[tower].items()}
        cosines = _cosines(found["embedding"], wanted["embedding"])
        batches[str(batch)] = _round(_spread(cosines))
        if batch == max(BATCHES):
            result = {"samples": len(cosines), **_spread(cosines)}
            centre = wanted["embedding"].mean(axis=0)
            result["centred_cosine_mean"] = float(
                _cosines(found["embedding"] - centre, wanted["embedding"] - centre).mean()
            )
            others = expected["item" if tower == "query" else "query"]["embedding"]
            result["top10_overlap"] = _overlap(found["embedding"], wanted["embedding"], others)
            if tower == "item":
                gap = np.abs(found["grounding_map"] - wanted["grounding_map"]).sum(axis=1) / 2
                result["map_distance"] = float(gap.mean())
    result["cosine_min"] = min(entry["cosine_min"] for entry in batches.values())
    return {**_round(result), "batches": batches}


def check(tower: str, precision: str, result: Mapping[str, Any]) -> None:
    """EngineError that names tower, precision and value if the parity is below its threshold."""
    threshold = THRESHOLDS[precision]
    if not result["cosine_min"] >= threshold:  # NaN fails too
        worst = min(result["batches"], key=lambda batch: result["batches"][batch]["cosine_min"])
        raise EngineError(
            f"parity: the {tower} tower in {precision} reaches cosine {result['cosine_min']:.4f} "
            f"with the float32 model (batch {worst}), {threshold} is needed; nothing was "
            "written: leave this precision out or calibrate on your own pictures (parity data)"
        )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)


def _spread(cosines: np.ndarray) -> dict[str, float]:
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_min": float(cosines.min()),
    }


def _overlap(found: np.ndarray, wanted: np.ndarray, others: np.ndarray) -> float:
    """Mean share of the `TOP` nearest others that both embeddings agree on."""
    top = min(TOP, len(others))
    a, b = (np.argsort(-(side @ others.T), axis=1)[:, :top] for side in (found, wanted))
    shared = [len(set(x) & set(y)) / top for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return float(np.mean(shared))


def _round(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
