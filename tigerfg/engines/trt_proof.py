"""Whether an engine gives what the float32 model gives, on this machine: the worst of all sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tigerfg.engines.accuracy import (
    LENGTH_ERROR,
    MAP_DISTANCES,
    THRESHOLDS,
    cosines,
    lengths,
    map_distances,
)
from tigerfg.engines.base import INPUTS, Arrays
from tigerfg.engines.trt_engine import BatchRange
from tigerfg.errors import EngineError

# How far the sum of a grounding map or of token weights, one in float32, may be off: 200 weights of
# float16's precision are off by 1e-3 together at most.
MAP_SUM = 1e-2


def prove(
    run: Callable[[Arrays], Arrays],
    tower: str,
    precision: str,
    ranges: Sequence[BatchRange],
    check: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Run the bundle's check pictures, repeated to the smallest and a middle batch of each range.

    Args:
        run: the engine, inputs to outputs by name.
        check: what `GpuPart.check` gives.

    Returns:
        batches, cosine_min and cosine_mean of the embeddings with the float32 model's, and for
        items map_distance: of each picture's map in its worst place, the mean over the pictures.

    Raises:
        EngineError: the worst cosine is below the precision's threshold, an embedding has not the
            length 1, the maps are farther off than it allows, or one is none.
    """
    given = {name: check[f"{tower}_{name}"] for name in INPUTS[tower]}
    given["pixels"] = given["pixels"].astype(np.float32)
    count = len(given["pixels"])
    batches = sorted({n for r in ranges for n in (r.smallest, (r.smallest + r.largest) // 2)})
    found, gaps = [], np.zeros(min(count, batches[-1]))
    for batch in batches:
        rows = np.arange(batch) % count
        outputs = run({name: np.ascontiguousarray(value[rows]) for name, value in given.items()})
        found.append(cosines(outputs["embedding"], check[f"{tower}_embedding"][rows]))
        worst, threshold = float(found[-1].min()), THRESHOLDS[precision]
        if not worst >= threshold:  # also what is no number
            raise EngineError(
                f"refused: the {tower} {precision} engine's worst cosine with the float32 model "
                f"is {worst:.5f} at batch {batch}, {threshold} is needed; use another precision"
            )
        long = lengths(outputs["embedding"])
        if not np.abs(long - 1).max() <= LENGTH_ERROR:
            raise EngineError(
                f"refused: an embedding of the {tower} {precision} engine has the length "
                f"{long[np.abs(long - 1).argmax()]:.4f} at batch {batch}, not 1; use another "
                "precision"
            )
        if tower == "item":
            for name in ("grounding_map", "token_weights"):
                sums = outputs[name].sum(axis=1, dtype=np.float64)
                if not np.abs(sums - 1).max() <= MAP_SUM:
                    raise EngineError(
                        f"refused: a row of the {name} of the item {precision} engine sums to "
                        f"{sums[np.abs(sums - 1).argmax()]:.4f} at batch {batch}, not to 1; use "
                        "another precision"
                    )
            expected = check["item_grounding_map"][rows]
            np.maximum.at(gaps, rows, map_distances(outputs["grounding_map"], expected))
    every = np.concatenate(found)
    parity = {
        "batches": batches,
        "cosine_min": round(float(every.min()), 6),
        "cosine_mean": round(float(every.mean()), 6),
    }
    if tower == "item":
        distance, most = float(gaps.mean()), MAP_DISTANCES[precision]
        if not distance <= most:
            raise EngineError(
                f"refused: the grounding maps of the item {precision} engine are {distance:.3f} "
                f"from the float32 model's, {most} is allowed; use another precision"
            )
        parity["map_distance"] = round(distance, 6)
    return parity
