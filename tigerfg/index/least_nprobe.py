"""The least nprobe that reaches a recall, where an index elsewhere (a GPU, a server) is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tigerfg.index.ranking import hits


def least_nprobe(
    search: Callable[[int], list[list[float]]],
    most: int,
    target: float,
) -> Iterator[tuple[int, float]]:
    """Powers of two, and the recall@10 of each, up to the first that reaches the target.

    The truth are the scores found when `most` lists are probed.

    Args:
        search: with so many lists, the scores of the results of every query, ten of them
            where there are.
        most: lists that can be probed.
        target: share of the nearest to be found.
    """
    truth = search(most)
    wanted = sum(map(len, truth))
    nprobe = 1
    while True:
        nprobe = min(nprobe, most)
        found = sum(hits(line, near) for near, line in zip(truth, search(nprobe), strict=True))
        recall = found / wanted if wanted else 1.0
        yield nprobe, recall
        if recall >= target or nprobe == most:
            return
        nprobe *= 2
