"""Do the probabilities, the intervals and the front say what the draws say?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.analysis.made_up_studies import EACH, OVERHEAD, profile, tried

from batchscope.analysis.decision import (
    BAND,
    Draws,
    candidate_points,
    candidates_of,
    chances,
    draws_at,
    measured,
    pareto_front,
)
from batchscope.analysis.options import options_of
from batchscope.analysis.particles import Array
from batchscope.analysis.search import View
from batchscope.analysis.surface import Posterior
from batchscope.records import Candidate, Measured

POINTS = ((32, 0.1), (64, 0.1), (64, 0.2), (128, 0.2))
OPTIONS = {o.batch_size: o for o in options_of(profile((32, 64, 128), joules=0.01), 10_000)}


def view(values: Array, points: tuple[tuple[int, float], ...] = POINTS) -> View:
    """Draws of V, with examples that are one e-fold more."""
    weights = np.full(len(points), -1.0)
    return View(
        cast(Posterior, SimpleNamespace(runs=())), points, values + 1.0, 0.0 * values, weights, values.mean(axis=0)
    )


def logs(count: int = 2000, seed: int = 0) -> Array:
    """Draws at POINTS; the third is the best in the mean."""
    rng = np.random.default_rng(seed)
    return np.array([10.4, 10.3, 10.0, 10.1]) + 0.1 * rng.standard_normal((count, 4))


# --- probabilities ---


def test_the_chances_of_known_draws() -> None:
    """Four draws of three candidates: the least is the first twice, then the second, then the third."""
    near = 0.9 * math.log1p(BAND)
    draws = np.array([[0.0, near, 1.0], [0.0, 1.0, near], [2.0, 0.0, 1.0], [1.0, near, 0.0]])
    best, good = chances(draws)
    assert best.tolist() == [0.5, 0.25, 0.25]
    assert good.tolist() == [0.5, 0.75, 0.5]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_chances_of_being_best_add_up_and_none_exceeds_that_of_being_good(seed: int, count: int) -> None:
    best, good = chances(np.random.default_rng(seed).standard_normal((50, count)))
    assert best.sum() == pytest.approx(1.0)
    assert np.all(best <= good)


def test_an_interval_is_the_central_nine_tenths() -> None:
    found = measured(np.log(np.arange(1.0, 1002.0)), 3, 1)
    assert (found.estimate, found.low, found.high) == pytest.approx((501.0, 51.0, 951.0))
    assert (found.n, found.censored, found.interval) == (3, 1, "90% posterior")


def test_what_overflows_stays_a_number() -> None:
    found = measured(np.array([10.0, 1e4, 1e5]), 1)
    assert all(math.isfinite(x) for x in (found.low or 0.0, found.estimate or math.inf, found.high or math.inf))


# --- candidates ---


def test_each_batch_size_stands_at_its_best_learning_rate_or_where_it_is_fixed() -> None:
    seen = view(logs())
    assert candidate_points(seen) == [0, 2, 3]
    assert candidate_points(seen, (64, 0.1)) == [0, 1, 3]


def test_a_hopeless_batch_size_stands_at_its_own_best_learning_rate() -> None:
    """All its learning rates lie so far above the best that the search counts them alike."""
    points = ((32, 0.1), *((4096, 0.1 * 2**k) for k in range(5)))
    far = np.array([0.0, 30.0, 20.0, 10.0, 25.0, 40.0]) + 0.1 * np.random.default_rng(0).standard_normal((500, 6))
    seen = view(far, points)
    clipped = dataclasses.replace(seen, means=np.minimum(seen.means, seen.means.min() + 2.0))
    assert candidate_points(clipped) == [0, 3]


def test_seconds_per_step_add_their_error_to_time_and_not_to_examples() -> None:
    """A t interval of 95 % from 5 rounds; the draws' 95 % interval of seconds is the interval itself."""
    wide = Measured(2e-3, 1e-3, 4e-3, 5, 0, "made up")
    options = {b: dataclasses.replace(o, seconds=wide) for b, o in OPTIONS.items()}
    seen = view(np.tile([10.4, 10.3, 10.0, 10.1], (20_000, 1)))
    time, examples = (draws_at(seen, [0, 2], options, 10_000, name) for name in ("time", "examples"))
    assert np.quantile(np.exp(time.seconds), [0.025, 0.5, 0.975], axis=0) == pytest.approx(
        np.array([[1e-3] * 2, [2e-3] * 2, [4e-3] * 2]), rel=0.05
    )
    assert time.objective - time.seconds == pytest.approx(np.tile([10.4, 10.0], (20_000, 1)) - math.log(2e-3))
    assert examples.objective == pytest.approx(np.tile([10.4, 10.0], (20_000, 1)))
    assert abs(np.corrcoef(time.seconds.T)[0, 1]) < 0.03  # each batch size was timed on its own
    assert time.total == pytest.approx(time.examples - time.effective + time.seconds)
    assert time.effective == pytest.approx([math.log(10_000 / 313), math.log(10_000 / 157)])  # steps of an epoch


def drawn() -> Draws:
    return draws_at(view(logs()), [0, 2, 3], OPTIONS, 10_000, "time")


TRIALS = (
    tried("reference", 32, 0.1),
    tried("search", 64, 0.2),
    tried("search", 64, 0.2, 1, cap=100.0),
    tried("verification", 64, 0.2, 2),
    tried("search", 128, 0.2, cap=100.0),
)


def records(
    price: float | None = None, absolute: bool = True, loss: bool = False, own_reached: bool = True
) -> tuple[Candidate, ...]:
    draws = drawn()
    asked = {"absolute": absolute, "loss": loss, "own_reached": own_reached}
    return candidates_of(draws, OPTIONS, TRIALS, price=price, own=draws.objective[:, 0], **asked)


