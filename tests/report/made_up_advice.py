"""Made-up advice, shared by the report's tests: what `recommend` could say, drawn from closed forms.

    examples   E(B) = S_min (B + B_crit)
    seconds    t(B) = slow (a + n p + c B), n the micro-batches that the memory ceiling makes of it
    rate       eta(B) = A / ((K/B)^rise + (B/K)^fall), through the own point (64, 0.1)

Posteriors are draws about these: log B_crit and log S_min vary jointly, seconds independently. Every estimate is a
median, every interval the central 90 % of the same draws. Nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from made_up_profile import CONDITIONS, profile

from batchscope.analysis.particles import Array
from batchscope.records import (
    Advice,
    AdviceData,
    AdviceQuestion,
    Candidate,
    Curves,
    Goal,
    LearningRateCurve,
    Measured,
    ParetoPoint,
    Spent,
    Tried,
)

S_MIN, B_CRIT, SPREAD, MISFIT = 9000.0, 180.0, (0.06, 0.4), 0.05  # of log S_min, log B_crit; of each size
A, P, C = 5e-4, 1e-4, 4.6e-6  # seconds of an optimiser step, of a pass, of an example
SIZES = tuple(2**k for k in range(4, 13))
OWN, OWN_RATE, KNEE, RISE, FALL = 64, 0.1, 400.0, 0.9, 0.1
TRAIN_SIZE, CEILING, DRAWS = 54_000, 5312, 200
POSTERIOR = "posterior, central 90 %, 200 draws"
GOAL = Goal("loss", at_most=0.36)
NOTHING = Measured(None, None, None, 0, 0, "none: no run reached the goal")
HOUR = 3600.0


def rate_at(b: float) -> float:
    """The best learning rate."""

    def shape(size: float) -> float:
        return (KNEE / size) ** RISE + (size / KNEE) ** FALL

    return OWN_RATE * shape(OWN) / shape(b)


def rounded_rate(b: float) -> float:
    """The nearest power of sqrt(2) times the own learning rate: what was run."""
    return float(f"{OWN_RATE * 2 ** (round(2 * math.log2(rate_at(b) / OWN_RATE)) / 2):.4g}")


def split_of(b: int, ceiling: int) -> tuple[int, int]:
    """Micro-batch size and accumulation."""
    parts = math.ceil(b / ceiling)
    return math.ceil(b / parts), parts


def step_at(b: int, ceiling: int, slow: float) -> float:
    """Seconds per step."""
    return slow * (A + split_of(b, ceiling)[1] * P + C * b)


def measured(draws: Array, interval: str = POSTERIOR) -> Measured:
    """Median and central 90 % of draws of a logarithm."""
    low, middle, high = (float(math.exp(v)) for v in np.quantile(draws, (0.05, 0.5, 0.95)))
    return Measured(middle, low, high, len(draws), 0, interval)


@functools.cache
def draws_of(ceiling: int, slow: float) -> tuple[Array, Array]:
    """Log examples to goal (DRAWS, SIZES) and, independent of them, log seconds per step (DRAWS, SIZES)."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((DRAWS, 2))
    b_crit = math.log(B_CRIT) + SPREAD[1] * z[:, :1]
    log_examples = math.log(S_MIN) + SPREAD[0] * z[:, 1:] + np.logaddexp(np.log(SIZES), b_crit)
    log_examples = log_examples + MISFIT * rng.standard_normal(log_examples.shape)
    steps = np.log([step_at(b, ceiling, slow) for b in SIZES])
    return log_examples, steps + 0.01 * rng.standard_normal((DRAWS, len(SIZES)))


def objective_of(examples: Array, seconds: Array, objective: str) -> Array:
    """Log of what is to be small, per draw and size."""
    time = examples - np.log(SIZES) + seconds
    return {"time": time, "cost": time, "examples": examples, "energy": examples + joules_per_example()}[objective]


def joules_per_example() -> Array:
    """Its log: an idle part that large batches share, as 4 mJ (1 + 50 / B)."""
    return np.log(0.004 * (1 + 50 / np.array(SIZES)))


