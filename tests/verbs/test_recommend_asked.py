"""What can be asked of `recommend` besides the time to a goal, and is what cannot be answered refused in a sentence?"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.analysis.advice import advice_to_json
from batchscope.analysis.target import effective_batch_size
from batchscope.measure.meter import StepMeter
from batchscope.records import Conditions, MemoryProbe, MemoryProfile, TimingPass
from batchscope.store.sqlite import open_store
from batchscope.task import Task, load_task
from batchscope.training.device import pick_device, set_up
from batchscope.verbs import profile as profiling
from batchscope.verbs.recommend import price_advice, timed_elsewhere

from . import hard_tasks
from .conftest import SMALL
from .hard_tasks import FLAT, advise, made_up_timing
from .studies import Heard, hearing, kinds

LIMIT = 2**30


def joules(timing: TimingPass, each: float) -> TimingPass:
    """The pass with an energy meter: `each` joules an example at every size."""
    timings = [dataclasses.replace(t, joules_per_step=(each * t.batch_size,) * 10) for t in timing.timings]
    return dataclasses.replace(timing, timings=tuple(timings))


# --- how much ---


@pytest.mark.parametrize("budget", [0.9, 1.0, 1.2, 3.0, 6.0])
def test_no_budget_is_passed(small: Task, path: Path, budget: float) -> None:
    advice = advise(small, path, budget=budget)
    assert advice.spent.reference_runs <= budget


def test_below_three_reference_runs_throughput_and_noise_scale_answer(small: Task, path: Path) -> None:
    heard: Heard = []
    advice = advise(small, path, budget=2.0, listen=hearing(heard))
    assert len(kinds(heard, "finished")) == 1  # the own point's
    assert advice.spent.reference_runs <= 2.0
    assert (advice.answered, advice.verified) == (True, False)
    assert advice.evidence == "throughput and noise scale"
    plain = json.loads(json.dumps(advice_to_json(advice), allow_nan=False))
    for name in ("seconds_to_goal", "steps_to_goal", "examples_to_goal", "cost"):
        assert plain[name]["estimate"] is plain[name]["low"] is plain[name]["high"] is None
    over = plain["over_own"]
    assert 0 < over["low"] <= over["estimate"] <= over["high"]
    assert plain["pareto"] == []
    assert advice.data.noise is not None
    assert advice.critical_batch_size.interval.count("noise scale")


def test_a_run_that_a_small_budget_cuts_off_answers_too(small: Task, path: Path) -> None:
    """A share of the task's own budget: 5 % of it is less than the own point needs."""
    advice = advise(small, path, budget=0.05)
    (own,) = advice.data.trials
    assert own.reached is None
    assert advice.spent.reference_runs == own.examples / small.budget_examples <= 0.05
    assert advice.evidence == "throughput and noise scale"


def test_a_budget_too_small_for_one_evaluation_is_refused(small: Task, path: Path) -> None:
    with pytest.raises(bs.CannotAnswer, match="expected a budget that holds a run to its first evaluation"):
        advise(small, path, budget=1e-6)


def test_a_goal_reached_at_once_stays_within_the_budget(path: Path) -> None:
    """The evaluations that confirm its crossing are most of the own run: they are part of the unit."""
    easy = hard_tasks.classifier("easy", goal=bs.Goal("loss", at_most=1.4))
    advice = advise(easy, path, budget=3.0)
    own = advice.data.trials[0]
    assert own.reached is not None
    assert own.examples == advice.data.reference_examples > 2 * own.reached
    assert advice.spent.reference_runs <= 3.0


# --- what for ---


