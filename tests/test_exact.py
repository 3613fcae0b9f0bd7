"""Exact search among some items: ties, few items, many blocks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tigerfg.index.exact import exact
from tigerfg.index.vectors import VectorRows

DIM, COUNT = 8, 500


@pytest.fixture
def rows(tmp_path: Path) -> VectorRows:
    """Ids from 1; vectors with four components of 1 or -1, of length 2, so that all sums are exact
    and many scores alike."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.float32), (COUNT, DIM))
    vectors = rng.permuted(signs * (np.arange(DIM) < 4), axis=1)
    return rows_of(vectors, tmp_path)


def rows_of(vectors: np.ndarray, path: Path) -> VectorRows:
    """With ids from 1."""
    count, dim = vectors.shape
    store = SimpleNamespace(
        path=path,
        number=count,
        read_only=True,
        replaced=False,
        meta=SimpleNamespace(embedding_dim=dim, catalog_id="a"),
        vectors_since=lambda number: [(np.arange(1, count + 1), vectors)],
    )
    return VectorRows(store)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize(("among", "k"), [(COUNT, 10), (COUNT, COUNT), (60, 10), (4, 10), (0, 3)])
@pytest.mark.parametrize("queries", [0, 1, 3])
def test_the_best_of_some(
    rows: VectorRows, monkeypatch: pytest.MonkeyPatch, block: int, among: int, k: int, queries: int
) -> None:
    monkeypatch.setattr("tigerfg.index.vectors.BLOCK", block)
    rng = np.random.default_rng(1)
    ids = np.sort(rng.permutation(COUNT)[:among] + 1)
    asked = rng.integers(-1, 2, (queries, DIM)).astype(np.float32)
    scores, found = exact(rows, asked, ids, k)
    assert scores.shape == found.shape == (queries, k)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    vectors = rows.get(ids)
    for query, own, line in zip(asked, scores, found, strict=True):
        values = vectors @ query
        order = np.lexsort((ids, -values))[:k]
        assert line.tolist() == ids[order].tolist() + [-1] * (k - len(order))
        np.testing.assert_array_equal(own[: len(order)], values[order])
        assert np.isneginf(own[len(order) :]).all()


def test_equal_vectors_come_by_id_alone_and_in_a_batch(tmp_path: Path) -> None:
    """More of them than are spared, with sums that depend on the order of adding."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 256)).astype(np.float16).astype(np.float32)
    vectors[100::3] = vectors[100]
    rows, ids = rows_of(vectors, tmp_path), np.arange(1, 3001)
    queries = rows.get(np.full(64, 101))
    queries[1:] += rng.standard_normal((63, 256)).astype(np.float32) / 50
    expected = list(range(101, 131, 3))
    for count in (1, 2, 64):
        scores, found = exact(rows, queries[:count], ids, 10)
        assert found.tolist() == [expected] * count
        assert (scores == scores[:, :1]).all()
    alone = [exact(rows, query[None], ids, 10)[0][0].tolist() for query in queries]
    assert exact(rows, queries, ids, 10)[0].tolist() == alone
