"""What is the answer of `noise`: the run average, its course, the principle's picture, and the factor to B_crit?

`analyse_noise` reads the records of one noise run, and of a study of the same task where there is one, and returns the
`NoiseResult` that the terminal, the page and `--json` show. It runs nothing and stores nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from batchscope.analysis.noise_scale import LEVEL, noise_scale, usable
from batchscope.analysis.step_time import inverse, scaled
from batchscope.analysis.table import analyse
from batchscope.analysis.uncertainty import product
from batchscope.records import (
    Deviations,
    Evaluation,
    GradientNorms,
    Measured,
    NoiseAgainstSweep,
    NoisePoint,
    NoiseResult,
    NoiseRun,
    NoiseScale,
    Principle,
    PrinciplePoint,
    StudyData,
    json_safe,
    to_plain,
)

WINDOWS = 12  # along a run: enough to see a course, few enough to read
LEAST_IN_WINDOW = 16  # measurements; fewer than 8 give no interval
CHANGED = 2.0  # factor along the run that a reader is told of
DATA = ("train_size", "batch_size", "learning_rate", "seed", "budget", "discarded", "outcome", "crossed_at")
RAW = ("goal", "measurements", "trace", "deviations", "measured_at")


def analyse_noise(run: NoiseRun, study: StudyData | None = None, study_id: str = "") -> NoiseResult:
    """Everything that a noise run's records say. Pure: equal data give an equal result.

    Raises ValueError for a study of another task: its critical batch size says nothing about this one.
    """
    if study is not None and study.settings.fingerprint != run.fingerprint:
        raise ValueError(
            f"expected a study of the task {run.task} as it stands, got one whose fingerprint is "
            f"{study.settings.fingerprint}, not {run.fingerprint}: give that task's own study, or none"
        )
    before = [m for m in run.measurements if run.crossed_at is None or m.examples < run.crossed_at]
    average = noise_scale(before, data_size=population(run), discarded=run.discarded)
    points = points_of(run)
    sweep = None if study is None or run.unit != "examples" else against_sweep(average, study, study_id)
    return NoiseResult(
        task=run.task,
        fingerprint=run.fingerprint,
        unit=run.unit,
        source=run.source,
        every=run.every,
        run_average=average,
        points=points,
        layers=run.layers,
        proxies=run.proxies,
        principles=tuple(principle_of(d, run) for d in run.deviations),
        against_sweep=sweep,
        data=run,
        notes=tuple(dict.fromkeys((*run.notes, *notes_of(run, average, points, study, sweep)))),
    )


def population(run: NoiseRun) -> int | None:
    """N in the unit of the measurements: the training examples; tokens are not counted, and N counts as infinite."""
    return run.train_size if run.unit == "examples" else None


def points_of(run: NoiseRun) -> tuple[NoisePoint, ...]:
    """The noise scale over up to 12 contiguous windows with equally many measurements; the first one in halves."""
    kept = [m for m in run.measurements if usable(m)]
    if not kept:
        return ()
    count = max(1, min(WINDOWS, len(kept) // LEAST_IN_WINDOW))
    edges = [round(e) for e in np.linspace(0, len(kept), count + 1)]
    if edges[1] >= 2 * LEAST_IN_WINDOW:  # the start changes fastest
        edges.insert(1, edges[1] // 2)
    return tuple(_point(kept[a:b], run) for a, b in itertools.pairwise(edges))


def _point(window: Sequence[GradientNorms], run: NoiseRun) -> NoisePoint:
    first, last = window[0].step, window[-1].step
    examples = float(np.interp((first + last) / 2, [m.step for m in window], [m.examples for m in window]))
    scale = noise_scale(window, data_size=population(run))
    return NoisePoint(first, last, examples, train_loss_at(run.trace, examples), scale)


def train_loss_at(trace: Sequence[Evaluation], examples: float) -> float | None:
    """The training loss after so many examples, linear between evaluations; None outside them."""
    known = [(e.examples, e.train["loss"]) for e in trace if math.isfinite(e.train.get("loss", math.nan))]
    if not known or not known[0][0] <= examples <= known[-1][0]:
        return None
    at, loss = zip(*known, strict=True)
    return float(np.interp(examples, at, loss))


def principle_of(checkpoint: Deviations, run: NoiseRun) -> Principle:
    """E|g_B - G|^2 / |G|^2 at one checkpoint, beside what batches drawn apart, at the same weights, predict."""
    scale = noise_scale(checkpoint.norms, data_size=population(run))
    pairs = zip(checkpoint.batch_sizes, checkpoint.squared, strict=True)
    points = tuple(
        PrinciplePoint(b, deviation_of(draws, b, checkpoint), predicted_of(scale, b, checkpoint.data_size, run.unit))
        for b, draws in pairs
        if draws
    )
    return Principle(checkpoint.step, checkpoint.examples, checkpoint.loss, checkpoint.squared_gradient, scale, points)


def predicted_of(scale: NoiseScale, batch_size: int, data_size: int, unit: str = "examples") -> Measured:
    """(B_simple / B) (N - B) / (N - 1) with the interval carried through; 0 for the whole data set.

    Drawn without replacement, E|g_B - G|^2 = S2 (1/B - 1/N) and tr(Sigma) = S2 (N - 1) / N (`noise_scale.draw`).
    """
    if batch_size >= data_size:
        return Measured(0.0, 0.0, 0.0, scale.measurements, 0, "exact: the whole data set")
    if unit != "examples":
        return Measured(None, None, None, 0, 0, f"none: B_simple is in {unit}, these batch sizes are in examples")
    return scaled(scale.b_simple, (data_size - batch_size) / (batch_size * (data_size - 1)))


def deviation_of(draws: Sequence[float], batch_size: int, checkpoint: Deviations) -> Measured:
    """The mean of R draws of |g_B - G|^2, over |G|^2, with a t interval cut at 0; G is exact.

    Batches that do not overlap are not independent: g_i - G of two of M = N/B have the correlation -1/(M - 1), their
    squared norms (Gaussian) rho = 1/(M - 1)^2. So Var(mean) = v (1 + (R - 1) rho) / R while the draws' own variance is
    v (1 - rho) in expectation. Two halves of the data have rho = 1: equal draws, which say nothing of their error.
    """
    n, full = len(draws), checkpoint.squared_gradient
    if batch_size >= checkpoint.data_size:
        return Measured(0.0, 0.0, 0.0, n, 0, "exact: the whole data set")
    if not full > 0:
        return Measured(None, None, None, n, 0, "none: |G|^2 is 0 at this checkpoint")
    estimate = float(np.mean(draws)) / full
    if n < 2:
        return Measured(estimate, None, None, n, 0, "none: one draw has no spread")
    rho = (checkpoint.data_size / batch_size - 1) ** -2
    if rho >= 1:
        return Measured(estimate, None, None, n, 0, "none: two halves of the data deviate equally")
    error = float(np.std(draws, ddof=1)) / full * math.sqrt((1 + (n - 1) * rho) / (1 - rho) / n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    return Measured(estimate, max(0.0, estimate - half), estimate + half, n, 0, f"t on {n} draws, {n - 1} df")


def against_sweep(average: NoiseScale, study: StudyData, study_id: str) -> NoiseAgainstSweep | None:
    """The factor between the run-averaged B_simple and the study's B_crit; None where the study bounds B_crit nowhere.

    `critical_batch_size` has low = 0 where the fit gives it no lower end (`tradeoff`).
    """
    critical = analyse(study).law.critical_batch_size
    if critical.estimate is None and not critical.low and critical.high is None:
        return None
    return NoiseAgainstSweep(study_id, critical, factor_of(average.b_simple, critical))


def factor_of(predicted: Measured, measured: Measured) -> Measured:
    """predicted / measured of two independent positive quantities; an end is null where either leaves it open.

    Both estimated: the logs of their distances to either limit add in quadrature (MOVER, Zou & Donner 2008). Else the
    bound over the other's far end; each errs in 2.5 % at most, so the quotient does in at most 5 %.
    """
    predicted, measured = (replace(m, low=m.low or None) for m in (predicted, measured))
    if predicted.estimate is not None and measured.estimate is not None:
        return product(predicted, inverse(measured, 1.0))
    about = " / ".join(m.interval for m in (predicted, measured) if m.interval)
    low = None if predicted.low is None or measured.high is None else predicted.low / measured.high
    high = None if predicted.high is None or measured.low is None else predicted.high / measured.low
    return Measured(None, low, high, predicted.n, predicted.censored, about)


def notes_of(
    run: NoiseRun,
    average: NoiseScale,
    points: Sequence[NoisePoint],
    study: StudyData | None,
    sweep: NoiseAgainstSweep | None,
) -> list[str]:
    """What a reader must know before trusting the answer, one sentence each."""
    notes = []
    if run.goal is not None and run.crossed_at is None:
        notes.append(
            f"The run did not cross its goal ({run.goal}): the average is over all {run.steps:,} of its steps."
        )
    if average.outcome != "resolved":
        more = f" (about {average.needed:,} more measurements)" if average.needed else ""
        notes.append(f"No interval for the run average, {average.reason}{more}.")
    if average.effective_measurements < average.measurements / 2:
        notes.append(
            f"Successive measurements are alike: {average.measurements:,} of them are as precise as "
            f"{average.effective_measurements:,.0f} independent ones."
        )
    if (factor := change(p.scale.b_simple for p in points)) is not None:
        notes.append(
            f"The noise scale changes by a factor of {factor:.2g} along the run: no one batch size fits all of it."
        )
    if study is not None and run.unit != "examples":
        notes.append(
            f"The noise scale is in {run.unit} and the critical batch size in examples: they are not compared."
        )
    elif study is not None and sweep is None:
        notes.append("The study gives no critical batch size to compare the noise scale with.")
    return notes


def change(scales: Iterable[Measured]) -> float | None:
    """Largest over smallest estimate along the run, where that is above 2 and their intervals do not overlap."""
    known = [m for m in scales if m.estimate is not None and m.high is not None and m.low is not None]
    if not known:
        return None
    least, most = (pick(known, key=lambda m: m.estimate or 0.0) for pick in (min, max))
    apart = (most.low or 0.0) > (least.high or math.inf)
    factor = (most.estimate or 0.0) / (least.estimate or math.inf)
    return factor if apart and factor > CHANGED else None


def noise_to_json(result: NoiseResult) -> dict[str, Any]:
    """The contract of `noise --json`: numbers that JSON cannot hold (nan, inf) become null."""
    run = result.data
    answer: dict[str, Any] = {
        "task": result.task,
        "fingerprint": result.fingerprint,
        "unit": result.unit,
        "source": result.source,
        "every": result.every,
        "run_average": to_plain(result.run_average),
        "points": to_plain(result.points),
        "layers": to_plain(result.layers),
        "proxies": to_plain(result.proxies),
        "principles": to_plain(result.principles),
        "against_sweep": to_plain(result.against_sweep),
        "conditions": to_plain(run.conditions),
        "spent": {"examples": run.examples, "steps": run.steps, "seconds": run.seconds},
        "notes": list(result.notes),
        "report": result.report,
        "data": {name: to_plain(getattr(run, name)) for name in (*DATA, *RAW)},
    }
    return json_safe(answer)