@pytest.mark.parametrize("asked", [{"best_in_seconds": 0.1}, {"best_in_examples": 2048}], ids=["seconds", "examples"])
def test_the_lowest_loss_in_a_given_time(path: Path, asked: dict[str, Any]) -> None:
    """Every run of a batch size is as long as the time allows there, to the end of a step; the goal plays no part."""
    task = hard_tasks.slow_rate()
    advice = advise(task, path, **asked)
    chosen, data = advice.chosen, advice.data
    assert chosen is not None
    assert advice.spent.reference_runs <= 10.0
    for trial in data.trials:
        size = trial.batch_size
        steps = 0.1 / (1e-3 * (1 + size / hard_tasks.KNEE)) if "best_in_seconds" in asked else 2048 / size
        length = steps * effective_batch_size(task.train_size, size)
        assert length * 0.98 <= trial.examples <= length * 1.02 + size  # seconds are known to 1 %
    at = [t for t in data.trials if (t.batch_size, t.learning_rate) == (chosen.batch_size, chosen.learning_rate)]
    assert advice.verified == any(t.role == "verification" for t in at)
    assert max(t.lowest_loss or math.inf for t in at) < 0.75 * (data.trials[0].lowest_loss or 0.0)
    assert chosen.lowest_loss is not None
    assert chosen.lowest_loss.estimate is not None
    assert chosen.seconds_to_goal.estimate is None
    assert advice.evidence == "trials of a given length"


def test_the_fewest_examples_come_of_small_batches(path: Path) -> None:
    """Whatever a step costs: its price is no part of it."""
    task = hard_tasks.accuracy_goal()
    advice = advise(task, path, FLAT, objective="examples", budget=6.0)
    assert advice.chosen is not None
    assert advice.chosen.batch_size <= 64
    assert advice.binding_limit == "noise"
    assert advice.spent.reference_runs <= 6.0


def test_energy_is_least_where_examples_are_if_each_costs_the_same(small: Task, path: Path) -> None:
    timing = joules(made_up_timing(small), 0.5)
    advice = advise(small, path, timing=timing, objective="energy", budget=5.0)
    assert advice.chosen is not None
    assert advice.chosen.joules is not None
    examples = advice.chosen.examples_to_goal.estimate
    assert examples is not None
    assert advice.chosen.joules.estimate == pytest.approx(0.5 * examples)


# --- seconds and memory from elsewhere ---


def test_a_meters_report_stands_for_a_profile(small: Task, path: Path) -> None:
    """Of two batch sizes, the own one not among them: its seconds lie between."""
    now = [0.0]
    meter = StepMeter(clock=lambda: now[0])
    for size in (8, 64):
        for _ in range(4000):
            with meter.step(batch_size=size):
                now[0] += 1e-3 * (1 + size / 64)
    timing = meter.report()
    advice = advise(small, path, timing=timing, budget=5.0)
    assert advice.chosen is not None
    assert {c.batch_size for c in advice.candidates} >= {8, 16, 64}
    assert advice.data.profile.timing == timing
    assert advice.spent.reference_runs <= 5.0
    at = {c.batch_size: c for c in advice.candidates}
    assert at[64].seconds_per_step.estimate == pytest.approx(2e-3, rel=0.02)
    assert 1.1e-3 < (at[16].seconds_per_step.estimate or 0.0) < 2e-3
    assert all(c.micro_batch_size * c.accumulation == c.batch_size for c in advice.candidates)


