"""Which numbers does each figure of the report show?

Numbers first, drawing after: every figure is a frozen tuple of plain numbers made here from the records, tested here,
and only then drawn by charts.py. x = epochs is examples / training-set size. Seconds of a trace are

    seconds(e) = epoch(e) * seconds per epoch (B)

with the seconds per epoch of the timing pass, measured alone; a trial's own clock shared the machine and is never used.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from batchscope.analysis.target import (
    Value,
    best,
    epochs_to_converge,
    examples_to_goal,
    steps_per_epoch,
    steps_to_goal,
)
from batchscope.records import LawFit, Measured, Row, StudyData, StudyResult, TrialRecord

MOST_POINTS = 120  # per drawn line: more than a chart of 600 pixels can show, few enough for a small page


class Line(NamedTuple):
    """One trial's trace, thinned: arrays of equal length, nan where a loss was not finite."""

    policy: str
    batch_size: int
    learning_rate: float
    seed: int
    outcome: str
    epoch: tuple[float, ...]
    seconds: tuple[float, ...] | None  # None: no timing at this batch size
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: float | None
    best_validation_loss: float | None


class Point(NamedTuple):
    """One seed's value at one batch size; `kind` is "seed", "bound" (true value larger) or "diverged"."""

    policy: str
    batch_size: int
    seed: int
    value: float
    kind: str


class Estimate(NamedTuple):
    """One arm's value with its interval: `kind` is "estimate", or "bound" where no seed gave a value."""

    policy: str
    batch_size: int
    value: float
    low: float
    high: float
    kind: str
    n: int
    censored: int
    diverged: int


class Curve(NamedTuple):
    """The fitted law on a fine grid of batch sizes, with its band where the covariance is known."""

    batch_size: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


class Against(NamedTuple):
    """A quantity against batch size: estimates, seeds behind them, and the law with B_crit where one was fitted."""

    quantity: str  # the name of a field of `Row`
    batch_sizes: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    points: tuple[Point, ...]
    law: Curve | None = None
    critical: Measured | None = None


class Figures(NamedTuple):
    """All the figures of a study, as numbers."""

    lines: tuple[Line, ...]  # training and validation loss by epoch and by second
    min_validation_loss: Against
    seconds_per_epoch: Against
    steps_to_goal: Against
    examples_to_goal: Against
    seconds_to_converge: Against
    seconds_to_goal: Against


def figures_of(result: StudyResult, data: StudyData) -> Figures:
    """Every figure's numbers, from the answer (estimates, law) and the trials behind it (traces, seeds)."""
    per_epoch = {(r.policy, r.batch_size): r.seconds_per_epoch.estimate for r in result.rows}
    trials = [(p, t) for p, ts in (("held", data.held), ("tuned", data.tuned)) for t in ts if t.result.trace]
    lines = tuple(line_of(p, t, data.settings.train_size, per_epoch.get((p, batch_of(t)))) for p, t in trials)
    seeds = [seed_values(line, trial, data, per_epoch) for line, (_, trial) in zip(lines, trials, strict=True)]

    def against(quantity: str, law: Curve | None = None) -> Against:
        points = tuple(p for values in seeds if (p := values.get(quantity)) is not None)
        estimates = tuple(e for r in result.rows if (e := estimate_of(r, quantity)) is not None)
        critical = result.law.critical_batch_size if law is not None else None
        return Against(quantity, data.settings.batch_sizes, estimates, points, law, critical)

    return Figures(
        lines,
        against("min_validation_loss"),
        once_per_size(against("seconds_per_epoch"))._replace(points=timing_points(data)),
        against("steps_to_goal", law_curve(result.law, examples=False)),
        against("examples_to_goal", law_curve(result.law, examples=True)),
        against("seconds_to_converge"),
        against("seconds_to_goal"),
    )


def batch_of(trial: TrialRecord) -> int:
    """The trial's global batch size."""
    return trial.spec.arm.batch_size


def line_of(policy: str, trial: TrialRecord, train_size: int, seconds_per_epoch: float | None) -> Line:
    """One trial's trace as a thinned line; the lowest validation loss is always among the points kept."""
    trace, arm = trial.result.trace, trial.spec.arm
    index = best(trace)
    lowest = trace[index] if index is not None else None
    kept = [trace[i] for i in thin(len(trace), index or 0)]
    epoch = tuple(e.examples / train_size for e in kept)
    return Line(
        policy,
        arm.batch_size,
        arm.learning_rate,
        trial.spec.seed,
        trial.result.outcome,
        epoch,
        tuple(x * seconds_per_epoch for x in epoch) if seconds_per_epoch is not None else None,
        tuple(e.train["loss"] for e in kept),
        tuple(e.validation["loss"] for e in kept),
        lowest.examples / train_size if lowest else None,
        lowest.validation["loss"] if lowest else None,
    )


def thin(length: int, keep: int, most: int = MOST_POINTS) -> list[int]:
    """At most `most` of the indices 0..length-1, in order, with the first, the last and `keep` among them.

    Half are spread evenly and half geometrically, so that the early, steep part survives on linear and log axes alike.
    """
    if length <= most:
        return list(range(length))
    half = (most - 1) // 2
    even = np.linspace(0, length - 1, half)
    geometric = np.geomspace(1, length, half) - 1
    return sorted({*np.rint(even).astype(int).tolist(), *np.rint(geometric).astype(int).tolist(), keep})


