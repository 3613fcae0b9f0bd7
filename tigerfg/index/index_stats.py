"""What is told of the index that answers a catalogue's searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tigerfg.index.flat import FlatIndex
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.plan import FLAT


@dataclass(frozen=True)
class IndexStats:
    """What answers searches.

    Attributes:
        setting: what was asked for: "auto", "flat" or a factory string.
        kind: what is in use: "flat" (exact) or the factory string of an IVF index.
        items: in the index.
        nprobe, recall, ms: of an IVF index: lists that a query probes on average, and the
            recall@10 and milliseconds a query (one at a time) measured when it was built.
        curve: all that was measured then: nprobe, factor (candidates a result), recall, its
            standard error, ms.
        seconds: of building, by part. building: whether another one is being built.
        queries: sample queries that it was tuned with; 0: queries made of stored items.
    """

    setting: str
    kind: str
    items: int
    nprobe: int | None
    recall: float | None
    ms: float | None
    curve: list[dict[str, Any]]
    seconds: dict[str, float]
    building: bool
    queries: int = 0
    gpu: dict[str, Any] | None = None


def stats_of(
    setting: str, index: FlatIndex | IvfIndex, building: bool, gpu: dict[str, Any] | None
) -> IndexStats:
    """What is told of an index; gpu: of its copy there."""
    notes = index.notes if isinstance(index, IvfIndex) else {}
    return IndexStats(
        setting=setting,
        kind=notes.get("factory", FLAT),
        items=len(index),
        nprobe=notes.get("nprobe"),
        recall=notes.get("recall"),
        ms=notes.get("ms"),
        curve=notes.get("curve", []),
        seconds=notes.get("seconds", {}),
        building=building,
        queries=notes.get("queries", 0),
        gpu=gpu,
    )