def test_memory_binds_and_the_batch_is_accumulated(path: Path) -> None:
    """A profile that the store knows: micro-batches of 32 fit, steps cost the same, and large batches train faster."""
    task = hard_tasks.large_critical()
    asked = profiling.ask(task, memory_limit=LIMIT)
    conditions = set_up(1, pick_device(), "fp32")
    timing = made_up_timing(task, FLAT)
    fits = dataclasses.replace(timing, timings=timing.timings[:4], conditions=conditions, loop="batchscope")
    probes = (MemoryProbe(32, "fits", peak_bytes=LIMIT // 2), MemoryProbe(64, "out_of_memory", "too large"))
    memory = MemoryProfile(LIMIT, "given", "made up", "made up", probes, 32, "memory", "64 did not fit", conditions)
    profile = dataclasses.replace(
        timed_elsewhere(asked, fits), memory=memory, workers=1, measured_at="2026-03-01T12:00"
    )
    with open_store(path) as store:
        store.save_profile(profile)
    advice = advise(task, path, timing=None, memory_limit=LIMIT, budget=6.0)
    chosen = advice.chosen
    assert chosen is not None
    assert advice.data.profile == profile
    assert advice.largest_micro_batch_size == 32
    assert chosen.batch_size >= 32
    assert (advice.binding_limit, chosen.micro_batch_size) == ("memory", 32)
    assert chosen.micro_batch_size * chosen.accumulation == chosen.batch_size
    assert "x.split(32)" in advice.snippet or chosen.accumulation == 1
    beyond = [c for c in advice.candidates if c.batch_size > 32]
    assert [c.accumulation for c in beyond] == [c.batch_size // 32 for c in beyond]
    assert advice.spent.reference_runs <= 6.0


# --- what is refused ---


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"devices": 0}, bs.UsageError, "expected a number of devices from 1 up, got 0"),
        ({"devices": 2}, bs.UsageError, "expected a reference to the task for 2 devices, got a Task object"),
        ({"budget": 0}, bs.UsageError, "expected a budget in reference runs above 0, got 0"),
        ({"budget": math.nan}, bs.UsageError, "expected a budget in reference runs above 0, got nan"),
        ({"budget": 0.5, "best_in_examples": 5_000}, bs.UsageError, "expected a budget of at least 1 run with"),
        ({"objective": "joy"}, bs.UsageError, "expected an objective of time, cost, examples, energy, got 'joy'"),
        ({"price": -1.0}, bs.UsageError, "expected a price of a device for an hour above 0, got -1.0"),
        ({"memory_limit": 0}, bs.UsageError, "expected a memory limit in bytes above 0"),
        ({"seed": -1}, bs.UsageError, "expected a seed from 0 up, got -1"),
        ({"best_in_seconds": 0.0}, bs.UsageError, "expected --best-in as seconds above 0, got 0.0"),
        ({"best_in_examples": 0}, bs.UsageError, "expected a number of examples above 0, got 0"),
        ({"best_in_seconds": 1.0, "best_in_examples": 9}, bs.UsageError, "expected one of --best-in and"),
        ({"best_in_seconds": 1.0, "objective": "cost"}, bs.UsageError, "expected no --objective beside --best-in"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(
    small: Task, path: Path, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        advise(small, path, **asked)
    assert not path.exists()


def test_energy_without_a_meter_is_refused_before_anything_is_trained(small: Task, path: Path) -> None:
    heard: Heard = []
    with pytest.raises(bs.CannotAnswer, match="expected an energy meter on this device for --objective energy"):
        advise(small, path, objective="energy", listen=hearing(heard))
    assert kinds(heard, "started") == []


def test_seconds_of_no_step_are_refused(small: Task, path: Path) -> None:
    with pytest.raises(bs.CannotAnswer, match="expected seconds per step, got none"):
        advise(small, path, timing=TimingPass(16, (), Conditions(), loop="mine"))


def test_an_own_point_that_fails_is_named(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the checks, and raises when it is trained."""
    monkeypatch.setenv("BATCHSCOPE_TEST_FOLDER", str(tmp_path))
    timing = made_up_timing(load_task(f"{SMALL}:odd"))

    def break_it(kind: str, details: dict[str, Any]) -> None:
        if kind == "started":
            (tmp_path / "raise").touch()

    with pytest.raises(bs.CannotAnswer, match=r"own point \(lr=0.4, batch_size=16\) to train, it failed: IndexError"):
        advise(load_task(f"{SMALL}:odd"), path, timing=timing, listen=break_it)


def test_the_price_is_told_without_training(small: Task, path: Path) -> None:
    plan = price_advice(small, store=path, budget=5.0)
    assert not path.exists()
    assert plan["at_most"]["reference_runs"] == 5.0
    assert plan["at_most"]["examples"] == 5 * small.budget_examples
    assert plan["at_most"]["seconds"] > 0
    assert "not measured yet" in plan["sentences"][1]
    with pytest.raises(bs.UsageError, match="expected an objective"):
        price_advice(small, store=path, objective="joy")
