"""Pictures and texts for calibration and parity: rendered ones, or the user's own."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tigerfg.catalog import read_items, read_queries
from tigerfg.engines.base import Arrays
from tigerfg.errors import InputError
from tigerfg.images import ImageSource, Preprocessing, load_image, preprocess
from tigerfg.text import TextTokenizer, item_text

SEED = 90210  # rendered products of this seed are in no training or benchmark set


@dataclass(frozen=True)
class Samples:
    """Prepared inputs of both towers, by tower.

    Attributes:
        answers: for every query the ids of the items that show its product; may be empty.
        item_ids: of the items.
        source: where all of it comes from.
    """

    query: Arrays
    item: Arrays
    answers: tuple[frozenset[str], ...]
    item_ids: tuple[str, ...]
    source: str

    def part(self, rows: slice) -> Samples:
        """Some of the pictures of either tower."""
        return Samples(
            {name: value[rows] for name, value in self.query.items()},
            {name: value[rows] for name, value in self.item.items()},
            self.answers[rows],
            self.item_ids[rows],
            self.source,
        )

    def split(self, count: int) -> tuple[Samples, Samples]:
        """The first `count` pictures of either tower, and the others."""
        return self.part(slice(count)), self.part(slice(count, None))


def load_samples(
    spec: Preprocessing, tokenizer: TextTokenizer, count: int, data: str | Path | None
) -> Samples:
    """`count` queries and items (or as many as there are, but 2 at least) of `data`.

    Args:
        data: a directory with items.jsonl and queries.jsonl; None renders a catalogue.

    Raises:
        InputError: the directory has fewer than 2 usable items or queries.
    """
    if data is not None:
        return _read(Path(data), spec, tokenizer, count, "pictures of " + Path(data).name)
    from tigerfg.benchmark.render import write_catalog

    with tempfile.TemporaryDirectory() as temp:
        side = max(spec.item_size, 256)
        write_catalog(temp, count, SEED, layout="cluttered", image_size=side, workers=1)
        return _read(Path(temp), spec, tokenizer, count, f"rendered products, seed {SEED}")


def _read(
    folder: Path, spec: Preprocessing, tokenizer: TextTokenizer, count: int, source: str
) -> Samples:
    rejected: list[str] = []

    def reject(entry: object) -> None:
        rejected.append(str(entry))

    def usable(image: ImageSource, box: object, size: int) -> object | None:
        try:
            return load_image(image, box, target_size=size, interpolation=spec.interpolation)
        except InputError as error:
            rejected.append(str(error))
            return None

    items, pictures = [], []
    for item in read_items(folder, on_reject=reject):
        picture = usable(item.image, None, spec.item_size)
        if picture is not None:
            items.append(item)
            pictures.append(picture)
        if len(items) == count:
            break
    queries = read_queries(folder, on_reject=reject)
    opened = ((query, usable(query.image, query.box, spec.query_size)) for query in queries)
    chosen = list(islice(((query, crop) for query, crop in opened if crop is not None), count))
    crops = [crop for _, crop in chosen]
    if min(len(items), len(crops)) < 2:
        why = f"; first problem: {rejected[0]}" if rejected else ""
        raise InputError(
            f"parity data: {folder} has {len(items)} usable items and {len(crops)} usable "
            f"queries; 2 of each are needed{why}"
        )
    query = dict(
        zip(("pixels", "patch_mask"), preprocess(crops, spec.query_size, spec)[:2], strict=True)
    )
    pixels, mask, _ = preprocess(pictures, spec.item_size, spec)
    token_ids, token_mask = tokenizer([item_text(item) for item in items])
    item = {"pixels": pixels, "patch_mask": mask, "token_ids": token_ids, "token_mask": token_mask}
    return Samples(
        query,
        {key: np.ascontiguousarray(value) for key, value in item.items()},
        tuple(frozenset(entry.item_ids) for entry, _ in chosen),
        tuple(entry.item_id for entry in items),
        f"{len(items)} {source}",
    )
