"""What would `recommend` have measured if every truth were known? Made-up profiles, runs and data for its tests.

    examples to goal   E(B, eta) = S_MIN (B + B_CRIT) exp(P(log2 eta - m(B)))
    best rate          m(B) = log2 RATE + log2(B / (B + KNEE)) - log2(OWN / (OWN + KNEE))      rise 1, fall 0
    beside it          P(v) = log 2 v^2 / (|v| + 1.3) below, 0.4 v^2 above; a run diverges two octaves above
    seconds of a step  (OVERHEAD + B) EACH

A run needs E exp(SIGMA z) with z from its batch size, learning rate and seed; nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchscope.records import (
    AdviceData,
    AdviceQuestion,
    Conditions,
    Goal,
    Measured,
    MemoryProfile,
    ProfileData,
    StepTiming,
    TimingPass,
    Tried,
)

S_MIN, B_CRIT, KNEE, SIGMA = 300.0, 150.0, 150.0, 0.04
OWN, RATE, TRAIN_SIZE, BUDGET_EXAMPLES, CADENCE = 32, 0.1, 10_000, 800_000, 2_500
SIZES = tuple(2**k for k in range(3, 11))
OVERHEAD, EACH = 50.0, 1e-5
CONDITIONS = Conditions(device_name="made up")
REFERENCE = S_MIN * (OWN + B_CRIT)  # examples that the own point needs


def best_rate(size: float) -> float:
    """m(B), log2."""
    return math.log2(RATE * size / (size + KNEE) * (OWN + KNEE) / OWN)


def examples(size: int, rate: float) -> float:
    """E(B, eta); infinite where runs diverge."""
    v = math.log2(rate) - best_rate(size)
    penalty = math.log(2.0) * v * v / (1.3 - v) if v < 0 else 0.4 * v * v
    return math.inf if v > 2.0 else S_MIN * (size + B_CRIT) * math.exp(penalty)


def seconds(size: int, rate: float) -> float:
    """To the goal."""
    return examples(size, rate) / size * (OVERHEAD + size) * EACH


def near(size: int) -> float:
    """The learning rate next to the best, of the own one times powers of sqrt(2): what is tried."""
    return RATE * 2.0 ** (round(2 * (best_rate(size) - math.log2(RATE))) / 2)


def profile(
    sizes: Sequence[int] = SIZES,
    *,
    largest: int | None = None,
    noise: float = 0.003,
    rounds: int = 9,
    phases: bool = False,
    joules: float | None = None,
    train_size: int = TRAIN_SIZE,
    step: Any = None,
) -> ProfileData:
    """Windows of these sizes. `largest`: micro-batch that fits; `joules` of an example; `step`: size -> seconds."""
    rng = np.random.default_rng(7)
    timings = []
    for b in sizes:
        clean = step(b) if step is not None else (OVERHEAD + b) * EACH
        windows = clean * np.exp(noise * rng.standard_normal(rounds))
        parts = {"resident": windows, "backward": windows - 0.5 * OVERHEAD * EACH} if phases else {}
        timings.append(
            StepTiming(
                b,
                10,
                tuple(float(w) for w in windows),
                (),
                {name: tuple(float(w) for w in values) for name, values in parts.items()},
                () if joules is None else (joules * b * (1.0 + 20.0 / b),) * rounds,
            )
        )
    memory = None
    if largest is not None:
        memory = MemoryProfile(1, "", "", "", (), largest, "memory", "", CONDITIONS)
    timing = TimingPass(min(sizes), tuple(timings), CONDITIONS) if sizes else None
    return ProfileData("made-up", "f" * 16, train_size, OWN, CONDITIONS, timing=timing, memory=memory)


def tried(role: str, size: int, rate: float, seed: int = 0, *, cap: float = BUDGET_EXAMPLES, **changes: Any) -> Tried:
    """One run, which ends at `cap` examples at the latest."""
    z = np.random.default_rng([size, round(1000 * abs(math.log2(rate))), seed]).standard_normal()
    needed = examples(size, rate) * math.exp(SIGMA * z)
    reached = needed if needed <= cap else None
    outcome = "reached" if reached is not None else "diverged" if math.isinf(needed) else "not_reached"
    used = min(needed + 2 * CADENCE, 0.1 * cap if math.isinf(needed) else cap)
    run = Tried(
        role=role,
        batch_size=size,
        learning_rate=rate,
        seed=seed,
        reached=reached,
        bound=cap,
        provisional=None,
        lowest_loss=None if math.isinf(needed) else 0.5 * needed**0.1,
        outcome=outcome,
        examples=round(used),
        steps=round(used / size),
    )
    return dataclasses.replace(run, **changes)


def usual_trials() -> tuple[Tried, ...]:
    """What a search would have run: the own point, several sizes beside the best, one far off, one check."""
    points = [(64, near(64)), (128, near(128)), (256, near(256)), (512, near(512)), (128, 2 * near(128))]
    found = [tried("search", b, rate, 1000) for b, rate in points]
    far = tried("search", 256, near(256) / 8, 1000, cap=2 * REFERENCE)
    lost = tried("search", 8, 8 * RATE, 1000)
    return tried("reference", OWN, RATE), *found, far, lost, tried("verification", 128, near(128), 1)


def advice_data(trials: Sequence[Tried] | None = None, *, budget: float = 10.0, **changes: Any) -> AdviceData:
    """What one `recommend` would have stored; `changes` of its fields, those of the question included."""
    ran = tuple(usual_trials() if trials is None else trials)
    names = {f.name for f in dataclasses.fields(AdviceQuestion)}
    question = AdviceQuestion(budget, **{k: changes.pop(k) for k in tuple(changes) if k in names})
    data = AdviceData(
        task="made-up",
        fingerprint="f" * 16,
        train_size=TRAIN_SIZE,
        goal=Goal("loss", at_most=0.3),
        own_batch_size=OWN,
        own_learning_rate=RATE,
        unit="examples",
        conditions=CONDITIONS,
        question=question,
        profile=profile(),
        trials=ran,
        reference_examples=REFERENCE,
        reference_reached=True,
        budget_examples=BUDGET_EXAMPLES,
        cadence_examples=CADENCE,
        noise=Measured(2 * B_CRIT, B_CRIT, 4 * B_CRIT, 20, 0, "made up"),
        ended="firm",
        examples=sum(t.examples for t in ran),
        steps=sum(t.steps for t in ran),
        seconds=1.0,
    )
    return dataclasses.replace(data, **changes)
