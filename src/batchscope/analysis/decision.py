"""Which batch size is best, how surely, and which others are as good? From draws of the objective at every point.

A *candidate* is a batch size at the learning rate with the least mean objective there. With draws V[d, c] of the log
objective of all candidates, jointly:

    P(best) of c    the share of draws in which V[d, c] is the least
    P(good) of c    the share in which V[d, c] <= least + log(1 + BAND)
    good sizes      those with P(good) > DOUBT: the data do not tell them from the best

Candidates beyond a size that fails are never assumed: each draw carries law, learning rate, misfit and the seconds.
V is charged for the chance that a run is lost, or needs more than the task's own budget (`search.charge`). What is
said of steps, examples, seconds and cost is of runs that are not lost; the chance that one is stands beside (`p_lost`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchscope.analysis.options import Option, draws_of
from batchscope.analysis.particles import Array
from batchscope.analysis.search import Point, View, charge, typical
from batchscope.analysis.target import effective_batch_size
from batchscope.records import Candidate, Measured, ParetoPoint, Tried

BAND, BAND_LOSS = 0.05, 0.01  # of the time, cost ... (design section 5); of a validation loss (a guess)
DOUBT = 0.05
LEVEL = 0.90  # of the intervals of an advice
MOST_DEVICES = 64  # that the Pareto front looks at
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Draws:
    """Draws at the candidates, each (N, candidates): logs of examples to goal, seconds per step, and the objective."""

    points: tuple[Point, ...]
    examples: Array
    seconds: Array
    lost: Array  # probability that a run is lost, or does not get to the goal within the task's budget
    objective: Array  # of runs that are not lost
    effective: Array  # (candidates,) log of the examples per step averaged over an epoch

    @property
    def values(self) -> Array:
        """What is compared: the objective, and the charge for being lost."""
        return self.objective + charge(self.lost)

    @property
    def steps(self) -> Array:
        """log steps to goal."""
        return self.examples - self.effective

    @property
    def total(self) -> Array:
        """log seconds to goal."""
        return self.steps + self.seconds


def candidate_points(view: View, fixed: Point | None = None) -> list[int]:
    """Index of the point with the least mean at every batch size, ascending; `fixed` stands for its batch size.

    Means as in `search`, but each batch size's own: however bad it is, its learning rate is the best for it.
    """
    at: dict[int, list[int]] = {}
    for k, (size, _) in enumerate(view.points):
        at.setdefault(size, []).append(k)
    best = {size: ks[int(np.argmin(typical(view.values[:, ks])))] for size, ks in at.items()}
    if fixed is not None:
        best[fixed[0]] = view.points.index(fixed)
    return [best[size] for size in sorted(best)]


def draws_at(
    view: View,
    chosen: Sequence[int],
    options: Mapping[int, Option],
    train_size: int,
    objective: str,
    loss: bool = False,
    seed: int = 0,
) -> Draws:
    """The draws at these points, the error of the seconds included."""
    rng = np.random.default_rng(seed + 2)
    points = tuple(view.points[k] for k in chosen)
    examples = view.examples[:, list(chosen)]
    median = np.array([math.log(options[b].seconds.estimate or math.nan) for b, _ in points])
    seconds = np.stack([draws_of(options[b].seconds, len(examples), rng) for b, _ in points], axis=1)
    timed = objective in ("time", "cost") and not loss
    objective = examples + view.weights[list(chosen)] + (seconds - median if timed else 0.0)
    effective = np.array([math.log(effective_batch_size(train_size, b)) for b, _ in points])
    return Draws(points, examples, seconds, view.lost[:, list(chosen)], objective, effective)


def chances(values: Array, band: float = BAND) -> tuple[Array, Array]:
    """(P(best), P(good)) of each candidate."""
    least = values.min(axis=1, keepdims=True)
    best = np.bincount(values.argmin(axis=1), minlength=values.shape[1]) / len(values)
    return best, np.mean(values <= least + math.log1p(band), axis=0)


def measured(logs: Array, n: int, censored: int = 0, about: str = "") -> Measured:
    """Median and central 90 % of draws of a logarithm."""
    tail = (1.0 - LEVEL) / 2
    low, middle, high = (float(np.exp(min(q, 700.0))) for q in np.quantile(logs, (tail, 0.5, 1.0 - tail)))
    return Measured(middle, low, high, n, censored, f"{LEVEL:.0%} posterior{about}")


def candidates_of(
    draws: Draws,
    options: Mapping[int, Option],
    trials: Sequence[Tried],
    *,
    price: float | None,
    own: Array,
    own_reached: bool,
    absolute: bool,
    loss: bool,
) -> tuple[Candidate, ...]:
    """Every candidate as a record. `own`: (N,) draws of the log objective at the user's own point.

    Where no run there reached (`own_reached`), the ratio to it has an upper end alone: how much longer it takes is not
    known.
    `absolute` is False where no run to the goal stands behind the values: then only ratios to the own point are given.
    `loss`: the objective is the log of the lowest validation loss, and nothing is known to a goal.
    """
    best, good = chances(draws.values, BAND_LOSS if loss else BAND)
    nothing = Measured(None, None, None, 0, 0, "none: no run to the goal stands behind it")
    found = []
    for c, (size, rate) in enumerate(draws.points):
        here = [t for t in trials if (t.batch_size, t.learning_rate) == (size, rate)]
        reached = sum(t.reached is not None for t in here)
        at_size = any(
            t.reached is not None or (loss and t.lowest_loss is not None) for t in trials if t.batch_size == size
        )
        n, censored = len(here), len(here) - reached

        def known(logs: Array, n: int = n, censored: int = censored) -> Measured:
            return measured(logs, n, censored) if absolute and not loss else nothing

        split = options[size].split
        hours = draws.total[:, c] + math.log((price or 1.0) * options[size].devices / SECONDS_PER_HOUR)
        joules = options[size].joules
        energy = None if joules is None or joules.estimate is None else math.log(joules.estimate)
        found.append(
            Candidate(
                batch_size=size,
                learning_rate=rate,
                micro_batch_size=split.micro_batch_size,
                accumulation=split.accumulation,
                devices=options[size].devices,
                steps_to_goal=known(draws.steps[:, c]),
                examples_to_goal=known(draws.examples[:, c]),
                seconds_per_step=options[size].seconds,
                seconds_to_goal=known(draws.total[:, c]),
                cost=known(hours),
                joules=None if energy is None else known(draws.examples[:, c] + energy),
                lowest_loss=measured(draws.objective[:, c], n) if loss else None,
                p_best=float(best[c]),
                p_good=float(good[c]),
                trials=n,
                reached=reached,
                extrapolated=not at_size,
                over_own=_over(measured(draws.objective[:, c] - own, n), own_reached or not absolute),
                p_lost=float(draws.lost[:, c].mean()),
            )
        )
    return tuple(found)


def _over(ratio: Measured, known: bool) -> Measured:
    """A ratio to the own point; its upper end alone where that is not known."""
    if known:
        return ratio
    return Measured(None, None, ratio.high, ratio.n, 1, f"{ratio.interval}; the own point did not reach the goal")


def pareto_front(
    candidates: Sequence[Candidate], seconds_at: Callable[[int, int], tuple[float, bool]], price: float
) -> list[ParetoPoint]:
    """The front of time against cost over candidates and device counts, powers of two up to MOST_DEVICES.

    `seconds_at(devices, batch_size)`: (seconds per step, whether they were measured).
    """
    points = []
    for c in candidates:
        steps = c.steps_to_goal.estimate
        if steps is None or c.seconds_per_step.estimate is None:
            continue
        for k in range(MOST_DEVICES.bit_length()):
            n = 2**k
            if n > c.batch_size:
                break
            seconds, timed = seconds_at(n, c.batch_size)
            total = steps * seconds
            points.append(ParetoPoint(c.batch_size, n, total, total * n * price / SECONDS_PER_HOUR, not timed))
    points.sort(key=lambda p: (p.cost, p.seconds_to_goal, p.devices))
    front: list[ParetoPoint] = []
    for point in points:
        if not front or point.seconds_to_goal < front[-1].seconds_to_goal:
            front.append(point)
    return front
