"""Is a run read for what it says: where it crossed, how far it is known not to have, and the level that it held?"""

from __future__ import annotations

import math

import pytest

from batchscope.analysis.tried import bound_of, level_of, lowest_held, tried
from batchscope.records import Arm, Conditions, Evaluation, Goal, StopRule, TrialRecord, TrialResult, TrialSpec

GOAL = Goal("loss", at_most=1.0)
CADENCE, BUDGET = 100, 2_000


def record(
    losses: list[float], ended_by: str = "goal", outcome: str = "reached", cap: int | None = None
) -> TrialRecord:
    """A run of batch size 10, evaluated every 100 examples; the first loss is that of the initial weights."""
    trace = tuple(
        Evaluation(10 * k, CADENCE * k, {}, {"loss": loss, "accuracy": 1.0 - loss / 10.0}, 0.0, 0.0)
        for k, loss in enumerate(losses)
    )
    spec = TrialSpec(Arm(10, 0.5), 3, StopRule(BUDGET, CADENCE, goal=GOAL, cap_examples=cap))
    return TrialRecord(spec, TrialResult(outcome, ended_by, "", 99, 990, trace), Conditions())


def test_a_run_that_reached_crossed_between_two_evaluations() -> None:
    """From 1.5 at 200 to 0.5 at 300: half way in logs."""
    found = tried("search", record([4.0, 2.0, 1.5, 0.5, 0.5, 0.5]), GOAL, Goal("loss", at_most=2.0))
    assert found.reached == pytest.approx(math.sqrt(200 * 300))
    assert found.provisional == pytest.approx(100.0)
    assert found.lowest_loss == 0.5
    assert (found.batch_size, found.learning_rate, found.seed) == (10, 0.5, 3)
    assert (found.examples, found.steps, found.outcome, found.ended_by) == (990, 99, "reached", "goal")


@pytest.mark.parametrize(
    ("losses", "ended_by", "cap", "bound"),
    [
        ([4.0, 2.0, 1.5, 1.2], "cap", 250, 250.0),
        ([4.0, 2.0, 0.9, 0.8], "cap", 250, 100.0),  # it may have crossed just after 100
        ([4.0, 2.0, 0.9, 1.2], "cap", 250, 250.0),  # a lucky evaluation is no crossing
        ([4.0, 2.0, 1.5, 0.9], "cap", 300, 200.0),
        ([4.0, 2.0, 1.5, 1.2], "patience", None, 2000.0),  # gave up: it has no prospect
        ([4.0, 2.0], "divergence", 250, 2000.0),
        ([4.0, *([2.0] * 20)], "budget", None, 2000.0),
        ([4.0, *([2.0] * 18), 0.9, 0.9], "budget", 2500, 1800.0),
    ],
)
def test_a_run_that_did_not_reach_needs_more_than_its_bound(
    losses: list[float], ended_by: str, cap: int | None, bound: float
) -> None:
    run = record(losses, ended_by, "not_reached", cap)
    assert bound_of(run, GOAL) == bound
    found = tried("search", run, GOAL, None)
    assert (found.reached, found.bound, found.provisional) == (None, bound, None)


def test_without_a_goal_the_end_is_the_bound() -> None:
    assert bound_of(record([4.0, 0.5], "budget"), None) == BUDGET


def test_a_level_is_held_at_three_evaluations_running() -> None:
    assert lowest_held(record([4.0, 2.0, 0.1, 1.5, 1.4, 1.6]), "loss", True) == 1.5
    assert lowest_held(record([4.0, 2.0, 0.1, 1.5, 1.4, 1.6]), "accuracy", False) == pytest.approx(0.85)
    assert lowest_held(record([4.0, 2.0, math.nan, 1.0]), "loss", True) == math.inf
    assert tried("search", record([4.0, math.nan]), GOAL, None).lowest_loss is None


def test_what_was_reached_becomes_a_goal_with_a_little_slack() -> None:
    """Two hundredths of the fall from the initial weights."""
    run = record([4.0, 2.0, 1.0, 1.0, 1.0])
    assert level_of(run, None) == Goal("loss", at_most=1.06)
    assert level_of(run, Goal("accuracy", at_least=0.99)) == Goal("accuracy", at_least=0.894)
    assert level_of(record([1.0, 2.0, 3.0, 4.0]), None) is None
    assert level_of(record([]), None) is None
