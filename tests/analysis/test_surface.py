"""Is the posterior over the surface the one that its docstring states? Against slow twins, closed forms and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from tests.analysis.made_up_studies import B_CRIT, OWN, RATE, S_MIN, best_rate, examples, near

from batchscope.analysis.surface import (
    DIVERGES_WITHIN,
    LAPSE,
    LENGTH,
    PARAMETERS,
    Parameters,
    Posterior,
    Prior,
    Run,
    Seen,
    fit_surface,
    parameters,
)

PRIOR = Prior(32, 0.1, math.log(60_000))
RUNS = (
    Run(32, 0.1, math.log(60_000)),
    Run(128, 0.2, math.log(90_000)),
    Run(128, 0.4, math.log(80_000)),
    Run(512, 0.2, math.log(200_000), censored=True),
    Run(16, 0.05, math.log(70_000), censored=True),
    Run(64, 1.6, math.log(500_000), diverged=True),
)


def draws(count: int, seed: int = 0, prior: Prior = PRIOR) -> Parameters:
    """From the prior."""
    return parameters(np.random.default_rng(seed).standard_normal((count, PARAMETERS)), prior)


def one(p: Parameters, n: int) -> dict[str, float]:
    """The n-th draw as plain numbers."""
    names = ("log_s_min", "log_b_crit", "own_rate", "rise", "fall", "log_knee", "below", "above", "diverged")
    return {name: float(getattr(p, name)[n, 0]) for name in (*names, "sigma", "tau")}


def alike(a: tuple[int, float], b: tuple[int, float]) -> float:
    """Correlation of the misfit at two points."""
    octaves = math.log2(a[0] / b[0]), math.log2(a[1] / b[1])
    return math.exp(-0.5 * (octaves[0] ** 2 + octaves[1] ** 2) / LENGTH**2)


def beside(d: dict[str, float], size: int, rate: float) -> float:
    """Octaves beside the best learning rate."""

    def shape(b: float) -> float:
        ratio = math.exp(d["log_knee"]) / b
        return -math.log2(ratio ** d["rise"] + ratio ** -d["fall"])

    return math.log2(rate) - (d["own_rate"] + shape(size) - shape(32))


def mean(d: dict[str, float], size: int, rate: float) -> float:
    """log E without misfit, term by term."""
    v = beside(d, size, rate)
    penalty = math.log(2) * v * v / (-v + d["below"]) if v < 0 else d["above"] * v * v
    return d["log_s_min"] + math.log(size + math.exp(d["log_b_crit"])) + penalty


def lost(d: dict[str, float], size: int, rate: float) -> float:
    """Probability that a run is lost."""
    return LAPSE + (1 - 2 * LAPSE) * float(stats.norm.cdf((beside(d, size, rate) - d["diverged"]) / DIVERGES_WITHIN))


def naive(runs: Sequence[Run], d: dict[str, float]) -> float:
    """The log likelihood of one draw, run by run, up to the known runs' factors of sqrt(2 pi)."""
    known = [r for r in runs if not r.censored and not r.diverged]
    points = [(r.batch_size, r.learning_rate) for r in known]
    covariance = np.array([[d["tau"] ** 2 * alike(a, b) for b in points] for a in points]).reshape(
        len(known), len(known)
    )
    covariance = covariance + d["sigma"] ** 2 * np.eye(len(known))
    rest = np.array([r.log_value - mean(d, *point) for r, point in zip(known, points, strict=True)])
    total = 0.5 * len(known) * math.log(2 * math.pi)
    if known:
        total += float(stats.multivariate_normal.logpdf(rest, np.zeros(len(rest)), covariance))
    for r in runs:
        point = (r.batch_size, r.learning_rate)
        chance = lost(d, *point)
        if r.censored:
            across = np.array([d["tau"] ** 2 * alike(point, other) for other in points])
            weights = np.linalg.solve(covariance, across) if known else np.zeros(0)
            sd = math.sqrt(d["tau"] ** 2 + d["sigma"] ** 2 - weights @ across)
            above = float(stats.norm.sf(r.log_value, mean(d, *point) + weights @ rest, sd))
            total += math.log(chance + (1.0 - chance) * above)
        else:
            total += math.log(chance if r.diverged else 1.0 - chance)
    return total


# --- the likelihood ---


