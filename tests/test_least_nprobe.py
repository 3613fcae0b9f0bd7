"""nprobe doubled until the recall is there, against what all lists give."""

from __future__ import annotations

import pytest

from tigerfg.index.least_nprobe import least_nprobe
from tigerfg.index.ranking import NEAREST

TRUTH = [[0.9 - 0.01 * n for n in range(20)], [0.5 - 0.01 * n for n in range(20)]]


def found(nprobe: int) -> list[list[float]]:
    """With n lists, the scores of the n best of a query's 20, then of what is none of them."""
    return [[*line[:nprobe], *(0.1 - 0.01 * n for n in range(20))][:NEAREST] for line in TRUTH]


@pytest.mark.parametrize(
    ("target", "most", "points"),
    [
        (0.05, 20, [(1, 0.1)]),
        (0.8, 20, [(1, 0.1), (2, 0.2), (4, 0.4), (8, 0.8)]),
        (0.81, 20, [(1, 0.1), (2, 0.2), (4, 0.4), (8, 0.8), (16, 1.0)]),
        (1.0, 3, [(1, 0.8), (2, 0.9), (3, 1.0)]),  # all lists are the truth, however little
        (0.9, 1, [(1, 1.0)]),
    ],
)
def test_the_least_power_of_two(target: float, most: int, points: list) -> None:
    assert list(least_nprobe(found, most, target)) == points


def test_of_equal_ones_it_does_not_matter_which() -> None:
    """Ten of those with the tenth score, in one list with more of them, and rounded otherwise."""
    lines = {8: [0.9] + [0.8] * 9, 1: [0.9] + [0.8 - 3e-8] * 9}
    assert list(least_nprobe(lambda nprobe: [lines[nprobe]], 8, 0.9)) == [(1, 1.0)]


def test_nothing_to_find() -> None:
    assert list(least_nprobe(lambda nprobe: [[], []], 8, 0.9)) == [(1, 1.0)]
