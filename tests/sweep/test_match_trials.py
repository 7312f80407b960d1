"""A match's trials: raced under caps as from scratch, resumed without training twice, refused before they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import NO_REMEDY, Arm, MatchQuestion, MatchRun, StopRule, TrialSpec
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.match_trials import MatchTrials
from batchscope.sweep.treated import case_of, treated
from batchscope.task import Task, load_task
from batchscope.training.device import pick_device
from batchscope.training.loop import train

from .small_runs import NEVER, SMALL, runner

REMEDIES = (NO_REMEDY, "linear scaling", "weight averaging", "growing batch (rule='power of the steps')")
BUDGET = 18 * 256
QUESTION = MatchQuestion(
    batch_sizes=(64,),
    own_batch_size=16,
    own_learning_rate=0.4,
    remedies=REMEDIES,
    seeds=(0, 1),
    race_seeds=(900,),
    budget_examples=BUDGET,
    cadence_examples=64,
    confirm=2,
)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(f"{SMALL}:task")


Undisturbed = tuple[MatchTrials, list[TrialSpec], Path]


class Stopped(BaseException):
    """What Ctrl-C does."""


def matched(
    task: Task, path: Path, listen: Callable[[str, dict], None] = lambda kind, details: None
) -> tuple[MatchTrials, list[TrialSpec]]:
    """All of it, and the trials that were trained for it."""
    trained: list[TrialSpec] = []

    def hear(kind: str, details: dict[str, Any]) -> None:
        if kind == "started":
            trained.append(details["spec"])
        listen(kind, details)

    executor = InlineExecutor(task)
    with open_store(path / "a.db") as store:
        trials = MatchTrials(task, QUESTION, runner(store, executor, hear, checkpoint_seconds=NEVER), "fp32")
        trials.baseline()
        trials.untuned(64)
        ranking = trials.race(64, trials.remedies_at(64, REMEDIES))
        trials.confirm(64, ranking, QUESTION.confirm)
    executor.close()
    return trials, trained


def is_of(arm: Arm, run: MatchRun) -> bool:
    return (arm.batch_size, arm.remedy, arm.learning_rate) == (run.batch_size, run.remedy, run.learning_rate)


def in_any_order(runs: list[MatchRun]) -> list[str]:
    return sorted(repr(run) for run in runs)


@pytest.fixture(scope="module")
def undisturbed(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    path = tmp_path_factory.mktemp("undisturbed")
    return *matched(task, path), path


def test_capped_runs_are_those_from_scratch_and_nothing_is_left(task: Task, undisturbed: Undisturbed) -> None:
    trials, trained, path = undisturbed
    runs = trials.ran.runs
    raced = [run for run in runs if run.role == "race"]
    assert {run.ended_by for run in raced} == {"cap", "budget"}
    for run in (next(r for r in raced if r.ended_by == "budget"), next(r for r in raced if r.ended_by == "cap")):
        own = next(s for s in reversed(trained) if s.seed == 900 and is_of(s.arm, run))
        applied, control = treated(task, own.arm)
        straight = train(applied, own, device=pick_device(), control=control)
        assert tuple((e.examples, e.validation["loss"]) for e in straight.trace) == run.losses
    assert not list((path / "checkpoints").glob("*"))
    to_the_end = 6 * len(REMEDIES) * BUDGET
    assert sum(run.examples for run in raced) <= to_the_end / 3


def test_roles_seeds_and_arms(undisturbed: Undisturbed) -> None:
    trials, trained, _ = undisturbed
    by_role = {role: [r for r in trials.ran.runs if r.role == role] for role in ("baseline", "untuned", "confirmed")}
    assert [(r.batch_size, r.seed, r.learning_rate) for r in by_role["baseline"]] == [
        (16, seed, trials.rate) for seed in (0, 1)
    ]
    assert {(r.batch_size, r.remedy, r.learning_rate) for r in by_role["untuned"]} == {(64, NO_REMEDY, trials.rate)}
    confirmed = {r.remedy for r in by_role["confirmed"]}
    assert confirmed == set(REMEDIES)  # two with the large batch throughout, the plain one, the best growing one
    assert {r.seed for r in trials.ran.runs if "race" in r.role} == {900}
    for spec in trained:
        plain = spec.arm.remedy == NO_REMEDY
        assert (spec.arm.own_batch_size, spec.arm.own_learning_rate) == ((None, None) if plain else (16, trials.rate))
        assert spec.stop.budget_examples == BUDGET
    rates = {(r.remedy, r.learning_rate) for r in trials.ran.runs if r.role == "race"}
    assert {sum(1 for remedy, _ in rates if remedy == name) for name in REMEDIES} == {6}


def test_repeated_it_trains_nothing(task: Task, undisturbed: Undisturbed) -> None:
    first, trained, path = undisturbed
    again, none = matched(task, path)
    assert len(trained) > 20
    assert not none
    assert again.ran.runs == first.ran.runs
    assert again.ran.rounds == first.ran.rounds


@pytest.mark.parametrize("after", [4, 21])
def test_stopped_it_goes_on_and_finds_the_same(
    task: Task, undisturbed: Undisturbed, tmp_path: Path, after: int
) -> None:
    straight, trained, _ = undisturbed
    count = 0

    def stop(kind: str, details: dict[str, Any]) -> None:
        nonlocal count
        count += kind == "finished"
        if count == after:
            raise Stopped

    with pytest.raises(Stopped):
        matched(task, tmp_path, stop)
    resumed, rest = matched(task, tmp_path)
    assert in_any_order(resumed.ran.runs) == in_any_order(straight.ran.runs)
    assert len(rest) <= len(trained) - after + 1


def test_what_cannot_apply_is_known_before(task: Task, tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        trials = MatchTrials(task, QUESTION, runner(store, InlineExecutor(task)), "fp32")
        names = ["ghost batch norm", "Adam scaled", NO_REMEDY]
        assert [r.remedy for r in trials.refusals(64, names)] == ["ghost batch norm", "Adam scaled"]
        assert not trials.ran.refused
        assert list(trials.remedies_at(64, names)) == [NO_REMEDY]
        assert [r.remedy for r in trials.ran.refused] == ["ghost batch norm", "Adam scaled"]
        assert trials.ran.examples == 0


def test_a_task_that_never_trains_is_said_to(task: Task, tmp_path: Path) -> None:
    hopeless = dataclasses.replace(task, lr=1e12)
    with open_store(tmp_path / "a.db") as store:
        trials = MatchTrials(hopeless, QUESTION, runner(store, InlineExecutor(hopeless)), "fp32")
        with pytest.raises(CannotAnswer, match="expected its own batch size 16 to train at some learning rate"):
            trials.baseline()


def test_an_arm_with_a_remedy_says_what_it_scales_from(task: Task) -> None:
    assert treated(task, Arm(64, 0.4)) == (task, None)
    arm = Arm(64, 0.4, remedy="linear scaling", own_batch_size=16, own_learning_rate=0.1)
    assert case_of(task, arm).times == 4
    assert treated(task, arm)[0].schedule is not None
    with pytest.raises(UsageError, match="expected the baseline's batch size"):
        treated(task, Arm(64, 0.4, remedy="linear scaling"))


def test_keys_of_plain_trials_are_what_they_were() -> None:
    """The digest of a specification as it was written before arms had a baseline."""
    plain = TrialSpec(Arm(16, 0.4), 0, StopRule(3072, 64))
    assert plain.key() == "ba530dfc628be40b"
    other = dataclasses.replace(plain, arm=dataclasses.replace(plain.arm, own_batch_size=8, own_learning_rate=0.1))
    assert other.key() != plain.key()
