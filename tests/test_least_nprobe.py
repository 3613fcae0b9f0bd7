"""nprobe doubled until the recall is there, against what all lists give."""

from __future__ import annotations

import pytest

from tigerfg.index.least_nprobe import NEAREST, least_nprobe

TRUTH = [list(range(100, 120)), list(range(200, 220))]


def found(nprobe: int) -> list[list[int]]:
    """With n lists, the n best of a query's 20, then what is none of them."""
    return [[*line[:nprobe], *range(1000, 1020)][:NEAREST] for line in TRUTH]


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


def test_nothing_to_find() -> None:
    assert list(least_nprobe(lambda nprobe: [[], []], 8, 0.9)) == [(1, 1.0)]
