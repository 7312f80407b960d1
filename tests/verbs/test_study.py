"""Does a study answer, resume, repeat itself for nothing, keep its budget, and notice a changed task?"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs
from batchscope.analysis.table import to_json
from batchscope.errors import CannotAnswer, TaskError, UsageError
from batchscope.records import StudyData, StudyResult, TrialRecord
from batchscope.store.owner import Owner
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.testing.examples import bits, make_spec
from batchscope.verbs import study as verb

from .conftest import SMALL

ROLES = ("reference", "held", "tuning", "tuned")
Heard = list[tuple[str, dict[str, Any]]]
Copies = Callable[[str, Path], Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def ask(path: Path) -> Callable[..., StudyResult]:
    """A small study in this process: two batch sizes, one seed, unless the test says otherwise."""

    def ask(task: Task | str, **asked: Any) -> StudyResult:
        return bs.study(task, **{"batch_sizes": (16, 64), "seeds": 1, "store": path, "draw": False} | asked)

    return ask


def hearing(into: Heard) -> Callable[[str, dict[str, Any]], None]:
    return lambda kind, details: into.append((kind, details))


def kinds(heard: Heard, kind: str) -> list[dict[str, Any]]:
    return [details for k, details in heard if k == kind]


def data_of(path: Path, number: int = -1) -> StudyData:
    with open_store(path, read_only=True) as store:
        return store.study_data(store.studies()[number].id)


def records(data: StudyData) -> list[TrialRecord]:
    """Every trial once."""
    return list({t.spec: t for role in ROLES for t in getattr(data, role)}.values())


def facts(data: StudyData) -> Any:
    """Every bit of it but clock readings and attempts."""
    still = [
        dataclasses.replace(t, attempts=0, result=dataclasses.replace(t.result, seconds=0.0))
        for role in ROLES
        for t in getattr(data, role)
    ]
    return bits([still, data.choices, data.reference_examples, data.reference_reached, data.settings])


# --- what it runs and answers ---


def test_a_study_answers_and_the_same_command_spends_nothing(small: Task, ask: Callable[..., StudyResult]) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    threads = torch.get_num_threads()
    first: Heard = []
    result = ask(small, seeds=2, listen=hearing(first))
    assert [(r.policy, r.batch_size, r.seeds) for r in result.rows] == [
        ("held", 16, 2),
        ("held", 64, 2),
        ("tuned", 16, 2),
        ("tuned", 64, 2),
    ]
    assert all(r.reached == 2 for r in result.rows)
    assert all(r.tuning_trials == (0 if r.policy == "held" else 5) for r in result.rows)
    assert all(r.seconds_per_epoch.estimate for r in result.rows)
    assert len(kinds(first, "finished")) == result.spent.trials == 1 + 4 + 10 + 4
    again: Heard = []
    assert ask(small, seeds=2, listen=hearing(again)) == result
    assert {kind for kind, _ in again} <= {"phase", "stored", "note"}
    assert [p["roles"] for p in kinds(again, "phase")] == [p["roles"] for p in kinds(first, "phase")][1:-1]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert torch.get_num_threads() == threads


def test_the_reported_seeds_did_not_choose(small: Task, ask: Callable[..., StudyResult], path: Path) -> None:
    ask(small, seeds=2, seed=3)
    data = data_of(path)
    assert {t.spec.seed for t in (*data.held, *data.tuned)} == {3000, 3001}
    assert {t.spec.seed for t in data.tuning} == {3900}
    rates = {c.batch_size: c.learning_rate for c in data.choices}
    assert {(t.spec.arm.batch_size, t.spec.arm.learning_rate) for t in data.tuned} == set(rates.items())
    assert all(t.spec.stop.goal is None and t.spec.stop.cap_examples is None for t in (*data.held, *data.tuned))


def test_held_alone_is_the_classic(small: Task, ask: Callable[..., StudyResult], path: Path) -> None:
    """One learning rate, early stopping by patience in epochs, and total = epochs x seconds per epoch."""
    result = ask(small, policy="held", batch_sizes=(8, 64), seeds=2, patience=2)
    assert [r.batch_size for r in result.rows] == [8, 64]
    assert {r.learning_rate for r in result.rows} == {small.lr}
    data = data_of(path)
    assert (data.tuned, data.tuning, data.choices) == ((), (), ())
    for trial in data.held:
        losses = [e.validation["loss"] for e in trial.result.trace]
        best = trial.result.trace[losses.index(min(losses))].examples
        if trial.result.ended_by == "patience":
            assert trial.result.examples - best >= 2 * small.train_size
            assert trial.result.trace[-2].examples - best < 2 * small.train_size
        else:
            assert (trial.result.ended_by, trial.result.examples) == ("budget", small.budget_examples)
    for row in result.rows:
        mine = [t.result for t in data.held if t.spec.arm.batch_size == row.batch_size]
        epochs = [min(r.trace, key=lambda e: e.validation["loss"]).examples / small.train_size for r in mine]
        assert row.epochs_to_converge.n == 2
        if row.epochs_to_converge.censored == 0:
            assert row.epochs_to_converge.estimate == pytest.approx(math.exp(np.mean(np.log(epochs))))
            assert row.seconds_per_epoch.estimate is not None
            total = row.epochs_to_converge.estimate * row.seconds_per_epoch.estimate
            assert row.seconds_to_converge.estimate == pytest.approx(total)
    answer = to_json(result)
    assert answer["critical_batch_size"] is None
    assert answer["s_min"] is None
    assert "tuned policy" in answer["critical_batch_size_reason"]
    assert any(r.epochs_to_converge.censored == 0 for r in result.rows)


def test_batch_size_one_and_the_full_batch(small: Task, ask: Callable[..., StudyResult]) -> None:
    result = ask(small, policy="held", batch_sizes=(256, 1), seeds=1)
    assert [(r.batch_size, r.seeds) for r in result.rows] == [(1, 1), (256, 1)]


def test_a_goal_that_no_batch_size_reaches_is_an_answer(small: Task, ask: Callable[..., StudyResult]) -> None:
    result = ask(dataclasses.replace(small, goal=bs.Goal("loss", at_most=1e-6)))
    for row in result.rows:
        bound = row.examples_to_goal
        assert (row.reached, bound.estimate, bound.high) == (0, None, None)
        assert bound.low == pytest.approx(small.budget_examples)
        assert row.steps_to_goal.low == pytest.approx(small.budget_examples / row.batch_size)
    assert to_json(result)["critical_batch_size"] is None
    assert result.law.reason
    assert any("No batch size reaches the goal" in note for note in result.notes)


def test_an_open_goal_is_what_the_own_point_reaches(small: Task, ask: Callable[..., StudyResult], path: Path) -> None:
    heard: Heard = []
    left_open = dataclasses.replace(small, goal=None)
    result = ask(left_open, policy="held", listen=hearing(heard))
    assert any("the goal was left open: validation loss <=" in n["text"] for n in kinds(heard, "note"))
    own = next(r for r in result.rows if r.batch_size == small.batch_size)
    assert own.reached == 1
    data = data_of(path)
    reference, whole = data.reference
    assert (reference.spec.stop.goal, whole.spec.stop.goal) == (result.goal, None)
    first, *losses = [e.validation["loss"] for e in whole.result.trace]
    held = min(max(three) for three in zip(losses, losses[1:], losses[2:], strict=False))
    assert held < result.goal.value < held + 0.021 * (first - held)
    assert data.reference_reached
    assert ask(left_open, policy="held") == result


def test_an_own_point_that_does_not_train_leaves_no_goal(small: Task, ask: Callable[..., StudyResult]) -> None:
    seen = [0]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen[0] += len(target) == 16 and torch.is_grad_enabled()
        return F.cross_entropy(output, target) if seen[0] < 20 else [][0]

    with pytest.raises(CannotAnswer, match=r"it failed \(IndexError: list index out of range\): give a goal"):
        ask(dataclasses.replace(small, goal=None, loss=loss), batch_sizes=(64,))
    with pytest.raises(CannotAnswer, match="give a goal, or a learning rate that trains"):
        ask(dataclasses.replace(small, goal=None, lr=3000.0))


def test_a_task_in_memory_says_that_it_runs_alone_and_is_the_file_all_the_same(
    small: Task, ask: Callable[..., StudyResult], path: Path
) -> None:
    """The file's command afterwards finds every trial there."""
    result = ask(small, policy="held")
    assert any("came as an object" in note for note in result.notes)
    heard: Heard = []
    again = ask(f"{SMALL}:task", policy="held", listen=hearing(heard))
    assert kinds(heard, "started") == []
    assert again.rows == result.rows
    assert not any("came as an object" in note for note in again.notes)


