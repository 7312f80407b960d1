"""Is the next run the one that changes the decision most, and does it always fit into the budget?"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.analysis.made_up_studies import BUDGET_EXAMPLES, CADENCE, EACH, OVERHEAD, OWN, RATE, examples, near

from batchscope.analysis.particles import Array
from batchscope.analysis.search import (
    FAR,
    FIRM,
    OCTAVES,
    RATES_PER_OCTAVE,
    Setting,
    View,
    charge,
    expected,
    knowledge_gradients,
    late,
    proposals,
    reserve,
    typical,
    view_of,
)
from batchscope.analysis.surface import Posterior, Prior, Run

SIZES = (8, 32, 128, 512)
SETTING = Setting(
    sizes=SIZES,
    log_weights={b: math.log((OVERHEAD + b) * EACH / b) for b in SIZES},
    own_batch_size=OWN,
    own_learning_rate=RATE,
    budget_examples=BUDGET_EXAMPLES,
    cadence_examples=CADENCE,
    limit_examples=10 * examples(OWN, RATE),
)
PRIOR = Prior(OWN, RATE, math.log(examples(OWN, RATE)))


def run(size: int, rate: float, cap: float = BUDGET_EXAMPLES, z: float = 0.0) -> Run:
    """What the made-up task gives, a seed's error of 5 % times z included."""
    log = math.log(examples(size, rate)) + 0.05 * z
    if math.isinf(log):
        return Run(size, rate, math.log(cap), diverged=True)
    return Run(size, rate, min(log, math.log(cap)), censored=log > math.log(cap))


FEW = (run(OWN, RATE), run(128, near(128)))
VIEW = view_of(SETTING, FEW, PRIOR, 300)


# --- the knowledge gradient ---


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_between_two_points_the_knowledge_gradient_has_a_closed_form(gap: float, noise: float) -> None:
    """A run at j moves mu_1 - mu_2 by s z, s = |C_1j - C_2j| / sqrt(C_jj + noise): then the least mean is expected to
    fall by s phi(gap / s) - gap Phi(-gap / s). Fifteen nodes for a function with a kink err by some hundredths of s."""
    means, covariance = np.array([1.0, 1.0 + gap]), np.array([[0.02, 0.005], [0.005, 0.04]])
    found = knowledge_gradients(means, covariance, noise)
    for j in (0, 1):
        s = abs(covariance[0, j] - covariance[1, j]) / math.sqrt(covariance[j, j] + noise)
        exact = s * stats.norm.pdf(gap / s) - gap * stats.norm.cdf(-gap / s)
        assert found[j] == pytest.approx(exact, abs=0.03 * s)


