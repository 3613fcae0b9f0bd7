from __future__ import annotations

import itertools

import numpy as np
import pytest

from tigerfg.benchmark.distractors import hit_chances


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 9])
def test_chance_is_the_share_of_galleries_that_hit(size):
    # 8 candidates, 2 of them correct; 0..6 wrong items stand before the first correct one
    for better in range(7):
        wrong = range(6)
        drawn = min(max(size - 2, 0), 6)
        galleries = list(itertools.combinations(wrong, drawn))
        expected = np.mean([all(item >= better for item in gallery) for gallery in galleries])
        found = hit_chances([better + 1], [2], [8], size)
        assert found == pytest.approx([expected], abs=1e-9)


def test_many_queries_at_once_and_a_large_gallery():
    rng = np.random.default_rng(0)
    candidates = np.full(300, 60_000)
    correct = rng.integers(1, 6, 300)
    rank = np.minimum(rng.geometric(0.01, 300), candidates - correct + 1)
    curve = [hit_chances(rank, correct, candidates, g) for g in (10, 100, 1000, 10_000, 60_000)]
    assert np.isfinite(curve).all()
    assert (np.diff([chances.mean() for chances in curve]) < 0).all()  # more items, fewer hits
    np.testing.assert_array_equal(curve[-1], rank == 1)
    np.testing.assert_array_equal(hit_chances(rank, correct, candidates, 70_000), rank == 1)
    # one wrong item in a gallery of R + 1: it stands before the correct one with (rank - 1) / W
    one = [hit_chances([r], [c], [60_000], c + 1)[0] for r, c in zip(rank, correct, strict=True)]
    np.testing.assert_allclose(one, 1 - (rank - 1) / (60_000 - correct), atol=1e-9)


def test_no_query_and_no_wrong_item():
    assert hit_chances([], [], [], 5).shape == (0,)
    assert hit_chances([1], [3], [3], 1).tolist() == [1.0]