def test_workers_give_the_records_of_this_process(
    ask: Callable[..., StudyResult], path: Path, finished: Copies
) -> None:
    """How many work is a measurement, and the one thing in which the two may differ."""
    ask(f"{SMALL}:task")
    here, there = data_of(finished("both", path.with_name("here.db"))), data_of(path)
    there = dataclasses.replace(there, settings=dataclasses.replace(there.settings, workers=here.settings.workers))
    assert facts(there) == facts(here)


# --- interrupted ---


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_after_ctrl_c_the_same_command_goes_on(
    small: Task, ask: Callable[..., StudyResult], path: Path, finished: Copies, moment: int
) -> None:
    """Stopped at the end of a trial, and inside one (at a line of it); nothing stored is run again."""
    truth = data_of(finished("both", path.with_name("truth.db")))
    stored: list[int] = []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "finished":
            stored.append(details["trial"])
        if len(stored) == moment and kind == ("line" if moment % 2 else "finished"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(small, listen=stop, checkpoint_seconds=0.0)
    heard: Heard = []
    ask(small, listen=hearing(heard), checkpoint_seconds=0.0)
    assert not {details["trial"] for details in kinds(heard, "started")} & set(stored)
    assert facts(data_of(path)) == facts(truth)
    assert not path.with_name("a.db.checkpoints").exists()


# --- a changed task ---


def _other_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": _other_model}, "the model's parameters"),
        ({"loss": lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1)}, "loss"),
        ({"train": "flip"}, "the data"),
        ({"optimizer": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)}, "the optimizer"),
        ({"goal": bs.Goal("loss", at_most=0.7)}, "the goal"),
    ],
    ids=["model", "loss", "data", "optimizer", "goal"],
)
def test_a_changed_task_is_noticed_and_served_no_stale_trial(
    small: Task,
    ask: Callable[..., StudyResult],
    path: Path,
    finished: Copies,
    change: dict[str, Any],
    named: str,
) -> None:
    finished("held", path)
    if change.get("train") == "flip":
        x, y = small.train
        change = {"train": (x, torch.cat([y[:1], y[1:-1], (y[-1:] + 1) % 3]))}  # one label of 256, not among the first
    heard: Heard = []
    result = ask(dataclasses.replace(small, **change), policy="held", listen=hearing(heard))
    assert kinds(heard, "stored") == []
    assert len(kinds(heard, "finished")) == 3
    (note,) = [n for n in result.notes if "is not the one of" in n]
    assert note.startswith("Task 'small' is not the one of 3 trials stored under that name, which are not used:")
    assert named in note
    assert note in [n["text"] for n in kinds(heard, "note")]
    heard.clear()
    ask(small, policy="held", listen=hearing(heard))  # and back: its own trials are still there
    assert kinds(heard, "started") == []