def test_a_candidate_counts_its_runs() -> None:
    """Those at its very learning rate; `extrapolated` where its batch size never reached the goal at all."""
    own, best, last = records()
    assert [(c.batch_size, c.learning_rate) for c in (own, best, last)] == [(32, 0.1), (64, 0.2), (128, 0.2)]
    assert [(c.trials, c.reached, c.extrapolated) for c in (own, best, last)] == [
        (1, 1, False),
        (3, 2, False),
        (1, 0, True),
    ]
    assert (best.seconds_to_goal.n, best.seconds_to_goal.censored) == (3, 1)
    assert sum(c.p_best for c in (own, best, last)) == pytest.approx(1.0)


def test_a_candidates_values_belong_together() -> None:
    draws, (own, best, _) = drawn(), records(price=2.5)
    assert best.examples_to_goal.estimate == pytest.approx(math.exp(11.0), rel=0.02)
    assert best.steps_to_goal.estimate == pytest.approx((best.examples_to_goal.estimate or 0.0) * 157 / 10_000)
    step = (OVERHEAD + 64) * EACH
    assert best.seconds_to_goal.estimate == pytest.approx((best.steps_to_goal.estimate or 0.0) * step, rel=0.02)
    assert best.cost.estimate == pytest.approx((best.seconds_to_goal.estimate or 0.0) * 2.5 / 3600)
    joules = OPTIONS[64].joules
    assert joules is not None
    assert best.joules is not None
    assert best.joules.estimate == pytest.approx((best.examples_to_goal.estimate or 0.0) * (joules.estimate or 0.0))
    assert (own.over_own or best.cost).estimate == pytest.approx(1.0)
    ratio = np.exp(np.median(draws.objective[:, 1] - draws.objective[:, 0]))
    assert (best.over_own or best.cost).estimate == pytest.approx(ratio)


def test_without_runs_to_the_goal_only_ratios_are_given() -> None:
    for c in records(absolute=False):
        for value in (c.steps_to_goal, c.examples_to_goal, c.seconds_to_goal, c.cost):
            assert (value.estimate, value.low, value.high) == (None, None, None)
        assert c.over_own is not None
        assert c.over_own.estimate is not None
        assert c.seconds_per_step.estimate is not None


def test_over_an_own_point_that_never_reached_only_an_upper_end_is_known() -> None:
    for c, known in zip(records(own_reached=False), records(), strict=True):
        assert c.over_own is not None
        assert known.over_own is not None
        assert (c.over_own.estimate, c.over_own.low, c.over_own.high) == (None, None, known.over_own.high)
        assert c.over_own.censored == 1


def test_what_may_be_lost_is_compared_at_a_charge_and_said_without() -> None:
    """The best of four draws in three is lost for sure in the others: its time is said of the runs that are not."""
    seen = view(logs())
    lost = np.zeros_like(seen.lost)
    lost[::4, 2] = 1.0
    draws = draws_at(dataclasses.replace(seen, lost=lost), [0, 2, 3], OPTIONS, 10_000, "time")
    asked = {"absolute": True, "loss": False, "own_reached": True, "price": None}
    _, best, other = candidates_of(draws, OPTIONS, TRIALS, own=draws.objective[:, 0], **asked)
    sure = records()[1]
    assert best.seconds_to_goal == sure.seconds_to_goal
    assert best.p_lost == 0.25
    assert best.p_best == pytest.approx(0.75 * sure.p_best, abs=0.02)
    assert best.p_best + other.p_best <= 1.0


def test_a_loss_is_the_objective_itself() -> None:
    for c, middle in zip(records(loss=True), np.median(drawn().objective, axis=0), strict=True):
        assert c.lowest_loss is not None
        assert c.lowest_loss.estimate == pytest.approx(math.exp(middle))
        assert c.seconds_to_goal.estimate is None


# --- the front of time against cost ---


def seconds_at(devices: int, size: float) -> tuple[float, bool]:
    """Of a step on so many devices, two of which were timed; not quite as on one of 1 / n of the examples."""
    return (OVERHEAD + size / devices) * EACH * (1.0 + 0.01 * math.log2(devices)), devices <= 2


def test_on_the_front_nothing_is_both_faster_and_cheaper() -> None:
    """Against every candidate on every device count, one by one."""
    found, price = records(), 3.0
    front = pareto_front(found, seconds_at, price)
    every = []
    for c, k in itertools.product(found, range(7)):
        if 2**k <= c.batch_size:
            total = (c.steps_to_goal.estimate or 0.0) * seconds_at(2**k, c.batch_size)[0]
            every.append((c.batch_size, 2**k, total, total * 2**k * price / 3600))
    kept = [
        p for p in every if not any((q[2] < p[2] and q[3] <= p[3]) or (q[2] <= p[2] and q[3] < p[3]) for q in every)
    ]
    got = [(p.batch_size, p.devices, p.seconds_to_goal, p.cost) for p in front]
    assert [g[:2] for g in got] == [k[:2] for k in sorted(kept, key=lambda k: k[3])]
    assert np.array([g[2:] for g in got]) == pytest.approx(np.array([k[2:] for k in sorted(kept, key=lambda k: k[3])]))
    assert [p.predicted for p in front] == [p.devices > 2 for p in front]
    assert front[0].devices == 1


def test_what_has_no_seconds_is_not_on_the_front() -> None:
    assert pareto_front(records(absolute=False), seconds_at, 1.0) == []
