"""Do the figures show the numbers that the records hold, and nothing else?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from made_up import study

from batchscope.analysis.target import crossing
from batchscope.records import LawFit, Measured
from batchscope.report.figures import MOST_POINTS, estimate_of, figures_of, law_curve, line_of, thin


@pytest.mark.parametrize("length", [1, 2, MOST_POINTS, MOST_POINTS + 1, 300, 5000])
def test_thin_keeps_the_ends_and_the_wanted_index(length: int) -> None:
    for keep in {0, length // 3, length - 1}:
        kept = thin(length, keep)
        assert {0, keep, length - 1} <= set(kept)
        assert kept == sorted(set(kept))
        assert len(kept) <= MOST_POINTS


def test_a_line_keeps_the_lowest_validation_loss_of_a_long_trace() -> None:
    _, data = study()
    trial = data.held[0]
    evaluation = trial.result.trace[0]
    losses = 2 + np.cos(np.arange(1000) / 50.0)
    losses[777] = 0.5
    trace = tuple(
        dataclasses.replace(evaluation, examples=64 * k, validation={"loss": float(v)}) for k, v in enumerate(losses)
    )
    long = dataclasses.replace(trial, result=dataclasses.replace(trial.result, trace=trace))
    line = line_of("held", long, 640, 2.0)
    assert min(line.validation_loss) == 0.5
    assert (line.best_epoch, line.best_validation_loss) == (77.7, 0.5)
    assert line.seconds == tuple(2.0 * e for e in line.epoch)


def test_seconds_come_from_the_timing_pass_never_from_a_trials_clock() -> None:
    result, data = study()
    slow = tuple(dataclasses.replace(t, result=dataclasses.replace(t.result, seconds=1e9)) for t in data.held)
    assert figures_of(result, dataclasses.replace(data, held=slow)) == figures_of(result, data)
    per_epoch = {(r.policy, r.batch_size): r.seconds_per_epoch.estimate for r in result.rows}
    for line in figures_of(result, data).lines:
        assert line.seconds is not None
        expected = np.array(line.epoch) * per_epoch[line.policy, line.batch_size]
        np.testing.assert_allclose(line.seconds, expected, rtol=1e-12)


def test_without_timing_no_figure_has_seconds() -> None:
    result, data = study(with_timing=False)
    figures = figures_of(result, data)
    assert all(line.seconds is None for line in figures.lines)
    assert figures.seconds_to_goal.points == ()
    assert figures.seconds_per_epoch.points == ()
    assert [e for e in figures.seconds_to_goal.estimates if e.kind == "estimate"] == []


def test_seed_points_are_the_crossings_and_bounds_lie_at_the_budget() -> None:
    result, data = study(with_failed=True)
    points = {(p.policy, p.batch_size, p.seed): p for p in figures_of(result, data).examples_to_goal.points}
    for policy, trials in (("held", data.held), ("tuned", data.tuned)):
        for trial in trials:
            point = points.get((policy, trial.spec.arm.batch_size, trial.spec.seed))
            if trial.result.outcome == "failed":
                assert point is None
                continue
            assert point is not None
            crossed = crossing(trial.result.trace, data.settings.goal)
            if crossed is not None:
                assert (point.value, point.kind) == (crossed.examples, "seed")
            else:
                kind = "diverged" if trial.result.outcome == "diverged" else "bound"
                assert (point.value, point.kind) == (data.settings.budget_examples, kind)
    assert {"seed", "bound", "diverged"} == {p.kind for p in points.values()}


def test_a_bound_is_drawn_as_a_bound() -> None:
    result, _ = study()
    row = dataclasses.replace(result.rows[0], steps_to_goal=Measured(None, 500.0, None, 3, 3))
    bound = estimate_of(row, "steps_to_goal")
    assert bound is not None
    assert (bound.value, bound.kind, bound.censored) == (500.0, "bound", 3)
    assert math.isnan(bound.low)
    assert estimate_of(dataclasses.replace(row, steps_to_goal=Measured(None, None, None, 0)), "steps_to_goal") is None


def test_time_per_epoch_is_shown_once_per_batch_size() -> None:
    result, data = study()
    figure = figures_of(result, data).seconds_per_epoch
    assert [e.batch_size for e in figure.estimates] == list(data.settings.batch_sizes)
    assert {e.policy for e in figure.estimates} == {"both"}
    assert data.timing is not None
    assert len(figure.points) == sum(len(t.seconds_per_step) for t in data.timing.timings)


SIZES, S_MIN, B_CRIT = (8, 64, 512), 100.0, 50.0
COVARIANCE = ((0.004, -0.003), (-0.003, 0.01))


def law(joint: tuple[tuple[float, float], tuple[float, float]] | None = COVARIANCE) -> LawFit:
    """A law with known parameters, whose s_min interval is 1.96 standard errors wide on each side."""
    half = math.exp(1.96 * math.sqrt(COVARIANCE[0][0]))
    s_min = Measured(S_MIN, S_MIN / half, S_MIN * half, 9)
    effective = tuple(map(float, SIZES))
    return LawFit(s_min, Measured(B_CRIT, 40.0, 62.0, 9), 0.02, SIZES, effective, (None,) * 3, "", joint)


def test_the_curve_is_the_law_and_examples_are_steps_times_batch_size() -> None:
    steps, examples = law_curve(law(), examples=False), law_curve(law(), examples=True)
    assert steps is not None
    assert examples is not None
    b = np.array(steps.batch_size)
    np.testing.assert_allclose(steps.value, S_MIN * (1 + B_CRIT / b), rtol=1e-12)
    np.testing.assert_allclose(examples.value, S_MIN * (b + B_CRIT), rtol=1e-12)
    assert (b[0], b[-1]) == pytest.approx((8, 512))


def test_the_band_agrees_with_sampling_the_parameters() -> None:
    """Naive twin of the delta method: draw (log s_min, log B_crit), take quantiles of log S at each batch size."""
    curve = law_curve(law(), examples=False)
    assert curve is not None
    assert curve.low is not None
    assert curve.high is not None
    draws = np.random.default_rng(0).multivariate_normal(np.log([S_MIN, B_CRIT]), COVARIANCE, size=200_000)
    for i in (0, 30, 60):
        sampled = draws[:, 0] + np.log1p(np.exp(draws[:, 1]) / curve.batch_size[i])
        low, high = np.quantile(sampled, [0.025, 0.975])
        np.testing.assert_allclose([math.log(curve.low[i]), math.log(curve.high[i])], [low, high], atol=0.005)


def test_no_covariance_no_band_and_no_fit_no_curve() -> None:
    bare = law_curve(law(joint=None), examples=False)
    assert bare is not None
    assert bare.low is None
    assert law_curve(dataclasses.replace(law(), s_min=Measured(None, None, None, 0)), examples=False) is None


def test_one_policy_alone_is_drawn() -> None:
    result, data = study(policies=("held",))
    figures = figures_of(result, data)
    assert {line.policy for line in figures.lines} == {"held"}
    assert figures.steps_to_goal.law is None
