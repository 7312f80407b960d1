"""How far from the initial weights do batch sizes get: at equal epochs, equal steps, equal training loss? How fast?

Three comparisons, three answers: at equal epochs a small batch has taken more steps, at equal steps it has seen fewer
examples, at equal training loss both differ. All are read from the traces of a study's trials. Between two evaluations
the distance is linear in log examples (log steps); the place where a loss is reached is interpolated like a crossing
(`target`), in log examples. Examples 0 have no logarithm: there it is linear in the examples.

Growth: |w_t - w_0| = a + b log t, the ultra-slow diffusion of Hoffer et al. 2017, by least squares over the evaluations
after the first; beside it the power law log |w_t - w_0| = c + k log t, the diffusion that it was held against. Both are
judged on one scale, by the share of the distance's own variance that they explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batchscope.analysis import quantities as q
from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import pooled
from batchscope.records import DistanceRow, DistanceTrace, Evaluation, Growth, StudyData, TrialRecord

EQUALS = ("epochs", "steps", "training loss")
LEAST_POINTS = 3  # of a line with a share of variance explained

Cells = dict[tuple[int, int], float]  # (batch size, seed) -> value


@dataclass(frozen=True)
class Equal:
    """Distances where all trials of a policy have something in common: how much of it, by (batch size, seed)."""

    equal: str  # one of EQUALS
    at: float
    distances: Cells
    steps: Cells


def moving_trials(study: StudyData, policy: str) -> list[TrialRecord]:
    """The trials whose traces can be compared: neither failed nor diverged, with a distance at every evaluation."""
    return [
        t
        for t in q.measured_trials(study, policy)
        if t.result.outcome != "diverged"
        and len(t.result.trace) > 1
        and all(math.isfinite(e.distance) for e in t.result.trace)
        and t.result.trace[-1].distance > 0
    ]


def left_out(study: StudyData, policy: str) -> int:
    """How many trials have no trace that can be compared."""
    return len(q.measured_trials(study, policy)) - len(moving_trials(study, policy))


def equals_of(study: StudyData, policy: str) -> list[Equal]:
    """The three comparisons of a policy; those without a common place are missing."""
    trials = moving_trials(study, policy)
    if not trials:
        return []
    found = [
        _at_equal("epochs", trials, lambda e: e.examples, study.settings.train_size),
        _at_equal("steps", trials, lambda e: e.step, 1.0),
        _at_equal_loss(trials),
    ]
    return [f for f in found if f is not None]


def distance_rows(study: StudyData) -> tuple[DistanceRow, ...]:
    """Every comparison by policy and batch size, pooled over seeds on logs."""
    rows = []
    for policy in study.settings.policies:
        for found in equals_of(study, policy):
            sizes = sorted({b for b, _ in found.distances})
            values = {b: [Value(v) for (size, _), v in found.distances.items() if size == b] for b in sizes}
            rows += [DistanceRow(b, policy, found.equal, found.at, m) for b, m in pooled(values, log=True).items()]
    return tuple(rows)


def traces_of(study: StudyData) -> tuple[DistanceTrace, ...]:
    """The distances of every comparable trial, at its evaluations after the first."""
    return tuple(
        DistanceTrace(
            t.spec.arm.batch_size,
            policy,
            t.spec.seed,
            t.spec.arm.learning_rate,
            tuple(e.step for e in t.result.trace[1:]),
            tuple(e.distance for e in t.result.trace[1:]),
        )
        for policy in study.settings.policies
        for t in moving_trials(study, policy)
    )


def growth_of(traces: Sequence[DistanceTrace]) -> tuple[Growth, ...]:
    """The line in log steps and the power law, by policy and batch size; slopes pooled over seeds."""
    rows = []
    for policy in dict.fromkeys(t.policy for t in traces):
        own = [t for t in traces if t.policy == policy]
        sizes = sorted({t.batch_size for t in own})
        fits = {b: found for b in sizes if (found := _fits([t for t in own if t.batch_size == b]))}
        slopes = pooled({b: [Value(line[0]) for line, _ in found] for b, found in fits.items()}, log=False)
        for b, found in fits.items():
            line, power, exponent = (
                float(np.mean(part)) for part in zip(*((ln[1], pw[1], pw[0]) for ln, pw in found), strict=True)
            )
            rows.append(Growth(b, policy, slopes[b], line, power, exponent))
    return tuple(rows)


def line_fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """(slope, R^2) of least squares; None where x or y does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    xx, yy = float(dx @ dx), float(dy @ dy)
    if xx <= 0 or yy <= 0:
        return None
    slope = float(dx @ dy) / xx
    return slope, 1 - float(np.sum((dy - slope * dx) ** 2)) / yy