def test_the_likelihood_is_that_of_its_slow_twin() -> None:
    p = draws(40)
    found = Seen(RUNS).log_likelihood(p)
    assert found == pytest.approx([naive(RUNS, one(p, n)) for n in range(40)], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kept", [(), (0,), (3,), (5,), (3, 4, 5), (0, 0, 1), (3, 3)])
def test_any_kind_of_run_may_be_missing_or_repeated(kept: tuple[int, ...]) -> None:
    """Without known runs a bound stands alone; the same point twice shares its misfit but not its noise."""
    p, runs = draws(10, 1), tuple(RUNS[k] for k in kept)
    assert Seen(runs).log_likelihood(p) == pytest.approx(
        [naive(runs, one(p, n)) for n in range(10)], rel=1e-6, abs=1e-6
    )


# --- predictions ---


def constant(count: int, runs: Sequence[Run], seed: int = 0) -> Posterior:
    """A posterior that is one draw of the parameters, over and over: what is left is the misfit."""
    x = np.tile(0.3 * np.random.default_rng(seed).standard_normal((1, PARAMETERS)), (count, 1))
    return Posterior(x, parameters(x, PRIOR), tuple(runs), 0)


POINTS = [(32, 0.1), (64, 0.2), (256, 0.2), (1024, 0.1)]


def test_predictions_are_those_of_the_conditional_normal() -> None:
    """Matheron's rule against  m* + K*(K + s^2)^-1 (y - m)  and  K** - K*(K + s^2)^-1 K*'."""
    count, runs = 20_000, RUNS[:3]
    posterior = constant(count, runs)
    d = one(posterior.p, 0)
    seen = [(r.batch_size, r.learning_rate) for r in runs]
    k = d["tau"] ** 2 * np.array([[alike(a, b) for b in (*seen, *POINTS)] for a in (*seen, *POINTS)])
    gain = np.linalg.solve(k[:3, :3] + d["sigma"] ** 2 * np.eye(3), k[:3, 3:]).T
    rest = np.array([r.log_value - mean(d, *q) for r, q in zip(runs, seen, strict=True)])
    centre = np.array([mean(d, *q) for q in POINTS]) + gain @ rest
    covariance = k[3:, 3:] - gain @ k[:3, 3:]
    found = posterior.examples(POINTS)
    assert np.abs(found.mean(0) - centre).max() < 5 * d["tau"] / math.sqrt(count)
    assert np.abs(np.cov(found.T) - covariance).max() < 5 * d["tau"] ** 2 * math.sqrt(2 / count)


def test_a_bound_is_completed_by_a_truncated_normal_unless_the_run_was_lost() -> None:
    """One run known to lie above c has the mean m + w h(z), z = (c - m) / w, or m where it was lost: with probability
    p / (p + (1 - p) Q(z)). The misfit there takes its share tau^2 / w^2 of what lies above m."""
    count, z = 20_000, 0.5
    d = one(constant(1, ()).p, 0)
    wide, centre = math.hypot(d["tau"], d["sigma"]), mean(d, 64, 0.2)
    posterior = constant(count, (Run(64, 0.2, centre + z * wide, censored=True),))
    chance = lost(d, 64, 0.2)
    kept = 1.0 - chance / (chance + (1.0 - chance) * float(stats.norm.sf(z)))
    above = kept * float(stats.truncnorm.mean(z, math.inf, scale=wide))
    completed = Seen(posterior.runs).completed(posterior.p, np.random.default_rng(0))
    below = np.mean(completed < centre + z * wide)
    assert below == pytest.approx((1.0 - kept) * stats.norm.cdf(z), abs=5 * math.sqrt(0.25 / count))
    assert completed.mean() == pytest.approx(centre + above, abs=5 * wide / math.sqrt(count))
    share = d["tau"] ** 2 / wide**2
    expected = [mean(d, *q) + share * above * alike(q, (64, 0.2)) for q in POINTS]
    found = posterior.examples(POINTS)
    assert found.mean(0) == pytest.approx(expected, abs=5 * d["tau"] / math.sqrt(count))


def test_without_runs_predictions_are_the_prior() -> None:
    posterior = constant(20_000, ())
    d = one(posterior.p, 0)
    found = posterior.examples(POINTS)
    assert found.mean(0) == pytest.approx([mean(d, *q) for q in POINTS], abs=5 * d["tau"] / math.sqrt(20_000))
    assert found.std(0) == pytest.approx([d["tau"]] * 4, rel=0.05)


# --- the form ---


def test_the_law_doubles_at_the_critical_batch_size() -> None:
    p = draws(50)
    twice = p.law(p.log_b_crit) - p.log_s_min - p.log_b_crit
    assert twice == pytest.approx(math.log(2.0))
    assert p.law(np.array([math.log(1e-9)])) == pytest.approx(p.log_s_min + p.log_b_crit)


def test_the_penalty_follows_a_quadratics() -> None:
    """A step gains r (2 - r) of the best; d = 1.3 follows the log of that within 0.02 for r from 1/8 to 1."""
    p = parameters(np.zeros((1, PARAMETERS)), PRIOR)
    v = np.linspace(-3.0, 0.0, 61)
    quadratic = -np.log(2.0**v * (2.0 - 2.0**v))
    assert np.abs(p.penalty(v) - quadratic).max() < 0.02


def test_the_penalty_far_below_is_one_over_the_learning_rate() -> None:
    p = draws(20)
    assert p.penalty(np.array([-400.0])) - p.penalty(np.array([-399.0])) == pytest.approx(math.log(2.0), rel=1e-3)
    assert np.all(p.penalty(np.array([0.0])) == 0.0)
    assert p.penalty(np.array([2.0])) == pytest.approx(4.0 * p.above)


def test_the_slope_is_that_of_the_best_rate_and_ends_at_rise_and_fall() -> None:
    p, logs = draws(50), np.linspace(0.0, 10.0, 21)
    step = 1e-5
    numeric = (p.best_rate(logs + step) - p.best_rate(logs - step)) / (2 * step) * math.log(2.0)
    assert p.slope(logs) == pytest.approx(numeric, abs=1e-5)
    kept = np.abs(p.rise + p.fall)[:, 0] > 0.2
    ends = p.slope(np.array([-300.0, 300.0]))[kept & (p.rise + p.fall > 0)[:, 0]]
    rise, fall = (a[kept & (p.rise + p.fall > 0)[:, 0], 0] for a in (p.rise, p.fall))
    assert ends[:, 0] == pytest.approx(rise, abs=1e-6)
    assert ends[:, 1] == pytest.approx(-fall, abs=1e-6)


def test_the_best_rate_at_the_own_batch_size_is_a_parameter_of_its_own() -> None:
    p = draws(20)
    assert p.best_rate(np.log([32.0])) == pytest.approx(p.own_rate)


def test_the_prior_is_centred_on_the_first_run_and_the_noise_scale() -> None:
    p = parameters(np.zeros((1, PARAMETERS)), PRIOR._replace(log_b_crit=(math.log(70.0), 1.5)))
    assert p.mean(np.log([32.0]), np.log2([0.1]))[0, 0] == pytest.approx(math.log(60_000))
    assert p.log_b_crit[0, 0] == pytest.approx(math.log(70.0))
    assert p.own_rate[0, 0] == pytest.approx(math.log2(0.1))


def test_the_loss_moves_with_the_time_saved() -> None:
    """log L = offset + gain (V - V(own at its best)), V = log E + log w."""
    weights = {8: 1.0, 32: 0.5, 128: 0.25}
    p = draws(20, prior=Prior(32, 0.1, math.log(0.4), log_weights=weights))
    sizes = np.log([32.0, 128.0])
    rates = np.column_stack((p.own_rate, p.best_rate(sizes[1:])))
    own, other = p.mean(sizes, rates).T
    assert own == pytest.approx(p.offset[:, 0])
    gained = p.law(sizes[1:]) + 0.25 - p.law(sizes[:1]) - 0.5
    assert other - own == pytest.approx((p.gain * gained)[:, 0])


# --- what runs say ---


def test_a_run_that_diverged_moves_the_learning_rate_down_and_a_bound_from_below_up() -> None:
    """Nothing else is known but that a run ten octaves lower would be far slower."""
    rate = math.log2(0.1)
    lost = fit_surface([Run(32, 0.1, math.log(500_000), diverged=True)], PRIOR, 600)
    assert np.mean(lost.p.own_rate < rate - 1.0) > 0.8
    slow = [Run(32, 0.1, math.log(300_000)), Run(32, 0.4, math.log(80_000))]
    assert np.mean(fit_surface(slow, PRIOR, 600).p.own_rate > rate + 1.0) > 0.9


def test_a_bound_is_respected_by_the_prediction_there() -> None:
    """The mean over seeds may lie below what one seed was seen above by a seed's noise, or where the run was lost."""
    bound = math.log(120_000)
    known = Run(32, 0.1, math.log(60_000))
    free, held = (fit_surface([known, *more], PRIOR, 600) for more in ([], [Run(64, 0.1, bound, censored=True)]))
    share_free, share = (np.mean(f.examples([(64, 0.1)])[:, 0] > bound - 0.15) for f in (free, held))
    assert share > 0.8
    assert share_free < 0.6


def test_the_truth_of_a_made_up_study_is_found() -> None:
    """Runs without noise beside the best learning rates of five batch sizes, of three of them also off it."""
    points = [(OWN, RATE), *((b, near(b)) for b in (8, 128, 256, 1024)), (128, 2 * near(128)), (256, near(256) / 4)]
    runs = [Run(b, eta, math.log(examples(b, eta))) for b, eta in points]
    posterior = fit_surface(runs, Prior(OWN, RATE, runs[0].log_value), 800)
    p = posterior.p
    for values, truth, widest in ((p.log_b_crit, math.log(B_CRIT), 2.0), (p.log_s_min, math.log(S_MIN), 1.25)):
        low, high = np.quantile(values, (0.025, 0.975))
        assert low < truth < high
        assert high - low < widest
    low, high = np.quantile(p.best_rate(np.log([128.0])), (0.025, 0.975))
    assert low < best_rate(128) < high
    assert high - low < 1.5
    untried = posterior.examples([(64, near(64))])[:, 0]
    low, high = np.quantile(untried, (0.025, 0.975))
    assert low < math.log(examples(64, near(64))) < high
    assert high - low < 0.5


def test_the_same_seed_gives_the_same_posterior() -> None:
    first, again = (fit_surface(RUNS, PRIOR, 200, seed=1) for _ in range(2))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.examples(POINTS), again.examples(POINTS))
