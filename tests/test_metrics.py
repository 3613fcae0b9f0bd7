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


def naive_precision_at_r(row: list[float], correct: set[int]) -> float:
    order = sorted(range(len(row)), key=lambda j: (-row[j], j in correct))
    total = 0.0
    for place in range(1, len(correct) + 1):
        if order[place - 1] in correct:
            total += sum(j in correct for j in order[:place]) / place
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


@settings(max_examples=200)
@given(retrieval())
def test_ranking_metrics_equal_naive_loops(case):
    scores, correct = case
    ranks = metrics.relevant_ranks(np.array(scores, np.float32), correct)
    expected = [naive_ranks(row, own) for row, own in zip(scores, correct, strict=True)]
    assert [r.tolist() for r in ranks] == expected
    for row, own, found in zip(scores, correct, ranks, strict=True):
        precision = naive_average_precision(row, own)
        assert metrics.average_precision(found) == pytest.approx(precision, abs=1e-12)
        at_r = naive_precision_at_r(row, own)
        assert metrics.precision_at_r(found) == pytest.approx(at_r, abs=1e-12)


@settings(max_examples=100, derandomize=True)
@given(retrieval(), st.data())
def test_excluded_items_are_as_if_they_were_not_there(case, data):
    scores, correct = case
    items = len(scores[0])
    out = [
        data.draw(st.sets(st.sampled_from(sorted(set(range(items)) - own) or [-1]))) - {-1}
        for own in correct
    ]
    ranks = metrics.relevant_ranks(np.array(scores, np.float32), correct, out)
    for row, own, left_out, found in zip(scores, correct, out, ranks, strict=True):
        kept = [j for j in range(items) if j not in left_out]
        naive = naive_ranks([row[j] for j in kept], {kept.index(j) for j in own})
        assert found.tolist() == naive


def test_constant_scores_get_the_worst_rank():
    ranks = metrics.relevant_ranks(np.zeros((1, 100), np.float32), [[0]])
    assert ranks[0].tolist() == [100]


def test_repeated_correct_items_count_once():
    ranks = metrics.relevant_ranks(np.array([[0.1, 0.9, 0.5]]), [[1, 1, 2]])
    assert ranks[0].tolist() == [1, 2]


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


def test_a_correct_item_cannot_be_excluded():
    with pytest.raises(ValueError, match="correct item is excluded"):
        metrics.relevant_ranks(np.zeros((1, 3)), [[1]], [[1, 2]])


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


@pytest.mark.parametrize(("size", "shape"), [((1000, 20), (1, 16)), ((20, 1000), (16, 1))])
def test_the_map_of_a_thin_picture_points_into_it(size, shape):
    grid = np.zeros(shape, np.float32)
    grid[0, 0] = 1.0
    score = metrics.score_map(grid, (0, 0, *size), size)
    assert (score.hit, score.chance) == (True, 1.0)
    assert not metrics.points_inside(grid, (size[0] // 2, size[1] // 2, *size), size)


@settings(max_examples=100)
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


def test_box_outside_the_picture_has_no_share():
    assert metrics.box_share((60, 40, 70, 50), (48, 32)) == 0.0
    assert metrics.box_share((-9, -9, -1, -1), (48, 32)) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0, 0, 4, 4), (2, 2, 6, 6), 4 / 28),
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),
        ((1, 1, 1, 5), (2, 2, 2, 2), 0.0),
    ],
)
def test_box_iou(first, second, iou):
    assert metrics.box_iou(first, second) == pytest.approx(iou, abs=1e-12)
    assert metrics.box_iou(second, first) == pytest.approx(iou, abs=1e-12)


def test_box_of_a_map_by_hand():
    # 40 x 25 pixels, cells of 10: the third row ends with the picture
    grid = np.zeros((3, 4), np.float32)
    grid[1, 2], grid[2, 1], grid[0, 0] = 1.0, 0.2, 0.19  # a fifth of the peak counts
    box = metrics.map_box(grid, (40, 25))
    assert box == (10.0, 10.0, 30.0, 25.0)
    score = metrics.score_map(grid, (20, 5, 40, 20), (40, 25))
    # common 10 x 10; 20 x 15 + 20 x 15 - 100
    assert score.iou == pytest.approx(100 / 500, abs=1e-9)
    assert score.hit
    # the peak's cell lies in the box, of the third row nothing
    assert score.mass == pytest.approx(1.0 / 1.39, abs=1e-6)
    assert score.chance == pytest.approx(300 / 1000, abs=1e-12)


def test_box_of_a_uniform_map_is_the_picture():
    assert metrics.map_box(np.full((4, 6), 0.1), (48, 32)) == (0.0, 0.0, 48.0, 32.0)
    assert metrics.map_box(np.ones((1, 1)), (7, 1)) == (0.0, 0.0, 7.0, 1.0)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_broken_map_finds_nothing(value):
    score = metrics.score_map(np.full((2, 2), value), (0, 0, 5, 10), (10, 10))
    assert score == (False, 0.0, 0.0, 0.5)
