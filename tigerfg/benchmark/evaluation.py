"""What an evaluation finds, and the JSON that it is written to and read from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tigerfg.benchmark import bootstrap, metrics
from tigerfg.catalog import Rejected
from tigerfg.errors import InputError
from tigerfg.files import write_whole

Mode = Literal["item", "text", "global", "oracle", "detect"]
Interval = tuple[float, float]
RECALLS = (1, 5, 10)
MEASURES = (*(f"recall@{k}" for k in RECALLS), "map", "map_at_r")


@dataclass(frozen=True)
class Answers:
    """What became of each query, one entry a query in every list.

    Attributes:
        query_id, kind: of the query.
        product: queries that ask for one product have the same number.
        rank: 1-based rank of the first correct item.
        correct: correct items in the gallery. candidates: items that were ranked.
        average_precision: over the whole ranking. precision_at_r: cut at R, see `metrics`.
    """

    query_id: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    product: list[int] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    correct: list[int] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)
    average_precision: list[float] = field(default_factory=list)
    precision_at_r: list[float] = field(default_factory=list)

    def add(
        self, query_id: str, kind: str, product: int, ranks: np.ndarray, candidates: int
    ) -> None:
        """Add a query with the ascending ranks (R,) of all its correct items."""
        self.query_id.append(query_id)
        self.kind.append(kind)
        self.product.append(product)
        self.rank.append(int(ranks[0]))
        self.correct.append(len(ranks))
        self.candidates.append(candidates)
        self.average_precision.append(metrics.average_precision(ranks))
        self.precision_at_r.append(metrics.precision_at_r(ranks))

    def values(self) -> np.ndarray:
        """The measures of every query, float64 (Q, len(MEASURES))."""
        rank = np.asarray(self.rank)
        hits = [(rank <= k).astype(np.float64) for k in RECALLS]
        return np.stack([*hits, self.average_precision, self.precision_at_r], axis=1)

    def __len__(self) -> int:
        return len(self.query_id)


@dataclass(frozen=True)
class Scores:
    """Retrieval metrics of a set of queries, each in [0, 1].

    ``intervals`` holds the 95 % bootstrap interval of each of ``MEASURES``, with products
    resampled; None where all queries ask for one product. ``map_at_r``: see
    :func:`metrics.precision_at_r`.
    """

    queries: int
    products: int
    recall: dict[int, float]
    map: float
    map_at_r: float
    intervals: dict[str, Interval] | None

    @classmethod
    def of(cls, values: np.ndarray, products: np.ndarray) -> Scores:
        """Scores from the measures of at least one query, as :meth:`Answers.values` gives them."""
        means = [float(mean) for mean in values.mean(axis=0)]
        return cls(
            queries=len(values),
            products=len(np.unique(products)),
            recall=dict(zip(RECALLS, means[: len(RECALLS)], strict=True)),
            map=means[-2],
            map_at_r=means[-1],
            intervals=named_intervals(MEASURES, values, products),
        )


@dataclass(frozen=True)
class Grounding:
    """How well the grounding maps find the target boxes of ``items`` items.

    ``pointing``: share of maps whose strongest cell lies in the box; ``mass``: mean share of the
    map inside the box; ``iou``: mean IoU of the map's box (:func:`metrics.map_box`) with it;
    ``chance``: mean share of the picture inside the box, the value of the first two for a map that
    knows nothing and of the third for the whole picture. ``intervals``: of the first three.
    """

    items: int
    pointing: float
    mass: float
    iou: float
    chance: float
    intervals: dict[str, Interval] | None


@dataclass(frozen=True)
class Cost:
    """Per item and per query: milliseconds of this run, reading and decoding the picture included,
    and floating-point operations of the tower, None where they were not counted (``note``)."""

    item_ms: float
    query_ms: float
    item_flops: int | None
    query_flops: int | None
    note: str


@dataclass(frozen=True)
class CurvePoint:
    """Recall@1 in random galleries of ``size`` items, see `distractors`."""

    size: int
    recall: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """An evaluation against another one on the same queries: its values minus the other's.

    ``against``: what the other one is. ``differences``: of each of ``MEASURES`` by paired
    bootstrap; None where all queries ask for one product. ``mcnemar``: exact test of the hits at 1.
    """

    against: str
    queries: int
    differences: dict[str, bootstrap.Difference] | None
    mcnemar: bootstrap.McNemar


@dataclass
class Evaluation:
    """Result of :func:`tigerfg.benchmark.evaluate.evaluate` with its conditions.

    ``data_digest`` is that of the evaluated items and queries: equal for the same data.
    """

    directory: str
    data: str
    data_digest: str
    mode: Mode
    boxes: str | None
    split: str | None
    overall: Scores
    per_kind: dict[str, Scores]
    grounding: Grounding | None
    items: int
    items_without_box: int
    queries: int
    queries_without_item: int
    text_words: float
    seconds_items: float
    seconds_queries: float
    cost: Cost
    curve: list[CurvePoint]
    conditions: dict[str, Any]
    answers: Answers
    notes: list[str] = field(default_factory=list)
    rejected_items: list[Rejected] = field(default_factory=list)
    rejected_queries: list[Rejected] = field(default_factory=list)
    comparison: Comparison | None = None

    @property
    def label(self) -> str:
        """The mode with its boxes: ``item``, ``detect IoU 0.7``."""
        return f"{self.mode} {self.boxes}" if self.boxes else self.mode

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Inverse of :meth:`to_dict`, also after JSON.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: not what `to_dict` writes.
        """
        fields = dict(values)
        fields["overall"] = _scores(fields["overall"])
        fields["per_kind"] = {k: _scores(own) for k, own in fields["per_kind"].items()}
        if fields["grounding"] is not None:
            grounding = fields["grounding"]
            ends = _pairs(grounding["intervals"])
            fields["grounding"] = Grounding(**{**grounding, "intervals": ends})
        fields["cost"] = Cost(**fields["cost"])
        fields["curve"] = [
            CurvePoint(point["size"], point["recall"], _pair(point["interval"]))
            for point in fields["curve"]
        ]
        fields["answers"] = Answers(**fields["answers"])
        if len({len(column) for column in asdict(fields["answers"]).values()}) != 1:
            raise ValueError("answers: the columns have different lengths")
        for name in ("rejected_items", "rejected_queries"):
            fields[name] = [Rejected(**entry) for entry in fields[name]]
        fields["comparison"] = None  # holds within one table only
        return cls(**fields)


