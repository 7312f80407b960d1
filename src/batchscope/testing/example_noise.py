"""Which small noise run can a test of a store, or of what reads one, begin with? Nothing was measured for it."""

from __future__ import annotations

import dataclasses

from batchscope.records import Deviations, Evaluation, Goal, GradientNorms, Measured, NoiseRun, NoiseScale
from batchscope.testing.examples import CONDITIONS

MEASUREMENTS = tuple(
    GradientNorms(
        step=4 * k,
        examples=128 * k,
        parts=32,
        part_size=1.0,
        batch_size=32.0,
        mean_squared=0.1 / (k + 1) + 0.2,
        parts_squared=3.0 + 1 / (k + 3),
        loss=None if k == 1 else 1.5 / (k + 1),
        learning_rate=None if k == 1 else 0.1,
    )
    for k in range(3)
)
SCALE = NoiseScale(
    outcome="at_least",
    b_simple=Measured(None, 12.5, None, 3, interval="Fieller, 2 df"),
    trace=Measured(2.9, 2.5, 3.3, 3, interval="t, 2 df"),
    squared_gradient=Measured(-0.01, -0.1, 0.1 + 0.2, 3, interval="t, 2 df"),
    measurements=3,
    effective_measurements=2.5,
    negative_share=1 / 3,
    needed=120,
    reason="measure 120 more steps",
)


def make_noise_run(**changes: object) -> NoiseRun:
    """A small noise run of the examples' task, under the conditions of `make_settings`; `changes` makes it another."""
    run = NoiseRun(
        task="a task",
        fingerprint="f" * 16,
        train_size=1000,
        goal=Goal("loss", at_most=0.36),
        batch_size=32,
        learning_rate=0.1,
        conditions=CONDITIONS,
        seed=3,
        budget=1.5,
        source="examples",
        every=4,
        measurements=MEASUREMENTS,
        discarded=1,
        layers={"0.weight": SCALE, "a layer named \N{SNOWMAN}": SCALE},
        proxies={"adam": dataclasses.replace(SCALE, metric="adam")},
        trace=(Evaluation(0, 0, {"loss": 1.6}, {"loss": 1.7}, 0.0, 1 / 3),),
        outcome="reached",
        crossed_at=1234.5,
        deviations=(Deviations(8, 256, 0.7, 1000, 0.25, (1, 500), ((2.5, 2.75), (0.1 + 0.2,))),),
        examples=4096,
        steps=99,
        seconds=12.25,
        notes=("the data ran out twice",),
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(run, **changes)
