"""Our index beside faiss flat, faiss HNSW and usearch, at equal recall.

    python bench/index_bench.py --suite SUITE --items 1000000 --out FOLDER [--results FOLDER]

Vectors and queries are of a suite (`tigerfg suite SUITE --pairs 0 --eval 5000`), see
`index_vectors`; no index has seen the queries. Every contender runs in the same process on the same
vectors; a point is the cheapest setting that reaches a recall, measured again in rounds that go
through all contenders, since what else the machine does changes by the minute (not with --apart,
for more vectors than memory holds five times). What was built is kept in --out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy, which reads it when imported

import faiss
import numpy as np
from conditions import conditions
from engine_report import markdown
from index_contenders import Contender, Search, Setting, faiss_flat, faiss_hnsw, ours, usearch
from index_vectors import exact, grown, real_embeddings

from tigerfg.index.build import undominated
from tigerfg.index.plan import IndexSettings, list_count

HERE = Path(__file__).resolve().parent
RECALLS = (0.90, 0.95, 0.99)
QUERIES, BATCH = 1000, 64
ROUNDS = 15
SLOW = 5  # ms a query: as good as it gets without rounds
MOST_S = 20


class Point(NamedTuple):
    """One setting of one contender: ms a query one at a time, and in batches of 64."""

    setting: str
    recall: float
    ms_one: float
    ms_batch: float


def measure(setting: Setting, queries: np.ndarray, truth: np.ndarray) -> Point:
    """Recall, and medians over queries, one at a time and in batches, of MOST_S each at most."""
    search = setting.search
    found = np.concatenate([search(queries[n : n + BATCH]) for n in range(0, len(queries), BATCH)])
    hits = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, truth, strict=True)]
    one, batch = milliseconds(search, queries, 1), milliseconds(search, queries, BATCH)
    return Point(setting.name, sum(hits) / truth.size, one, batch)


def milliseconds(search: Search, queries: np.ndarray, batch: int) -> float:
    """Median a query, over 300 calls unless that takes too long."""
    taken: list[float] = []
    for n in range(0, len(queries) - batch + 1, batch):
        started = time.perf_counter()
        search(queries[n : n + batch])
        taken.append((time.perf_counter() - started) / batch)
        if len(taken) >= 300 or sum(taken) * batch > MOST_S:
            break
    return 1e3 * float(np.median(taken))


def curve(contender: Contender, queries: np.ndarray, truth: np.ndarray) -> list[Point]:
    """All settings, one after the other."""
    points = []
    for setting in contender.settings:
        points.append(measure(setting, queries, truth))
        print(f"{contender.name}: {points[-1]}", flush=True)
    return points


def quickest(points: Iterable[Point]) -> Point | None:
    return min(points, key=lambda point: point.ms_one, default=None)


def reaching(contender: Contender, points: list[Point], recall: float) -> list[Point]:
    """Those that reach the recall, without those that ask for more than another of them."""
    efforts = {setting.name: setting.effort for setting in contender.settings}
    good = (point for point in points if point.recall >= recall)
    return undominated(good, lambda point: efforts[point.setting])


def side_by_side(
    contenders: list[tuple[Contender, list[Point]]], queries: np.ndarray
) -> list[dict[str, Point | None]]:
    """By recall, the quickest point of every contender, its times the medians of the rounds."""
    best: list[dict[str, Point | None]] = [{} for _ in contenders]
    for recall in RECALLS:
        tried: list[tuple[int, Point]] = []
        for n, (contender, points) in enumerate(contenders):
            good = reaching(contender, points, recall)
            best[n][str(recall)] = quickest(good)
            tried += [(n, point) for point in good if point.ms_one < SLOW]
        times: list[list[tuple[float, float]]] = [[] for _ in tried]
        for _, ((n, point), taken) in itertools.product(
            range(ROUNDS), list(zip(tried, times, strict=True))
        ):
            searches = {setting.name: setting.search for setting in contenders[n][0].settings}
            one = milliseconds(searches[point.setting], queries, 1)
            taken.append((one, milliseconds(searches[point.setting], queries, BATCH)))
        again: dict[int, list[Point]] = {}
        for (n, point), taken in zip(tried, times, strict=True):
            one, batch = np.median(taken, axis=0).tolist()
            again.setdefault(n, []).append(point._replace(ms_one=one, ms_batch=batch))
        for n, points in again.items():
            best[n][str(recall)] = quickest(points)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="vectors and indexes")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1, help="of a search")
    parser.add_argument("--build-threads", type=int, help="all cores unless told")
    parser.add_argument("--construction", type=int, default=200, help="efConstruction of HNSW")
    parser.add_argument("--apart", action="store_true", help="one in memory at a time")
    parser.add_argument("--factory", nargs="*", help="of ours; what auto takes, and others")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    building = options.build_threads or len(os.sched_getaffinity(0))
    options.out.mkdir(parents=True, exist_ok=True)
    items, queries = real_embeddings(options.suite, options.out)
    rng = np.random.default_rng(1)
    queries = np.ascontiguousarray(queries[rng.permutation(len(queries))[:QUERIES]])
    vectors = grown(items, options.items, options.out / f"vectors-{options.items}.npy")
    truth = exact(vectors, queries, options.out / f"truth-{options.items}.npy")
    auto = IndexSettings().choose(options.items, vectors.shape[1])
    lists = list_count(options.items)
    factories = options.factory or [
        f"IVF{lists}_HNSW16,PQ64",
        f"SVD,IVF{lists},RaBitQfs2",
        auto,  # the last one stays in the store
    ]
    makers: list[Callable[[], Contender | None]] = [
        *(lambda f=f: ours(vectors, options.out, f) for f in factories),
        lambda: faiss_flat(vectors),
        lambda: faiss_hnsw(vectors, options.out, options.construction),
        *(lambda d=d: usearch(vectors, options.out, d, building) for d in ("f16", "i8")),
    ]
    rows: list[dict[str, Any]] = []

    def save() -> None:
        content = {"items": options.items, "real": len(items), "queries": len(queries)}
        content |= {"threads": options.threads, "build_threads": building}
        content |= {"rounds": 0 if options.apart else ROUNDS}
        content |= {"conditions": conditions(), "rows": rows}
        file = options.results / f"index_{options.items}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n")

    held: list[tuple[Contender, list[Point]]] = []
    for make in makers:
        faiss.omp_set_num_threads(building)
        contender = make()
        faiss.omp_set_num_threads(options.threads)
        if contender is None:
            continue
        points = curve(contender, queries, truth)
        row = {"name": contender.name, "build_s": contender.build_s, "note": contender.note}
        row |= {"bytes_item": contender.bytes_item, "curve": [p._asdict() for p in points]}
        first = {str(r): quickest(reaching(contender, points, r)) for r in RECALLS}
        row["best"] = written(first)
        rows.append(row)
        save()
        if not options.apart:
            held.append((contender, points))
        del contender
        gc.collect()
    for row, best in zip(rows, side_by_side(held, queries), strict=not options.apart):
        row["best"] = written(best)
    save()
    print(table(rows))
    return 0


def written(best: dict[str, Point | None]) -> dict[str, Any]:
    return {recall: None if point is None else point._asdict() for recall, point in best.items()}


def table(rows: list[dict[str, Any]]) -> str:
    body = []
    for row in rows:
        cells = [row["name"], f"{row['bytes_item']:.0f}", f"{row['build_s']:.0f}"]
        for best in row["best"].values():
            cells.append(f"{best['ms_one']:.3f} / {best['ms_batch']:.3f}" if best else "–")
        body.append(cells)
    heads = ["", "bytes an item", "build s", *(f"recall@10 {r:.2f}" for r in RECALLS)]
    return "\n".join(markdown(heads, body))


if __name__ == "__main__":
    sys.exit(main())