# --- the budget ---


@pytest.mark.parametrize("budget", [1, 2.5, 12, 30, 60])
def test_the_budget_is_never_passed_and_what_it_left_out_is_said(
    small: Task, ask: Callable[..., StudyResult], path: Path, budget: float
) -> None:
    result = ask(small, seeds=2, budget=budget)
    data = data_of(path)
    (reference,) = data.reference
    limit = max(budget * data.reference_examples, reference.result.examples)
    spent = sum(t.result.examples for t in records(data))
    assert spent <= limit
    left_out = [n for n in result.notes if "were left out" in n]
    whole = len(data.held) == 4 and len(data.tuned) == 4
    assert bool(left_out) != whole
    assert len({len([t for t in data.tuning if t.spec.arm.batch_size == b]) for b in (16, 64)}) == 1
    assert data.notes == ()  # nothing of it is stored: a larger budget lifts it
    assert ask(small, seeds=2, budget=budget) == result


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(
    small: Task, ask: Callable[..., StudyResult], path: Path, tmp_path: Path
) -> None:
    truth = ask(small, policy="held", seeds=3, store=tmp_path / "truth.db")
    small_one = ask(small, policy="held", seeds=3, budget=6)
    assert sum(r.seeds for r in small_one.rows) < 6
    heard: Heard = []
    result = ask(small, policy="held", seeds=3, budget=1000, listen=hearing(heard))
    assert len(kinds(heard, "started")) == 6 - sum(r.seeds for r in small_one.rows)
    assert not any("left out" in note for note in result.notes)
    assert [r.examples_to_goal for r in result.rows] == [r.examples_to_goal for r in truth.rows]


