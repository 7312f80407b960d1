"""What did training come to that went on otherwise than it began, beside training that went on as it was?

Runs r of a kind (after a share of another batch size's way, or with injected noise) that ended with batch size B stand
beside the study's own trials of B, of the same policy and seeds s. On the log of a measure,

    y_rs = alpha_r + beta_s + e_rs,   e ~ N(0, sigma^2),

fitted over all runs that ended with B (`contrasts.fit_layout`, with kinds of run for batch sizes). What a switch did
is alpha_r - alpha_uninterrupted, in which beta_s drops out; sigma^2 and its degrees of freedom are the layout's. Its
95 % interval is not corrected for the number of such contrasts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from batchscope.analysis.contrasts import BAND, fit_layout
from batchscope.analysis.flatness_measures import (
    ADAPTIVE_EIGENVALUE,
    CURVATURES,
    DISTANCE,
    ENDS,
    LARGEST,
    TRACE,
    TRAIN_LOSS,
    Measure,
    box_measures,
    exact,
    over_seeds,
)
from batchscope.records import CauseRow, Measured, PointSharpness, SharpnessData

UNINTERRUPTED, WARM, NOISE = "uninterrupted", "warm start", "noise injected"
KINDS = (UNINTERRUPTED, WARM, NOISE)
LOWEST = "lowest validation loss"
SHOWN = (LARGEST, TRACE, ADAPTIVE_EIGENVALUE, DISTANCE, TRAIN_LOSS)  # beside the largest box in the full space
LOWER, HIGHER, ALIKE, OPEN = "lower", "higher", "within 5 %", "not resolved"


class Kind(NamedTuple):
    """What runs over several seeds have in common, in the order of the rows."""

    batch_size: int
    place: int  # among KINDS
    from_batch_size: int
    share: float


class Run(NamedTuple):
    """One run: its kind, the epochs before its switch and after it, and its weights, with the lowest loss."""

    kind: Kind
    epochs: float
    after: float
    point: PointSharpness


def cause_rows(data: SharpnessData) -> tuple[CauseRow, ...]:
    """A row for each kind of run, by the batch size that it ended with, the uninterrupted one first."""
    runs = runs_of(data)
    arms = {kind: [r.point for r in runs if r.kind == kind] for kind in sorted({r.kind for r in runs})}
    measures = measures_among([r.point for r in runs])
    known = {m.name: _kinds(over_seeds(m, arms)) for m in measures}
    ratios = {m.name: _ratios(m, arms) for m in measures if compared(m.name)}
    return tuple(
        CauseRow(
            kind=KINDS[kind.place],
            batch_size=kind.batch_size,
            from_batch_size=kind.from_batch_size,
            share=kind.share,
            epochs=math.fsum(r.epochs for r in runs if r.kind == kind) / len(points),
            epochs_after=math.fsum(r.after for r in runs if r.kind == kind) / len(points),
            seeds=len(points),
            measures={name: of[kind] for name, of in known.items()},
            ratios={name: of[kind] for name, of in ratios.items() if kind in of},
        )
        for kind, points in arms.items()
    )


def runs_of(data: SharpnessData) -> list[Run]:
    """The causal runs, and the study's own points of the batch sizes that they ended with, their policy and seeds."""
    runs = [
        Run(
            Kind(c.batch_size, KINDS.index(c.kind), c.from_batch_size, c.share),
            c.from_epochs,
            c.epochs_after,
            dataclasses.replace(c.point, seed=c.seed, validation={"loss": c.reached_loss}),
        )
        for c in data.continued
    ]
    alike = {(r.kind.batch_size, r.point.policy, r.point.seed) for r in runs}
    lowest = data.question.at == "best"  # else their validation loss is that of the end
    for p in data.points:
        if p.batch_size is not None and (p.batch_size, p.policy, p.seed) in alike:
            point = p if lowest else dataclasses.replace(p, validation={})
            runs.append(Run(Kind(p.batch_size, 0, p.batch_size, 0.0), 0.0, 0.0, point))
    return runs


def measures_among(points: Sequence[PointSharpness]) -> list[Measure]:
    """The measures of causal runs that at least one has, those that are compared first; of boxes the largest, full."""
    box, reached = box_measures(points)[:1], Measure(LOWEST, lambda p: exact(p.validation.get("loss")))
    largest, *others = (m for m in (*CURVATURES, *ENDS) if m.name in SHOWN)
    return [m for m in (*box, largest, reached, *others) if any(m.of(p) is not None for p in points)]


def compared(measure: str) -> bool:
    """Whether a measure of the rows has ratios: the box, the largest eigenvalue and the lowest validation loss."""
    return measure in (LARGEST, LOWEST) or measure.startswith("sharpness (box")


def side_of(ratio: Measured) -> str:
    """On which side of the 5 % band around no effect the whole interval of a ratio lies, or whether it is within."""
    if ratio.low is None or ratio.high is None:
        return OPEN
    low, high = math.exp(-BAND), math.exp(BAND)
    if ratio.low > high:
        return HIGHER
    if ratio.high < low:
        return LOWER
    return ALIKE if low < ratio.low and ratio.high < high else OPEN


def _kinds(found: dict[Kind, Measured]) -> dict[Kind, Measured]:
    """With what was pooled over called by its name."""

    def named(text: str) -> str:
        return text.replace("batch sizes", "kinds of run").replace("batch size", "kind of run")

    return {k: dataclasses.replace(m, interval=named(m.interval)) for k, m in found.items()}


# --- against the uninterrupted ---


def _ratios(measure: Measure, arms: dict[Kind, list[PointSharpness]]) -> dict[Kind, Measured]:
    """The ratio to the uninterrupted runs of the same batch size, of every other kind that shares a seed with them."""
    found: dict[Kind, Measured] = {}
    for size in dict.fromkeys(kind.batch_size for kind in arms):
        kinds = [kind for kind in arms if kind.batch_size == size]
        if kinds[0].place == 0:
            found |= _against(kinds, {kind: _logs(measure, arms[kind]) for kind in kinds})
    return found


def _logs(measure: Measure, points: Sequence[PointSharpness]) -> dict[int, float]:
    """seed -> log of the measure, where it is positive."""
    values = {p.seed: m.estimate for p in points if p.seed is not None and (m := measure.of(p)) is not None}
    return {seed: math.log(v) for seed, v in values.items() if v is not None and v > 0}


def _against(kinds: Sequence[Kind], logs: dict[Kind, dict[int, float]]) -> dict[Kind, Measured]:
    """The ratios of all kinds but the first to the first. Seeds that the first lacks have nothing to be paired with."""
    common = {k: [s for s in logs[k] if s in logs[kinds[0]]] for k in kinds}
    present = [k for k in kinds if common[k]]
    layout = fit_layout({(i, s): logs[k][s] for i, k in enumerate(present) for s in common[k]})
    found = {}
    for i, k in enumerate(present[1:], start=1):
        if isinstance(layout, str):
            (difference, *_) = [logs[k][s] - logs[kinds[0]][s] for s in common[k]]
            found[k] = Measured(math.exp(difference), None, None, 1, 0, "none: one common seed has no spread")
            continue
        weights = np.zeros(len(layout.sizes))
        weights[0], weights[i] = -1.0, 1.0
        text = f", pooled over the runs that ended with batch size {k.batch_size}"
        found[k] = dataclasses.replace(layout.contrast(weights).ratio(text=text), n=len(common[k]))
    return found