def candidates_of(ceiling: int, slow: float, question: AdviceQuestion, run: set[int]) -> tuple[Candidate, ...]:
    """Every size with its posterior."""
    examples, seconds = draws_of(ceiling, slow)
    sizes = np.log(SIZES)
    time = examples - sizes + seconds
    value = objective_of(examples, seconds, question.objective)
    best = value.min(axis=1, keepdims=True)
    found = []
    for k, b in enumerate(SIZES):
        micro, parts = split_of(b, ceiling)
        found.append(
            Candidate(
                batch_size=b,
                learning_rate=rounded_rate(b),
                micro_batch_size=micro,
                accumulation=parts,
                devices=1,
                steps_to_goal=measured(examples[:, k] - sizes[k]),
                examples_to_goal=measured(examples[:, k]),
                seconds_per_step=measured(seconds[:, k], "t on logs of 10 rounds, 9 df, 90 %"),
                seconds_to_goal=measured(time[:, k]),
                cost=measured(time[:, k] + math.log((question.price or 1.0) / HOUR)),
                joules=measured(examples[:, k] + joules_per_example()[k]) if question.objective == "energy" else None,
                lowest_loss=None,
                p_best=float(np.mean(value[:, k] == best[:, 0])),
                p_good=float(np.mean(value[:, k] <= best[:, 0] + math.log(1.05))),
                trials=2 if b in run else 0,
                reached=2 if b in run else 0,
                extrapolated=b not in run,
                over_own=measured(value[:, k] - value[:, SIZES.index(OWN)]),
            )
        )
    return tuple(found)


def curves_of(ceiling: int, slow: float) -> Curves:
    """The law on a fine grid, and the draws."""
    examples, seconds = draws_of(ceiling, slow)
    z = np.random.default_rng(5).standard_normal((DRAWS, 2))
    grid = np.geomspace(SIZES[0], SIZES[-1], 65)
    law = math.log(S_MIN) + SPREAD[0] * z[:, 1:] + np.logaddexp(np.log(grid), math.log(B_CRIT) + SPREAD[1] * z[:, :1])

    def ends(column: Array) -> tuple[float, float, float]:
        low, middle, high = (float(v) for v in np.exp(np.quantile(column, (0.05, 0.5, 0.95))))
        return low, middle, high

    return Curves(
        batch_sizes=tuple(float(b) for b in grid),
        steps=tuple(ends(column) for column in (law - np.log(grid)).T),
        sizes_timed=SIZES,
        seconds_per_step=tuple(ends(column) for column in seconds.T),
        draws_log_examples=tuple(tuple(float(v) for v in row) for row in examples),
        draws_log_seconds=tuple(tuple(float(v) for v in row) for row in seconds),
    )


def rates() -> LearningRateCurve:
    """The best learning rate against batch size."""
    values = tuple(Measured(rate_at(b), rate_at(b) / 1.4, rate_at(b) * 1.4, DRAWS, 0, POSTERIOR) for b in SIZES)
    shares = {"linear": 0.61, "square root": 0.12, "saturating": 0.2, "falling": 0.04, "constant": 0.03}
    rise, fall = Measured(0.9, 0.7, 1.1, DRAWS, 0, POSTERIOR), Measured(0.1, -0.1, 0.4, DRAWS, 0, POSTERIOR)
    return LearningRateCurve("linear", shares, rise, fall, SIZES, values)


def tried(role: str, b: int, rate: float, seed: int, factor: float | None, outcome: str = "reached") -> Tried:
    """A run that needed `factor` times E(B), or that ended without the goal (None)."""
    examples = S_MIN * (b + B_CRIT)
    reached = None if factor is None else factor * examples
    used = round(
        reached * 1.03 if reached is not None else 0.02 * examples if outcome == "diverged" else 1.4 * examples
    )
    return Tried(
        role=role,
        batch_size=b,
        learning_rate=rate,
        seed=seed,
        reached=reached,
        bound=float(used),
        provisional=reached,
        lowest_loss=None if outcome == "diverged" else 0.355 if reached is not None else 0.391,
        outcome=outcome,
        examples=used,
        steps=round(used / b),
    )


