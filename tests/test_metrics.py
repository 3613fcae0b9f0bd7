from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerfg.benchmark import metrics


def naive_ranks(row: list[float], correct: set[int]) -> list[int]:
    """Sort by score, wrong items first among equals, and read the positions off."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j in correct))
    return [place for place, j in enumerate(order, start=1) if j in correct]


def naive_average_precision(row: list[float], correct: set[int]) -> float:
    order = sorted(range(len(row)), key=lambda j: (-row[j], j in correct))
    found, total = 0, 0.0
    for place, j in enumerate(order, start=1):
        if j in correct:
            found += 1
            total += found / place
    return total / len(correct)


@st.composite
def retrieval(draw):
    items = draw(st.integers(1, 12))
    queries = draw(st.integers(1, 6))
    # few distinct values, so that ties are common
    value = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])
    scores = draw(
        st.lists(
            st.lists(value, min_size=items, max_size=items), min_size=queries, max_size=queries
        )
    )
    correct = [
        draw(st.sets(st.integers(0, items - 1), min_size=1, max_size=items)) for _ in range(queries)
    ]
    return scores, correct


@settings(max_examples=200, deadline=None)
@given(retrieval())
def test_ranking_metrics_equal_naive_loops(case):
    scores, correct = case
    ranks = metrics.relevant_ranks(np.array(scores, np.float32), correct)
    expected = [naive_ranks(row, own) for row, own in zip(scores, correct, strict=True)]
    assert [r.tolist() for r in ranks] == expected
    for k in (1, 3, 10):
        naive = sum(r[0] <= k for r in expected) / len(expected)
        assert metrics.recall_at_k(ranks, k) == pytest.approx(naive, abs=1e-12)
    naive_map = np.mean(
        [naive_average_precision(row, own) for row, own in zip(scores, correct, strict=True)]
    )
    assert metrics.mean_average_precision(ranks) == pytest.approx(naive_map, abs=1e-12)


def test_constant_scores_get_the_worst_rank():
    ranks = metrics.relevant_ranks(np.zeros((1, 100), np.float32), [[0]])
    assert ranks[0].tolist() == [100]


def test_repeated_correct_items_count_once():
    ranks = metrics.relevant_ranks(np.array([[0.1, 0.9, 0.5]]), [[1, 1, 2]])
    assert ranks[0].tolist() == [1, 2]


def test_no_queries_is_nan():
    assert np.isnan(metrics.recall_at_k([], 1))
    assert np.isnan(metrics.mean_average_precision([]))


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        ([[np.nan, 1.0]], [[0]], "NaN"),
        ([[0.0, np.inf]], [[0]], "infinity"),
        ([[0.0, 1.0]], [[]], "at least one"),
        ([[0.0, 1.0]], [[2]], "outside"),
        ([[0.0, 1.0]], [[-1]], "outside"),
        ([[0.0, 1.0]], [[0], [1]], "2 rows"),
    ],
)
def test_bad_input(scores, relevant, message):
    with pytest.raises(ValueError, match=message):
        metrics.relevant_ranks(np.array(scores), relevant)


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be"):
        metrics.recall_at_k([np.array([1])], 0)


@pytest.mark.parametrize(
    ("size", "shape"), [((384, 384), (12, 12)), ((400, 200), (6, 12)), ((90, 300), (10, 3))]
)
def test_pointing_and_mass(size, shape):
    side = metrics.cell_side(shape, size)
    row, column = shape[0] - 1, shape[1] - 1
    grid = np.zeros(shape, np.float32)
    grid[row, column] = 1.0
    inside = (column * side, row * side, size[0], size[1])
    outside = (0, 0, side, side)
    assert metrics.points_inside(grid, inside, size)
    assert metrics.mass_inside(grid, inside, size) == pytest.approx(1.0, abs=1e-9)
    assert not metrics.points_inside(grid, outside, size)
    assert metrics.mass_inside(grid, outside, size) == 0.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 48), min_size=4, max_size=4).filter(
        lambda b: b[0] != b[2] and b[1] != b[3]
    ),
    st.integers(0, 2**32 - 1),
)
def test_mass_equals_naive_pixel_sum(corners, seed):
    # the picture is 48 x 32 with 8-pixel cells: count pixel by pixel
    size, shape = (48, 32), (4, 6)
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    grid = np.random.default_rng(seed).random(shape)
    pixels = np.repeat(np.repeat(grid, 8, axis=0), 8, axis=1) / 64
    naive = pixels[y0:y1, x0:x1].sum() / grid.sum()
    assert metrics.mass_inside(grid, (x0, y0, x1, y1), size) == pytest.approx(naive, abs=1e-9)


def test_uniform_map_has_exactly_the_chance_mass():
    box, size = (10, 5, 37, 29), (48, 32)
    uniform = np.full((4, 6), 1 / 24)
    chance = metrics.box_share(box, size)
    assert chance == pytest.approx(27 * 24 / (48 * 32), abs=1e-12)
    assert metrics.mass_inside(uniform, box, size) == pytest.approx(chance, abs=1e-12)


def test_box_is_clipped_to_the_picture():
    assert metrics.box_share((-10, -10, 24, 100), (48, 32)) == pytest.approx(0.5, abs=1e-12)
