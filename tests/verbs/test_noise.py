"""Does `noise` follow the reference run, keep it, keep to its budget, and stand beside the study's B_crit?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import batchscope as bs
from batchscope.measure.follow import steps_for, watched
from batchscope.records import NoiseResult
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.verbs.noise import ask, plan_of, price_noise

from .conftest import Copies


def noise(task: Task | str, path: Path, **asked: object) -> NoiseResult:
    return bs.noise(task, **{"store": path, "draw": False, "checkpoints": 1, **asked})


def test_a_run_is_followed_kept_and_answered_again(small: Task, path: Path) -> None:
    state = torch.get_rng_state()
    first = noise(small, path)
    assert torch.equal(torch.get_rng_state(), state)
    run = first.data
    assert (run.batch_size, run.learning_rate, run.goal) == (small.batch_size, small.lr, small.goal)
    assert run.outcome == "reached"
    assert run.crossed_at is not None
    assert first.run_average.measurements == sum(m.examples < run.crossed_at for m in run.measurements)
    assert len(first.principles) == len(run.deviations) == 1
    assert run.examples > run.steps * small.batch_size  # measurements and checkpoints count
    again = noise(small, path)
    assert repr(again.data) == repr(run)  # nan, the update before the first step, equals nothing
    anew = noise(small, path, again=True)
    assert anew.data.measured_at >= run.measured_at
    assert anew.data.measurements == run.measurements  # the same bits
    with open_store(path) as store:
        assert len(store.noise_runs(run.fingerprint)) == 2


def test_it_is_the_reference_run_of_a_study_and_stands_beside_its_law(
    finished: Copies, small: Task, path: Path
) -> None:
    stored = finished("tuned", path)
    found = noise(small, stored)
    with open_store(stored) as store:
        (summary,) = store.studies()
        (reference,) = store.study_data(summary.id).reference
    assert repr(found.data.trace) == repr(reference.result.trace)
    sweep = found.against_sweep
    assert sweep is None or sweep.study == summary.id


def test_a_budget_cuts_the_run_or_leaves_checkpoints_out(small: Task) -> None:
    whole = plan_of(ask(small), None, small.goal, "fp32")
    assert (whole.checkpoints, whole.spec.stop.cap_examples, whole.notes) == (3, None, ())
    half = plan_of(ask(small, budget=1.0), 1000.0, small.goal, "fp32")  # two examples for each of the run's
    assert (half.checkpoints, half.spec.stop.cap_examples) == (0, 496)  # 31 steps of 16
    assert half.notes == ("3 checkpoints were left out: the budget has no room for them.",)
    unknown = plan_of(ask(small, budget=0.5), None, small.goal, "fp32")
    assert unknown.spec.stop.cap_examples == small.budget_examples // 4
    assert "price is not known here" in unknown.notes[0]
    ample = plan_of(ask(small, budget=100.0), 1000.0, small.goal, "fp32")
    assert (ample.checkpoints, ample.notes) == (3, ())


def test_an_open_goal_is_averaged_over_the_whole_run(small: Task, path: Path) -> None:
    task = dataclasses.replace(small, goal=None, budget=4 * small.train_size)
    found = noise(task, path, checkpoints=0)
    assert (found.data.goal, found.data.crossed_at, found.data.outcome) == (None, None, "not_reached")
    assert found.run_average.measurements == len(found.data.measurements)


def test_the_price_is_told_without_training(small: Task, path: Path) -> None:
    plan = price_noise(small, store=path)
    assert not path.exists()
    assert plan["at_most"]["examples"] > 2 * small.budget_examples
    assert plan["at_most"]["reference_runs"] is None
    assert plan["sentences"][0].startswith(f"{small.name}: the reference run at batch size {small.batch_size}, until")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"budget": 0}, "expected a budget in reference runs above 0, got 0: write --budget 1"),
        ({"seed": -1}, "expected a seed from 0 up, got -1"),
        ({"checkpoints": -2}, "expected a number of checkpoints from 0 up, got -2"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict, sentence: str, small: Task, path: Path) -> None:
    with pytest.raises(bs.UsageError, match=sentence):
        noise(small, path, **asked)
    assert not path.exists()


def test_what_measuring_takes_follows_its_schedule() -> None:
    assert watched(64, 8) == watched(64, 100) == 128  # at first every step is measured, on a batch
    assert watched(10_000, 8) == pytest.approx(20_000, abs=8)
    assert watched(10_000, 64) == pytest.approx(10_000 + 960 + sum(64 * 8 for _ in range(3)) + 450, rel=0.15)
    for batches in (2, 129, 5000):
        steps = steps_for(batches, 64)
        assert watched(steps, 64) <= batches < watched(steps + 1, 64)
