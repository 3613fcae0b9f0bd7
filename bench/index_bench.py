"""Our index beside faiss flat, faiss HNSW, usearch and hnswlib, at equal recall.

    python bench/index_bench.py --suite SUITE --items 1000000 --out FOLDER [--results FOLDER]

Vectors: the embeddings of a suite's pictures by the shipped `tiny` (`tigerfg suite SUITE --pairs 0
--eval 5000`), and, to get to millions, children of them: an item moved along the difference of two
of its near neighbours, so that clusters and local directions are those of real embeddings. Queries:
the suite's query photos, which no index has seen. Every contender runs in the same process on the
same vectors; a point is the cheapest setting that reaches a recall, measured again in rounds that
go through all contenders, since what else the machine does changes by the minute (not with --apart,
for more vectors than memory holds five times). What was built is kept in --out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy, which reads it when imported

import faiss
import numpy as np
from conditions import conditions
from engine_report import markdown

from tigerfg.index.build import build, next_nprobe, undominated
from tigerfg.index.factory import spanned
from tigerfg.index.ivf import INDEX_FILE, IvfIndex
from tigerfg.index.plan import ROW_BYTES, IndexSettings, list_count
from tigerfg.index.store import Store
from tigerfg.index.stored import Record

HERE = Path(__file__).resolve().parent
K, RECALLS = 10, (0.90, 0.95, 0.99)
QUERIES, BATCH = 1000, 64
NEAR = 8  # neighbours whose differences move a child
AT_ONCE, BLOCK = 4096, 65_536
SLOTS = 10_000
MOST_PROBED = 32
ROUNDS = 15
SLOW = 5  # ms a query: as good as it gets without rounds
MOST_S = 20
OURS = "tigerfg"
Search = Callable[[np.ndarray], np.ndarray]  # queries (B, E) -> ids (B, K)


class Setting(NamedTuple):
    """A search, and what it asks for: where another asks for less in every way, it is quicker."""

    name: str
    effort: tuple[int, ...]
    search: Search


class Point(NamedTuple):
    """One setting of one contender: ms a query one at a time, and in batches of 64."""

    setting: str
    recall: float
    ms_one: float
    ms_batch: float


def real_embeddings(suite: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Item and query embeddings of a suite, float32, encoded once."""
    file = out / "real.npz"
    if not file.exists():
        from tigerfg.benchmark.selection import Selection
        from tigerfg.bundle import Bundle
        from tigerfg.encoder import Encoder
        from tigerfg.engines import open_engine

        bundle = Bundle.open("tiny")
        encoder = Encoder(bundle, open_engine(bundle))
        items, queries = [], []
        for layout in ("standard", "cluttered"):
            chosen = Selection.read(suite / layout, None)
            encoded = encoder.encode_items(chosen.items)
            items += [one.embedding for one in encoded]
            if not queries:
                queries = list(encoder.encode_queries([(q.image, q.box) for q in chosen.queries]))
        encoder.close()
        np.savez(file, items=np.stack(items), queries=np.stack(queries))
    stored = np.load(file)
    return stored["items"], stored["queries"]


def grown(items: np.ndarray, count: int, file: Path) -> np.ndarray:
    """`count` vectors, mapped: the real ones first, then children of random ones.

    Float16, as a catalogue stores them: with more digits the truth would not be that of the store.
    """
    if not file.exists():
        rng = np.random.default_rng(0)
        flat = faiss.IndexFlatIP(items.shape[1])
        flat.add(items)
        near = flat.search(items, NEAR + 1)[1][:, 1:]
        staged = np.lib.format.open_memmap(
            file.with_suffix(".part"), "w+", np.float16, (count, items.shape[1])
        )
        staged[: len(items)] = items[:count]
        for start in range(len(items), count, AT_ONCE):
            size = min(AT_ONCE, count - start)
            parent = rng.integers(0, len(items), size)
            one = rng.integers(0, NEAR, size)
            other = (one + rng.integers(1, NEAR, size)) % NEAR  # the same would give a duplicate
            a, b = near[parent, one], near[parent, other]
            step = rng.uniform(0.3, 1.0, (size, 1)).astype(np.float32)
            child = items[parent] + step * (items[a] - items[b])
            staged[start : start + size] = child / np.linalg.norm(child, axis=1, keepdims=True)
        staged.flush()
        file.with_suffix(".part").rename(file)
    return np.load(file, mmap_mode="r")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Float32 of length 1."""
    wide = vectors.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First rows and vectors of length 1, so many at a time as memory holds."""
    for start in range(0, len(vectors), BLOCK):
        yield start, unit(vectors[start : start + BLOCK])


def exact(vectors: np.ndarray, queries: np.ndarray, file: Path) -> np.ndarray:
    """Ids (Q, K) of the nearest vectors, block by block."""
    if not file.exists():
        best = faiss.ResultHeap(len(queries), K, keep_max=True)
        for start, part in blocks(vectors):
            flat = faiss.IndexFlatIP(vectors.shape[1])
            flat.add(part)
            scores, ids = flat.search(queries, K)
            best.add_result(scores, ids + start)
        best.finalize()
        np.save(file, best.I)
    return np.load(file)


