"""How close to the float32 model a precision must stay: one table for export and engines."""

from __future__ import annotations

import numpy as np

# The smallest cosine with the float32 model that any picture may have.
THRESHOLDS = {"fp32": 0.9999, "fp16": 0.9995, "bf16": 0.995, "int8": 0.99, "fp8": 0.99}

# How far the length of an embedding may be off 1: float16's rounding of 256 values is 1e-4 at most.
LENGTH_ERROR = 1e-3

# The largest mean distance of grounding maps, and of token weights (total variation, 0 to 1), that
# a precision may have.
MAP_DISTANCES = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.03, "int8": 0.05, "fp8": 0.1}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, (B, E) and (B, E) -> float64 (B,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)


def lengths(embeddings: np.ndarray) -> np.ndarray:
    """Of embeddings (B, E), which should be 1: float64 (B,)."""
    return np.linalg.norm(embeddings.astype(np.float64), axis=1)


def map_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation of grounding maps, row by row, (B, N) and (B, N) -> (B,)."""
    return np.abs(a - b).sum(axis=1) / 2
