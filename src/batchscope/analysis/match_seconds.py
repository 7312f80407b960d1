"""How many seconds does a step with a remedy take, on one device and on several, and how many to the goal?

    seconds to goal = steps to goal x seconds per step,        both errors in quadrature on the log scale

On one device, seconds per step were timed with the remedy. On n devices they are those of a plain step there, measured
or predicted from a stored `scale` (`scaling.Predictor`), times the remedy's ratio to a plain step on one device: what a
remedy adds is taken to shrink with each device's share of the batch, as the plain step does (an assumption).

Where the batch grows, step t takes about a + b B_t seconds: S steps with E examples take a S + b E. The line goes
through plain steps of the own batch size b0 and of the largest B, so that a step of the mean batch m = E / S takes

    (1 - w) t(b0) + w t(B),        w = (m - b0) / (B - b0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from batchscope.analysis.quantities import typical_reference
from batchscope.analysis.scaling import Predictor
from batchscope.analysis.step_time import by_size, inverse, scaled, whole_steps
from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import of_rounds, pooled, product
from batchscope.records import NO_REMEDY, MatchData, Measured

Array = np.ndarray


class MatchSeconds:
    """Seconds per step of every remedy at every batch size that was timed."""

    def __init__(self, data: MatchData) -> None:
        self.own = data.question.own_batch_size
        self.windows = windows_of(data)
        self.predictor = None
        if data.scaling is not None:
            self.predictor = Predictor(data.scaling.timing, data.scaling.question.network)

    def per_step(self, remedy: str, batch_size: int, devices: int = 1) -> Measured | None:
        """Seconds of a whole step; None where nothing can be said of them."""
        if devices == 1:
            windows = self.windows.get((remedy, batch_size))
            return None if windows is None else of_rounds(windows)
        if self.predictor is None or not self.predictor.can(devices, batch_size):
            return None
        plain, _ = self.predictor.seconds(devices, batch_size)
        if remedy == NO_REMEDY:
            return plain
        ratio = self.ratio((remedy, batch_size), (NO_REMEDY, batch_size))
        return None if ratio is None else product(plain, ratio)

    def ratio(self, above: tuple[str, int], below: tuple[str, int]) -> Measured | None:
        """Seconds of a step (remedy, batch size) over those of another, on one device: round by round where it can."""
        one, other = self.windows.get(above), self.windows.get(below)
        if one is None or other is None:
            return None
        if len(one) == len(other):
            return of_rounds(one / other, note=", paired ratios")
        return product(of_rounds(one), inverse(of_rounds(other), 1.0))

    def growing_step(self, mean_batch: float, batch_size: int, devices: int = 1) -> Measured | None:
        """Seconds per step of a run whose batch grows to `batch_size` and is `mean_batch` on average."""
        small, large = self.per_step(NO_REMEDY, self.own, devices), self.per_step(NO_REMEDY, batch_size, devices)
        if small is None or large is None or small.estimate is None or large.estimate is None:
            return None
        w = (mean_batch - self.own) / (batch_size - self.own) if batch_size != self.own else 1.0
        w = min(max(w, 0.0), 1.0)
        estimate = (1 - w) * small.estimate + w * large.estimate
        text = f"between steps of {self.own} and {batch_size} examples: {large.interval}"
        low, high = _most_off(small, large, "low", min), _most_off(small, large, "high", max)
        if low is None or high is None:
            return Measured(estimate, None, None, min(small.n, large.n), 0, text)
        return Measured(estimate, estimate * low, estimate * high, min(small.n, large.n), 0, text)

    def growing_to_goal(
        self, steps: Sequence[Value], examples: Sequence[Value], batch_size: int, devices: int = 1
    ) -> Measured | None:
        """Seconds to goal of a run whose batch grows, from each seed's own steps and examples to goal."""
        pairs = list(zip(steps, examples, strict=True))
        each = [self.growing_step(e.value / s.value, batch_size, devices) for s, e in pairs]
        known = [m.estimate for m in each if m is not None and m.estimate is not None]
        if not pairs or len(known) < len(pairs) or each[0] is None or each[0].estimate is None:
            return None
        values = [Value(s.value * t, s.censored) for (s, _), t in zip(pairs, known, strict=True)]
        relative = scaled(each[0], 1 / each[0].estimate)  # the error of timing, which all seeds share
        return product(pooled({0: values}, log=True)[0], relative)


def _most_off(a: Measured, b: Measured, end: str, most: Callable[[float, float], float]) -> float | None:
    """The end of an interval over its estimate, whichever of the two is further off."""
    ends = [getattr(m, end) for m in (a, b)]
    if None in ends or not a.estimate or not b.estimate:
        return None
    return most(ends[0] / a.estimate, ends[1] / b.estimate)


def windows_of(data: MatchData) -> dict[tuple[str, int], Array]:
    """Seconds per step of every round, by (remedy, batch size); drift divided out by the reference that all share."""
    if not data.timings:
        return {}
    first = data.timings[0].timing
    everything = tuple(step for t in data.timings for step in t.timing.timings)
    typical = typical_reference(
        dataclasses.replace(first, timings=everything, drift=max(t.timing.drift for t in data.timings))
    )
    return {(t.remedy, s.batch_size): whole_steps(s, typical) for t in data.timings for s in by_size(t.timing)}
