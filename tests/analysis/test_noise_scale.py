"""Is the noise scale unbiased, does it equal what slow loops give, and do its intervals cover?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from batchscope.analysis.noise_scale import draw, noise_scale, usable
from batchscope.records import GradientNorms

Array = NDArray[np.float64]
D = 100
SHARES = np.arange(1, D + 1) ** -0.5 / np.sum(np.arange(1, D + 1) ** -0.5)  # of tr(Sigma): not a flat spectrum
D_EFF = 1 / float(SHARES @ SHARES)


def norms(
    rng: np.random.Generator, trace: Array | float, squared: Array | float, shape: tuple[int, ...], b: int, parts: int
) -> tuple[Array, Array]:
    """(mean_squared, parts_squared) of Gaussian gradients with eigenvalues trace * SHARES, without forming the parts.

    g = G + sqrt(l / B) z; sum_i |g_i - g|^2 / R = sum_j l_j / (R m) chi^2_(R-1), independent of g.
    """
    trace, squared = np.asarray(trace)[..., None], np.asarray(squared)[..., None]
    z = rng.standard_normal((*shape, D))
    mean = np.sum((np.sqrt(squared / D) + np.sqrt(trace * SHARES / b) * z) ** 2, axis=-1)
    return mean, mean + (rng.chisquare(parts - 1, (*shape, D)) @ SHARES) * trace[..., 0] / b


def run_of(mean: Array, parts_squared: Array, b: float = 64, parts: int = 8) -> list[GradientNorms]:
    pairs = zip(mean.tolist(), parts_squared.tolist(), strict=True)
    return [GradientNorms(k, int(k * b), parts, b / parts, b, x, y) for k, (x, y) in enumerate(pairs)]


def simulated(seed: int, trace: Array | float, squared: Array | float, k: int, b: int = 64) -> list[GradientNorms]:
    return run_of(*norms(np.random.default_rng(seed), trace, squared, (k,), b, 8), b)


def of_parts(parts: list[Array], units: list[int], step: int = 0) -> GradientNorms:
    """By the record's own definitions: parts of unequal size, each weighing as many units as it has."""
    weights = [m / sum(units) for m in units]
    mean = sum(w * g for w, g in zip(weights, parts, strict=True))
    return GradientNorms(
        step,
        0,
        len(parts),
        1 / sum(w / m for w, m in zip(weights, units, strict=True)),
        1 / sum(w * w / m for w, m in zip(weights, units, strict=True)),
        float(np.sum(mean**2)),
        float(sum(w * np.sum(g**2) for w, g in zip(weights, parts, strict=True))),
    )


def test_one_draw_is_the_naive_double_loop() -> None:
    """Of single examples: tr(Sigma) is the unbiased sample variance, |G|^2 the mean product of different examples."""
    rng = np.random.default_rng(0)
    examples = list(rng.standard_normal((6, 3)) + 0.5)
    trace, squared = draw(of_parts(examples, [1] * 6))
    pairs = [float(a @ b) for i, a in enumerate(examples) for j, b in enumerate(examples) if i != j]
    assert trace == pytest.approx(float(np.sum(np.var(examples, axis=0, ddof=1))))
    assert squared == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("units", [[1, 1, 1], [2, 1, 1], [2, 2]])
def test_all_batches_of_a_finite_data_set_average_to_the_truth(units: list[int]) -> None:
    """Exact: every ordered choice of examples, cut into the parts, drawn without replacement from N = 5."""
    data = np.random.default_rng(1).standard_normal((5, 2)) + 0.3
    cuts = np.cumsum(units)[:-1]
    draws = []
    for chosen in itertools.permutations(range(5), sum(units)):
        parts = [data[list(part)].mean(axis=0) for part in np.split(np.array(chosen), cuts)]
        draws.append(draw(of_parts(parts, units), data_size=5))
    trace, squared = np.mean(draws, axis=0)
    assert trace == pytest.approx(float(np.sum(np.var(data, axis=0))))
    assert squared == pytest.approx(float(np.sum(data.mean(axis=0) ** 2)))


def test_averages_of_gaussian_gradients_are_the_truth() -> None:
    """20,000 measurements whose single estimates of |G|^2 are negative at times: neither average is biased.

    One error is 3 standard errors at the most, and those are below 0.3 % of the truth.
    """
    mean, parts = norms(np.random.default_rng(2), 100.0, 1.0, (20_000,), 64, 8)
    draws = np.array([draw(m) for m in run_of(mean, parts)])
    assert 0 < np.mean(draws[:, 1] < 0) < 0.01
    errors = draws.std(axis=0, ddof=1) / math.sqrt(len(draws)) / [100.0, 1.0]
    assert np.all(np.abs(draws.mean(axis=0) / [100.0, 1.0] - 1) < 3 * errors)
    assert np.all(errors < 0.003)


