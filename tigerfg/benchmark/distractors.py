"""Recall@1 in smaller galleries, computed exactly from the ranks in the full one.

A gallery of ``g`` items keeps a query's R correct items and draws the other ``g - R`` at random
from its wrong ones. The query hits if none of the ``b`` wrong items that stand before its first
correct one is drawn, which has the probability ``C(W - b, n) / C(W, n)`` with W wrong items and
n drawn: the mean over all galleries of that size, so nothing needs to be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def hit_chances(
    rank: Sequence[int], correct: Sequence[int], candidates: Sequence[int], size: int
) -> np.ndarray:
    """Probability of a hit at 1 in a random gallery of ``size`` items.

    Args:
        rank: (Q,) int, 1-based rank of the first correct item in the full gallery.
        correct: (Q,) int, correct items, at least 1. candidates: (Q,) int, items ranked.
        size: items of the smaller gallery; galleries never shrink below a query's correct items
            nor grow beyond what there is.

    Returns:
        float64 (Q,).
    """
    rank, correct = np.asarray(rank, np.int64), np.asarray(correct, np.int64)
    wrong = np.asarray(candidates, np.int64) - correct
    drawn = np.clip(size - correct, 0, wrong)
    better = rank - 1
    # log k! for k = 0..max; ln C(W - b, n) - ln C(W, n)
    steps = np.log(np.arange(1, int(wrong.max(initial=0)) + 1))
    log_factorial = np.concatenate([[0.0], np.cumsum(steps)])
    possible = better <= wrong - drawn
    left = np.where(possible, wrong - better - drawn, 0)
    log_chance = (
        log_factorial[wrong - better]
        - log_factorial[left]
        - log_factorial[wrong]
        + log_factorial[wrong - drawn]
    )
    return np.where(possible, np.exp(np.minimum(log_chance, 0.0)), 0.0)
