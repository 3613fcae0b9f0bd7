"""Items and queries encoded as an evaluation's mode wants it, with what the maps point at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from tigerfg.benchmark import metrics
from tigerfg.benchmark.boxsource import BoxSource
from tigerfg.benchmark.evaluation import Grounding, Mode, named_intervals
from tigerfg.benchmark.pictures import stored_picture
from tigerfg.catalog import Item, Query, Rejected
from tigerfg.encoder import EncodedItem, Encoder
from tigerfg.errors import InputError

CHUNK = 256  # pictures between two progress reports

OnMap = Callable[[Item, np.ndarray], None]
Report = Callable[[int], None]


class Gallery:
    """Encoded items with their embeddings, and how well their maps point."""

    def __init__(self, width: int) -> None:
        self.items: list[Item] = []
        self.rejected: list[Rejected] = []
        self.without_box = 0
        self.seconds = 0.0
        self._width, self._vectors = width, []
        self._found: list[metrics.MapScore] = []

    @property
    def vectors(self) -> np.ndarray:
        """Embeddings float32 (G, E)."""
        return _stack(self._vectors, self._width)

    def add(self, item: Item, vector: np.ndarray) -> None:
        self.items.append(item)
        self._vectors.append(vector)

    def ground(self, item: Item, grid: np.ndarray) -> bool:
        """Compare a map (h, w) with the item's target box; False where there is none to compare.

        Nor is there if EXIF turns the picture: its box is that of the stored picture, its map that
        of the turned one.
        """
        picture = stored_picture(item.image)
        if item.target_box is None or picture is None or not picture.upright:
            return False
        score = metrics.score_map(grid, item.target_box, picture.size)
        if score.chance == 0:  # the box lies outside the picture
            return False
        self._found.append(score)
        return True

    def grounding(self) -> Grounding | None:
        """Means over the items with a box; None without one."""
        if not self._found:
            return None
        found = np.array(self._found, np.float64)
        ends = named_intervals(("pointing", "mass", "iou"), found[:, :3], np.arange(len(found)))
        return Grounding(len(found), *(float(mean) for mean in found.mean(axis=0)), ends)


def encode_gallery(
    items: Sequence[Item],
    encoder: Encoder,
    mode: Mode,
    boxes: BoxSource | None,
    report: Report,
    on_map: OnMap | None = None,
) -> Gallery:
    """Encode the items.

    Args:
        boxes: of modes ``oracle`` and ``detect``; an item without a box is taken whole and counted.
        report: called with the number of items done.
        on_map: called with every item whose map was compared with its box, and the map.
    """
    gallery = Gallery(encoder.bundle.embedding_dim)
    crops = [boxes.box_of(item) if boxes else None for item in items]
    gallery.without_box = crops.count(None) if boxes else 0
    if mode in ("item", "text"):
        encoder.encode_items(items[:1])  # an engine's first run takes longer
    started = time.perf_counter()
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        if mode in ("item", "text"):
            encoded = encoder.encode_items(_blanked(chunk, encoder) if mode == "text" else chunk)
        else:
            pairs = zip(chunk, crops[start : start + CHUNK], strict=True)
            encoded = encoder.try_queries([(item.image, box) for item, box in pairs])
        for item, result in zip(chunk, encoded, strict=True):
            if isinstance(result, InputError):
                gallery.rejected.append(Rejected(item.item_id, str(result)))
            elif isinstance(result, EncodedItem):
                gallery.add(item, result.embedding)
                if mode == "item" and gallery.ground(item, result.grounding_map) and on_map:
                    on_map(item, result.grounding_map)
            else:
                gallery.add(item, result)
        report(start + len(chunk))
    gallery.seconds = time.perf_counter() - started
    return gallery


class EncodedQueries(NamedTuple):
    """The queries that could be encoded, their embeddings float32 (Q, E), the others, and how long
    all of them took."""

    queries: list[Query]
    vectors: np.ndarray
    rejected: list[Rejected]
    seconds: float


def encode_queries(queries: Sequence[Query], encoder: Encoder, report: Report) -> EncodedQueries:
    """Encode the queries; ``report`` is called with the number of them done."""
    encoder.try_queries([(query.image, query.box) for query in queries[:1]])  # as above
    started = time.perf_counter()
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
    stacked = _stack(vectors, encoder.bundle.embedding_dim)
    return EncodedQueries(good, stacked, rejected, time.perf_counter() - started)


def _blanked(items: Sequence[Item], encoder: Encoder) -> list[Item]:
    """The items with a picture of the mean colour, which is 0 for the model."""
    spec = encoder.bundle.preprocessing
    colour = tuple(round(255 * value) for value in spec.mean)
    blank = Image.new("RGB", (spec.item_size, spec.item_size), colour)
    return [replace(item, image=blank) for item in items]


def _stack(vectors: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(vectors) if vectors else np.zeros((0, width), np.float32)
