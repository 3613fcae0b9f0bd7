"""Building an IVF index: training, adding, and nprobe tuned to a recall that was measured."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import NamedTuple, TypeVar

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index.derived import Loaded, import_faiss
from tigerfg.index.exact import exact
from tigerfg.index.factory import list_count_of, require_ivf, transformed, transforms_of
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.photo_like import photo_like
from tigerfg.index.plan import IndexSettings
from tigerfg.index.probing import Centres, measured_margins
from tigerfg.index.ranking import NEAREST, share_found
from tigerfg.index.span import trained
from tigerfg.index.store import Store
from tigerfg.index.vectors import VectorRows

QUERIES = 256  # stored vectors of which queries are made to tune with
A_LIST, AT_LEAST = 64, 20_000  # vectors trained on: so many a list
FACTORS = (4, 6, 10, 20, 40)  # candidates a wanted result, for refinement
SEED = 7

logger = logging.getLogger("tigerfg")

P = TypeVar("P")


class Point(NamedTuple):
    """Recall@10 against exact search, its standard error over the queries, and milliseconds a
    query, the median of queries one at a time."""

    nprobe: int
    factor: int
    recall: float
    error: float
    ms: float


def build(
    store: Store, factory: str, settings: IndexSettings, queries: np.ndarray | None = None
) -> IvfIndex:
    """Train, fill and tune an index over all stored items; call inside a snapshot of the store, in
    the process that writes to the catalogue.

    Args:
        factory: faiss factory string of an IVF index, perhaps after our SVD (`span.trained`).
        settings: for which that was chosen. Of the points that reach the target recall, by a
            standard error to spare, the quickest is taken; where none does, the best, with a
            warning if that is below the target.
        queries: sample queries (Q, E) to tune with; None: the catalogue's.

    Raises:
        InputError: faiss refuses the factory string, or there are too few items for it.
        CatalogError: what is stored is damaged.
    """
    started = time.perf_counter()
    lists = list_count_of(require_ivf(factory, store.meta.embedding_dim))
    store.require_vectors()
    rows = VectorRows(store, fresh=True)
    ids = store.ids()
    rng = np.random.default_rng(SEED)
    sample = np.sort(rng.permutation(ids)[: max(A_LIST * lists, AT_LEAST)])
    # Trained on or not, as it happens: items that were held out of the training lie farther from
    # their centres than most do, so that more lists are probed for them, and more is found.
    some = np.sort(rng.permutation(ids)[:QUERIES])
    try:
        index, factory = trained(factory, rows.get(sample))
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1].split("\n")[0]
        raise InputError(
            f"index {factory!r}: {len(ids)} items are too few to train it ({reason}); give fewer "
            "lists or index='auto'"
        ) from error
    ready = time.perf_counter()
    for part, vectors in rows.blocks(ids):
        index.add_with_ids(vectors, part)
    filled = time.perf_counter()
    sample = store.queries() if queries is None else queries
    queries = tuning_queries(sample, rows, some)
    inner = transformed(transforms_of(index), queries)
    faiss = import_faiss()
    centres = Centres(faiss, faiss.extract_index_ivf(index))
    notes = {
        "factory": factory,
        "margins": measured_margins(centres, inner),
        "trained": len(ids),
        "last": int(ids[-1]),
        "settings": asdict(settings),
        "nprobe": lists,
        "factor": FACTORS[-1],
        "curve": [],
    }
    built = IvfIndex(store, rows, Loaded(index, store.number, notes))
    nearest, near = exact(rows, queries, ids, NEAREST)
    # of moved items lists reach farther than of photos: no need to spare
    target = settings.target_recall
    share = (1 + target) / 2 if len(sample) else target
    built.notes["reach"] = built.reach(queries, near, share)
    chosen, curve = tune(built, queries, nearest, target)
    built.notes |= {
        "nprobe": chosen.nprobe,
        "factor": chosen.factor,
        "imbalance": built.imbalance,
        "queries": len(sample),
        "recall": chosen.recall,
        "ms": chosen.ms,
        "curve": [point._asdict() for point in curve],
        "seconds": {
            "train": round(ready - started, 2),
            "add": round(filled - ready, 2),
            "tune": round(time.perf_counter() - filled, 2),
        },
    }
    logger.info(
        "%s over %d items: recall@10 %.3f at nprobe %d, %.2f ms a query; built in %.1f s",
        factory,
        len(ids),
        chosen.recall,
        chosen.nprobe,
        chosen.ms,
        time.perf_counter() - started,
    )
    return built


def tuning_queries(sample: np.ndarray, rows: VectorRows, items: np.ndarray) -> np.ndarray:
    """What an index is tuned with, float32 (Q, E): sample queries, else such as photos might be.

    Args:
        sample: sample queries (Q, E), or none of them. items: ids of stored items.
    """
    return sample if len(sample) else photo_like(rows.get(items))


def tune(
    index: IvfIndex, queries: np.ndarray, nearest: np.ndarray, target: float
) -> tuple[Point, list[Point]]:
    """The cheapest measured point that reaches the target, and the whole curve.

    Args:
        queries: (Q, E). nearest: scores (Q, 10) of their nearest, -inf where there are fewer.
    """
    curve: list[Point] = []
    for factor in FACTORS:
        nprobe, recalls = 1, {}
        while True:
            point = _measure(index, queries, nearest, nprobe, factor)
            curve.append(point)
            recalls[nprobe] = point.recall
            flat_out = nprobe >= 16 and point.recall <= recalls[nprobe // 2] + 0.001
            if nprobe >= index.lists or point.recall >= 0.999 or flat_out:
                break
            nprobe = min(next_nprobe(nprobe), index.lists)
    good = [point for point in curve if point.recall - point.error >= target]
    if good:
        good = undominated(good, lambda point: (point.nprobe, point.factor))
        return min(good, key=lambda point: point.ms), curve
    top = max(curve, key=lambda point: point.recall)
    if top.recall < target:
        logger.warning("recall@10 of %g is out of reach, the index gives %.3f", target, top.recall)
    return top, curve


def undominated(points: Iterable[P], effort: Callable[[P], tuple[int, ...]]) -> list[P]:
    """Without those that ask for as much as another or more in every way: a time below that one's
    would be chance.

    Args:
        effort: what a point asks for, e.g. lists and candidates.
    """
    efforts = [(effort(point), point) for point in points]
    return [
        point
        for mine, point in efforts
        if not any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True))
            for other, _ in efforts
        )
    ]


def next_nprobe(nprobe: int) -> int:
    """The one to measure next: 1, 2, 3, 4, 6, 8, 12, ... (powers of two, and half more)."""
    power = 1 << (nprobe.bit_length() - 1)
    return 2 * power if nprobe > power or power == 1 else power * 3 // 2


def _measure(
    index: IvfIndex,
    queries: np.ndarray,
    nearest: np.ndarray,
    nprobe: int,
    factor: int,
) -> Point:
    index.notes |= {"nprobe": nprobe, "factor": factor}
    shares: list[float] = []
    seconds: list[float] = []
    for query, best in zip(queries, nearest, strict=True):
        started = time.perf_counter()
        scores, _ = index.search(query[None], NEAREST)
        seconds.append(time.perf_counter() - started)
        shares.append(share_found(scores[0], best))
    error = float(np.std(shares)) / math.sqrt(len(shares))
    return Point(nprobe, factor, float(np.mean(shares)), error, 1000 * float(np.median(seconds)))