def test_a_search_that_the_budget_cut_short_can_be_finished(
    small: Task, ask: Callable[..., StudyResult], path: Path, finished: Copies
) -> None:
    truth = data_of(finished("tuned", path.with_name("truth.db")))
    cut = ask(small, policy="tuned", budget=14)
    assert max(r.tuning_trials for r in cut.rows) < 5
    ask(small, policy="tuned")
    data = data_of(path)
    assert bits([data.choices, [t.spec for t in data.tuning]]) == bits([truth.choices, [t.spec for t in truth.tuning]])
    chosen = {(c.batch_size, c.learning_rate) for c in data.choices}
    assert chosen <= {(t.spec.arm.batch_size, t.spec.arm.learning_rate) for t in data.tuned}


# --- several commands at once ---


COMMAND = """
import sys, json
import batchscope as bs
from batchscope.analysis.table import to_json
task, store, seed = sys.argv[1:]
started = []
result = bs.study(task, batch_sizes=(16, 64), policy="held", seeds=2, seed=int(seed), store=store, draw=False,
                  listen=lambda kind, details: started.append(details["trial"]) if kind == "started" else None)
print(json.dumps([to_json(result), len(started)]))
"""


def test_commands_that_run_at_once_share_the_work_and_agree(path: Path) -> None:
    """Two of the same study and one of another, on one store: each trial is run exactly once, by somebody."""
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, f"{SMALL}:task", str(path), seed], stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "0", "1")
    ]
    answers = [json.loads(command.communicate(timeout=120)[0]) for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0]
    (one, by_one), (two, by_two), (other, by_other) = answers
    assert one == two
    assert [row["seeds"] for row in other["rows"]] == [2, 2]
    with open_store(path, read_only=True) as store:
        studies = store.studies()
        assert len(studies) == 2
        assert all(s.finished_trials == s.trials == 5 for s in studies)
        ids = {i for s in studies for role in ROLES for i in store.trial_ids(s.id, role)}
        assert [len(store.attempts(i)) for i in ids] == [1] * 10
        assert {store.study(s.id).conditions.threads for s in studies} == {one["settings"]["conditions"]["threads"]}
    assert by_one + by_two == by_other == 5


