"""Exact search among some items: ties, few items, many blocks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tigerfg.index.exact import best_columns, exact
from tigerfg.index.vectors import VectorRows

DIM, COUNT = 8, 500


@pytest.fixture
def rows(tmp_path: Path) -> VectorRows:
    """Ids from 1; vectors with four components of 1 or -1, of length 2, so that all sums are exact
    and many scores alike."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.float32), (COUNT, DIM))
    vectors = rng.permuted(signs * (np.arange(DIM) < 4), axis=1)
    store = SimpleNamespace(
        path=tmp_path,
        number=COUNT,
        meta=SimpleNamespace(embedding_dim=DIM, catalog_id="a"),
        vectors_since=lambda number: [(np.arange(1, COUNT + 1), vectors)],
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


VALUES = st.sampled_from([-np.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 1.0, np.inf]) | st.floats(
    -2, 2, width=32
)


@given(scores=arrays(np.float32, (3, 12), elements=VALUES), k=st.integers(1, 12))
def test_columns_come_as_by_a_stable_sort(scores: np.ndarray, k: int) -> None:
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(best_columns(scores, k), expected)
