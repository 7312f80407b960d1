"""Which made-up tasks is `recommend` calibrated on? Tasks and machines of which everything is known, and their runs.

    log E(B, eta) = log S_min + log(B + B_crit) + P(log2 eta - m(B)) + ripple(B, eta) + e
    e ~ N(0, (sigma s)^2),      log s = rises x octaves of eta - falls x octaves of B, about the own point at its best
    m(B) = m(own) + f(B) - f(own),      f = -log2((K/B)^rise + (B/K)^fall)
    P(v) = log 2 v^2 / (|v| + d) below v = 0, c v^2 above; or a quadratic's, -log(r (2 - r)) with r = 2^v
    a run diverges from v = D on, give or take EDGE with its seed (a quadratic's from 1)
    the validation loss falls as (examples / E)^-0.3 to the goal, 1
    seconds of a micro-batch = overhead + each B, times a lognormal error in every window

RANGES says what is drawn: what trainings are like, as guessed, wide on purpose; the ripple is not of the model's form.
`Simulated` takes the decisions of `verbs.deciding`, on such runs: nothing is trained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from batchscope.analysis.options import Option
from batchscope.analysis.target import HOLDS_FOR, effective_batch_size
from batchscope.records import (
    AdviceQuestion,
    Conditions,
    Evaluation,
    Goal,
    Measured,
    MemoryProfile,
    ProfileData,
    StepTiming,
    TimingPass,
    TrialRecord,
    TrialResult,
    TrialSpec,
)
from batchscope.store.base import Store
from batchscope.sweep.executors.base import Executor
from batchscope.task import Task
from batchscope.training.checks import CheckedTask
from batchscope.verbs.deciding import Decision
from batchscope.verbs.profile import Asked

RANGES = {  # (least, most): uniform in the logarithm, or as it stands where the name has "octaves" or "share"
    "epochs": (1.0, 40.0),  # to the goal at the own batch size and its best learning rate
    "s_min": (90, 1100),  # steps
    "b_crit": (10, 1000),
    "knee_over_b_crit": (0.25, 4.0),
    "own_batch_size": (16, 256),  # powers of two
    "own_octaves": (-3.0, 3.0),  # of the own learning rate beside the best there
    "known_octaves": (-0.5, 0.5),  # ... in half of the studies
    "below": (0.8, 2.0),  # d
    "above": (0.25, 0.9),  # c
    "diverges_octaves": (1.2, 3.0),  # D
    "sigma": (0.03, 0.3),  # between seeds, at the own batch size's best; on 13 tasks 0.00 to 0.23
    "falls_share": (0.1, 0.6),  # of log sigma, for an octave of batch size: 0.1 to 0.8 on five real tasks
    "rises_share": (0.2, 1.0),  # ... of learning rate: 0.2 to 1.5 there
    "ripple": (0.05, 0.15),  # standard deviation: the law then lies 0.04 to 0.16 off, on real tasks 0.09 to 0.18
    "ripple_length": (1.0, 3.0),  # octaves, of batch size and of learning rate
    "budget": (6.0, 20.0),  # of a run, in examples to goal at the own batch size and its best learning rate
    "overhead": (2, 200),  # of a step, in seconds of an example
    "largest": (256, 4096),  # micro-batch size that fits, powers of two; larger batches are accumulated
    "timing": (0.003, 0.05),  # standard deviation of a window's seconds, relative
    "noise_scale": (0.3, 6.0),  # measured over true critical batch size, where it is measured: in half of the studies
}
RISES, FALLS = (0.5, 1.0), (0.0, 0.0, 0.5)
QUADRATIC = 0.3  # of the tasks have a quadratic's P
MOST_SPREAD = 4.0  # times sigma, or one part in so many (a guess)
EDGE = 0.15  # octaves (a guess)
SMALLEST, EACH = 8, 1e-5  # micro-batch size that was timed; seconds of an example
ROUNDS, WAVES, SMALLEST_DATA = 9, 24, 1_000
DECAY, FIRST_LOSS = 0.3, 5.0  # of the loss: (examples / E)^-DECAY after FIRST_LOSS
RATES = tuple(k / 10 for k in range(-20, 16))  # octaves about m(B), among which the truly best is sought


@dataclass(frozen=True)
class World:
    """One task on one machine, and what is true of it. Learning rates are log2."""

    seed: int
    train_size: int
    s_min: float
    b_crit: float
    rise: float
    fall: float
    knee: float
    own_batch_size: int
    own_rate: float
    best_rate: float  # at the own batch size
    below: float
    above: float
    diverges: float
    quadratic: bool
    sigma: float
    falls: float
    rises: float
    waves: tuple[tuple[float, float, float], ...]  # (per octave of B, per octave of eta, phase) of the ripple's parts
    ripple: float
    budget_examples: int
    overhead: float
    largest: int
    timing: float
    noise: float | None  # B_simple

    def best_rate_at(self, size: float) -> float:
        """m(B)."""

        def shape(b: float) -> float:
            return -math.log2((self.knee / b) ** self.rise + (b / self.knee) ** self.fall)

        return self.best_rate + shape(size) - shape(self.own_batch_size)

    def log_examples(self, size: int, rate: float, edge: float = 0.0) -> float:
        """log E, the mean over seeds; infinite where a run diverges (a seed's edge lies so many octaves beside)."""
        v = rate - self.best_rate_at(size)
        if v >= (1.0 if self.quadratic else self.diverges + edge):
            return math.inf
        if self.quadratic:
            penalty = -math.log(2.0**v * (2.0 - 2.0**v))
        else:
            penalty = math.log(2.0) * v * v / (self.below - v) if v < 0 else self.above * v * v
        return math.log(self.s_min * (size + self.b_crit)) + penalty + self.rippled(math.log2(size), rate)

    def spread(self, size: int, rate: float) -> float:
        """Standard deviation between seeds of log E."""
        log = self.rises * (rate - self.best_rate) - self.falls * math.log2(size / self.own_batch_size)
        return self.sigma * min(max(math.exp(log), 1.0 / MOST_SPREAD), MOST_SPREAD)

    def rippled(self, octave: float, rate: float) -> float:
        """A smooth misfit: many waves of random direction and phase."""
        total = sum(math.cos(a * octave + b * rate + phase) for a, b, phase in self.waves)
        return self.ripple * math.sqrt(2.0 / len(self.waves)) * total

    def fastest(self, options: Sequence[Option]) -> float:
        """log seconds to goal of the best that there is."""
        return min(
            self.log_examples(o.batch_size, self.best_rate_at(o.batch_size) + v) + self.log_seconds(o)
            for o in options
            for v in RATES
        )

    def log_seconds(self, option: Option) -> float:
        """log seconds of an example in a step of this option, as they truly are."""
        split, size = option.split, option.batch_size
        passes = [split.micro_batch_size] * (size // split.micro_batch_size)
        passes += [size % split.micro_batch_size] if size % split.micro_batch_size else []
        step = sum(EACH * (self.overhead + m) for m in passes)
        return math.log(step / effective_batch_size(self.train_size, size))


def world(seed: int) -> World:
    """Everything that is true of study `seed`, drawn from RANGES."""
    rng = np.random.default_rng([seed, 0])

    def between(name: str) -> float:
        low, high = RANGES[name]
        plain = "octaves" in name or "share" in name
        return float(rng.uniform(low, high) if plain else math.exp(rng.uniform(math.log(low), math.log(high))))

    def power(name: str) -> int:
        low, high = (round(math.log2(end)) for end in RANGES[name])
        return 2 ** int(rng.integers(low, high, endpoint=True))

    b_crit, s_min, own, length = between("b_crit"), between("s_min"), power("own_batch_size"), between("ripple_length")
    waves = np.column_stack((rng.standard_normal((WAVES, 2)) / length, rng.uniform(0.0, 2.0 * math.pi, WAVES)))
    best = float(rng.uniform(-8.0, 0.0))
    return World(
        seed=seed,
        train_size=max(SMALLEST_DATA, round(s_min * (own + b_crit) / between("epochs"))),
        s_min=s_min,
        b_crit=b_crit,
        rise=float(rng.choice(RISES)),
        fall=float(rng.choice(FALLS)),
        knee=b_crit * between("knee_over_b_crit"),
        own_batch_size=own,
        own_rate=best + between("known_octaves" if rng.random() < 0.5 else "own_octaves"),
        best_rate=best,
        below=between("below"),
        above=between("above"),
        diverges=between("diverges_octaves"),
        quadratic=bool(rng.random() < QUADRATIC),
        sigma=between("sigma"),
        falls=between("falls_share"),
        rises=between("rises_share"),
        waves=tuple((float(a), float(b), float(phase)) for a, b, phase in waves),
        ripple=between("ripple"),
        budget_examples=round(between("budget") * s_min * (own + b_crit)),
        overhead=between("overhead"),
        largest=power("largest"),
        timing=between("timing"),
        noise=b_crit * between("noise_scale") if rng.random() < 0.5 else None,
    )


# --- what would be measured ---


def trial(world: World, spec: TrialSpec) -> TrialRecord:
    """One training run, evaluated at step boundaries; it ends once the goal held, at its cap, or diverges."""
    arm, stop = spec.arm, spec.stop
    rng = np.random.default_rng([world.seed, 1, int(spec.key(), 16)])
    rate, (z, edge) = math.log2(arm.learning_rate), rng.standard_normal(2)
    log_e = world.log_examples(arm.batch_size, rate, EDGE * edge) + world.spread(arm.batch_size, rate) * z
    diverged, needed = math.isinf(log_e), math.exp(min(log_e, 700.0))
    limit = min(stop.cap_examples or stop.budget_examples, stop.budget_examples)
    end = int(limit * rng.uniform(0.02, 0.3)) if diverged else limit
    trace, gap, held = [_evaluation(arm.batch_size, 0, FIRST_LOSS)], max(stop.cadence_examples, arm.batch_size), 0
    while held < HOLDS_FOR and trace[-1].examples < end:
        due = min(trace[-1].examples + gap, end)
        examples = math.ceil(due / arm.batch_size) * arm.batch_size
        loss = FIRST_LOSS if diverged else (examples / needed) ** -DECAY
        trace.append(_evaluation(arm.batch_size, examples, loss))
        held = held + 1 if loss <= 1.0 else 0
    reached = held >= HOLDS_FOR
    limited = "cap" if stop.cap_examples is not None else "budget"
    ended, outcome = ("goal", "reached") if reached else (limited, "not_reached")
    if diverged:
        ended, outcome = "divergence", "diverged"
    last = trace[-1]
    return TrialRecord(
        spec, TrialResult(outcome, ended, "", last.step, last.examples, tuple(trace)), Conditions(device_name="made up")
    )


def _evaluation(size: int, examples: int, loss: float) -> Evaluation:
    return Evaluation(examples // size, examples, {}, {"loss": loss}, 0.0, 0.0)


def profile_of(world: World) -> ProfileData:
    """Windows of every power of two that fits, and the ceiling."""
    rng = np.random.default_rng([world.seed, 2])
    sizes = [2**k for k in range(SMALLEST.bit_length() - 1, world.largest.bit_length())]
    timings = []
    for size in sizes:
        seconds = EACH * (world.overhead + size) * np.exp(world.timing * rng.standard_normal(ROUNDS))
        timings.append(StepTiming(size, 10, tuple(float(s) for s in seconds), ()))
    conditions = Conditions(device_name="made up")
    return ProfileData(
        task="made up",
        fingerprint="made up",
        train_size=world.train_size,
        own_batch_size=world.own_batch_size,
        conditions=conditions,
        timing=TimingPass(sizes[0], tuple(timings), conditions),
        memory=MemoryProfile(1, "", "", "", (), world.largest, "memory", "", conditions),
    )


def task_of(world: World) -> Task:
    """A task that is never trained."""
    nothing = torch.zeros(world.train_size, 1)
    return Task(
        name="made up",
        model=lambda: torch.nn.Linear(1, 1),
        train=(nothing,),
        valid=(nothing[:1],),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=2.0**world.own_rate,
        batch_size=world.own_batch_size,
        step=lambda model, batch: model(batch[0]).mean(),
        goal=Goal("loss", at_most=1.0),
        budget=world.budget_examples,
    )


class Simulated(Decision):
    """The decisions of `recommend`, on runs that are drawn instead of trained."""

    def __init__(self, world: World, budget: float) -> None:
        self.world = world
        asked = Asked(task_of(world), None, CheckedTask("made up", {}, ("loss",)), None, None, 0)
        nowhere = cast(Store, None)  # runs are drawn: nothing is asked of a store
        super().__init__(
            nowhere, asked, AdviceQuestion(budget), profile_of(world), Path(), 0.0, lambda kind, told: None
        )

    def _chosen(self, executor: Executor) -> tuple[int, Conditions]:
        return 1, self.data.conditions

    def _run(self, executor: Executor, role: str, specs: Sequence[TrialSpec], watch: bool = False) -> None:
        self.records += [(role, trial(self.world, spec)) for spec in specs]
        if watch and self.world.noise is not None:
            name, record = self.records[-1]
            found = Measured(self.world.noise, None, None, 1, 0, "made up")
            result = dataclasses.replace(record.result, noise_scale=found)
            self.records[-1] = (name, dataclasses.replace(record, result=result))
        self._reread()
