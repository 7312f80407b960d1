"""Are the contrasts the textbook's, and does Holm's procedure judge as Holm does?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from batchscope.analysis.contrasts import ALPHA, BAND, Contrast, Layout, fit_layout, holm_levels, verdict


def layout(y: np.ndarray, sizes: tuple[int, ...] = (8, 16, 32, 64)) -> Layout:
    """The fitted layout of an array (batch sizes, seeds); nan is a missing cell."""
    found = fit_layout({(b, s): float(y[i, s]) for i, b in enumerate(sizes) for s in range(y.shape[1])})
    assert isinstance(found, Layout)
    return found


def test_two_sizes_are_the_paired_t_test() -> None:
    y = np.random.default_rng(0).normal(size=(2, 5))
    ends = layout(y, (8, 64)).ends()
    test = stats.ttest_rel(y[1], y[0])
    low, high = test.confidence_interval(0.95)
    assert ends.df == 4
    assert ends.interval() == pytest.approx((low, high))
    assert ends.p_value(0.0) == pytest.approx(test.pvalue)


def test_full_layout_is_two_way_anova() -> None:
    y = np.random.default_rng(1).normal(size=(4, 3)) + np.array([0.0, 5.0, -3.0])
    found = layout(y)
    rest = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    assert found.df == 6
    assert found.variance == pytest.approx(np.sum(rest**2) / 6)
    ends = found.ends()
    assert ends.difference == pytest.approx(np.mean(y[3] - y[0]))
    assert ends.standard_error == pytest.approx(math.sqrt(2 * found.variance / 3))


def test_slope_is_the_mean_of_the_seeds_regressions() -> None:
    y = np.random.default_rng(2).normal(size=(4, 3))
    slopes = [stats.linregress([3, 4, 5, 6], y[:, s]).slope for s in range(3)]
    assert layout(y).slope().difference == pytest.approx(np.mean(slopes))


def test_missing_cells_cost_only_themselves() -> None:
    y = np.random.default_rng(3).normal(size=(4, 3))
    additive = np.arange(4)[:, None] + np.array([0.0, 7.0, -7.0])
    additive[3, 1] = math.nan
    found = layout(additive)
    assert found.ends().difference == pytest.approx(3.0)  # the mean of the cells would say something else
    y[3, 1] = math.nan
    assert layout(y).df == 5


def test_what_cannot_be_compared_says_why() -> None:
    assert fit_layout({(8, 0): 1.0, (8, 1): 2.0}) == "fewer than two batch sizes gave a value"
    assert "one seed" in str(fit_layout({(8, 0): 1.0, (16, 0): 2.0}))
    assert "common seeds" in str(fit_layout({(8, 0): 1.0, (8, 1): 2.0, (16, 2): 2.0, (16, 3): 2.0}))
    assert "fewer" in str(fit_layout({(8, 0): math.nan, (16, 0): 2.0}))


def test_monotone_forgives_what_is_not_resolved() -> None:
    rng = np.random.default_rng(4)
    noise = 0.01 * rng.normal(size=(4, 3))
    assert layout(np.array([0.0, 1.0, 2.0, 3.0])[:, None] + noise).monotone()
    assert layout(np.array([3.0, 2.0, 1.0, 0.0])[:, None] + noise).monotone()
    assert not layout(np.array([0.0, -1.0, 2.0, 3.0])[:, None] + noise).monotone()
    assert layout(np.array([0.0, -0.005, 2.0, 3.0])[:, None] + noise).monotone()
    assert not layout(np.array([0.0, -1.0, 2.0, 3.0])[:, None] + noise, (8, 16, 32, 64)).monotone(1e-9)
    assert layout(np.array([0.0, -1.0, 2.0, 3.0])[:, None] + noise).monotone(least_variance=4.0)


def test_contrasts_add_like_welch() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=6), 3 * rng.normal(size=4)
    one = Contrast(float(a.mean()), float(stats.sem(a)), 5, 6)
    two = Contrast(float(b.mean()), float(stats.sem(b)), 3, 4)
    test = stats.ttest_ind(a, b, equal_var=False)
    difference = one + -two
    assert difference.p_value(0.0) == pytest.approx(test.pvalue)
    assert difference.n == 4


def test_bounds_are_open_and_do_not_mix() -> None:
    lower = Contrast(1.0, 0.1, 6, 3, "lower", 1)
    assert lower.interval()[1] == math.inf
    assert (-lower).interval()[0] == -math.inf
    assert lower.ratio().estimate is None
    assert lower.ratio().high is None
    assert lower.p_value(2.0) == 1.0
    assert lower.p_value(0.0) < 1e-3
    assert (lower + Contrast(1.0, 0.1, 6, 3)).bound == "lower"
    with pytest.raises(ValueError, match="no known sum"):
        lower + -lower


@pytest.mark.parametrize("bound", ["", "lower", "upper"])
def test_p_value_and_interval_agree(bound: str) -> None:
    for difference in (-0.3, 0.0, 0.2):
        c = Contrast(difference, 0.1, 7, 3, bound)
        p = c.p_value(BAND)
        for level, inside in ((1 - p * 1.01, True), (1 - p * 0.99, False)):
            if 0 < level < 1 and p < 1:
                low, high = c.interval(level)
                assert (low <= BAND <= high) != inside or p * 1.01 > 1


def naive_holm(p: list[float], alpha: float) -> list[bool]:
    """The twin, by the closed test: reject i if every subset that holds i has its Bonferroni test reject."""
    m = len(p)
    rejected = []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        subsets = (set(c) | {i} for k in range(m) for c in itertools.combinations(others, k))
        rejected.append(all(min(p[j] for j in s) <= alpha / len(s) for s in subsets))
    return rejected


def test_holm_is_the_closed_bonferroni_test() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        p = (rng.random(6) ** 4).tolist()
        rejected = [q <= 1 - level + 1e-15 for q, level in zip(p, holm_levels(p), strict=True)]
        assert rejected == naive_holm(p, ALPHA)
    assert holm_levels([]) == []


def test_verdicts() -> None:
    up = Contrast(0.5, 0.05, 10, 3)
    assert verdict(up, 1, 0.95) == "holds"
    assert verdict(up, -1, 0.95) == "does not hold"
    assert verdict(-up, -1, 0.95) == "holds"
    assert verdict(Contrast(0.0, 0.01, 10, 3), 1, 0.95) == "does not hold"  # within the band is elsewhere
    assert verdict(Contrast(BAND, 0.01, 10, 3), 1, 0.95) == "not resolved"
    assert verdict(Contrast(0.5, 0.05, 10, 3, "lower"), 1, 0.95) == "holds"
    assert verdict(Contrast(0.5, 0.05, 10, 3, "upper"), 1, 0.95) == "not resolved"
    assert verdict(Contrast(-0.5, 0.05, 10, 3, "upper"), 1, 0.95) == "does not hold"


def test_a_true_null_is_rarely_resolved() -> None:
    """At the edge of the band either verdict is wrong: in at most 5 % of repeats, less 3 binomial errors."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(400):
        y = 0.1 * rng.normal(size=(4, 3)) + rng.normal(size=3) + np.linspace(0, BAND, 4)[:, None]
        wrong += verdict(layout(y).ends(), 1, 0.95) != "not resolved"
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
