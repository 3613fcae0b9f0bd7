"""Whether an index finds what came after its training as well as the rest: measured now and then.

Items of new kinds scatter over lists whose centres know nothing of them, and a query for them is
about as near to many centres: with a tenth of such items added, recall for queries about them was
.28 where it was .98 for others. The lists may even become more alike in size by that, so nothing
but a measurement tells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tigerfg.index.exact import exact
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.photo_like import photo_like
from tigerfg.index.ranking import NEAREST, hits
from tigerfg.index.store import Store
from tigerfg.index.vectors import VectorRows

SAMPLE = 256  # queries made of items that came later, and as many of others
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


def is_due(index: IvfIndex) -> bool:
    """Whether so many items came since the last measurement, or the training, that it is time."""
    least = max(LEAST, FIRST * index.notes["trained"], GROWN * index.notes["compared"])
    return index.later >= least


def ask(store: Store, last: int) -> Asked | None:
    """Queries of both kinds with their true neighbours; None where a kind has no items left.

    Args:
        store: inside a snapshot. last: the highest internal id that was trained on.

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
    return Asked(queries, exact(rows, queries, ids, NEAREST)[0], len(kinds[0]))


def found_less(index: IvfIndex, asked: Asked) -> tuple[bool, float, float]:
    """Whether what came later is found less; recall@10 of that, and of the rest.

    Items that were stored or removed since the queries were made hardly count.
    """
    scores, _ = index.search(asked.queries, NEAREST)
    shares = []
    for line, best in zip(scores, asked.nearest, strict=True):
        known = best[np.isfinite(best)]
        shares.append(hits(line, known) / max(1, len(known)))
    parts = shares[: asked.later], shares[asked.later :]
    later, before = (float(np.mean(part)) for part in parts)
    error = math.hypot(*(float(np.std(part)) / math.sqrt(len(part)) for part in parts))
    return later < before - WORSE - 2 * error, later, before
