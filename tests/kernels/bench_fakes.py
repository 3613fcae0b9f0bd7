"""What the dry runs of bench/ share. Importing this puts bench/ on the path: import it first."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "bench"))  # scripts beside the package, not part of it

import peers
import sanitize_kernels
import tower_peers
from kernel_shapes import Photos, Shape

from tigerfg.kernels.embedding import grounded_embedding_triton
from tigerfg.kernels.grounding import grounding_triton
from tigerfg.kernels.pooling import pooled_embedding_triton
from tigerfg.kernels.preprocess import preprocess_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Shape(2, 9, 8, "float16", width=64, heads=4)
SMALL_PHOTOS = Photos(1, 24, 32, 16, "float16")
FOUND = [Shape(256, 196, 12, "float16"), Shape(1, 196, 12, "float16")]
RUN = {
    "date": "2026-01-01", "gpu": "none", "driver": "1", "cuda": "13.0", "triton": "3.6.0",
    "versions": {"torch": "2.11.0"}, "commit": "abc", "copy_gb_s": 1000.0,
    "empty_replay_ms": 0.004,
}  # fmt: skip


class FakeClock:
    """Every measurement takes `seconds()`; `log` has what was asked of it."""

    def __init__(self, seconds: Callable[[], float] = lambda: 0.1) -> None:
        self._seconds, self._running, self.log = seconds, False, []

    def __call__(self) -> float:
        self._running = not self._running
        self.log.append("start" if self._running else "end")
        return 0.0 if self._running else self._seconds()

    def flush(self) -> None:
        self.log.append("flush")


def measured(shape: Shape, contender: str, ms: float, **fields: Any) -> dict[str, Any]:
    """A row as if `contender` had taken `ms`."""
    row = {
        "op": "grounding", "label": str(shape), "contender": contender, **asdict(shape),
        "computes": "x -> p", "ms": ms, "p20": ms, "p80": ms, "rounds": 20, "host_ms": 0.01,
        "replay_ms": None, "kernels": ["first", "second"], "bytes": 1000, "gb_s": 900.0,
        "copy_percent": 90.0,
        "error": {"p": 1e-3}, "torch_error": {"p": 1e-3},
        "test": f"bench/test_kernels.py::test[{shape}-{contender}]", "run": RUN["date"],
    }  # fmt: skip
    return {**row, **fields}


def perfect() -> list[dict[str, Any]]:
    """Rows of two shapes that reach every aim."""
    return [
        measured(shape, contender, ms, replay_ms=0.007 if shape.batch == 1 else None)
        for shape in FOUND
        for contender, ms in (
            ("tigerfg", 1.0), ("tigerfg + projections", 1.1), ("absorbed compiled", 2.0),
            ("usual compiled", 6.0),
        )
    ]  # fmt: skip


def run_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is the kernels in the interpreter too, where public functions take the reference."""
    if DEVICE == "cpu":
        monkeypatch.setattr(peers, "grounding", grounding_triton)
        monkeypatch.setattr(sanitize_kernels, "grounding", grounding_triton)
        monkeypatch.setattr(tower_peers, "grounded_embedding", grounded_embedding_triton)
        monkeypatch.setattr(tower_peers, "pooled_embedding", pooled_embedding_triton)
        monkeypatch.setattr(tower_peers, "preprocess", preprocess_triton)
