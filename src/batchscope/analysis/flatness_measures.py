"""Which numbers say how flat a point is, and where it lies? One name for each, the same in rows, claims and figures.

A measure of *flatness* is one that claim 10 is judged by. The box and the Hessian's own eigenvalues and trace change
where a network is rescaled without changing what it computes (Dinh et al. 2017); the adaptive ones do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import pooled
from batchscope.records import BoxSharpness, Measured, PointSharpness

EDGE = 2.0  # largest eigenvalue x learning rate at the edge of stability of plain gradient descent (Cohen et al. 2021)
SPACES = {"full": "full space", "subspace": "random subspace"}
LARGEST, SMALLEST, TRACE = "largest eigenvalue", "smallest eigenvalue", "trace"
ADAPTIVE, ADAPTIVE_EIGENVALUE, BATCH = "adaptive sharpness", "adaptive eigenvalue", "batch sharpness"
LARGEST_RATE, BATCH_RATE = "largest eigenvalue x learning rate", "batch sharpness x learning rate"
DISTANCE, RELATIVE = "distance from the initial weights", "relative distance"
TRAIN_LOSS = "training loss"
SCALE_FREE = (ADAPTIVE, ADAPTIVE_EIGENVALUE)  # unchanged where a network is rescaled (Kwon et al. 2021)

Reader = Callable[[PointSharpness], Measured | None]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Measure:
    """A number of a point: how it is called and read, whether it is compared on logs, whether it says how flat."""

    name: str
    of: Reader
    log: bool = True
    flatness: bool = False


def measures_of(points: Sequence[PointSharpness]) -> tuple[Measure, ...]:
    """Every measure that at least one point has, in reading order."""
    found = [*box_measures(points), *CURVATURES, *ENDS, *metric_measures(points)]
    return tuple(m for m in found if any(m.of(p) is not None for p in points))


def exact(value: float | None, why: str = "measured once, without an error of its own") -> Measured | None:
    """A single number as a value without an interval; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return Measured(value, None, None, 1, 0, f"none: {why}")


def times(m: Measured | None, factor: float | None) -> Measured | None:
    """A value and its interval times a positive number."""
    if m is None or factor is None or not factor > 0:
        return None
    ends = [None if v is None else factor * v for v in (m.estimate, m.low, m.high)]
    return replace(m, estimate=ends[0], low=ends[1], high=ends[2])


# --- boxes ---


def boxes_of(point: PointSharpness) -> list[BoxSharpness]:
    """The full space and the larger box first."""
    return sorted(point.boxes, key=lambda b: (b.space, -b.epsilon))


def box_name(space: str, epsilon: float) -> str:
    """`sharpness (box, full space, eps 0.001)`."""
    return f"sharpness (box, {SPACES.get(space, space)}, eps {epsilon:g})"


def box_measures(points: Sequence[PointSharpness]) -> list[Measure]:
    """A measure for each space and epsilon, the full space and the larger box first."""
    kinds = {(b.space, b.epsilon) for p in points for b in boxes_of(p)}

    def reader(space: str, epsilon: float) -> Reader:
        def read(point: PointSharpness) -> Measured | None:
            box = next((b for b in boxes_of(point) if (b.space, b.epsilon) == (space, epsilon)), None)
            return None if box is None else exact(box.percent, "the highest point that was found, a lower bound")

        return read

    ordered = sorted(kinds, key=lambda kind: (kind[0], -kind[1]))
    return [Measure(box_name(s, e), reader(s, e), flatness=True) for s, e in ordered]


# --- the rest ---

CURVATURES = (
    Measure(LARGEST, lambda p: p.largest_eigenvalue, flatness=True),
    Measure(SMALLEST, lambda p: p.smallest_eigenvalue, log=False),
    Measure(TRACE, lambda p: p.trace, flatness=True),
    Measure(ADAPTIVE, lambda p: exact(p.adaptive_sharpness, "the highest point that was found"), flatness=True),
    Measure(ADAPTIVE_EIGENVALUE, lambda p: p.adaptive_eigenvalue, flatness=True),
    Measure(BATCH, lambda p: p.batch_sharpness),
    Measure(LARGEST_RATE, lambda p: times(p.largest_eigenvalue, p.learning_rate)),
    Measure(BATCH_RATE, lambda p: times(p.batch_sharpness, p.learning_rate)),
)
ENDS = (
    Measure(DISTANCE, lambda p: exact(p.distance) if p.distance > 0 else None),
    Measure(RELATIVE, lambda p: exact(p.distance / p.initial_norm) if p.distance > 0 and p.initial_norm > 0 else None),
    Measure("gradient norm", lambda p: exact(p.gradient_norm) if p.gradient_norm > 0 else None),
    Measure(TRAIN_LOSS, lambda p: exact(p.loss)),
)


def metric_measures(points: Sequence[PointSharpness]) -> list[Measure]:
    """The task's metrics over the training examples of f, the validation set and the test set, on their raw scale."""
    parts: tuple[tuple[str, Callable[[PointSharpness], dict[str, float]]], ...] = (
        ("training", lambda p: {k: v for k, v in p.metrics.items() if k != "loss"}),
        ("validation", lambda p: p.validation),
        ("test", lambda p: p.test or {}),
    )

    def reader(of: Callable[[PointSharpness], dict[str, float]], metric: str) -> Reader:
        return lambda p: exact(of(p).get(metric))

    return [
        Measure(f"{part} {metric}", reader(of, metric), log=metric == "loss")
        for part, of in parts
        for metric in dict.fromkeys(name for p in points for name in of(p))
    ]


# --- over seeds ---


def over_seeds(measure: Measure, arms: Mapping[K, Sequence[PointSharpness]]) -> dict[K, Measured]:
    """`pooled` over the arms: on logs, or on the raw scale where the measure, or one value, is not positive.

    With one seed each there is no spread to pool: a value then keeps its estimator's own interval.
    """
    found = {k: [m for p in arm if (m := measure.of(p)) is not None] for k, arm in arms.items()}
    if all(len(values) < 2 for values in found.values()):
        return {k: _one_seed(values) for k, values in found.items()}
    values = {k: [Value(m.estimate) for m in ms if m.estimate is not None] for k, ms in found.items()}
    log = measure.log and all(v.value > 0 for vs in values.values() for v in vs)
    return pooled(values, log)


def _one_seed(values: Sequence[Measured]) -> Measured:
    if not values:
        return Measured(None, None, None, 0, 0, "none: no seed gave a value")
    (m,) = values
    own = m.low is not None or m.high is not None
    text = f"{m.interval}; one seed, whose spread is not in it"
    return replace(m, interval=text if own else "none: one seed per batch size has no spread")
