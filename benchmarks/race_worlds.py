"""What might the curves of a race look like? Losses against examples that cross, wobble, start late and diverge.

A world draws a task (how fast it is learnt, its noise, constant or decaying learning rates) and remedies about it. The
loss of a remedy at 2^x times its first rate, u the share of the run and p(u) the progress, the integral of the rates,

    L(u) = plateau + (start - plateau) (1 + speed 2^x p(u))^-alpha  +  floor 2^x rate(u)  +  overfitting beyond p = 1/2,

times evaluation noise that is correlated along the run, and a bump early in a run near the edge of stability. Large
rates are fast and end on a higher floor; with decaying rates the floor goes away, and they win late. Beyond the edge
runs diverge, mostly early. All ranges are guesses, chosen to be hard, and the same whatever the race does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchscope.records import Racer

BUDGET, CADENCE, BATCH = 96_000, 1000, 500  # examples
SPREAD = 0.05  # of log plateaus among remedies

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Remedy:
    """What is true of one remedy."""

    plateau: float
    alpha: float
    speed: float
    edge: float  # log2 of the rate, in first rates, from which runs diverge
    floor: float  # of loss, at the first rate
    warm_up: float  # share of the run
    overfitting: float


@dataclass(frozen=True)
class Curve:
    """A run to the end: its evaluations, and the first of them that is not finite, if there is one."""

    examples: Array
    losses: Array
    diverged: int | None

    @property
    def result(self) -> float:
        """The lowest loss; inf where it diverges."""
        return math.inf if self.diverged is not None else float(self.losses.min())

    def until(self, cap: int) -> tuple[tuple[tuple[int, float], ...], str]:
        """Losses up to a cap, evaluated there too, and the outcome."""
        n = int(np.searchsorted(self.examples, cap, side="right"))
        if self.diverged is not None and self.diverged < n:
            n = self.diverged + 1
            return (*self._pairs(n - 1), (int(self.examples[n - 1]), math.inf)), "diverged"
        return (*self._pairs(n), (cap, float(np.interp(cap, self.examples, self.losses)))), "not_reached"

    def _pairs(self, n: int) -> tuple[tuple[int, float], ...]:
        return tuple((int(x), float(y)) for x, y in zip(self.examples[:n], self.losses[:n], strict=True))


class World:
    """Curves of every remedy at every rate; equal seeds give equal worlds, and equal racers equal curves."""

    def __init__(self, seed: int, remedies: int) -> None:
        rng = np.random.default_rng([seed, remedies])
        self.seed, self.decays = [seed, remedies], bool(rng.integers(2))
        plateau, alpha = rng.uniform(0.1, 2.0), rng.uniform(0.4, 1.5)
        self.start = plateau * rng.uniform(2, 20)
        speed, edge = 10 ** rng.uniform(0.5, 2.5), rng.uniform(0.5, 3.5)
        floor = 0.2 * self.start * 10 ** rng.uniform(-3, -0.7)
        self.noise = 10 ** rng.uniform(-3, -1.7)
        self.remedies = {
            f"remedy {k}": Remedy(
                plateau=plateau * math.exp(SPREAD * rng.standard_normal()),
                alpha=alpha * math.exp(0.15 * rng.standard_normal()),
                speed=speed * math.exp(0.5 * rng.standard_normal()),
                edge=edge + 0.7 * rng.standard_normal(),
                floor=floor * math.exp(0.5 * rng.standard_normal()),
                warm_up=float(rng.choice([0.0, 0.0, 0.05, 0.1])),
                overfitting=float(rng.choice([0.0, 0.0, 0.1])) * rng.uniform(),
            )
            for k in range(remedies)
        }

    def curve(self, racer: Racer) -> Curve:
        """The whole run."""
        true, x = self.remedies[racer.remedy], math.log2(racer.learning_rate)
        rng = np.random.default_rng([*self.seed, int(racer.remedy.split()[1]), round(4 * x) + 100])
        u = np.arange(0, BUDGET + 1, CADENCE) / BUDGET
        rate = np.minimum(1.0, u / true.warm_up) if true.warm_up else np.ones_like(u)
        rate = rate * (1 - 0.95 * u) if self.decays else rate
        progress = 2**x * (np.cumsum(rate) - rate[0]) / len(u)
        loss = true.plateau + (self.start - true.plateau) * (1 + true.speed * progress) ** -true.alpha
        loss += true.floor * 2**x * rate * (u > 0)
        loss += true.overfitting * true.plateau * np.maximum(0.0, progress - 0.5)
        margin, diverged = true.edge - x, None
        if margin < 1:
            loss *= 1 + 0.5 * (1 - margin) * np.exp(-u / 0.05)
        if margin < 0:
            at = int(1 + rng.exponential(3 / min(1.0, -margin)))
            diverged = at if at < len(u) else None
        wobble = np.zeros(len(u))
        for i, z in enumerate(rng.standard_normal(len(u) - 1), 1):
            wobble[i] = 0.7 * wobble[i - 1] + 0.7 * z
        loss *= np.exp(self.noise * (wobble + 0.3 * rng.standard_normal()))
        return Curve(BUDGET * u, loss, diverged)
