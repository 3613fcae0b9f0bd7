"""A large catalogue in use: what its index is tuned with, reopening, filters, updates.

    python bench/catalog_bench.py --out FOLDER --items 1000000 [--results FOLDER]

FOLDER is what `bench/index_bench.py` made: the vectors, the queries and the store, whose items have
a number below 10,000 to filter by. Everything goes through `Collection`, as a Searcher does it,
with the index that `auto` takes: tuned on queries made of items, and at the end on sample queries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from conditions import conditions
from engine_report import markdown
from index_contenders import SLOTS
from index_vectors import K, blocks, unit

from tigerfg.index.collection import Collection
from tigerfg.index.ivf import IvfIndex
from tigerfg.index.store import Store
from tigerfg.index.stored import Record

HERE = Path(__file__).resolve().parent
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
QUERIES, UPDATES = 100, 50
PHOTOS, SAMPLE = 1000, 300  # that recall is measured with, and others to tune with
OPENING = """
import re, sys, time
from pathlib import Path
import numpy as np
from tigerfg.index.collection import Collection
queries = np.load(sys.argv[2])
started = time.perf_counter()
collection = Collection.open(sys.argv[1], read_only=True)
opened = time.perf_counter()
collection.search(queries[:1], 10)
searched = time.perf_counter()
# not ru_maxrss, which a process has from the one that started it
memory = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(opened - started, searched - started, memory / 1024)
"""


def reopening(folder: Path, queries: Path) -> dict[str, float]:
    """Seconds until opened, and until the first result, of fresh processes; the median of five."""
    runs = []
    for _ in range(5):
        command = [sys.executable, "-c", OPENING, folder, queries]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append([float(word) for word in found.stdout.split()])
    opened, first, memory = np.median(np.array(runs), axis=0).tolist()
    return {"open_s": opened, "first_result_s": first, "memory_mb": memory}


def tuned(
    collection: Collection, vectors: np.ndarray, photos: np.ndarray, sample: np.ndarray
) -> dict[str, Any]:
    """Build anew for sample queries, or none, and search with others: recall, median ms."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    stats = collection.optimize(sample)
    faiss.omp_set_num_threads(threads)
    truth = nearest(vectors, np.arange(len(vectors)), photos, K)
    for _ in range(2):  # the second time with warm caches
        seconds, hits = [], 0
        for photo, best in zip(photos, truth, strict=True):
            started = time.perf_counter()
            [line] = collection.search(photo[None], K)
            seconds.append(time.perf_counter() - started)
            names = {match.document["item_id"] for match in line}
            hits += len(names & {f"i{n}" for n in best})
    row = {"index": stats.kind, "queries": stats.queries, "nprobe": stats.nprobe}
    row |= {"promised": stats.recall, "recall": hits / (K * len(photos))}
    return row | {"ms": 1e3 * float(np.median(seconds))}


def slots(collection: Collection) -> np.ndarray:
    """The field of every item, in the order of storing."""
    return np.fromiter((document["slot"] for document in collection.documents()), np.int64)


def filters(
    collection: Collection, vectors: np.ndarray, queries: np.ndarray
) -> list[dict[str, Any]]:
    """Latency and recall@10 by selectivity; fewer than 10 results only where fewer match."""
    slot = slots(collection)
    rows = []
    for share in (None, *SHARES):
        where = None if share is None else {"slot": {"$lt": round(share * SLOTS)}}
        matching = np.flatnonzero(slot < (SLOTS if share is None else round(share * SLOTS)))
        started = time.perf_counter()
        collection.search(queries[:1], K, where)
        first = time.perf_counter() - started  # what the filter selects is kept afterwards
        seconds, hits = [], 0
        wanted = min(K, len(matching))
        for query in queries:
            started = time.perf_counter()
            [line] = collection.search(query[None], K, where)
            seconds.append(time.perf_counter() - started)
            assert len(line) == wanted, f"{len(line)} results of {wanted} at {share}"
            hits += len(line)
        truth = nearest(vectors, matching, queries, wanted)
        found = [
            {match.document["item_id"] for match in collection.search(query[None], K, where)[0]}
            for query in queries
        ]
        same = sum(len(a & {f"i{n}" for n in b}) for a, b in zip(found, truth, strict=True))
        row = {"share": share, "matching": len(matching), "ms": 1e3 * float(np.median(seconds))}
        row |= {"first_ms": 1e3 * first}
        row |= {"p95_ms": 1e3 * float(np.quantile(seconds, 0.95)), "recall": same / hits}
        rows.append(row)
        print(row, flush=True)
    return rows