def trials() -> tuple[Tried, ...]:
    """The runs in their order: the reference, the search with a run of every outcome, the verification."""
    search = (
        tried("search", 256, rounded_rate(256), 1, 1.02),
        tried("search", 128, rounded_rate(128), 1, 0.97),
        tried("search", 128, 4 * rounded_rate(128), 1, None, "diverged"),
        tried("search", 512, rounded_rate(512), 1, 1.05),
        tried("search", 256, rounded_rate(256) / 2, 1, 1.31),
        tried("search", 32, OWN_RATE / 4, 1, None, "not_reached"),
    )
    return (
        tried("reference", OWN, OWN_RATE, 0, 1.01),
        *search,
        tried("verification", 128, rounded_rate(128), 7, 1.0),
    )


def pareto(devices: tuple[int, ...] = (1, 2, 4, 8), price: float = 1.0, slow: float = 1.0) -> tuple[ParetoPoint, ...]:
    """The best batch size for each number of devices, communication free."""
    points = []
    for n in devices:
        times = {b: S_MIN * (1 + B_CRIT / b) * slow * (A + P + C * b / n) for b in SIZES if b >= n}
        b = min(times, key=lambda size: times[size])
        points.append(ParetoPoint(b, n, times[b], price * n * times[b] / HOUR, n > 1))
    return tuple(points)


def data_of(question: AdviceQuestion, runs: tuple[Tried, ...], **changes: Any) -> AdviceData:
    """What was measured."""
    made = AdviceData(
        task="fashion-mnist-mlp",
        fingerprint="0123456789abcdef",
        train_size=TRAIN_SIZE,
        goal=GOAL,
        own_batch_size=OWN,
        own_learning_rate=OWN_RATE,
        unit="examples",
        conditions=CONDITIONS,
        question=question,
        profile=profile(sizes=SIZES).data,
        trials=runs,
        reference_examples=S_MIN * (OWN + B_CRIT),
        reference_reached=True,
        budget_examples=20_000_000,
        cadence_examples=6_000,
        noise=Measured(150.0, 110.0, 210.0, 40, 0, "Fieller, 95 %, 40 measurements"),
        ended="firm",
        examples=sum(t.examples for t in runs),
        steps=sum(t.steps for t in runs),
        seconds=431.0,
        measured_at="2026-03-01T12:00:00+00:00",
    )
    return dataclasses.replace(made, **changes)


def advice(
    objective: str = "time",
    price: float | None = None,
    ceiling: int = CEILING,
    slow: float = 1.0,
    chosen: int | None = None,
    **changes: Any,
) -> Advice:
    """A whole advice, verified; `chosen` None: the least median of the objective. `changes` are fields of `Advice`."""
    question = AdviceQuestion(15.0, objective, price)
    runs = trials()
    candidates = candidates_of(ceiling, slow, question, {t.batch_size for t in runs if t.reached is not None})
    value = np.median(objective_of(*draws_of(ceiling, slow), objective), axis=0)
    best = candidates[int(np.argmin(value))] if chosen is None else candidates[SIZES.index(chosen)]
    data = data_of(question, runs)
    made = Advice(
        task=data.task,
        fingerprint=data.fingerprint,
        question=question,
        answered=True,
        chosen=best,
        verified=True,
        candidates=candidates,
        good_batch_sizes=tuple(c.batch_size for c in candidates if c.p_good > 0.1 or c is best),
        binding_limit="noise",
        binding_why="Above the critical batch size of 180 more examples per step save few steps.",
        critical_batch_size=Measured(B_CRIT, 130.0, 250.0, DRAWS, 0, POSTERIOR),
        s_min=Measured(S_MIN, 8100.0, 9900.0, DRAWS, 0, POSTERIOR),
        knee=Measured(1024, 512, 1024, 10, 0, "bootstrap over 10 rounds"),
        largest_micro_batch_size=ceiling,
        learning_rate_curve=rates(),
        law_holds=True,
        law_misfit=0.06,
        curves=curves_of(ceiling, slow),
        better=None,
        pareto=pareto(price=price or 1.0, slow=slow),
        sentences=(),
        snippet="",
        evidence="trials to goal",
        spent=Spent(data.examples, data.steps, data.seconds, len(runs), data.examples / data.reference_examples),
        data=data,
    )
    return dataclasses.replace(made, **changes)