def test_steps_are_timed_while_nobody_else_on_this_store_trains(
    small: Task, ask: Callable[..., StudyResult], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command has a trial under way when ours are done: the timing waits for its end, and holds off others."""
    other, third = Owner.here("other"), Owner.here("third")
    heard: Heard = []
    with open_store(path) as store:
        theirs, next_one = store.add_trials(
            None, "held", "0" * 16, data_conditions(small), [make_spec(0), make_spec(1)]
        )
        assert store.lease(theirs, other, 60).state == "leased"
        waits: list[str] = []

        def sleep(_: float) -> None:
            waits.append(store.lease(next_one, other, 60).state)  # while we wait, nobody begins another one
            waits.append(store.claim_machine(third, 60))
            assert kinds(heard, "phase")[-1]["roles"] != {"timing": 2}
            if len(waits) == 6:
                store.release(theirs, other, "interrupted")

        monkeypatch.setattr(verb.time, "sleep", sleep)
        result = ask(small, policy="held", listen=hearing(heard))
        assert waits == ["busy"] * 6
        assert store.claim_machine(third, 60) == "alone"  # and it was given back
    assert result.timing is not None
    assert "waiting for another command on this store, so as to measure alone" in [
        n["text"] for n in kinds(heard, "note")
    ]


def data_conditions(task: Task) -> Any:
    from batchscope.training.device import pick_device, set_up

    return set_up(1, pick_device(), task.precision)


def test_a_choice_made_elsewhere_is_not_taken_for_one_made_here(
    small: Task, ask: Callable[..., StudyResult], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was brought from another machine: its trials are not passed off as this one's."""
    with monkeypatch.context() as patch:
        patch.setattr("batchscope.training.device.device_name", lambda device: "another processor")
        ask(small, policy="held")
    heard: Heard = []
    ask(small, policy="held", listen=hearing(heard))
    assert len(kinds(heard, "finished")) == 3
    assert {t.conditions.device_name for t in records(data_of(path, 0))} == {"another processor"}
    assert "another processor" not in {t.conditions.device_name for t in records(data_of(path, 1))}


# --- malformed ---


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"policy": "best"}, 'expected policy "held", "tuned" or "both", got \'best\''),
        ({"seeds": 0}, "expected at least one seed, got 0"),
        ({"seeds": 801}, "expected at most 800 seeds, got 801"),
        ({"seed": -1}, "expected a seed from 0 up, got -1"),
        ({"patience": 0}, "expected patience in epochs above 0, got 0"),
        ({"patience": math.nan}, "expected patience in epochs above 0, got nan"),
        ({"budget": 0}, "expected a budget in reference runs above 0, got 0"),
        ({"budget": math.nan}, "expected a budget in reference runs above 0, got nan"),
        ({"batch_sizes": ()}, "expected at least one batch size, got none"),
        ({"batch_sizes": (0,)}, "got 0: remove it"),
        ({"batch_sizes": (16, 16)}, "expected each batch size once, got 16 2 times"),
        ({"batch_sizes": (257,)}, "expected batch sizes up to the 256 training examples of 'small', got 257"),
    ],
    ids=str,
)
def test_a_malformed_call_is_refused_before_anything_is_stored(
    small: Task, ask: Callable[..., StudyResult], path: Path, asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ask(small, **asked)
    assert expected in str(caught.value)
    assert not path.exists()


def test_something_else_than_a_task_is_refused(ask: Callable[..., StudyResult]) -> None:
    with pytest.raises(UsageError, match=r"expected a task reference or a bs.Task, got int: write study\('digits'\)"):
        ask(3)


def test_a_job_whose_worker_dies_twice_is_no_answer(small: Task) -> None:
    from batchscope.sweep.executors.base import Died
    from batchscope.sweep.executors.inline import InlineExecutor
    from batchscope.sweep.jobs import Job

    class Dying(InlineExecutor):
        deaths = 0

        def events(self, timeout: float) -> list[Any]:
            (job, self._job), self.deaths = (self._job, None), self.deaths + 1
            assert job is not None
            return [Died(job.id, "it was too large")]

    executor = Dying(small)
    with pytest.raises(CannotAnswer, match="do the task's timing job, it died twice: it was too large"):
        verb.call(executor, Job("timing", "timing"))
    assert executor.deaths == 2


def test_a_task_that_cannot_be_timed_keeps_its_trials(small: Task, ask: Callable[..., StudyResult], path: Path) -> None:
    """The user's code raises in a job that is not a trial: a sentence, and everything measured is there."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchscope.sweep.jobs.time_steps", broken)
        with pytest.raises(TaskError, match="the task's timing job raised RuntimeError: no such kernel"):
            ask(small, policy="held")
    heard: Heard = []
    ask(small, policy="held", listen=hearing(heard))
    assert kinds(heard, "started") == []
