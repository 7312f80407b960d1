"""Is the goal of a task that names none a loss that every run of its baseline holds?"""

from __future__ import annotations

import math
import random

import pytest

from batchscope.analysis.target import crossing
from batchscope.records import Evaluation
from batchscope.verbs.own_goal import SLACK, goal_within


def trace(*losses: float) -> list[Evaluation]:
    """Evaluations ten examples apart."""
    return [Evaluation(k, 10 * k, {}, {"loss": loss}, 0.0, 0.0) for k, loss in enumerate(losses)]


def test_it_is_what_three_evaluations_running_held_and_a_little_slack() -> None:
    goal = goal_within([trace(2.0, 1.0, 0.5, 1.2, 0.8, 0.9)])
    assert goal is not None  # max(0.5, 1.2, 0.8) and max(1.2, 0.8, 0.9) are 1.2; max(1.0, 0.5, 1.2) too
    assert goal.value == pytest.approx(1.2 + SLACK * 0.8, abs=1e-3)


@pytest.mark.parametrize(
    "losses",
    [(1.0, 1.1, 1.2, 1.3), (1.0, 0.5, 0.4), (1.0,), (1.0, math.nan, 0.5, 0.5), (1.0, 0.5, math.inf, 0.5, 0.5)],
    ids=["it rises", "two evaluations", "none", "not a number between", "infinite between"],
)
def test_there_is_none_where_a_run_holds_nothing_below_its_start(losses: tuple[float, ...]) -> None:
    good = trace(1.0, 0.5, 0.4, 0.3)
    assert goal_within([good]) is not None
    assert goal_within([good, trace(*losses)]) is None


def test_no_run_has_no_goal() -> None:
    assert goal_within([]) is None


def test_every_run_crosses_it() -> None:
    """Runs that end within rounding of one another, and others, drawn at random."""
    for seed in range(300):
        draw = random.Random(seed)
        spread, end = 10 ** draw.uniform(-6, 0), draw.uniform(0.1, 1)
        traces = [trace(2.0, *(end + spread * draw.random() for _ in range(6))) for _ in range(3)]
        goal = goal_within(traces)
        assert goal is not None
        assert all(crossing(one, goal) is not None for one in traces), (seed, goal)


def test_rounding_takes_no_run_its_goal() -> None:
    """The slackest run's 0.50004 rounds to 0.5, which the second never holds."""
    goal = goal_within([trace(2.0, *[0.46943] * 3), trace(0.501, *[0.50003] * 3)])
    assert goal is not None
    assert goal.value >= 0.50003
