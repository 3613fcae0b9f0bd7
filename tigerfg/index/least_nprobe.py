"""The least nprobe that reaches a recall, where an index elsewhere (a GPU, a server) is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

NEAREST = 10


def least_nprobe(
    search: Callable[[int], Iterable[Iterable[Any]]],
    most: int,
    target: float,
) -> Iterator[tuple[int, float]]:
    """Powers of two, and the recall@10 of each, up to the first that reaches the target.

    The truth are the neighbours found when `most` lists are probed.

    Args:
        search: with so many lists, the names of the results of every query, `NEAREST` of them where
            there are.
        most: lists that can be probed.
        target: share of the nearest to be found.
    """

    def neighbours(nprobe: int) -> list[set[Any]]:
        return [set(line) for line in search(nprobe)]

    truth = neighbours(most)
    wanted = sum(map(len, truth))
    nprobe = 1
    while True:
        nprobe = min(nprobe, most)
        hits = sum(len(a & b) for a, b in zip(truth, neighbours(nprobe), strict=True))
        recall = hits / wanted if wanted else 1.0
        yield nprobe, recall
        if recall >= target or nprobe == most:
            return
        nprobe *= 2
