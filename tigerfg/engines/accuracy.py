"""How close to the float32 model a precision must stay: one table for export and engines."""

from __future__ import annotations

import numpy as np

# The smallest cosine with the float32 model that any picture may have.
THRESHOLDS = {"fp32": 0.9999, "fp16": 0.9995, "bf16": 0.995, "int8": 0.99, "fp8": 0.99}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, (B, E) and (B, E) -> float64 (B,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)
