"""Search: a photo on disk to the best items, and the vector search alone, beside plain numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tigerfg import Searcher
from tigerfg.catalog import read_items, read_queries
from tigerfg.index.collection import Collection
from tigerfg.index.stored import Record

TOP = 10
VECTORS, DIM = 20_000, 256


@pytest.fixture(scope="module")
def searcher(catalog, bundle, threads, tmp_path_factory):
    path = tmp_path_factory.mktemp("searcher") / "catalogue"
    with Searcher.create(path, model=bundle, threads=threads) as opened:
        opened.add(read_items(catalog))
        yield opened


@pytest.fixture(scope="module")
def photos(catalog):
    return [query.image for query in read_queries(catalog)][:16]


@pytest.fixture(scope="module")
def matrix(catalog, plain):
    items = list(read_items(catalog))
    return [item.item_id for item in items], np.stack([plain.encode_item(item) for item in items])


def best(matrix: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Rows of the TOP largest scores of each query, best first: numpy brute force."""
    scores = queries @ matrix.T
    rows = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
    order = np.argsort(-np.take_along_axis(scores, rows, axis=1), axis=1)
    return np.take_along_axis(rows, order, axis=1)


def test_photo_plain_loop(photos, matrix, plain, compare):
    ids, vectors = matrix

    def call() -> list[str]:
        return [ids[row] for row in best(vectors, plain.encode_query(photos[0])[None])[0]]

    compare("search photo", "plain loop, numpy", call, 1, 1.0, rounds=40)


def test_photo_searcher(photos, matrix, plain, searcher, compare):
    ids, vectors = matrix
    shared = []
    for photo in photos:
        wanted = {ids[row] for row in best(vectors, plain.encode_query(photo)[None])[0]}
        shared.append(len(wanted & {hit.item_id for hit in searcher.search(photo, k=TOP)}) / TOP)
    compare(
        "search photo",
        "tigerfg Searcher",
        lambda: searcher.search(photos[0], k=TOP),
        1,
        float(np.mean(shared)),
        rounds=40,
    )


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((VECTORS + 32, DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values[:VECTORS], values[VECTORS:]


@pytest.fixture(scope="module")
def collection(vectors, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "catalogue"
    opened = Collection.create(path, model="none", fingerprint="0" * 64, embedding_dim=DIM)
    grid = np.zeros((1, 1), np.float32)
    records = [
        Record(str(row), str(row).encode(), json.dumps({"item_id": str(row)}), vector, grid)
        for row, vector in enumerate(vectors[0])
    ]
    opened.put(records)
    yield opened
    opened.close()


@pytest.mark.parametrize("batch", [1, 32])
def test_vectors_numpy(batch, vectors, compare):
    compare(
        f"search vectors b{batch}",
        "numpy float32",
        lambda: best(vectors[0], vectors[1][:batch]),
        batch,
        1.0,
    )


@pytest.mark.parametrize("batch", [1, 32])
def test_vectors_collection(batch, vectors, collection, compare):
    queries = vectors[1][:batch]
    wanted = best(vectors[0], queries).astype(str).tolist()
    found = [
        [match.document["item_id"] for match in matches]
        for matches in collection.search(queries, TOP)
    ]
    shared = [len(set(a) & set(b)) / TOP for a, b in zip(wanted, found, strict=True)]
    compare(
        f"search vectors b{batch}",
        "tigerfg Collection",
        lambda: collection.search(queries, TOP),
        batch,
        float(np.mean(shared)),
    )