def _fits(traces: Sequence[DistanceTrace]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """((slope, R^2), (exponent, R^2)) of the line and of the power law, of each trial with enough evaluations."""
    found = []
    for t in traces:
        steps, distances = np.array(t.steps, float), np.array(t.distances)
        moved = (steps > 0) & (distances > 0)
        if moved.sum() < LEAST_POINTS:
            continue
        x, y = np.log(steps[moved]), distances[moved]
        line, power = line_fit(x, y), line_fit(x, np.log(y))
        if line is not None and power is not None:
            found.append((line, (power[0], _explained(x, y, power[0]))))
    return found


def _explained(x: np.ndarray, y: np.ndarray, exponent: float) -> float:
    """The share of y's variance that the power law with this exponent explains; negative where the mean does better."""
    predicted = np.exp(np.log(y).mean() + exponent * (x - x.mean()))
    return 1 - float(np.sum((y - predicted) ** 2)) / float(np.sum((y - y.mean()) ** 2))


def _key(trial: TrialRecord) -> tuple[int, int]:
    return trial.spec.arm.batch_size, trial.spec.seed


def _at_equal(
    equal: str, trials: Sequence[TrialRecord], place: Callable[[Evaluation], float], unit: float
) -> Equal | None:
    """At the largest place that all trials reach; `unit`: what one of `equal` is in it."""
    at = min(place(t.result.trace[-1]) for t in trials)
    if at <= 0:
        return None
    distances, steps = {}, {}
    for t in trials:
        k = next(k for k, e in enumerate(t.result.trace) if k and place(e) >= at)
        before, after = t.result.trace[k - 1], t.result.trace[k]
        share = _share(place(before), place(after), at)
        distances[_key(t)], steps[_key(t)] = _between(before, after, share)
    return _positive(Equal(equal, at / unit, distances, steps))


def _at_equal_loss(trials: Sequence[TrialRecord]) -> Equal | None:
    """At the lowest training loss that all trials reach; those that never improved on their start are left out."""
    lowest = {id(t): min(_loss(e) for e in t.result.trace[1:]) for t in trials}
    falling = [t for t in trials if lowest[id(t)] < _loss(t.result.trace[0])]
    if not falling:
        return None
    at = max(lowest[id(t)] for t in falling)
    falling = [t for t in falling if _loss(t.result.trace[0]) > at]
    distances, steps = {}, {}
    for t in falling:
        k = next(k for k, e in enumerate(t.result.trace) if k and _loss(e) <= at)
        before, after = t.result.trace[k - 1], t.result.trace[k]
        share = (at - _loss(before)) / (_loss(after) - _loss(before)) if math.isfinite(_loss(before)) else 1.0
        distances[_key(t)], steps[_key(t)] = _between(before, after, share)
    return _positive(Equal("training loss", at, distances, steps))


def _loss(e: Evaluation) -> float:
    value = e.train["loss"]
    return value if math.isfinite(value) else math.inf


def _share(low: float, high: float, at: float) -> float:
    """How far `at` lies between two places, in logs where they have one."""
    return math.log(at / low) / math.log(high / low) if low > 0 else at / high


def _between(before: Evaluation, after: Evaluation, share: float) -> tuple[float, float]:
    """(distance, step) that far between two evaluations."""
    distance = before.distance + share * (after.distance - before.distance)
    ratio = after.step / before.step if before.step > 0 else math.inf
    step = before.step * ratio**share if math.isfinite(ratio) else share * after.step
    return distance, step


def _positive(found: Equal) -> Equal | None:
    kept = {k: v for k, v in found.distances.items() if v > 0}
    return Equal(found.equal, found.at, kept, {k: found.steps[k] for k in kept}) if kept else None
