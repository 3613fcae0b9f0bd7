"""The least nprobe that reaches a recall, where an index elsewhere (a GPU, a server) is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

NEAREST = 10


def least_nprobe(
    search: Callable[[int], Iterable[Iterable[Any]]],
    own: Sequence[Any],
    most: int,
    target: float,
) -> Iterator[tuple[int, float]]:
    """Powers of two, and the recall@10 of each, up to the first that reaches the target.

    The truth are the neighbours found when `most` lists are probed. An item is no neighbour of its
    own.

    Args:
        search: with so many lists, the names of the results of every query, best first, at least
            `NEAREST` + 1 of them where there are.
        own: the item that each query is, or None.
        most: lists that can be probed.
        target: share of the nearest to be found.
    """

    def neighbours(nprobe: int) -> list[set[Any]]:
        lines = zip(search(nprobe), own, strict=True)
        return [set([name for name in line if name != item][:NEAREST]) for line, item in lines]

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
