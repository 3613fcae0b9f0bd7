"""Whether an index finds what came after its training as well as the rest: measured now and then.

Items of new kinds scatter over lists whose centres know nothing of them, and a query for them is
about as near to many centres: with a tenth of such items added, recall for queries about them was
.28 where it was .98 for others. The lists may even become more alike in size by that, so nothing
but a measurement tells.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tigerfg.files import write_whole
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.photo_like import photo_like
from tigerfg.index.ranking import NEAREST, share_found
from tigerfg.index.store import Store
from tigerfg.index.vectors import VectorRows

STAMP_FILE = "compared.json"
SAMPLE = 128  # queries made of items that came later, and as many of others
AT_ONCE = 16  # queries that the index is asked: other searches wait for it
# It is measured when so many came, as a share of what was trained on, and again whenever that has
# grown by so much.
FIRST, GROWN, LEAST = 0.02, 1.5, 100
WORSE = 0.03  # of recall, beyond what chance explains (two standard errors)
SEED = 13


class Asked(NamedTuple):
    """Queries float32 (Q, E), the first `later` of them made of items that came after the training,
    and the scores (Q, 10) of their nearest, -inf where there are fewer."""

    queries: np.ndarray
    nearest: np.ndarray
    later: int


class Compared(NamedTuple):
    """Recall@10 of what came later and of the rest; less: that the first is found less."""

    later: float
    before: float
    less: bool


def is_due(index: IvfIndex) -> bool:
    """Whether so many items came since the last measurement, or the training, that it is time."""
    return index.later >= max(LEAST, FIRST * index.notes["trained"], GROWN * index.compared)


def ask(store: Store, last: int, stop: Callable[[], bool]) -> Asked | None:
    """Queries of both kinds with their true neighbours; None where a kind has no items left.

    Args:
        store: inside a snapshot. last: the highest internal id that was trained on.
        stop: asked now and then; None is returned when it says so.

    Raises:
        CatalogError: a stored vector is lost.
    """
    store.require_vectors()
    ids = store.ids()
    rng = np.random.default_rng(SEED)
    kinds = [rng.permutation(part)[:SAMPLE] for part in (ids[ids > last], ids[ids <= last])]
    if not all(map(len, kinds)):
        return None
    rows = VectorRows(store)
    queries = np.concatenate([photo_like(rows.get(np.sort(part))) for part in kinds])
    nearest = np.full((len(queries), NEAREST), -np.inf, np.float32)
    for _, vectors in rows.blocks(ids):
        if stop():
            return None
        scores = np.concatenate([nearest, queries @ vectors.T], axis=1)
        nearest = np.partition(scores, -NEAREST, axis=1)[:, -NEAREST:]
    return Asked(queries, nearest, len(kinds[0]))


def compare(search: Callable[[np.ndarray], np.ndarray | None], asked: Asked) -> Compared | None:
    """What the index finds of both kinds; items that come or go meanwhile hardly count.

    Args:
        search: the scores (B, 10) of these queries' results, or None where there is no such index
            any more: None is returned then.
    """
    shares: list[float] = []
    for start in range(0, len(asked.queries), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        scores = search(asked.queries[part])
        if scores is None:
            return None
        shares += map(share_found, scores, asked.nearest[part])
    parts = shares[: asked.later], shares[asked.later :]
    later, before = (float(np.mean(part)) for part in parts)
    error = math.hypot(*(float(np.std(part)) / math.sqrt(len(part)) for part in parts))
    return Compared(later, before, later < before - WORSE - 2 * error)


def note(store: Store, index: IvfIndex) -> None:
    """Keep how far an index was found good: what is not kept is measured again."""
    content = json.dumps(_key(store, index) | {"compared": index.compared})
    with contextlib.suppress(OSError):
        write_whole(store.path / STAMP_FILE, content.encode())


def noted(store: Store, index: IvfIndex) -> int:
    """How many items had come later when the index was last found good; 0: it was not."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        told = json.loads((store.path / STAMP_FILE).read_bytes())
        if _key(store, index).items() <= told.items():
            return int(told["compared"])
    return 0


def _key(store: Store, index: IvfIndex) -> dict[str, object]:
    return {"catalog_id": store.meta.catalog_id, "last": index.notes["last"]}