def named_intervals(
    names: Sequence[str], values: np.ndarray, clusters: np.ndarray
) -> dict[str, Interval] | None:
    """Bootstrap intervals of the means of the columns of ``values`` (Q, M) by their names."""
    ends = bootstrap.intervals(values, clusters)
    if ends is None:
        return None
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, ends, strict=True)}


def write_results(results: Sequence[Evaluation], file: Path) -> None:
    """Write evaluations as JSON, a list of objects."""
    text = json.dumps([result.to_dict() for result in results], indent=1, allow_nan=False)
    write_whole(file, text + "\n")


def read_results(file: Path) -> list[Evaluation]:
    """Read what :func:`write_results` wrote.

    Raises:
        InputError: no such JSON, or one of another version of tigerfg.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError("no list of results")
        return [Evaluation.from_dict(entry) for entry in entries]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file}: not a readable results file: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file}: not results of this version of tigerfg eval ({error}): evaluate again"
        ) from error


def _scores(values: Mapping[str, Any]) -> Scores:
    recall = {int(k): share for k, share in values["recall"].items()}
    return Scores(**{**values, "recall": recall, "intervals": _pairs(values["intervals"])})


def _pairs(intervals: Mapping[str, Sequence[float]] | None) -> dict[str, Interval] | None:
    if intervals is None:
        return None
    return {name: (low, high) for name, (low, high) in intervals.items()}


def _pair(interval: Sequence[float] | None) -> Interval | None:
    return None if interval is None else (interval[0], interval[1])