def a_case(seed: int, n: int = 5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    root = 0.1 * rng.standard_normal((n, n))
    return 0.05 * rng.standard_normal(n), root @ root.T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_knowledge_gradient_is_that_of_brute_force(seed: int) -> None:
    """The truth and a run at j are drawn jointly; given the run, all means are the conditional normal's."""
    means, covariance = a_case(seed)
    noise, rng = 0.004, np.random.default_rng(seed + 10)
    found = knowledge_gradients(means, covariance, noise)
    truths = rng.multivariate_normal(means, covariance, 40_000)
    for j in range(len(means)):
        seen = truths[:, j] + math.sqrt(noise) * rng.standard_normal(len(truths))
        updated = means + np.outer(seen - means[j], covariance[j]) / (covariance[j, j] + noise)
        gain = means.min() - updated.min(axis=1)
        error = 4 * gain.std() / math.sqrt(len(gain)) + 0.03 * math.sqrt(covariance[j, j])
        assert found[j] == pytest.approx(gain.mean(), abs=error)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_cut_off_says_only_that_it_lies_above(seed: int) -> None:
    """All that lies above the cap gives one and the same update: that to the mean of what lies above."""
    means, covariance = a_case(seed)
    noise, caps = 0.004, means.min() + np.full(5, 0.05)
    found = knowledge_gradients(means, covariance, noise, caps)
    z = np.random.default_rng(0).standard_normal(40_000)
    for j in range(5):
        spread = math.sqrt(covariance[j, j] + noise)
        cut = z > (caps[j] - means[j]) / spread
        known = np.where(cut, z[cut].mean() if cut.any() else 0.0, z)
        gain = means.min() - (means + np.outer(known, covariance[j]) / spread).min(axis=1)
        assert found[j] == pytest.approx(gain.mean(), abs=0.04 * math.sqrt(covariance[j, j]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 0.1))
def test_a_run_is_never_worth_less_than_nothing_and_one_that_moves_nothing_is_worth_nothing(
    seed: int, noise: float
) -> None:
    means, covariance = a_case(seed)
    caps = means + np.random.default_rng(seed).uniform(-0.3, 0.3, 5)
    assert knowledge_gradients(means, covariance, noise).min() >= -1e-12
    assert knowledge_gradients(means, covariance, noise, caps).min() >= -1e-12
    assert np.abs(knowledge_gradients(means, np.zeros((5, 5)), noise)).max() < 1e-12
    assert np.abs(knowledge_gradients(means, np.full((5, 5), 0.01), noise)).max() < 1e-9  # all move alike


# --- the view ---


def test_every_batch_size_is_looked_at_about_its_best_learning_rate() -> None:
    """On the own learning rate's grid of sqrt(2), OCTAVES either side; and wherever something was run."""
    odd = (128, 0.0123)
    view = view_of(SETTING, (*FEW, run(*odd)), PRIOR, 200)
    assert {b for b, _ in view.points} == set(SIZES)
    assert {odd, (OWN, RATE)} <= set(view.points)
    assert list(view.points) == sorted(view.points)
    for size in SIZES:
        octaves = [math.log2(rate / RATE) for b, rate in view.points if b == size and (b, rate) != odd]
        places = np.array(octaves) * RATES_PER_OCTAVE
        assert np.abs(places - np.round(places)).max() < 1e-9
        best = float(np.median(view.posterior.p.best_rate(np.log([float(size)])))) - math.log2(RATE)
        inside = [v for v in octaves if abs(v - best) <= OCTAVES + 1e-9]
        assert len(inside) >= 2 * OCTAVES * RATES_PER_OCTAVE - 1


def test_runs_at_batch_sizes_that_cannot_be_used_teach_but_are_no_points() -> None:
    view = view_of(SETTING, (*FEW, run(64, near(64))), PRIOR, 200)
    assert 64 not in {b for b, _ in view.points}
    assert len(view.posterior.runs) == 3


def test_the_value_is_examples_times_what_one_costs() -> None:
    weights = np.array([SETTING.log_weights[b] for b, _ in VIEW.points])
    assert VIEW.values == pytest.approx(VIEW.examples + weights + charge(VIEW.lost))
    assert VIEW.means[VIEW.best] == VIEW.means.min()


def test_the_charge_is_that_of_trying_until_a_run_is_not_lost() -> None:
    """1 / (1 - p) runs, by a sum over how many are lost first; and never without end."""
    for p in (0.0, 0.04, 0.5, 0.9):
        runs = sum((k + 1) * p**k * (1 - p) for k in range(2000))
        assert charge(np.array([p])) == pytest.approx(math.log(runs), abs=1e-9)
    assert np.isfinite(charge(np.array([1.0]))).all()


def test_the_chance_of_needing_more_than_the_tasks_budget_counts_a_seeds_own_spread() -> None:
    """By counting seeds, at a mean inside the budget, at it and beyond."""
    rng = np.random.default_rng(0)
    for mean in (-0.2, 0.0, 0.5):
        seeds = np.exp(math.log(1000) + mean + 0.3 * rng.standard_normal(200_000))
        chance = late(np.array([[math.log(1000) + mean]]), np.array([[0.3]]), 1000)
        assert chance.item() == pytest.approx(np.mean(seeds > 1000), abs=0.005)


def test_a_run_is_lost_by_diverging_or_by_needing_more_than_the_tasks_budget() -> None:
    over = late(VIEW.examples, VIEW.posterior.p.sigma, SETTING.budget_examples)
    assert over.max() > 0.9
    assert VIEW.lost == pytest.approx(1 - (1 - over) * (1 - VIEW.posterior.lost(VIEW.points)))


def test_what_is_far_worse_than_the_best_counts_alike() -> None:
    draws = np.array([[0.0, 1.0, 50.0], [0.2, 1.0, 700.0], [0.1, 9.0, 60.0]])
    assert typical(draws) == pytest.approx([0.1, (1.0 + 1.0 + 0.1 + FAR) / 3, 0.1 + FAR])


def test_the_same_runs_ask_for_the_same_next_ones() -> None:
    again = view_of(SETTING, FEW, PRIOR, 300)
    assert np.array_equal(again.values, VIEW.values)
    assert proposals(SETTING, again, 1e5) == proposals(SETTING, VIEW, 1e5)


# --- the next runs ---


def test_a_further_run_is_chosen_as_if_the_ones_before_had_been_made() -> None:
    """At an edge where runs may be lost one run says little: a second is worth it, but less. Others lie elsewhere."""
    first, second, *others = proposals(SETTING, VIEW, 1e5, 4)
    assert first.gain > second.gain > 0
    points = {(p.batch_size, p.learning_rate) for p in (first, second, *others)}
    assert len(points) >= 3


def test_a_run_ends_where_it_can_no_longer_win() -> None:
    """At MARGIN = 1.5 times the best mean, in examples of its own batch size, and what confirms it: two more
    evaluations and a step's end. Never above a run's budget."""
    best, ample = VIEW.means[VIEW.best], dataclasses.replace(SETTING, limit_examples=1e9)
    found = proposals(ample, VIEW, 0.0, 6)
    assert len(found) == 6
    for p in found:
        cap, gap = p.cap_examples or BUDGET_EXAMPLES, max(CADENCE, p.batch_size)
        value = math.log(cap - 3 * gap) + SETTING.log_weights[p.batch_size]
        assert value == pytest.approx(best + math.log(1.5), abs=1e-3) or cap in (6 * gap, BUDGET_EXAMPLES)
        assert cap <= BUDGET_EXAMPLES


def test_what_is_left_cuts_a_run_off_earlier_but_not_before_it_says_anything() -> None:
    """Six evaluations at least; together they fit into what is left."""
    short = dataclasses.replace(SETTING, limit_examples=reserve(SETTING, VIEW) + 60_000.0)
    found = proposals(short, VIEW, 0.0, 6)
    caps = [p.cap_examples or BUDGET_EXAMPLES for p in found]
    assert found
    assert sum(caps) + sum(p.batch_size for p in found) <= 60_000
    assert all(cap >= 6 * max(CADENCE, p.batch_size) for cap, p in zip(caps, found, strict=True))
    assert proposals(dataclasses.replace(short, limit_examples=reserve(SETTING, VIEW) + 14_000.0), VIEW, 0.0) == []


@pytest.mark.parametrize("lost", [0.0, 0.5, 0.9])
def test_a_run_that_may_be_lost_says_as_little_as_that_is_uncertain(lost: float) -> None:
    """Two points whose means differ by 0.05, the second known to 0.1: the closed form of above, a run's variance that
    of its seed and that of being lost, which counts as FAR. Else runs at the edge of diverging were made for ever."""
    values = np.array([0.0, 0.05]) + np.array([0.0, 0.1]) * _standard(400)[:, None]
    found = SimpleNamespace(
        p=SimpleNamespace(sigma=np.full((400, 1), 0.05)), runs=(), lost=lambda points: np.full((400, 2), lost)
    )
    points = ((32, RATE), (128, RATE))
    weights = np.full(2, -10.0)
    view = View(cast(Posterior, found), points, values + 10.0, 0.0 * values, weights, values.mean(axis=0))
    s = 0.01 / math.sqrt(0.01 + 0.05**2 + FAR**2 * lost * (1.0 - lost))
    exact = s * stats.norm.pdf(0.05 / s) - 0.05 * stats.norm.cdf(-0.05 / s)
    gains = [p.gain for p in proposals(SETTING, view, 0.0, 1)]
    if exact > FIRM:
        assert gains == [pytest.approx(exact, abs=0.04 * s)]
    else:
        assert gains == []


def _standard(count: int) -> Array:
    """Quantiles of the standard normal, scaled to a variance of exactly 1."""
    z = stats.norm.ppf((np.arange(count) + 0.5) / count)
    return z / z.std(ddof=1)


def flat(spread: float) -> View:
    """The view, but one batch size is best by far, and surely by `spread`."""
    rng = np.random.default_rng(0)
    shift = np.array([0.0 if point == VIEW.points[VIEW.best] else 1.0 for point in VIEW.points])
    values = VIEW.means[VIEW.best] + shift + spread * rng.standard_normal(VIEW.values.shape)
    nothing = np.zeros_like(values)
    return dataclasses.replace(VIEW, examples=values - VIEW.weights, lost=nothing, means=values.mean(axis=0))


def test_a_decision_that_is_firm_asks_for_no_more() -> None:
    assert proposals(SETTING, flat(0.02), 0.0) == []
    assert proposals(dataclasses.replace(SETTING, limit_examples=1e9), flat(1.0), 0.0) != []


def test_nothing_is_proposed_that_does_not_fit() -> None:
    assert proposals(SETTING, VIEW, SETTING.limit_examples) == []
    assert proposals(dataclasses.replace(SETTING, limit_examples=1000.0), VIEW, 0.0) == []


def test_only_a_point_that_reached_is_set_aside_for() -> None:
    """Once more to the goal at the best of them, its evaluations to confirm and its last step included."""
    none = view_of(SETTING, [Run(OWN, RATE, math.log(BUDGET_EXAMPLES), censored=True)], PRIOR, 200)
    assert reserve(SETTING, none) == 0.0
    known = min(
        (k for k, p in enumerate(VIEW.points) if p in {(r.batch_size, r.learning_rate) for r in FEW}),
        key=lambda k: VIEW.means[k],
    )
    assert reserve(SETTING, VIEW) > expected(SETTING, VIEW, known) > np.exp(np.median(VIEW.examples[:, known]))
    assert reserve(dataclasses.replace(SETTING, budget_examples=1000), VIEW) == 1000 + VIEW.points[known][0]


def test_runs_of_a_given_length_cost_their_length() -> None:
    lengths = {8: 40_000, 32: 50_000, 128: 60_000, 512: 70_000}
    setting = dataclasses.replace(SETTING, run_examples=lengths)
    runs = [Run(OWN, RATE, math.log(0.4)), Run(128, near(128), math.log(0.38))]
    view = view_of(setting, runs, Prior(OWN, RATE, math.log(0.4), log_weights=SETTING.log_weights), 200)
    assert view.values == pytest.approx(view.examples + charge(view.posterior.lost(view.points)))
    for k in (0, len(view.points) - 1):
        assert expected(setting, view, k) == lengths[view.points[k][0]] + view.points[k][0]
    assert reserve(setting, view) in {lengths[b] + b for b in (OWN, 128)}
    found = proposals(setting, view, 0.0)
    assert found
    assert all(p.cap_examples is None for p in found)
    room = setting.limit_examples - sum(lengths[p.batch_size] + p.batch_size for p in found)
    assert room >= reserve(setting, view)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(1.5, 12.0), st.floats(-2.5, 2.0))
def test_no_study_ever_passes_its_budget(seed: int, budget: float, octaves: float) -> None:
    """Whatever the first learning rate: what is proposed, run to its cap, leaves room for what was set aside."""
    rng = np.random.default_rng(seed)
    own = near(OWN) * 2.0**octaves
    first = run(OWN, own, z=rng.standard_normal())
    price = BUDGET_EXAMPLES if first.censored or first.diverged else math.exp(first.log_value)
    setting = dataclasses.replace(SETTING, own_learning_rate=own, limit_examples=budget * price)
    runs, spent = [first], price
    for _ in range(4):
        view = view_of(setting, runs, Prior(OWN, own, math.log(price)), 100, seed)
        found = proposals(setting, view, spent)
        most = sum((p.cap_examples or BUDGET_EXAMPLES) + p.batch_size for p in found)
        assert not found or spent + most + reserve(setting, view) <= setting.limit_examples
        for p in found:
            cap = p.cap_examples or BUDGET_EXAMPLES
            runs.append(run(p.batch_size, p.learning_rate, cap, rng.standard_normal()))
            spent += min(math.exp(runs[-1].log_value) + 2 * CADENCE, cap) + p.batch_size
        if not found:
            break
    assert spent <= max(setting.limit_examples, price)
