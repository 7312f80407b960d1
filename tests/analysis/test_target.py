"""Is the crossing where the rule says, against a search by brute force?"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.analysis.target import (
    Value,
    best,
    crossed,
    crossing,
    effective_batch_size,
    epochs_to_converge,
    examples_to_goal,
    raw_crossing,
    steps_per_epoch,
    steps_to_goal,
)
from batchscope.records import Evaluation, Goal, TrialResult

GOAL = Goal("loss", at_most=1.0)


def trace(values: list[float], cadence: int = 100, per_step: int = 10) -> tuple[Evaluation, ...]:
    """Evaluations of these validation losses every `cadence` examples, from examples 0."""
    return tuple(
        Evaluation(k * cadence // per_step, k * cadence, {"loss": v}, {"loss": v, "accuracy": -v}, float(k), 0.0)
        for k, v in enumerate(values)
    )


def result(values: list[float], ended_by: str = "patience") -> TrialResult:
    t = trace(values)
    return TrialResult("not_reached", ended_by, "", t[-1].step, t[-1].examples, t)


def brute_crossing(evaluations: tuple[Evaluation, ...], goal: float, length: int) -> float | None:
    """The twin: walk in small steps along the interpolated curve of the first lasting interval until it meets."""
    y = [e.validation["loss"] for e in evaluations]
    for k in range(1, len(y) - length + 1):
        if all(v <= goal for v in y[k : k + length]):
            x0, x1 = evaluations[k - 1].examples, evaluations[k].examples
            if not math.isfinite(y[k - 1]) or y[k - 1] <= goal:
                return float(x1)
            steps = 20000
            for i in range(steps + 1):
                f = i / steps
                if (1 - f) * y[k - 1] + f * y[k] <= goal:
                    return f * x1 if x0 == 0 else math.exp((1 - f) * math.log(x0) + f * math.log(x1))
    return None


losses = st.lists(
    st.one_of(st.floats(0.25, 3.0, width=16), st.sampled_from([math.nan, math.inf, 1.0])), min_size=0, max_size=14
)


@settings(max_examples=150, deadline=None)
@given(losses)
def test_crossing_is_the_brute_force_one(values: list[float]) -> None:
    evaluations = trace(values)
    found, expected = crossing(evaluations, GOAL), brute_crossing(evaluations, 1.0, 3)
    assert (found is None) == (expected is None) == (not crossed(evaluations, GOAL))
    if found is not None and expected is not None:
        assert found.examples == pytest.approx(expected, rel=1e-3, abs=0.005)  # a 20,000th of 100 examples
        assert found.steps == pytest.approx(found.examples / 10)
        assert found.raw_examples is not None
        assert found.raw_examples <= found.examples * (1 + 1e-12)
    raw, expected_raw = raw_crossing(evaluations, GOAL), brute_crossing(evaluations, 1.0, 1)
    assert (raw is None) == (expected_raw is None)
    if raw is not None:
        assert raw == pytest.approx(expected_raw, rel=1e-3, abs=0.005)


def test_a_single_lucky_evaluation_is_no_crossing() -> None:
    found = crossing(trace([3, 2, 0.9, 2, 1.5, 0.5, 0.5, 0.5]), GOAL)
    assert found is not None
    assert found.index == 5
    assert found.examples == pytest.approx(400 * (500 / 400) ** 0.5)
    assert found.raw_examples == pytest.approx(100 * 2 ** (1 / 1.1))


def test_first_interval_is_linear_in_examples_and_not_finite_before_takes_the_evaluation() -> None:
    found = crossing(trace([2, 0.5, 0.5, 0.5]), GOAL)
    assert found is not None
    assert found.examples == pytest.approx(100 * (1 / 1.5))
    assert found.steps == pytest.approx(10 * (1 / 1.5))
    after_nan = crossing(trace([2, math.nan, 0.5, 0.5, 0.5]), GOAL)
    assert after_nan is not None
    assert after_nan.examples == 200


def test_two_evaluations_at_the_end_are_no_crossing() -> None:
    assert crossing(trace([3, 2, 0.5, 0.5]), GOAL) is None
    assert not crossed(trace([3, 2, 0.5, 0.5]), GOAL)


def test_rising_metrics_and_missing_ones() -> None:
    found = crossing(trace([3, 2, 0.5, 0.5, 0.5]), Goal("accuracy", at_least=-1.0))
    assert found == crossing(trace([3, 2, 0.5, 0.5, 0.5]), GOAL)
    assert crossing(trace([0, 0, 0, 0]), Goal("f1", at_least=0.0)) is None


def test_uneven_steps_are_interpolated_within_the_trace() -> None:
    evaluations = (
        Evaluation(0, 0, {}, {"loss": 3.0}, 0, 0),
        Evaluation(4, 100, {}, {"loss": 2.0}, 0, 0),
        Evaluation(10, 220, {}, {"loss": 0.0}, 0, 0),
        Evaluation(12, 300, {}, {"loss": 0.0}, 0, 0),
        Evaluation(16, 400, {}, {"loss": 0.0}, 0, 0),
    )
    found = crossing(evaluations, GOAL)
    assert found is not None
    assert found.examples == pytest.approx(math.sqrt(100 * 220))
    assert found.steps == pytest.approx(4 + 6 * (found.examples - 100) / 120)


def test_best_is_the_first_lowest_finite() -> None:
    assert best(trace([2, 1, math.nan, 0.5, 0.5, math.inf])) == 3
    assert best(trace([1, 2, 3])) == 0
    assert best(trace([math.nan])) is None
    assert best(()) is None


def test_converging_is_censored_by_budget_and_goal_only() -> None:
    falling = [3.0, 2.0, 1.5, 1.7]
    assert epochs_to_converge(result(falling), 100, 1000) == Value(2.0, False)
    assert epochs_to_converge(result(falling, "budget"), 100, 1000) == Value(2.0, True)
    assert epochs_to_converge(result(falling, "goal"), 100, 1000) == Value(2.0, True)
    assert epochs_to_converge(result(falling, "divergence"), 100, 1000) == Value(10.0, True)
    assert epochs_to_converge(result([1.0, 2.0, 3.0]), 100, 1000) == Value(10.0, True)


def test_never_reaching_is_bounded_by_the_budget_whatever_ended_it() -> None:
    for ended_by in ("patience", "budget", "divergence"):
        assert examples_to_goal(result([3, 2, 2], ended_by), GOAL, 5000) == Value(5000.0, True)
        steps = steps_to_goal(result([3, 2, 2], ended_by), GOAL, 5000, train_size=1000, batch_size=300)
        assert steps.censored
        assert steps.value == pytest.approx(20.0)
    assert steps_to_goal(result([3, 2, 0, 0, 0]), GOAL, 5000, 1000, 10).value == pytest.approx(10 * 2**0.5)


def test_effective_batch_size_keeps_the_last_short_batch() -> None:
    batches = [min(300, 1000 - i) for i in range(0, 1000, 300)]
    assert steps_per_epoch(1000, 300) == len(batches)
    assert effective_batch_size(1000, 300) == pytest.approx(np.mean(batches))
    assert effective_batch_size(1000, 1000) == 1000


def test_the_builders_records_say_what_the_rule_says() -> None:
    """The made-up studies' outcomes are computed in another way; both must agree."""
    path = Path(__file__).with_name("builders.py")
    spec = importlib.util.spec_from_file_location("builders_for_target", path)
    assert spec is not None
    assert spec.loader is not None
    builders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builders)
    data = builders.synthetic_study()
    for trial in data.held + data.tuned:
        reached = crossed(trial.result.trace, data.settings.goal)
        assert reached == (trial.result.outcome == "reached")
