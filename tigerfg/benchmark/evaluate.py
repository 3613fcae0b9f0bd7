"""Evaluate a bundle on a directory of ``items.jsonl`` and ``queries.jsonl``, in memory.

Everything is encoded once and compared by one matrix product: no catalogue is written and no
approximate index is involved, so the numbers are those of the model alone.

Modes, all from the towers of the same bundle:

- ``item``: the item tower on picture and text, what a catalogue stores;
- ``text``: the item tower on a blank picture: what the text alone tells a model;
- ``global``: the query tower on the whole item picture, no text, no grounding;
- ``oracle``: the query tower on the item picture cropped to its target box, as a perfect detector
  would do (items without a box: the whole picture). Reference rows, not products.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from tigerfg.benchmark import metrics
from tigerfg.catalog import Item, Query, Rejected, read_items, read_queries
from tigerfg.encoder import EncodedItem, Encoder
from tigerfg.engines.cpu import cpu
from tigerfg.errors import InputError
from tigerfg.images import ImageSource
from tigerfg.text import item_text

Mode = Literal["item", "text", "global", "oracle"]
RECALLS = (1, 5, 10)
CHUNK = 256  # pictures between two progress reports
SCORE_ROWS = 1024  # queries per block of the score matrix

EXIF_ORIENTATION = 0x0112

Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Scores:
    """Retrieval metrics of a set of queries, each in [0, 1]; NaN where there is no query."""

    queries: int
    recall: dict[int, float]
    map: float

    @classmethod
    def of(cls, ranks: Sequence[np.ndarray]) -> Scores:
        recall = {k: metrics.recall_at_k(ranks, k) for k in RECALLS}
        return cls(len(ranks), recall, metrics.mean_average_precision(ranks))


@dataclass(frozen=True)
class Grounding:
    """How well the grounding maps find the target boxes of ``items`` items.

    ``pointing``: share of maps whose strongest cell lies in the box; ``mass``: mean share of the
    map inside the box; ``chance``: mean share of the picture inside the box, the value of both for
    a map that knows nothing.
    """

    items: int
    pointing: float
    mass: float
    chance: float


@dataclass
class Evaluation:
    """Result of :func:`evaluate` with its conditions."""

    directory: str
    mode: Mode
    split: str | None
    overall: Scores
    per_kind: dict[str, Scores]
    grounding: Grounding | None
    items: int
    queries: int
    queries_without_item: int
    text_words: float
    seconds_items: float
    seconds_queries: float
    conditions: dict[str, Any]
    rejected_items: list[Rejected] = field(default_factory=list)
    rejected_queries: list[Rejected] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def evaluate(
    directory: str | Path,
    encoder: Encoder,
    *,
    mode: Mode = "item",
    split: str | None = None,
    query_kinds: Iterable[str] = (),
    item_filter: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Recall@1/5/10 and mAP of a bundle on one data directory.

    Args:
        directory: holds ``items.jsonl`` and ``queries.jsonl``; unknown fields are ignored.
        encoder: the bundle's towers on an engine.
        mode: how items are embedded, see the module's text.
        split: keep only items and queries whose field ``split`` has this value.
        query_kinds: keep only queries whose field ``query_kind`` is one of these; all if empty.
        item_filter: keep only items whose fields, compared as text, have these values.
        progress: called with (pictures done, total).

    Returns:
        The scores. Queries whose correct items are all missing from the filtered gallery are
        counted in ``queries_without_item`` and left out; broken items and queries are listed.

    Raises:
        InputError: the files are missing, or no item or no query is left to evaluate.
    """
    directory = Path(directory)
    if mode not in get_args(Mode):
        raise InputError(f"mode: {mode!r} is none of {', '.join(get_args(Mode))}")
    bad_items: list[Rejected] = []
    bad_queries: list[Rejected] = []
    wanted = dict(item_filter or {}) | ({"split": split} if split else {})
    queries = list(read_queries(directory, on_reject=bad_queries.append))
    queries = _select(queries, {"split": split} if split else {}, "query")
    items = _select(list(read_items(directory, on_reject=bad_items.append)), wanted, "item")
    kinds = set(query_kinds)
    if kinds:
        found = {_kind(query) for query in queries}
        if not kinds <= found:
            raise InputError(
                f"{directory}: no query has query_kind {', '.join(sorted(kinds - found))}; "
                f"there are {', '.join(sorted(found))}"
            )
        queries = [query for query in queries if _kind(query) in kinds]
    known = {item.item_id for item in items}
    answerable = [query for query in queries if known.intersection(query.item_ids)]
    without_item = len(queries) - len(answerable)
    if not answerable:
        raise InputError(f"{directory}: no query has one of its item_ids among the items left")

    total = len(items) + len(answerable)
    report = progress or (lambda done, total: None)
    started = time.perf_counter()
    gallery = _encode_gallery(items, encoder, mode, lambda done: report(done, total))
    seconds_items = time.perf_counter() - started
    bad_items += gallery.rejected
    started = time.perf_counter()
    asked, vectors, broken = _encode_queries(
        answerable, encoder, lambda done: report(len(items) + done, total)
    )
    seconds_queries = time.perf_counter() - started
    bad_queries += broken

    column = {item.item_id: number for number, item in enumerate(gallery.items)}
    relevant = [[column[i] for i in query.item_ids if i in column] for query in asked]
    kept = [number for number, own in enumerate(relevant) if own]
    without_item += len(asked) - len(kept)
    if not kept:
        raise InputError(f"{directory}: no query is left: no correct item could be encoded")
    ranks = _ranks(vectors[kept], gallery.vectors, [relevant[number] for number in kept])
    kind_of = np.array([_kind(asked[number]) for number in kept])
    per_kind = {
        str(kind): Scores.of([r for r, own in zip(ranks, kind_of == kind, strict=True) if own])
        for kind in np.unique(kind_of)
    }
    return Evaluation(
        directory=str(directory),
        mode=mode,
        split=split,
        overall=Scores.of(ranks),
        per_kind=per_kind,
        grounding=gallery.grounding(),
        items=len(gallery.items),
        queries=len(kept),
        queries_without_item=without_item,
        text_words=float(np.mean([len(item_text(item).split()) for item in items])),
        seconds_items=seconds_items,
        seconds_queries=seconds_queries,
        conditions=_conditions(encoder, wanted, kinds),
        rejected_items=bad_items,
        rejected_queries=bad_queries,
    )