def test_a_resolved_scale_is_fieller_by_bisection() -> None:
    """The ends are where |mean z(theta)| = t se(theta), found by bisection on the differences written out."""
    run = simulated(4, 200.0, 1.0, 20)
    got = noise_scale(run)
    draws = np.array([draw(m) for m in run])
    t = stats.t.ppf(0.975, df_of(draws))

    def excess(theta: float) -> float:
        z = draws[:, 0] - theta * draws[:, 1]
        return abs(float(np.mean(z))) - t * math.sqrt(np.sum(np.diff(z) ** 2) / 2 / 19 / 20)

    low, high = got.b_simple.low, got.b_simple.high
    assert got.outcome == "resolved"
    assert low is not None
    assert high is not None
    assert got.b_simple.estimate == pytest.approx(draws[:, 0].mean() / draws[:, 1].mean())
    assert excess(low) == pytest.approx(0, abs=1e-9)
    assert excess(high) == pytest.approx(0, abs=1e-9)
    assert excess((low + high) / 2) < 0 < min(excess(low * 0.99), excess(high * 1.01))
    assert got.effective_measurements == 20
    half = t * math.sqrt(np.sum(np.diff(draws[:, 0]) ** 2) / 2 / 19 / 20)
    assert got.trace.high == pytest.approx(draws[:, 0].mean() + half)


def df_of(draws: Array) -> float:
    z = np.diff(draws @ [1.0, -draws[:, 0].mean() / draws[:, 1].mean()]) ** 2
    return min(len(z) ** 2 / (1.5 * len(z) - 0.5), 2 * float(z.sum()) ** 2 / float(z @ z))


def test_what_cannot_be_told_from_0_is_a_bound() -> None:
    run = simulated(5, 8000.0, 1.0, 50)
    got = noise_scale(run)
    assert got.outcome == "at_least"
    assert (got.b_simple.estimate, got.b_simple.high, got.b_simple.censored) == (None, None, 50)
    assert got.b_simple.low is not None
    assert 0 < got.b_simple.low < 8000
    low, high = got.squared_gradient.low, got.squared_gradient.high
    assert low is not None
    assert high is not None
    assert low < 0 < high
    assert 0.3 < got.negative_share < 0.7
    assert "larger batches" in got.reason


def test_a_significantly_negative_mean_gives_the_bound_of_a_mean_of_0() -> None:
    """No theta > 0 fits such a sample (Fieller's set is empty); still an answer, and no infinity."""
    rng = np.random.default_rng(6)
    trace, squared = 100 + rng.standard_normal(30), -1 + 0.5 * rng.standard_normal(30)
    mean = squared + trace / 64
    run = run_of(mean, mean + trace * (1 / 8 - 1 / 64))
    got = noise_scale(run)
    assert got.outcome == "at_least"
    assert got.squared_gradient.high is not None
    assert got.squared_gradient.high < 0
    assert got.needed is None
    t = stats.t.ppf(0.975, 20)
    error = math.sqrt(np.sum(np.diff(squared) ** 2) / 2 / 29 / 30)
    assert got.b_simple.low == pytest.approx(100 / (t * error), rel=0.15)
    same = noise_scale(run_of(np.full(30, 1.0), np.full(30, 100.0)))
    assert (same.outcome, same.b_simple.low) == ("at_least", None)


def test_too_few_and_no_noise_are_not_enough() -> None:
    few = noise_scale(simulated(7, 50.0, 1.0, 7))
    assert few.outcome == "not_enough"
    assert few.trace.estimate is not None
    assert few.trace.low is None
    assert "there are 7" in few.reason
    assert noise_scale([]).trace.estimate is None
    rng = np.random.default_rng(8)
    mean = 1 + 0.1 * rng.standard_normal(40)
    silent = noise_scale(run_of(mean, mean + 1e-3 * rng.standard_normal(40)))
    assert silent.outcome == "not_enough"
    assert silent.b_simple.estimate is None
    assert "smaller or more parts" in silent.reason


def test_what_gives_no_estimate_is_left_out_and_counted() -> None:
    run = simulated(9, 50.0, 1.0, 20)
    broken = [
        GradientNorms(0, 0, 1, 64, 64, 1.0, 1.0),
        GradientNorms(0, 0, 8, 8, 64, math.inf, 1.0),
        GradientNorms(0, 0, 8, 8, 64, 1.0, math.nan),
        GradientNorms(0, 0, 2, 64, 64, 1.0, 1.0),
    ]
    assert not any(usable(m) for m in broken)
    got = noise_scale([*run[:10], *broken, *run[10:]], discarded=3)
    assert got.discarded == 7
    assert got.b_simple == noise_scale(run).b_simple
    with pytest.raises(ValueError, match="at least 2 parts"):
        draw(broken[0])
    with pytest.raises(ValueError, match="at most data_size = 63"):
        draw(run[0], data_size=63)


