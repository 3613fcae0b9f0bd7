"""How far a figure can be trusted: cluster bootstrap over products, and McNemar's exact test.

Queries of one product rise and fall together, so whole products are drawn, with replacement, and
the figure is the mean over the queries of the drawn products. Intervals are percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PAIRED_RESAMPLES = 10_000  # p-values down to 2 / 10001
CONFIDENCE = 0.95
SEED = 0
BLOCK = 1 << 22  # drawn products held at a time


class Difference(NamedTuple):
    """Second minus first, its interval and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """Discordant pairs of hits and the two-sided exact p-value of no difference."""

    only_first: int
    only_second: int
    p: float


def intervals(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> np.ndarray | None:
    """Percentile intervals of the means of several figures.

    Args:
        values: (Q, M) float, M figures of Q queries.
        clusters: (Q,) int; queries with the same number are drawn together.

    Returns:
        (M, 2) float64, lower and upper ends; None with fewer than two clusters, where there is
        nothing to resample.
    """
    sums, sizes = _totals(values, clusters)
    if len(sizes) < 2:
        return None
    means = np.concatenate(list(_resampled_means(sums, sizes, resamples, seed)))
    return np.quantile(means, _tails(confidence), axis=0).T


def paired_differences(
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = PAIRED_RESAMPLES,
    seed: int = SEED,
) -> list[Difference] | None:
    """Differences of the means of M figures of the same queries, by a paired bootstrap.

    Both systems are resampled together. ``p`` is twice the smaller share of resampled differences
    on either side of zero, zeros counted on both sides, with one added to count and total.

    Args:
        first, second: (Q, M) float. clusters: (Q,) int, as in :func:`intervals`.

    Returns:
        One difference a figure; None with fewer than two clusters.
    """
    gain = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    sums, sizes = _totals(gain, clusters)
    if len(sizes) < 2:
        return None
    means = np.concatenate(list(_resampled_means(sums, sizes, resamples, seed)))
    ends = np.quantile(means, _tails(confidence), axis=0).T
    sides = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    p = np.minimum(1.0, 2 * (1 + sides) / (resamples + 1))
    values = gain.mean(0)
    return [
        Difference(float(value), float(low), float(high), float(chance))
        for value, (low, high), chance in zip(values, ends, p, strict=True)
    ]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test: do two systems hit equally often, on the same queries?

    Of the queries that only one of them hits, each is as likely to have either: the p-value is
    that of a fair coin. It takes queries as independent, also those of one product.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    tosses = only_first + only_second
    tail, ways = 0, 1
    for heads in range(min(only_first, only_second) + 1):
        tail += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return McNemar(only_first, only_second, min(1.0, _ratio(2 * tail, tosses)))


def _ratio(tail: int, tosses: int) -> float:
    """tail / 2**tosses without overflow."""
    shift = max(0, tail.bit_length() - 64)  # the bits that a float can hold, and some
    return math.ldexp(float(tail >> shift), shift - tosses)


def _totals(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums (C, M) and sizes (C,) of the clusters."""
    values = np.asarray(values, np.float64)
    _, number = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(number)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, number, values)
    return sums, sizes


def _resampled_means(
    sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Blocks (B, M) of means over drawn clusters."""
    rng = np.random.default_rng(seed)
    count = len(sizes)
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, count, (rows, count))
        drawn += count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        times = times.astype(np.float64)
        yield (times @ sums) / (times @ sizes)[:, None]


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]
