"""What `index_bench.py` compares: our index, faiss flat, faiss HNSW and usearch, built once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from index_vectors import AT_ONCE, K, blocks

from tigerfg.index.build import build, next_nprobe
from tigerfg.index.factory import spanned
from tigerfg.index.ivf import INDEX_FILE, IvfIndex
from tigerfg.index.plan import ROW_BYTES, IndexSettings
from tigerfg.index.store import Store
from tigerfg.index.stored import Record

SLOTS = 10_000
MOST_PROBED = 32
OURS = "tigerfg"
Search = Callable[[np.ndarray], np.ndarray]  # queries (B, E) -> ids (B, K)


class Setting(NamedTuple):
    """A search, and what it asks for: where another asks for less in every way, it is quicker."""

    name: str
    effort: tuple[int, ...]
    search: Search


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
