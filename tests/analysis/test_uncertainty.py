"""Do the intervals equal the textbook where it has one, a plain maximisation where not, and do they cover?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import censored_mean, of_timing, pooled, pooled_spread, product
from batchscope.records import Measured, StepTiming


def naive_tobit(groups: list[list[Value]]) -> tuple[np.ndarray, float]:
    """The twin: all means and the common sd by a general-purpose minimiser of the written-out likelihood."""

    def nll(p: np.ndarray) -> float:
        sd = math.exp(p[-1])
        total = 0.0
        for mu, group in zip(p, groups, strict=False):
            total -= np.sum(stats.norm.logpdf([v.value for v in group if not v.censored], mu, sd))
            total -= np.sum(stats.norm.logsf([v.value for v in group if v.censored], mu, sd))
        return total

    start = np.array([np.mean([v.value for v in g]) for g in groups] + [math.log(0.1)])
    found = optimize.minimize(
        nll, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 8000}
    )
    return found.x[:-1], math.exp(found.x[-1])


def draw(rng: np.random.Generator, mu: float, n: int, sd: float = 0.1, bound: float = math.inf) -> list[Value]:
    return [Value(min(y, bound), bool(y > bound)) for y in mu + sd * rng.standard_normal(n)]


def test_one_group_is_the_textbook_t_interval() -> None:
    y = np.array([1.0, 1.3, 0.8, 1.1])
    m = pooled({"a": [Value(v) for v in np.exp(y)]}, log=True)["a"]
    low, high = stats.t.interval(0.95, 3, y.mean(), stats.sem(y))
    assert (m.estimate, m.low, m.high) == pytest.approx((math.exp(y.mean()), math.exp(low), math.exp(high)))
    assert m.n == 4
    assert "3 df" in m.interval


def test_the_spread_is_the_anova_mean_square() -> None:
    rng = np.random.default_rng(0)
    groups = [draw(rng, mu, n) for mu, n in ((0.0, 3), (1.0, 4), (5.0, 2))]
    spread = pooled_spread(groups)
    squares = sum(np.var([v.value for v in g], ddof=1) * (len(g) - 1) for g in groups)
    assert spread.df == 6
    assert spread.sd == pytest.approx(math.sqrt(squares / 6))


def test_raw_scale_takes_negative_values_and_log_refuses_them() -> None:
    m = pooled({1: [Value(-0.1), Value(0.1)], 2: [Value(0.0), Value(0.3)]}, log=False)
    assert m[1].estimate == pytest.approx(0.0)
    assert m[1].low is not None
    assert m[1].low < 0
    with pytest.raises(ValueError, match="positive, finite"):
        pooled({1: [Value(0.0), Value(1.0)]}, log=True)


def test_censored_means_and_spread_are_the_naive_tobit() -> None:
    rng = np.random.default_rng(1)
    groups = [draw(rng, 0.0, 3), draw(rng, 1.0, 4, bound=1.05), draw(rng, 2.0, 4, bound=2.03), draw(rng, 3.0, 3)]
    assert [sum(v.censored for v in g) for g in groups] == [0, 1, 2, 0]
    means, sd = naive_tobit(groups)
    known = sum(not v.censored for g in groups for v in g)
    spread = pooled_spread(groups)
    assert spread.df == known - 4
    assert spread.sd == pytest.approx(sd * math.sqrt(known / spread.df), rel=1e-4)
    for group, mean in zip(groups, means, strict=True):
        assert censored_mean(group, sd) == pytest.approx(mean, abs=1e-4)


def test_censored_interval_is_the_likelihood_at_its_ends() -> None:
    rng = np.random.default_rng(2)
    groups = {1: draw(rng, 0.0, 3), 2: draw(rng, 1.0, 5, bound=1.0)}
    spread = pooled_spread(list(groups.values()))
    m = pooled(groups, log=False)[2]
    assert m.estimate is not None
    assert m.low is not None
    assert m.high is not None

    def log_likelihood(mu: float) -> float:
        d = stats.norm(mu, spread.sd)
        return float(sum(d.logsf(v.value) if v.censored else d.logpdf(v.value) for v in groups[2]))

    t = stats.t.ppf(0.975, spread.df)
    for end in (m.low, m.high):
        assert log_likelihood(m.estimate) - log_likelihood(end) == pytest.approx(t * t / 2, rel=1e-5)
    assert m.high - m.estimate > m.estimate - m.low  # what is censored lies above
    assert m.estimate > np.mean([v.value for v in groups[2] if not v.censored])


def test_a_group_that_never_reached_is_a_bound() -> None:
    m = pooled({1: [Value(5.0, True), Value(4.0, True)], 2: [Value(1.0), Value(1.1)]}, log=True)[1]
    assert (m.estimate, m.low, m.high, m.n, m.censored) == (None, pytest.approx(4.0), None, 2, 2)


def test_a_seed_that_never_reaches_leaves_the_other_groups_alone() -> None:
    rng = np.random.default_rng(3)
    whole = {k: draw(rng, 0.0, 3) for k in range(4)}
    without = pooled(whole, log=False)
    with_outlier = pooled({**whole, 9: [Value(0.0), Value(0.1), Value(4.0, True)]}, log=False)
    assert with_outlier[0] == without[0]
    assert with_outlier[9].high is not None


def test_one_seed_has_no_interval_and_says_why() -> None:
    m = pooled({1: [Value(2.0)], 2: [Value(3.0)], 3: [Value(9.0, True)], 4: []}, log=True)
    assert (m[1].estimate, m[1].low, m[1].high) == (pytest.approx(2.0), None, None)
    assert "one seed" in m[1].interval
    assert (m[3].estimate, m[3].low) == (None, pytest.approx(9.0))
    assert m[4] == Measured(None, None, None, 0, 0, "none: no seed gave a value")


def test_equal_values_have_an_interval_of_no_width() -> None:
    m = pooled({1: [Value(2.0)] * 3, 2: [Value(3.0)] * 3}, log=True)[1]
    assert m.estimate == m.low == m.high == pytest.approx(2.0)


@pytest.mark.parametrize("bound", [math.inf, 0.05])
def test_coverage(bound: float) -> None:
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(150):
        groups = {k: draw(rng, 0.0, 3) for k in range(5)} | {9: draw(rng, 0.0, 3, bound=bound)}
        m = pooled(groups, log=False)[9]
        if m.estimate is not None:
            assert m.low is not None
            assert m.high is not None
            hits.append(m.low <= 0.0 <= m.high)
    assert 0.90 <= np.mean(hits) <= 1.0  # 95 % less 3 binomial standard errors


def test_product_adds_log_widths_in_quadrature() -> None:
    a, b = Measured(2.0, 1.0, 4.0, 3, 1, "a"), Measured(3.0, 1.5, 6.0, 7, 0, "b")
    m = product(a, b)
    half = math.hypot(math.log(2), math.log(2))
    assert (m.estimate, m.low, m.high) == pytest.approx((6.0, 6 * math.exp(-half), 6 * math.exp(half)))
    assert (m.n, m.censored, m.interval) == (3, 1, "a x b")


def test_product_of_a_bound_is_a_bound_and_of_no_interval_has_none() -> None:
    b = Measured(3.0, 1.5, 6.0, 7)
    bound = product(Measured(None, 10.0, None, 3, 3), b)
    assert (bound.estimate, bound.low, bound.high) == (None, pytest.approx(15.0), None)
    assert product(Measured(2.0, None, None, 1), b).low is None
    assert product(Measured(None, None, None, 0), b).estimate is None


def test_timing_is_the_median_and_drift_cancels() -> None:
    drift = np.linspace(1.0, 2.0, 7)
    timing = StepTiming(8, 10, tuple(0.01 * drift), tuple(0.005 * drift))
    corrected = of_timing(timing, 100, typical_reference=0.0075)
    assert corrected.estimate == pytest.approx(1.5)
    assert corrected.low == pytest.approx(1.5)  # nothing but drift here
    plain = of_timing(timing, 100)
    assert plain.estimate == pytest.approx(1.5)
    assert plain.low is not None
    assert plain.low < 1.4
    assert of_timing(StepTiming(8, 10, (0.01,), (0.01,)), 100).low is None


def test_timing_covers_the_median() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(600):
        seconds = tuple(float(s) for s in np.exp(0.05 * rng.standard_normal(7)))
        m = of_timing(StepTiming(8, 10, seconds, seconds), 1.0)
        assert m.low is not None
        assert m.high is not None
        hits.append(m.low <= 1.0 <= m.high)
    assert 0.93 <= np.mean(hits) <= 0.99
