"""Millions of vectors to search, made of real embeddings, and their true neighbours.

The embeddings of a suite's pictures by the shipped `tiny`, and, to get to millions, children of
them: an item moved along the difference of two of its near neighbours, so that clusters and local
directions are those of real embeddings. Queries are the suite's query photos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np

from tigerfg.errors import InputError

K = 10
NEAR = 8  # neighbours whose differences move a child
AT_ONCE, BLOCK = 4096, 65_536


def real_embeddings(suite: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Item and query embeddings of a suite, float32, encoded once.

    Raises:
        InputError: what is in `out` was made of another suite.
    """
    from tigerfg.benchmark.selection import Selection

    file = out / "real.npz"
    layouts = [Selection.read(suite / name, None) for name in ("standard", "cluttered")]
    digests = [chosen.digest() for chosen in layouts]
    if not file.exists():
        from tigerfg.bundle import Bundle
        from tigerfg.encoder import Encoder
        from tigerfg.engines import open_engine

        bundle = Bundle.open("tiny")
        encoder = Encoder(bundle, open_engine(bundle))
        items, queries = [], []
        for chosen in layouts:
            encoded = encoder.encode_items(chosen.items)
            items += [one.embedding for one in encoded]
            if not queries:
                queries = list(encoder.encode_queries([(q.image, q.box) for q in chosen.queries]))
        encoder.close()
        np.savez(file, items=np.stack(items), queries=np.stack(queries), digests=digests)
    stored = np.load(file)
    if "digests" not in stored or stored["digests"].tolist() != digests:
        raise InputError(f"--out: {file}, and what was made of it, is not of {suite}; name another")
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
