"""Which small records can a test of a store, or of what reads one, begin with? No trainings were run for them."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

from batchscope.records import (
    Arm,
    Conditions,
    Evaluation,
    Goal,
    StepTiming,
    StopRule,
    StudySettings,
    TimingPass,
    TrialResult,
    TrialSpec,
    TunedChoice,
    to_plain,
)
from batchscope.store.base import Store
from batchscope.store.owner import Owner

CONDITIONS = Conditions(device_name="a processor", threads=2, versions={"torch": "2.8.0", "python": "3.11.7"})
TIMING = TimingPass(
    reference_batch_size=32,
    timings=(StepTiming(32, 10, (1e-3, 1.1e-3), (1e-3, 1e-3)), StepTiming(64, 5, (2e-3, 0.1), (1e-3, 1.2e-3))),
    conditions=CONDITIONS,
    drift=0.125,
)
CHOICES = (TunedChoice(32, 0.1, "examples to goal", ((0.1, 512.0), (0.2, None))), TunedChoice(64, 0.2, "x", ()))
ODD_FLOATS = (
    math.nan,
    -math.nan,
    math.inf,
    -math.inf,
    -0.0,
    0.0,
    5e-324,  # the smallest subnormal
    2.2250738585072014e-308,  # the smallest normal
    1.7976931348623157e308,  # the largest
    0.1 + 0.2,
    1 / 3,
    3.0,  # a REAL column may store this as an integer
    2.0**53 + 2,
    math.pi * 1e-300,
)


def make_settings(**changes: object) -> StudySettings:
    """A small study's settings; `changes` makes it another study."""
    settings = StudySettings(
        task="a task",
        fingerprint="f" * 16,
        train_size=1000,
        goal=Goal("loss", at_most=0.36),
        own_batch_size=32,
        own_learning_rate=0.1,
        batch_sizes=(32, 64),
        policies=("held", "tuned"),
        seeds=(0, 1, 2),
        tuning_seeds=(100,),
        budget_examples=10_000,
        cadence_examples=500,
        patience_epochs=3.0,
        workers=2,
        conditions=CONDITIONS,
        targets=(0.5, 0.4),
    )
    return dataclasses.replace(settings, **changes)


def make_spec(seed: int = 0, batch_size: int = 32) -> TrialSpec:
    """What to run; another seed or batch size is another trial."""
    stop = StopRule(10_000, 500, patience_epochs=3.0, goal=Goal("accuracy", at_least=0.9))
    return TrialSpec(Arm(batch_size, 0.1), seed, stop)


def make_result(seed: int = 0, evaluations: int = 3, outcome: str = "reached") -> TrialResult:
    """A result whose numbers depend on the seed; its update norm at step 0 is nan, as the loop's is."""
    trace = tuple(
        Evaluation(
            step=16 * k,
            examples=512 * k,
            train={"loss": 1 / (k + 1 + seed), "accuracy": 0.5},
            validation={"loss": 1.1 / (k + 1 + seed), "accuracy": 0.1 * k},
            distance=math.sqrt(k),
            update_norm=0.1 / k if k else math.nan,
        )
        for k in range(evaluations)
    )
    ended_by = "goal" if outcome == "reached" else "budget"
    return TrialResult(outcome, ended_by, "", 16 * evaluations, 512 * evaluations, trace, 7.5, {"loss": 0.3}, 1.25)


def bits(value: object) -> Any:
    """A record with every float as its eight bytes: equal exactly where the bits are (nan to nan, -0.0 not to 0.0)."""
    plain = to_plain(value)
    if isinstance(plain, float):
        return struct.pack(">d", plain)
    if isinstance(plain, dict):
        return {k: bits(v) for k, v in plain.items()}
    return [bits(v) for v in plain] if isinstance(plain, list) else plain


def fill(store: Store, trials: int = 3, finished: int = 1, evaluations: int = 3) -> list[int]:
    """Give a store one study of so many trials, the first of them finished; returns the ids of all."""
    study = store.save_study(make_settings())
    ids = store.add_trials(study, "held", "f" * 16, CONDITIONS, [make_spec(seed) for seed in range(trials)])
    for seed, trial in enumerate(ids[:finished]):
        store.lease(trial, Owner.here(), 60)
        store.finish(trial, Owner.here(), make_result(seed, evaluations))
    return ids
