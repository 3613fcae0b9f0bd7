"""Does an exported tower give what the float32 model gives? Measured on every export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tigerfg.engines.accuracy import (
    LENGTH_ERROR,
    MAP_DISTANCES,
    THRESHOLDS,
    cosines,
    lengths,
    map_distances,
)
from tigerfg.engines.base import INPUTS, Arrays
from tigerfg.errors import EngineError
from tigerfg.export.samples import Samples
from tigerfg.model import TigerFG

# Batch size -> samples encoded with it, at most; pictures repeat where a batch needs more.
BATCHES = {1: 16, 3: 48, 16: 96}
EMULATED_BATCHES = {1: 4, 3: 12, 16: 48}  # a GPU's rounding on a CPU is slow
ENGINE_BATCHES = {1: 16, 3: 48, 8: 96, 32: 96, 128: 128, 256: 256}  # best and largest of profiles
TOP = 10
DISTANCES = {  # in a report: an output, and what it is called
    "map_distance": ("grounding_map", "grounding maps"),
    "token_distance": ("token_weights", "token weights"),
}
# Recall@1 may fall by this share of the queries. Rounding also tips near-ties, either way: with n
# queries whose answer became wrong or right, the net loss has a standard deviation of up to √n, and
# only what exceeds two of them is the precision's doing.
RECALL_LOSS, RECALL_DEVIATIONS = 0.005, 2.0


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
    """All outputs; every batch's texts are cut to its longest, the token weights filled up with
    zeros to the width of the texts."""
    parts: list[Arrays] = []
    for start in range(0, len(feeds["pixels"]), batch):
        rows = {name: value[start : start + batch] for name, value in feeds.items()}
        if "token_mask" in rows:
            length = int(rows["token_mask"].any(axis=0).nonzero()[0].max()) + 1
            for name in ("token_ids", "token_mask"):
                rows[name] = np.ascontiguousarray(rows[name][:, :length])
        parts.append(encode(rows))
    for part in parts:
        if "token_weights" in part:
            missing = feeds["token_ids"].shape[1] - part["token_weights"].shape[1]
            part["token_weights"] = np.pad(part["token_weights"], ((0, 0), (0, missing)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure(
    encode: Callable[[Arrays], Arrays],
    tower: str,
    samples: Samples,
    expected: Mapping[str, Arrays],
    batches: Mapping[int, int] = BATCHES,
) -> tuple[dict[str, Any], Arrays]:
    """Compare a tower with the reference at every batch size.

    Returns:
        The report and the outputs for the largest batch's samples. The report: cosine_mean,
        cosine_p1, cosine_min, centred_cosine_mean (reference mean subtracted from both),
        top10_overlap (of the other tower's float32 embeddings) over the largest batch; the item
        tower also map_distance and token_distance (mean total variation). cosine_min, these, and
        length_error (of embeddings, whose length is 1) are the worst of all batches; "batches" has
        the cosines of each.
    """
    spreads: dict[str, dict[str, float]] = {}
    worst: dict[str, list[float]] = {}
    feeds = getattr(samples, tower)
    available = len(feeds["pixels"])
    for batch, count in batches.items():
        rows = np.arange(max(min(count, available), batch)) % available
        found = encode_in_batches(
            encode, {name: value[rows] for name, value in feeds.items()}, batch
        )
        wanted = {name: value[rows] for name, value in expected[tower].items()}
        spreads[str(batch)] = _round(_spread(cosines(found["embedding"], wanted["embedding"])))
        gaps = {"length_error": np.abs(lengths(found["embedding"]) - 1).max()}
        for name, (output, _) in DISTANCES.items() if tower == "item" else ():
            gaps[name] = map_distances(found[output], wanted[output]).mean()
        for name, gap in gaps.items():
            worst.setdefault(name, []).append(float(gap))
    result = {"samples": len(rows), **_spread(cosines(found["embedding"], wanted["embedding"]))}
    centre = wanted["embedding"].mean(axis=0)
    result["centred_cosine_mean"] = float(
        cosines(found["embedding"] - centre, wanted["embedding"] - centre).mean()
    )
    others = expected["item" if tower == "query" else "query"]["embedding"]
    result["top10_overlap"] = _overlap(found["embedding"], wanted["embedding"], others)
    # not Python's min and max, which pass over NaN
    result |= {name: float(np.max(gaps)) for name, gaps in worst.items()}
    result["cosine_min"] = float(np.min([entry["cosine_min"] for entry in spreads.values()]))
    return {**_round(result), "batches": spreads}, found


def check(tower: str, precision: str, result: Mapping[str, Any]) -> None:
    """EngineError that names tower, precision and value if a measure misses its threshold."""
    threshold = THRESHOLDS[precision]
    for name, (_, outputs) in DISTANCES.items():
        distance, most = result.get(name, 0.0), MAP_DISTANCES[precision]
        if not distance <= most:
            raise EngineError(
                f"parity: the {outputs} of the {tower} tower in {precision} are {distance:.3f} "
                f"from the float32 model's, {most} is allowed; nothing was written: leave this "
                "precision out or calibrate on your own pictures (parity data)"
            )
    if not result["length_error"] <= LENGTH_ERROR:
        raise EngineError(
            f"parity: an embedding of the {tower} tower in {precision} is "
            f"{result['length_error']:.4f} off the length 1, {LENGTH_ERROR} is allowed; nothing "
            "was written: leave this precision out"
        )
    if not result["cosine_min"] >= threshold:  # NaN fails too
        worst = min(result["batches"], key=lambda batch: result["batches"][batch]["cosine_min"])
        raise EngineError(
            f"parity: the {tower} tower in {precision} reaches cosine {result['cosine_min']:.4f} "
            f"with the float32 model (batch {worst}), {threshold} is needed; nothing was "
            "written: leave this precision out or calibrate on your own pictures (parity data)"
        )


def measure_recall(
    samples: Samples, expected: Mapping[str, Arrays], found: Mapping[str, Arrays]
) -> dict[str, Any] | None:
    """Recall@1 of both towers together, in float32 and as `found`, on the samples both encoded.

    Returns:
        reference, found (shares), queries (those whose item is there), lost and gained (queries
        that only the reference, or only `found`, answers rightly); None without any.
    """
    count = min(len(found[tower]["embedding"]) for tower in ("query", "item"))
    part = samples.part(slice(count))
    known = frozenset(part.item_ids)
    asked = [row for row, answers in enumerate(part.answers) if answers & known]
    if not asked:
        return None

    def hits(sides: Mapping[str, Arrays]) -> np.ndarray:
        queries, items = (sides[tower]["embedding"][:count] for tower in ("query", "item"))
        best = np.argmax(queries[asked] @ items[: len(part.item_ids)].T, axis=1)
        return np.array(
            [part.item_ids[k] in part.answers[row] for row, k in zip(asked, best, strict=True)]
        )

    before, after = hits(expected), hits(found)
    return {
        **_round({"reference": float(before.mean()), "found": float(after.mean())}),
        "queries": len(asked),
        "lost": int((before & ~after).sum()),
        "gained": int((after & ~before).sum()),
    }


def check_recall(precision: str, result: Mapping[str, Any] | None) -> None:
    """EngineError if a precision costs more Recall@1 than chance explains."""
    if result is None:
        return
    lost, gained, queries = result["lost"], result["gained"], result["queries"]
    chance = RECALL_DEVIATIONS * math.sqrt(lost + gained)
    if lost - gained > RECALL_LOSS * queries + chance:
        raise EngineError(
            f"parity: {precision} loses {100 * (lost - gained) / queries:.1f} points of Recall@1 "
            f"({100 * result['reference']:.1f} -> {100 * result['found']:.1f} % of {queries} "
            f"queries: {lost} lost, {gained} gained); nothing was written: leave this precision "
            "out or calibrate on your own pictures (parity data)"
        )


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "cosine_mean": float(values.mean()),
        "cosine_p1": float(np.percentile(values, 1)),
        "cosine_min": float(values.min()),
    }


def _overlap(found: np.ndarray, wanted: np.ndarray, others: np.ndarray) -> float:
    """Mean share of the `TOP` nearest others that both embeddings agree on."""
    top = min(TOP, len(others))
    a, b = (np.argsort(-(side @ others.T), axis=1)[:, :top] for side in (found, wanted))
    shared = [len(set(x) & set(y)) / top for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return float(np.mean(shared))


def _round(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