class _Gallery:
    """Encoded items with their embeddings, and how well their maps point."""

    def __init__(self, width: int) -> None:
        self.items: list[Item] = []
        self.rejected: list[Rejected] = []
        self._width, self._vectors = width, []
        self._pointing, self._mass, self._chance = [], [], []

    @property
    def vectors(self) -> np.ndarray:
        """Embeddings float32 (G, E)."""
        return _stack(self._vectors, self._width)

    def add(self, item: Item, vector: np.ndarray) -> None:
        self.items.append(item)
        self._vectors.append(vector)

    def ground(self, item: Item, grid: np.ndarray) -> None:
        """Compare a map (h, w) with the item's target box, if it has one."""
        size = _upright_size(item.image)
        if item.target_box is None or size is None:
            return
        self._pointing.append(metrics.points_inside(grid, item.target_box, size))
        self._mass.append(metrics.mass_inside(grid, item.target_box, size))
        self._chance.append(metrics.box_share(item.target_box, size))

    def grounding(self) -> Grounding | None:
        if not self._pointing:
            return None
        means = (float(np.mean(v)) for v in (self._pointing, self._mass, self._chance))
        return Grounding(len(self._pointing), *means)


def _upright_size(source: ImageSource) -> tuple[int, int] | None:
    """(width, height) of a readable picture, from its header; None if EXIF turns it, because its
    boxes are then those of the stored picture and its map that of the turned one."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    if isinstance(source, Image.Image):
        return source.size
    file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    with Image.open(file) as picture:
        return picture.size if picture.getexif().get(EXIF_ORIENTATION, 1) == 1 else None


def _select(entries: Sequence[Any], wanted: Mapping[str, str], noun: str) -> list[Any]:
    """The entries whose fields have the wanted values, compared as text."""
    for key, value in wanted.items():
        values = [_field(entry, key) for entry in entries]
        chosen = [e for e, own in zip(entries, values, strict=True) if own == value]
        if not chosen:
            there = sorted({own for own in values if own is not None})[:8]
            raise InputError(
                f"no {noun} left with {key}={value}; values of {key}: {', '.join(there) or 'none'}"
            )
        entries = chosen
    return list(entries)


def _field(entry: Item | Query, key: str) -> str | None:
    value = entry.extra.get(key, getattr(entry, key, None))
    return None if value is None else str(value)


def _kind(query: Query) -> str:
    return str(query.extra.get("query_kind", "all"))


def _encode_gallery(
    items: Sequence[Item], encoder: Encoder, mode: Mode, report: Callable[[int], None]
) -> _Gallery:
    gallery = _Gallery(encoder.bundle.embedding_dim)
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        if mode in ("item", "text"):
            encoded = encoder.encode_items(_blanked(chunk, encoder) if mode == "text" else chunk)
        else:
            boxes = [item.target_box if mode == "oracle" else None for item in chunk]
            pictures = [item.image for item in chunk]
            encoded = encoder.try_queries(list(zip(pictures, boxes, strict=True)))
        for item, result in zip(chunk, encoded, strict=True):
            if isinstance(result, InputError):
                gallery.rejected.append(Rejected(item.item_id, str(result)))
            elif isinstance(result, EncodedItem):
                gallery.add(item, result.embedding)
                if mode == "item":
                    gallery.ground(item, result.grounding_map)
            else:
                gallery.add(item, result)
        report(start + len(chunk))
    return gallery


def _blanked(items: Sequence[Item], encoder: Encoder) -> list[Item]:
    """The items with a picture of the mean colour, which is 0 for the model."""
    spec = encoder.bundle.preprocessing
    colour = tuple(round(255 * value) for value in spec.mean)
    blank = Image.new("RGB", (spec.item_size, spec.item_size), colour)
    return [replace(item, image=blank) for item in items]


def _encode_queries(
    queries: Sequence[Query], encoder: Encoder, report: Callable[[int], None]
) -> tuple[list[Query], np.ndarray, list[Rejected]]:
    """The queries that could be encoded, their embeddings (Q, E), and the others."""
    good, vectors, rejected = [], [], []
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        encoded = encoder.try_queries([(query.image, query.box) for query in chunk])
        for query, result in zip(chunk, encoded, strict=True):
            if isinstance(result, InputError):
                rejected.append(Rejected(query.query_id, str(result)))
            else:
                good.append(query)
                vectors.append(result)
        report(start + len(chunk))
    return good, _stack(vectors, encoder.bundle.embedding_dim), rejected


def _stack(vectors: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(vectors) if vectors else np.zeros((0, width), np.float32)


def _ranks(
    queries: np.ndarray, gallery: np.ndarray, relevant: Sequence[list[int]]
) -> list[np.ndarray]:
    """Ranks of the correct items, the score matrix computed in blocks of queries."""
    ranks: list[np.ndarray] = []
    for start in range(0, len(queries), SCORE_ROWS):
        block = slice(start, start + SCORE_ROWS)
        ranks += metrics.relevant_ranks(queries[block] @ gallery.T, relevant[block])
    return ranks


def _conditions(
    encoder: Encoder, wanted: Mapping[str, str], kinds: Iterable[str]
) -> dict[str, Any]:
    info = encoder.engine.info
    return {
        "model": encoder.bundle.name,
        "fingerprint": encoder.bundle.fingerprint,
        "engine": info.name,
        "precision": info.precision,
        "device": info.device,
        "threads": info.threads,
        "engine_detail": info.detail,
        "cpu": cpu().model,
        "tigerfg": version("tigerfg"),
        "item_filter": dict(wanted),
        "query_kinds": sorted(kinds),
    }
