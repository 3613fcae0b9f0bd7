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
    """Prepared inputs of both towers, by tower; `source` says where they come from."""

    query: Arrays
    item: Arrays
    source: str

    def split(self, count: int) -> tuple[Samples, Samples]:
        """The first `count` pictures of either tower, and the others."""
        parts = [
            Samples(
                {name: value[part] for name, value in self.query.items()},
                {name: value[part] for name, value in self.item.items()},
                self.source,
            )
            for part in (slice(count), slice(count, None))
        ]
        return parts[0], parts[1]


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
        return _read(Path(data), spec, tokenizer, count, f"{Path(data).name}, {count} pictures")
    from tigerfg.benchmark.render import write_catalog

    with tempfile.TemporaryDirectory() as temp:
        side = max(spec.item_size, 256)
        write_catalog(temp, count, SEED, layout="cluttered", image_size=side, workers=1)
        return _read(Path(temp), spec, tokenizer, count, f"{count} rendered products, seed {SEED}")


def _read(
    folder: Path, spec: Preprocessing, tokenizer: TextTokenizer, count: int, source: str
) -> Samples:
    rejected: list[str] = []

    def reject(entry: object) -> None:
        rejected.append(str(entry))

    def usable(image: ImageSource, box: object, size: int) -> object | None:
        try:
            return load_image(image, box=box, target_size=size)
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
    pairs = ((query.image, query.box) for query in read_queries(folder, on_reject=reject))
    opened = (usable(image, box, spec.query_size) for image, box in pairs)
    crops = list(islice((crop for crop in opened if crop is not None), count))
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
    return Samples(query, {key: np.ascontiguousarray(value) for key, value in item.items()}, source)