class Contender(NamedTuple):
    """An index that was built: its searches, and what it costs."""

    name: str
    settings: list[Setting]
    build_s: float
    bytes_item: float
    note: str = ""


def ours(vectors: np.ndarray, out: Path, factory: str) -> Contender:
    """The catalogue's own index on a store of these vectors; memory without the mapped rows."""
    folder = out / f"store-{len(vectors)}"
    if not (folder / "catalog.sqlite").exists():
        shutil.rmtree(folder, ignore_errors=True)
        store = Store.create(
            folder, model="bench", fingerprint="0" * 64, embedding_dim=vectors.shape[1]
        )
        grid = np.ones((1, 1), np.float32)
        rng = np.random.default_rng(0)
        for start in range(0, len(vectors), AT_ONCE):
            part = vectors[start : start + AT_ONCE]
            store.put(
                [
                    Record(f"i{n}", b"", document(n, rng), vector, grid)
                    for n, vector in enumerate(part, start)
                ]
            )
        store.close()
    store = Store.open(folder)
    with store.snapshot():
        index = IvfIndex.open(store)
        if index is None or not made_by(factory, index.notes["factory"]):
            index = build(store, factory, IndexSettings(factory, 0.95))
            index.save()
    seconds = sum(index.notes["seconds"].values())
    size = (folder / INDEX_FILE).stat().st_size + ROW_BYTES * len(vectors)
    store.close()
    settings = []
    for factor in sorted({p["factor"] for p in index.notes["curve"]}):
        nprobe = 1
        while nprobe <= min(index.lists, MOST_PROBED):
            name = f"nprobe {nprobe}, {factor} candidates"
            settings.append(Setting(name, (nprobe, factor), searcher(index, nprobe, factor)))
            nprobe = next_nprobe(nprobe)
    name = f"{OURS} {index.notes['factory']}"
    return Contender(name, settings, seconds, size / len(vectors), "rows mapped")


def made_by(asked: str, made: str) -> bool:
    """Whether this factory string gives that one, its dimensions filled in."""
    own, other = spanned(asked), spanned(made)
    if own is None or other is None:
        return asked == made
    return str(own._replace(dims=own.dims or other.dims)) == made


def document(number: int, rng: np.random.Generator) -> str:
    """An item's JSON form, with a field to filter by: a number below SLOTS at random."""
    return json.dumps({"item_id": f"i{number}", "slot": int(rng.integers(SLOTS))})


def searcher(index: IvfIndex, nprobe: int, factor: int) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        index.notes |= {"nprobe": nprobe, "factor": factor}
        return index.search(queries, K)[1] - 1  # internal ids count from 1

    return search


def faiss_flat(vectors: np.ndarray) -> Contender:
    started = time.perf_counter()
    index = faiss.IndexFlatIP(vectors.shape[1])
    for _, part in blocks(vectors):
        index.add(part)
    seconds = time.perf_counter() - started
    return Contender(
        "faiss flat",
        [Setting("exact", (0,), lambda q: index.search(q, K)[1])],
        seconds,
        4 * vectors.shape[1],
    )


def faiss_hnsw(vectors: np.ndarray, out: Path, construction: int) -> Contender:
    file = out / f"hnsw-{len(vectors)}.index"
    if not file.exists():
        started = time.perf_counter()
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = construction
        for _, part in blocks(vectors):
            index.add(part)
        seconds = time.perf_counter() - started
        faiss.write_index(index, str(file))
        file.with_suffix(".json").write_text(json.dumps(seconds))
        del index  # there may be no memory for two
    index = faiss.read_index(str(file))

    def at(ef: int) -> Search:
        parameters = faiss.SearchParametersHNSW(efSearch=ef)
        return lambda queries: index.search(queries, K, params=parameters)[1]

    return Contender(
        f"faiss HNSW32, efConstruction {construction}",
        [
            Setting(f"efSearch {ef}", (ef,), at(ef))
            for ef in (10, 14, 18, 20, 22, 24, 28, 32, 48, 64, 72, 80, 96, 128, 256)
        ],
        json.loads(file.with_suffix(".json").read_text()),
        file.stat().st_size / len(vectors),
    )


def usearch(vectors: np.ndarray, out: Path, dtype: str, threads: int) -> Contender | None:
    try:
        from usearch.index import Index
    except ImportError:
        return None
    file = out / f"usearch-{dtype}-{len(vectors)}.index"
    index = Index(ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=32)
    started = time.perf_counter()
    if not file.exists():
        for start, part in blocks(vectors):
            index.add(np.arange(start, start + len(part)), part, threads=threads)
        seconds = time.perf_counter() - started
        index.save(str(file))
        file.with_suffix(".json").write_text(json.dumps(seconds))
    index.load(str(file))

    def at(ef: int) -> Search:
        def search(queries: np.ndarray) -> np.ndarray:
            index.expansion_search = ef
            return np.atleast_2d(index.search(queries, K, threads=1).keys).astype(np.int64)

        return search

    return Contender(
        f"usearch {dtype}",
        [
            Setting(f"expansion {ef}", (ef,), at(ef))
            for ef in (10, 14, 18, 24, 28, 32, 48, 64, 96, 128, 256)
        ],
        json.loads(file.with_suffix(".json").read_text()),
        file.stat().st_size / len(vectors),
    )


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
