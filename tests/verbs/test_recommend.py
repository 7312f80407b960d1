"""Is `recommend` right where tuning is hard? One small task for each way in which it is, told by what really ran.

`benchmarks/hard_advice.py` asks the same of five seeds, against a scan of each task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest

from batchscope.analysis.target import effective_batch_size
from batchscope.records import Advice, Candidate, Tried
from batchscope.task import Task

from . import hard_tasks
from .hard_tasks import CASES, FLAT, KNEE, KNEES, advise

BUDGETS = {  # reference runs, where they do with less than ten
    "slow_rate": 5.0,
    "small_critical": 5.0,
    "open_goal": 6.0,
    "accuracy_goal": 8.0,
    "small_only": 8.0,
    "batch_norm": 6.0,
    "with_adam": 5.0,
    "cosine": 6.0,
    "own_never": 6.0,
    "out_of_reach": 4.0,
}
SEVERAL = 4  # runs whose mean says more than the law does
REACHABLE = (*CASES, "open_goal")


class Asked(NamedTuple):
    """A task, and what was answered."""

    task: Task
    advice: Advice

    @property
    def chosen(self) -> Candidate:
        assert self.advice.chosen is not None
        return self.advice.chosen

    @property
    def own(self) -> Tried:
        """The task's own point's run."""
        return self.advice.data.trials[0]

    @property
    def runs(self) -> list[Tried]:
        """The runs at the recommended point."""
        at = (self.chosen.batch_size, self.chosen.learning_rate)
        return [t for t in self.advice.data.trials if (t.batch_size, t.learning_rate) == at]

    @property
    def ratio(self) -> float:
        """Seconds to goal over the own point's, each as it ran: the worst of the runs that did not choose, else of all.

        An own point that does not reach the goal takes its whole budget at least.
        """
        knee = KNEES.get(self.task.name.replace(" ", "_"), KNEE)

        def seconds(t: Tried) -> float:
            steps = (t.reached or t.bound) / effective_batch_size(self.task.train_size, t.batch_size)
            return steps * (1 + t.batch_size / knee)

        fresh = [t for t in self.runs if t.role == "verification"]
        return max(seconds(t) for t in fresh or self.runs) / seconds(self.own)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Asked]:
    """The advice on a hard task, asked for once."""
    known: dict[str, Asked] = {}

    def ask(name: str) -> Asked:
        if name not in known:
            task = getattr(hard_tasks, name)()
            path = tmp_path_factory.mktemp(name) / "a.db"
            advice = advise(task, path, KNEES.get(name, KNEE), budget=BUDGETS.get(name, 10.0))
            known[name] = Asked(task, advice)
        return known[name]

    return ask


# --- what holds of each ---


@pytest.mark.parametrize("name", [*REACHABLE, "out_of_reach"])
def test_the_budget_is_never_passed_and_all_work_is_counted(ask: Callable[[str], Asked], name: str) -> None:
    data, spent = ask(name).advice.data, ask(name).advice.spent
    assert spent.examples == sum(t.examples for t in data.trials)
    assert spent.steps == sum(t.steps for t in data.trials)
    assert spent.reference_runs == spent.examples / data.reference_examples
    assert spent.examples <= data.question.budget * data.reference_examples


@pytest.mark.parametrize("name", [*REACHABLE, "out_of_reach"])
def test_no_run_is_counted_twice(ask: Callable[[str], Asked], name: str) -> None:
    trials = ask(name).advice.data.trials
    assert len({(t.batch_size, t.learning_rate, t.seed, t.bound, t.examples) for t in trials}) == len(trials)


@pytest.mark.parametrize("name", REACHABLE)
def test_the_point_reached_the_goal_with_a_seed_that_did_not_choose_or_says_not(
    ask: Callable[[str], Asked], name: str
) -> None:
    asked = ask(name)
    assert asked.advice.answered
    assert asked.chosen.reached == sum(t.reached is not None for t in asked.runs) > 0
    assert not asked.chosen.extrapolated
    fresh = [t for t in asked.runs if t.role == "verification"]
    assert asked.advice.verified == any(t.reached is not None for t in fresh)
    assert asked.advice.verified or "no run with a fresh seed has verified it" in asked.advice.sentences[1]
    chose = {t.seed for t in asked.advice.data.trials if t.role != "verification"}
    assert not {t.seed for t in asked.advice.data.trials if t.role == "verification"} & chose


@pytest.mark.parametrize("name", REACHABLE)
def test_its_interval_is_of_what_was_run(ask: Callable[[str], Asked], name: str) -> None:
    """Where there are several runs and all of them reached the goal, their mean lies in it."""
    asked, examples = ask(name), ask(name).chosen.examples_to_goal
    assert examples.low is not None
    assert examples.high is not None
    reached = [math.log(t.reached) for t in asked.runs if t.reached is not None]
    if len(reached) == len(asked.runs) >= SEVERAL:
        assert examples.low <= math.exp(sum(reached) / len(reached)) <= examples.high


# --- what each is about ---


def test_an_own_rate_8_times_too_small_is_left_behind(ask: Callable[[str], Asked]) -> None:
    asked = ask("slow_rate")
    assert asked.chosen.learning_rate >= 3 * asked.task.lr
    assert asked.ratio <= 0.5
    over = asked.chosen.over_own
    assert over is not None
    assert over.high is not None
    assert over.high <= 0.5


def test_an_own_rate_4_times_too_large_is_left_behind(ask: Callable[[str], Asked]) -> None:
    asked = ask("fast_rate")
    assert asked.chosen.learning_rate <= asked.task.lr / 2


def test_a_critical_batch_below_16_is_found(ask: Callable[[str], Asked]) -> None:
    asked = ask("small_critical")
    critical = asked.advice.critical_batch_size
    assert critical.estimate is not None
    assert critical.estimate < 16
    assert asked.chosen.batch_size <= 32
    assert asked.advice.binding_limit == "noise"
    assert asked.ratio < 1.0


def test_a_critical_batch_above_the_data_set_leaves_all_of_it(ask: Callable[[str], Asked]) -> None:
    asked = ask("large_critical")
    assert asked.chosen.batch_size == asked.task.train_size
    assert asked.advice.binding_limit == "data set"
    critical = asked.advice.critical_batch_size
    assert critical.high is not None
    assert critical.high > asked.task.train_size
    assert asked.ratio <= 0.5


@pytest.mark.parametrize("name", ["batch_norm", "with_adam", "accuracy_goal"])
def test_other_training_is_tuned_as_well(ask: Callable[[str], Asked], name: str) -> None:
    asked = ask(name)
    assert asked.chosen.learning_rate > asked.task.lr
    assert asked.ratio <= 0.75
    assert asked.advice.data.goal == asked.task.goal
    assert asked.advice.data.coupled == (name == "batch_norm")


def test_a_schedule_keeps_its_horizon_in_examples(ask: Callable[[str], Asked]) -> None:
    """Every run is of the task's whole budget, whatever ends it: a cap cuts it off and leaves the schedule."""
    asked = ask("cosine")
    assert asked.ratio <= 0.75
    assert {t.bound for t in asked.advice.data.trials if t.reached is not None} == {float(asked.task.budget_examples)}


