"""Search on a GPU at 10 million vectors: `make gpu STEPS=index`.

    python bench/gpu_index_bench.py [--items 10000000] [--results FOLDER]

Synthetic vectors: 20,000 clusters, each with directions of its own; no uniform noise, but no real
embeddings either. `GpuIndex` (what a catalogue is searched with on GPUs) is built and tuned to
recall@10 of 0.95, and asked at batches of 1, 100 and 10,000, results on the host included; faiss's
CPU index with the same lists beside it, in the same run, at the same nprobe.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import torch
from conditions import conditions
from engine_report import markdown

from tigerfg.index.gpu import FaissGpus
from tigerfg.index.gpu_index import GpuIndex

HERE = Path(__file__).resolve().parent
DIM, CLUSTERS, DIRECTIONS, SPREAD = 256, 20_000, 24, 0.7
K, TARGET, JUDGED = 10, 0.95, 1000
BATCHES = (1, 100, 10_000)
PART = 1 << 18
SECONDS = 6.0  # of measuring a batch size


class Made:
    """Vectors of clusters, made on the GPU; part by part the same for a seed."""

    def __init__(self, device: str) -> None:
        self.device = device
        rng = torch.Generator(device).manual_seed(0)
        self.centres = torch.randn(CLUSTERS, DIM, generator=rng, device=device)
        self.basis = torch.randn(64, DIRECTIONS, DIM, generator=rng, device=device) / DIM**0.5

    def part(self, count: int, seed: int) -> torch.Tensor:
        """float16 (count, DIM), unit length."""
        rng = torch.Generator(self.device).manual_seed(seed)
        own = torch.randint(CLUSTERS, (count,), generator=rng, device=self.device)
        weights = torch.randn(count, 1, DIRECTIONS, generator=rng, device=self.device)
        moved = SPREAD * 3.0 * (weights @ self.basis[own % 64])[:, 0]
        return torch.nn.functional.normalize(self.centres[own] + moved, dim=1).half()


class ArrayRows:
    """What `GpuIndex` reads vectors from: an array, ids from 1."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def stored(self, ids: np.ndarray) -> np.ndarray:
        return self._vectors[ids - 1].astype(np.float32)

    def get(self, ids: np.ndarray) -> np.ndarray:
        found = self.stored(ids)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


class NoFallback:
    """In place of the CPU's index: nothing is filtered or removed here, so none is asked."""

    def search(self, *arguments: object) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("a query came back with fewer results than it asked for")


def array_store(count: int) -> Any:
    """The part of a store that `GpuIndex` asks for."""
    return SimpleNamespace(
        path="bench",
        number=count,
        meta=SimpleNamespace(embedding_dim=DIM),
        ids=lambda: np.arange(1, count + 1),
        removed_since=lambda number: np.zeros(0, np.int64),
        vectors_since=lambda number: iter(()),
    )


def exact(vectors: np.ndarray, queries: np.ndarray, device: str) -> np.ndarray:
    """Ids (Q, K) of the nearest, by a matrix product in float32."""
    wanted = torch.from_numpy(queries).to(device)
    best = torch.full((len(queries), K), -9.0, device=device)
    ids = torch.zeros(len(queries), K, dtype=torch.int64, device=device)
    for start in range(0, len(vectors), PART):
        part = torch.from_numpy(vectors[start : start + PART]).to(device).float()
        scores = wanted @ torch.nn.functional.normalize(part, dim=1).T
        top, places = scores.topk(K, dim=1)
        best, order = torch.cat([best, top], dim=1).topk(K, dim=1)
        ids = torch.cat([ids, places + start + 1], dim=1).gather(1, order)
    return ids.cpu().numpy()


def timed(search: Callable[[np.ndarray], object], queries: np.ndarray, batch: int) -> float:
    """Median seconds of a call, of as many as fit the time, at least five."""

    def batches() -> Iterator[np.ndarray]:
        while True:
            for start in range(0, len(queries) - batch + 1, batch):
                yield queries[start : start + batch]

    seconds: list[float] = []
    for asked in batches():
        started = time.perf_counter()
        search(asked)
        seconds.append(time.perf_counter() - started)
        if len(seconds) >= 5 and sum(seconds) > SECONDS:
            return statistics.median(seconds[1:])
    raise AssertionError("there are always more batches")


def rows_of(
    name: str, search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray
) -> list[dict[str, Any]]:
    found = search(queries[: len(truth)])
    hits = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, truth, strict=True)]
    rows = []
    for batch in BATCHES:
        if batch > len(queries):
            continue
        seconds = timed(search, queries, batch)
        rows.append(
            {"contender": name, "batch": batch, "ms": 1e3 * seconds, "qps": batch / seconds}
        )
        rows[-1]["recall"] = sum(hits) / truth.size
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--results", type=Path, default=os.environ.get("RESULTS_DIR"))
    options = parser.parse_args()
    if not torch.cuda.is_available() or not hasattr(faiss, "StandardGpuResources"):
        print("this needs a GPU, and faiss-gpu-cuvs")
        return 1
    made, started = Made("cuda"), time.perf_counter()
    vectors = np.empty((options.items, DIM), np.float16)
    for start in range(0, options.items, PART):
        count = min(PART, options.items - start)
        vectors[start : start + count] = made.part(count, start + 1).cpu().numpy()
    queries = made.part(max(BATCHES), 10**9).float()
    queries = torch.nn.functional.normalize(queries, dim=1).cpu().numpy()
    print(f"{options.items} vectors in {time.perf_counter() - started:.0f} s", flush=True)
    truth = exact(vectors, queries[:JUDGED], "cuda")
    del made
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    index = GpuIndex(
        FaissGpus(512 << 20),
        array_store(options.items),
        NoFallback(),
        TARGET,
        rows=ArrayRows(vectors),
    )
    built = time.perf_counter() - started
    memory = before - torch.cuda.mem_get_info()[0]
    content = {
        "items": options.items,
        "gpu": torch.cuda.get_device_name(),
        "conditions": conditions(),
        "index": index.notes,
        "build_s": built,
        "gpu_bytes": memory,
        "rows": [],
    }
    folder = options.results or HERE / "results"
    file = Path(folder) / "gpu_index.json"

    def keep(rows: list[dict[str, Any]]) -> None:
        content["rows"] += rows
        file.write_text(json.dumps(content, indent=1) + "\n")

    keep(rows_of("tigerfg, GPU", lambda q: index.search(q, K)[1], queries, truth))
    beside = faiss.index_gpu_to_cpu(index._parts[0])
    beside.nprobe = index.nprobe
    keep(rows_of("faiss, CPU, same lists", lambda q: beside.search(q, K)[1], queries, truth))
    body = [
        [r["contender"], r["batch"], f"{r['ms']:.2f}", f"{r['qps']:.0f}", f"{r['recall']:.3f}"]
        for r in content["rows"]
    ]
    print("\n".join(markdown(["", "batch", "ms a call", "queries/s", "recall@10"], body)))
    print(f"{index.kind}: {memory / 2**30:.1f} GiB, built in {built:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