def estimate_of(row: Row, quantity: str) -> Estimate | None:
    """A row's quantity as something to draw: an estimate, a bound, or nothing where not even a bound is known."""
    m: Measured = getattr(row, quantity)
    value = m.estimate if m.estimate is not None else m.low
    if value is None or not math.isfinite(value):
        return None
    kind = "estimate" if m.estimate is not None else "bound"
    low = m.low if m.low is not None and kind == "estimate" else math.nan
    high = m.high if m.high is not None else math.nan
    return Estimate(row.policy, row.batch_size, value, low, high, kind, m.n, m.censored, row.diverged)


def seed_values(
    line: Line, trial: TrialRecord, data: StudyData, per_epoch: dict[tuple[str, int], float | None]
) -> dict[str, Point]:
    """One trial's own value of each quantity: what the arm's estimate is made of, bounds at the budget included.

    A trial that failed (its worker died twice) says nothing about the task and has no point.
    """
    result, settings, b = trial.result, data.settings, line.batch_size
    size, budget, died = settings.train_size, settings.budget_examples, result.outcome == "diverged"
    if result.outcome == "failed":
        return {}

    def point(value: Value, unit: float | None = 1.0) -> Point | None:
        kind = "seed" if not value.censored else "diverged" if died else "bound"
        return None if unit is None else Point(line.policy, b, line.seed, value.value * unit, kind)

    second = per_epoch.get((line.policy, b))
    to_goal = examples_to_goal(result, settings.goal, budget)
    values = {
        "examples_to_goal": point(to_goal),
        "steps_to_goal": point(steps_to_goal(result, settings.goal, budget, size, b)),
        "seconds_to_goal": point(to_goal, second / size if second is not None else None),
        "seconds_to_converge": point(epochs_to_converge(result, size, budget), second),
    }
    if line.best_validation_loss is not None:
        values["min_validation_loss"] = point(Value(line.best_validation_loss, died))
    return {quantity: p for quantity, p in values.items() if p is not None}


def once_per_size(figure: Against) -> Against:
    """A quantity that no policy changes (time per epoch): one estimate per batch size, under the policy "both"."""
    first = {e.batch_size: e._replace(policy="both", diverged=0) for e in reversed(figure.estimates)}
    return figure._replace(estimates=tuple(first[b] for b in sorted(first)))


def timing_points(data: StudyData) -> tuple[Point, ...]:
    """Each round of the timing pass as seconds per epoch: steps per epoch x that round's seconds per step."""
    if data.timing is None:
        return ()
    return tuple(
        Point("both", t.batch_size, i, steps_per_epoch(data.settings.train_size, t.batch_size) * s, "seed")
        for t in data.timing.timings
        for i, s in enumerate(t.seconds_per_step)
    )


def law_curve(law: LawFit, examples: bool, points: int = 61) -> Curve | None:
    """S(B) = s_min (1 + B_crit / B), or E(B) = B S(B), between the smallest and the largest fitted batch size.

    B is the effective size (examples per step averaged over an epoch), interpolated in logs between the sizes that ran.
    The band is the delta method on (log s_min, log B_crit) with covariance C, u = (B_crit/B) / (1 + B_crit/B):

        var log S = C00 + 2 u C01 + u^2 C11,      band = S exp(+- q sd),

    where q is the quantile that the interval of s_min itself was built with, q = log(high/low) / (2 sqrt(C00)).
    """
    s_min, critical = law.s_min.estimate, law.critical_batch_size.estimate
    if s_min is None or critical is None or len(law.batch_sizes) < 2:
        return None
    nominal = np.geomspace(law.batch_sizes[0], law.batch_sizes[-1], points)
    b = np.exp(np.interp(np.log(nominal), np.log(law.batch_sizes), np.log(law.effective_batch_sizes)))
    value = s_min * (1.0 + critical / b) * (b if examples else 1.0)
    half = band_halfwidth(law, critical / b)
    low, high = (as_floats(value * np.exp(s * half)) if half is not None else None for s in (-1.0, 1.0))
    return Curve(as_floats(nominal), as_floats(value), low, high)


def band_halfwidth(law: LawFit, ratio: np.ndarray) -> np.ndarray | None:
    """q * sd of log S at B_crit / B = `ratio`; None where the covariance or the interval of s_min is unknown."""
    low, high, c = law.s_min.low, law.s_min.high, law.joint_covariance
    if c is None or not low or not high or c[0][0] <= 0.0:
        return None
    quantile = math.log(high / low) / (2.0 * math.sqrt(c[0][0]))
    u = ratio / (1.0 + ratio)
    variance = c[0][0] + 2.0 * u * c[0][1] + u * u * c[1][1]
    return quantile * np.sqrt(np.maximum(variance, 0.0))


def as_floats(values: np.ndarray) -> tuple[float, ...]:
    """An array as plain floats."""
    return tuple(float(v) for v in values)