def test_a_goal_that_large_batches_never_reach(ask: Callable[[str], Asked]) -> None:
    """Seconds per step are the same everywhere, so that nothing but the steps speaks against the largest."""
    asked = ask("small_only")
    assert all(t.reached is None for t in asked.advice.data.trials if t.batch_size >= 512)
    assert asked.chosen.batch_size <= 256
    assert asked.ratio <= 0.75
    assert KNEES["small_only"] == FLAT


def test_an_own_point_that_never_reaches_the_goal_leads_to_one_that_does(ask: Callable[[str], Asked]) -> None:
    asked = ask("own_never")
    data = asked.advice.data
    assert (asked.own.reached, data.reference_reached) == (None, False)
    assert data.reference_examples == asked.task.budget_examples
    assert data.goal == asked.task.goal
    assert asked.ratio <= 0.5
    assert any("own point did not reach the goal" in note for note in asked.advice.notes)


def test_a_goal_that_nothing_reaches_is_an_answer(ask: Callable[[str], Asked]) -> None:
    advice = ask("out_of_reach").advice
    assert (advice.answered, advice.chosen, advice.verified, advice.good_batch_sizes) == (False, None, False, ())
    assert advice.sentences[0].startswith("No batch size reached validation loss at most 0.05 in")
    assert all(c.seconds_to_goal.estimate is None for c in advice.candidates)


def test_an_open_goal_is_what_the_own_point_reaches(ask: Callable[[str], Asked]) -> None:
    asked = ask("open_goal")
    assert asked.task.goal is None
    assert asked.advice.data.goal is not None
    assert asked.advice.data.reference_reached
    assert asked.own.examples == asked.advice.data.reference_examples
    assert asked.ratio < 1.0
