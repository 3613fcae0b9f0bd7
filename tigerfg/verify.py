"""Is a catalogue what it should be? Its store, its index file, its vectors against the pictures."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tigerfg.download import is_address
from tigerfg.errors import CatalogError, InputError
from tigerfg.index.stored import Sampled
from tigerfg.prepare import Prepared, prepare
from tigerfg.records import Item
from tigerfg.results import VerifyReport

if TYPE_CHECKING:
    from tigerfg.encoder import Encoder
    from tigerfg.index.collection import Collection
    from tigerfg.index.milvus import MilvusCollection

# Engines in floating point agree to .999, fp16 storage costs 1e-6; another picture of the same
# product is further away than this. Of a bundle with coarser precisions it is less: `_limit`.
LEAST_COSINE = 0.99
# In another precision the window of an attention crop may be another, where patches are about as
# strong as its threshold, or two things as the peak. Of 1,018 real items in bf16 and fp32 12 lay
# below .99, one at .87; so this share of them (one of a few) may, but not below this.
MOVED_WINDOWS, LEAST_OF_MOVED = 0.05, 0.75
SHOWN = 5  # items that a problem names

NO_FILE = "stored without a path"
FETCHED = "picture behind an address"
GONE = "picture changed since, or gone"
UNUSABLE = "picture that cannot be encoded now"


def verify(
    collection: Collection | MilvusCollection,
    get_encoder: Callable[[], Encoder],
    sample: int,
    seed: int,
) -> VerifyReport:
    """See `Searcher.verify`; searches and writes go on beside it.

    Args:
        get_encoder: starts the model; called where there are pictures to encode.
    """
    started = time.perf_counter()
    items, chosen = 0, []
    try:
        items, problems, chosen = collection.inspect(sample, seed)
    except CatalogError as error:
        problems = [str(error)]
    skipped: Counter[str] = Counter()
    cosines: dict[str, float] = {}
    limit, moved = LEAST_COSINE, 0
    if chosen:
        encoder = get_encoder()
        cosines = _cosines(chosen, encoder, skipped)
        limit = _limit(encoder.bundle.least_parity)
        between = sum(LEAST_OF_MOVED <= cosine < limit for cosine in cosines.values())
        if encoder.bundle.attention_crop and between <= math.ceil(MOVED_WINDOWS * len(cosines)):
            limit, moved = min(limit, LEAST_OF_MOVED), between
    far = sorted((cosine, item_id) for item_id, cosine in cosines.items() if cosine < limit)
    if far:
        named = ", ".join(f"{item_id!r} ({cosine:.3f})" for cosine, item_id in far[:SHOWN])
        problems.append(
            f"{len(far)} of {len(cosines)} stored vectors are not what their pictures give now "
            f"(cosine below {limit:.3g}): {named}; delete them and add them again"
        )
    least = min(cosines.values(), default=None)
    seconds = time.perf_counter() - started
    return VerifyReport(items, len(cosines), least, moved, dict(skipped), problems, seconds)


def _limit(least_parity: float) -> float:
    """What stored and new vector must agree to: either may be of a precision that is as far from
    float32 as the bundle's coarsest, to opposite sides."""
    return min(LEAST_COSINE, math.cos(2 * math.acos(min(1.0, least_parity))))


def _cosines(chosen: list[Sampled], encoder: Encoder, skipped: Counter[str]) -> dict[str, float]:
    """Cosine of stored and new vector by item id, of those whose picture is as it was."""
    same: list[tuple[Item, np.ndarray]] = []
    for document, content_hash, vector in chosen:
        image = document.get("image")
        if not image or is_address(image):
            skipped[FETCHED if image else NO_FILE] += 1
            continue
        again = prepare(document)
        if isinstance(again, Prepared) and again.content_hash == content_hash:
            same.append((again.item, vector))
        else:
            skipped[GONE] += 1
    found = {}
    encoded = encoder.encode_items([item for item, _ in same])
    for (item, vector), result in zip(same, encoded, strict=True):
        if isinstance(result, InputError):
            skipped[UNUSABLE] += 1
        else:
            length = float(np.linalg.norm(vector))  # 0 or NaN of a damaged one
            found[item.item_id] = float(vector @ result.embedding) / length if length > 0 else 0.0
    return found
