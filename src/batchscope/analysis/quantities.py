"""What does one trial give: its lowest validation loss, and what its weights were like there?

Everything is read at the best-validation evaluation (rule of measurement 12), over finite evaluations only. A trial
that never improved on its initial weights has nothing to read there but a distance of zero; a trial that has no finite
loss gives None. A failed trial (the worker died) is no measurement and is left out by `measured_trials`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from batchscope.analysis.target import best
from batchscope.records import Evaluation, StudyData, TimingPass, TrialRecord

DRIFT_LIMIT = 0.10  # of a pass's reference step: beyond it seconds are corrected by it, and the study says so


def measured_trials(data: StudyData, policy: str) -> tuple[TrialRecord, ...]:
    """A policy's reported trials without the failed ones, and without those at a learning rate chosen no longer.

    A search that a budget cut short, continued later, may choose anew: the store keeps what was run at the old choice.
    """
    trials = data.held
    if policy == "tuned":
        rates = {c.batch_size: c.learning_rate for c in data.choices}
        trials = tuple(t for t in data.tuned if t.spec.arm.learning_rate == rates.get(t.spec.arm.batch_size))
    return tuple(t for t in trials if t.result.outcome != "failed")


def at_best(trial: TrialRecord) -> Evaluation | None:
    """The evaluation of the lowest finite validation loss."""
    index = best(trial.result.trace)
    return None if index is None else trial.result.trace[index]


def min_validation_loss(trial: TrialRecord) -> float | None:
    """The lowest finite validation loss."""
    e = at_best(trial)
    return None if e is None else e.validation["loss"]


def train_loss(trial: TrialRecord) -> float | None:
    """Training loss at the best-validation evaluation, eval mode, fixed subset."""
    e = at_best(trial)
    return None if e is None else finite_or_none(e.train["loss"])


def generalization_gap(trial: TrialRecord) -> float | None:
    """Validation minus training loss at the best-validation evaluation."""
    e = at_best(trial)
    return None if e is None else finite_or_none(e.validation["loss"] - e.train["loss"])


def error_gap(trial: TrialRecord) -> float | None:
    """Training minus validation accuracy (validation minus training error) at the best-validation evaluation."""
    e = at_best(trial)
    if e is None or "accuracy" not in e.train or "accuracy" not in e.validation:
        return None
    return finite_or_none(e.train["accuracy"] - e.validation["accuracy"])


def distance_from_init(trial: TrialRecord) -> float | None:
    """|w - w0| at the best-validation evaluation; None where that is the initial weights themselves."""
    e = at_best(trial)
    return e.distance if e is not None and math.isfinite(e.distance) and e.distance > 0 else None


def steps_at_best(trial: TrialRecord) -> float | None:
    """Steps at the best-validation evaluation."""
    e = at_best(trial)
    return None if e is None else float(e.step)


def finite_or_none(value: float) -> float | None:
    """The value, or None where it is nan or infinite."""
    return value if math.isfinite(value) else None


def mean_log_train_loss(trials: Sequence[TrialRecord]) -> tuple[dict[tuple[int, int], float], float]:
    """{(batch size, seed): mean log training loss} over the examples that all trials share, and that many examples.

    Batch sizes above the cadence are evaluated at fewer places, so each trace is interpolated (log loss, linear in
    examples) at the coarsest trace's evaluations, k >= 1, up to the end of the shortest. Trials that diverged or have a
    loss <= 0 have no mean of logs and are left out.
    """
    traces: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for t in trials:
        points = [(e.examples, e.train["loss"]) for e in t.result.trace]
        usable = len(points) > 1 and all(math.isfinite(y) and y > 0 for _, y in points)
        if t.result.outcome != "diverged" and usable:
            x, y = np.array(points, float).T
            traces[t.spec.arm.batch_size, t.spec.seed] = x, np.log(y)
    if not traces:
        return {}, 0.0
    end = min(x[-1] for x, _ in traces.values())
    grids = [x[(x > 0) & (x <= end)] for x, _ in traces.values()]
    grid = min(grids, key=len)
    if len(grid) == 0:
        return {}, 0.0
    return {key: float(np.interp(grid, x, y).mean()) for key, (x, y) in traces.items()}, float(end)


def typical_reference(timing: TimingPass) -> float | None:
    """The median reference window, to correct seconds with; None where the pass did not drift."""
    windows = [w for t in timing.timings for w in t.reference]
    return float(np.median(windows)) if windows and timing.drift > DRIFT_LIMIT else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the positive ones; None where there is none."""
    logs = [math.log(v) for v in values if v is not None and v > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None
