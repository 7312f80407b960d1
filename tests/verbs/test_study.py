"""Does a study ask for the right trials, and answer from them: held, tuned, open and unreachable goals?"""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import batchscope as bs
from batchscope.analysis.table import to_json
from batchscope.errors import CannotAnswer
from batchscope.task import Task
from batchscope.verbs.study import short_last_batches

from .conftest import Ask
from .studies import Heard, data_of, hearing, kinds


def test_a_study_answers_and_the_same_command_spends_nothing(small: Task, ask: Ask) -> None:
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
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
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before[1:]
    assert torch.get_num_threads() == threads


def test_the_reported_seeds_did_not_choose(small: Task, ask: Ask, path: Path) -> None:
    ask(small, seeds=2, seed=3)
    data = data_of(path)
    assert {t.spec.seed for t in (*data.held, *data.tuned)} == {3000, 3001}
    assert {t.spec.seed for t in data.tuning} == {3900}
    rates = {c.batch_size: c.learning_rate for c in data.choices}
    assert {(t.spec.arm.batch_size, t.spec.arm.learning_rate) for t in data.tuned} == set(rates.items())
    assert all(t.spec.stop.goal is None and t.spec.stop.cap_examples is None for t in (*data.held, *data.tuned))


def test_held_alone_is_the_classic(small: Task, ask: Ask, path: Path) -> None:
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
            assert row.epochs_to_converge.estimate is not None
            assert row.seconds_per_epoch.estimate is not None
            total = row.epochs_to_converge.estimate * row.seconds_per_epoch.estimate
            assert row.seconds_to_converge.estimate == pytest.approx(total)
    answer = to_json(result)
    assert answer["critical_batch_size"] is None
    assert answer["s_min"] is None
    assert "tuned policy" in answer["critical_batch_size_reason"]
    assert any(r.epochs_to_converge.censored == 0 for r in result.rows)


def test_batch_size_one_and_the_full_batch(small: Task, ask: Ask) -> None:
    result = ask(small, policy="held", batch_sizes=(256, 1), seeds=1)
    assert [(r.batch_size, r.seeds) for r in result.rows] == [(1, 1), (256, 1)]


def test_a_goal_that_no_batch_size_reaches_is_an_answer(small: Task, ask: Ask) -> None:
    result = ask(dataclasses.replace(small, goal=bs.Goal("loss", at_most=1e-6)))
    for row in result.rows:
        bound = row.examples_to_goal
        assert (row.reached, bound.estimate, bound.high) == (0, None, None)
        assert bound.low == pytest.approx(small.budget_examples)
        assert row.steps_to_goal.low == pytest.approx(small.budget_examples / row.batch_size)
    assert to_json(result)["critical_batch_size"] is None
    assert result.law.reason
    assert any("No batch size reaches the goal" in note for note in result.notes)


def test_an_open_goal_is_what_the_own_point_reaches(small: Task, ask: Ask, path: Path) -> None:
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


def test_an_own_point_that_does_not_train_leaves_no_goal(small: Task, ask: Ask) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value = F.cross_entropy(output, target)  # checks and timings hardly train: they never come so far
        return value if not torch.is_grad_enabled() or value > 0.8 else [][0]

    with pytest.raises(CannotAnswer, match=r"it failed \(IndexError: list index out of range\): give a goal"):
        ask(dataclasses.replace(small, goal=None, loss=loss), batch_sizes=(64,))
    with pytest.raises(CannotAnswer, match="give a goal, or a learning rate that trains"):
        ask(dataclasses.replace(small, goal=None, lr=3000.0))


@pytest.mark.parametrize(("train_size", "size", "better"), [(49152, 4915, 4916), (1000, 333, 334), (1000, 999, 1000)])
def test_a_last_batch_that_is_far_smaller_is_spoken_of(train_size: int, size: int, better: int) -> None:
    (note,) = short_last_batches(train_size, (8, size))
    assert f"{train_size % size:,} example" in note
    assert note.endswith(f"{better:,} would leave none so small.")
    assert short_last_batches(train_size, (better, train_size, 8)) == []
