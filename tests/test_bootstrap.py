from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tigerfg.benchmark import bootstrap


def hits(count: int, of: int) -> np.ndarray:
    return (np.arange(of) < count).astype(np.float64)[:, None]


@pytest.mark.parametrize(("count", "of"), [(120, 400), (3, 50), (990, 1000)])
def test_interval_of_a_share_is_the_binomial_one(count, of):
    # resampled hits of independent queries are exactly binomial: quantiles agree to one hit, as
    # 20,000 draws place a 2.5 % quantile to 0.2 standard errors of one hit at these sizes
    found = bootstrap.intervals(hits(count, of), np.arange(of), resamples=20_000)
    exact = stats.binom.ppf([0.025, 0.975], of, count / of) / of
    np.testing.assert_allclose(found[0], exact, atol=1.001 / of, rtol=0)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(5)
    truth, covered = 0.35, 0
    for seed in range(300):
        values = (rng.random((200, 1)) < truth).astype(float)
        low, high = bootstrap.intervals(values, np.arange(200), resamples=500, seed=seed)[0]
        covered += low <= truth <= high
    # 95 %, give or take three standard errors of 300 trials (1.3 points each) and the percentile
    # method's own point or two
    assert 0.90 <= covered / 300 <= 0.985


def test_queries_of_one_product_are_drawn_together():
    few = np.random.default_rng(0).random((40, 2))
    expected = bootstrap.intervals(few, np.arange(40))
    repeated = bootstrap.intervals(np.repeat(few, 5, axis=0), np.repeat(np.arange(40), 5))
    np.testing.assert_allclose(repeated, expected, rtol=1e-12)
    as_if_independent = bootstrap.intervals(np.repeat(few, 5, axis=0), np.arange(200))
    narrower = np.ptp(as_if_independent, axis=1) / np.ptp(expected, axis=1)
    np.testing.assert_allclose(narrower, 5**-0.5, rtol=0.1)


def test_clusters_of_different_sizes_as_a_plain_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK", 7 * 4)  # several blocks
    values = np.random.default_rng(1).random((12, 3))
    clusters = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 9, 0, 0])
    rng = np.random.default_rng(3)
    numbers = np.unique(clusters)
    means = []
    for _ in range(100):
        drawn = [values[clusters == numbers[c]] for c in rng.integers(0, 4, 4)]
        means.append(np.concatenate(drawn).mean(axis=0))
    expected = np.quantile(means, [0.05, 0.95], axis=0).T
    found = bootstrap.intervals(values, clusters, confidence=0.9, resamples=100, seed=3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nothing_to_resample():
    assert bootstrap.intervals(hits(1, 3), np.zeros(3, int)) is None
    assert bootstrap.paired_differences(hits(1, 3), hits(2, 3), np.zeros(3, int)) is None


def test_paired_bootstrap_finds_a_planted_difference():
    rng = np.random.default_rng(2)
    first = (rng.random((600, 1)) < 0.5).astype(float)
    second = np.where(rng.random((600, 1)) < 0.06, 1.0, first)  # 3 points better
    found = bootstrap.paired_differences(first, second, np.arange(600))[0]
    assert found.value == pytest.approx((second - first).mean(), abs=1e-12)
    assert 0 < found.low < found.value < found.high
    assert found.p == pytest.approx(2 / 10_001)  # the smallest that there is
    # unpaired, the same three points drown in the spread of either
    low, high = bootstrap.intervals(first, np.arange(600))[0]
    assert low < second.mean() < high


def test_paired_bootstrap_of_no_difference():
    same = hits(30, 90)
    assert bootstrap.paired_differences(same, same, np.arange(90))[0] == (0.0, 0.0, 0.0, 1.0)
    rng = np.random.default_rng(4)
    small = 0
    for seed in range(200):
        first, second = (rng.random((2, 150, 1)) < 0.4).astype(float)
        found = bootstrap.paired_differences(
            first, second, np.arange(150), resamples=500, seed=seed
        )
        small += found[0].p < 0.05
    assert small / 200 <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert small > 0


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [(0, 0), (1, 0), (0, 7), (3, 3), (12, 21), (54, 2), (480, 520), (1200, 1300), (0, 900)],
)
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    both = 5
    first = [True] * (both + only_first) + [False] * only_second
    second = [True] * both + [False] * only_first + [True] * only_second
    found = bootstrap.mcnemar(first, second)
    assert found[:2] == (only_first, only_second)
    tosses = only_first + only_second
    exact = stats.binomtest(only_first, tosses, 0.5).pvalue if tosses else 1.0
    assert found.p == pytest.approx(exact, rel=1e-9)


def test_mcnemar_of_a_p_value_below_every_float():
    assert bootstrap.mcnemar([True] * 3000, [False] * 3000).p == 0.0