def sides(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    """As `filters`, but what is left lies on one side of the vectors' main axis, most queries not.

    By the index, since no item has such a field: without SQLite's part.
    """
    some = unit(vectors[::100])
    axis = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][0]
    place = np.concatenate([part @ axis for _, part in blocks(vectors)])
    rows = []
    store = Store.open(folder, read_only=True)
    with store.snapshot():
        index = IvfIndex.open(store)
        ids = store.ids()
    for share in SHARES[:3]:
        matching = np.flatnonzero(place < np.quantile(place, share))
        allowed = ids[matching]
        allowed.flags.writeable = False  # as a filter's: the index keeps what it makes of it
        truth = nearest(vectors, matching, queries, K)
        index.search(queries[:1], K, allowed)
        seconds, same = [], 0
        for query, best in zip(queries, truth, strict=True):
            started = time.perf_counter()
            found = index.search(query[None], K, allowed)[1][0]
            seconds.append(time.perf_counter() - started)
            same += len(set(found.tolist()) & set(ids[best].tolist()))
        row = {"share": share, "matching": len(matching), "ms": 1e3 * float(np.median(seconds))}
        row |= {"p95_ms": 1e3 * float(np.quantile(seconds, 0.95))}
        rows.append(row | {"recall": same / (K * len(queries))})
        print(rows[-1], flush=True)
    store.close()
    return rows


def nearest(
    vectors: np.ndarray, matching: np.ndarray, queries: np.ndarray, k: int
) -> list[list[int]]:
    """Exact neighbours among the matching items, by position."""
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    for start in range(0, len(matching), 65_536):
        part = matching[start : start + 65_536]
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(unit(vectors[part]))
        scores, ids = flat.search(queries, min(k, len(part)))
        if ids.shape[1] < k:  # the last block
            empty = ((0, 0), (0, k - ids.shape[1]))
            scores, ids = np.pad(scores, empty, constant_values=-9), np.pad(ids, empty)
        best.add_result(scores, part[ids])
    best.finalize()
    return best.I.tolist()


def updates(collection: Collection, vectors: np.ndarray) -> dict[str, float]:
    """Milliseconds of storing, finding and deleting one item, each acknowledged by the disk."""
    grid = np.ones((1, 1), np.float32)
    times: dict[str, list[float]] = {"put": [], "search": [], "delete": []}
    for n in range(UPDATES):
        vector = unit(vectors[n][None])[0]
        text = json.dumps({"item_id": f"new{n}", "slot": 0})
        marks = [time.perf_counter()]
        collection.put([Record(f"new{n}", b"", text, vector, grid)])
        marks.append(time.perf_counter())
        [line] = collection.search(vector[None], 2)
        marks.append(time.perf_counter())
        assert f"new{n}" in [match.document["item_id"] for match in line]
        collection.delete([f"new{n}"])
        marks.append(time.perf_counter())
        for name, spent in zip(times, np.diff(marks), strict=True):
            times[name].append(1e3 * float(spent))
    return {f"{name}_ms": float(np.median(values)) for name, values in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="of index_bench.py")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors = np.load(options.out / f"vectors-{options.items}.npy", mmap_mode="r")
    known = unit(np.load(options.out / "real.npz")["queries"])
    queries, photos, sample = known[:QUERIES], known[:PHOTOS], known[PHOTOS : PHOTOS + SAMPLE]
    if len(sample) < SAMPLE:
        parser.error(f"--out: {len(known)} queries there, {PHOTOS + SAMPLE} are needed")
    np.save(options.out / "some-queries.npy", queries)
    folder = options.out / f"store-{options.items}"
    content: dict[str, Any] = {"items": options.items, "conditions": conditions()}
    collection = Collection.open(folder)
    try:
        content["tuned"] = [tuned(collection, vectors, photos, known[:0])]
        content["reopening"] = reopening(folder, options.out / "some-queries.npy")
        print(content["tuned"], content["reopening"], flush=True)
        content["filters"] = filters(collection, vectors, queries)
        content["sides"] = sides(folder, vectors, queries)
        content["updates"] = updates(collection, vectors)
        content["tuned"].append(tuned(collection, vectors, photos, sample))
    finally:
        collection.close()
    print(content["tuned"][1])
    print(content["updates"])
    file = options.results / f"catalog_{options.items}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    body = [
        [
            "none" if r["share"] is None else f"{r['share']:.2%}",
            str(r["matching"]),
            f"{r['first_ms']:.1f}",
            f"{r['ms']:.2f}",
            f"{r['p95_ms']:.2f}",
            f"{r['recall']:.3f}",
        ]
        for r in content["filters"]
    ]
    heads = ["filter leaves", "items", "first ms", "again, median ms", "p95 ms", "recall@10"]
    print("\n".join(markdown(heads, body)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