def test_a_short_last_batch_weighs_less() -> None:
    whole, short = simulated(10, 50.0, 1.0, 24), simulated(11, 5000.0, 1.0, 8, b=16)
    mixed = [m for i in range(8) for m in (*whole[3 * i : 3 * i + 3], short[i])]
    trace = np.array([draw(m)[0] for m in mixed])
    weights = np.array([m.batch_size / 64 for m in mixed])
    got = noise_scale(mixed)
    assert got.trace.estimate == pytest.approx(float(trace @ weights / weights.sum()))
    assert got.effective_measurements == pytest.approx(26)


def test_scale_of_the_loss_does_not_matter() -> None:
    mean, parts = norms(np.random.default_rng(12), 300.0, 1.0, (40,), 64, 8)
    plain = noise_scale(run_of(mean, parts)).b_simple
    for factor in (1e-30, 1e30):
        other = noise_scale(run_of(mean * factor, parts * factor)).b_simple
        assert (other.estimate, other.low, other.high) == pytest.approx((plain.estimate, plain.low, plain.high))


def test_drift_does_not_widen_the_interval_and_correlation_does() -> None:
    """Of the same relative noise, on 60 runs: a thirtyfold rise does what a mean does to noise, and no more.

    AR(1) errors of 0.8 widen by sqrt((1 + 0.8) / (1 - 0.8)) = 3, and by t at the fewer degrees of freedom (about 10).
    Medians: how correlated they are is estimated, at times as nearly 1.
    """
    k, rng = 400, np.random.default_rng(13)
    rise = 30 ** np.linspace(0, 1, k)

    def scale(trace: Array) -> tuple[float, float]:
        mean = 1 + trace / 64
        got = noise_scale(run_of(mean, mean + trace * (1 / 8 - 1 / 64)))
        assert got.b_simple.low is not None
        assert got.b_simple.high is not None
        return math.log(got.b_simple.high / got.b_simple.low), got.effective_measurements

    found = []
    for _ in range(60):
        noise = 0.2 * rng.standard_normal(k)
        correlated = noise.copy()
        for i in range(1, k):
            correlated[i] = 0.8 * correlated[i - 1] + 0.6 * noise[i]
        cases = 100 * (1 + noise), 100 * (1 + noise) * rise, 100 * (1 + correlated)
        found.append([value for trace in cases for value in scale(trace)])
    steady, _, rising, every, alike, fewer = np.median(found, axis=0)
    assert rising / steady == pytest.approx(math.sqrt(np.mean(rise**2)) / np.mean(rise), rel=0.1)
    assert alike / steady == pytest.approx(3 * stats.t.ppf(0.975, 10) / 1.965, rel=0.15)
    assert every > 0.9 * k
    assert fewer == pytest.approx(k / 9, rel=0.2)


def test_needed_measurements_give_the_precision() -> None:
    got = noise_scale(simulated(14, 300.0, 1.0, 60), precision=0.1)
    assert got.needed is not None
    assert got.needed > 60
    more = noise_scale(simulated(15, 300.0, 1.0, 60 + got.needed), precision=0.1)
    assert more.b_simple.low is not None
    assert more.b_simple.high is not None
    assert math.log(more.b_simple.high / more.b_simple.low) / 2 == pytest.approx(0.1, rel=0.35)
    assert noise_scale(simulated(14, 300.0, 1.0, 60), precision=1.0).needed == 0


COVERAGE = {
    "well resolved": (50.0, 1.0, 50, 0.99),
    "a third negative": (700.0, 1.0, 16, 0.1),
    "nearly always a bound": (8000.0, 1.0, 50, 0.0),
    "eight": (100.0, 1.0, 8, 0.9),
    "drift": (100 * 30 ** np.linspace(0, 1, 100), 30 ** np.linspace(1, 0, 100), 100, 0.99),
}


@pytest.mark.parametrize("name", COVERAGE)
def test_intervals_and_bounds_cover(name: str) -> None:
    """200 repeats: 90 to 99.5 % (3 binomial standard errors around 95 %); `benchmarks/noise_coverage.py` has 1,000."""
    trace, squared, k, resolved = COVERAGE[name]
    mean, parts = norms(np.random.default_rng(16), trace, squared, (200, k), 64, 8)
    truth = float(np.mean(trace) / np.mean(squared))
    found = [noise_scale(run_of(m, p)) for m, p in zip(mean, parts, strict=True)]
    hits = [(s.b_simple.low or 0) <= truth <= (s.b_simple.high or math.inf) for s in found]
    assert 180 <= sum(hits) <= 199
    assert np.mean([s.outcome == "resolved" for s in found]) >= resolved
