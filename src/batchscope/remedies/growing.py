"""When should the batch grow during training, and to what size? Three rules, in plain numbers.

    on plateau              B -> factor B                   when the loss has not improved at `patience` looks
    with the noise scale    B -> times B_simple, smoothed   B_simple = tr(Sigma) / |G|^2, as measured
    power of the steps      B_t = B_0 (1 + t / t0)^c        t optimiser steps

*On plateau*: where a schedule would lower the learning rate, the batch grows by as much instead: the noise of SGD goes
as eta / B (Smith et al. 2018). *With the noise scale*: a batch of B_simple has as much noise as signal (McCandlish et
al. 2018, 2.2), and B_simple grows as the loss falls; Naganuma et al. 2026 take B_simple / theta^2 with theta = 0.6,
smoothed by 0.9 over readings 100 steps apart, never smaller than before. *Power of the steps*: Merrill et al. 2025
(app. D) model the path of the local critical batch size as t^c, with c = 1/2; the 1, so that it begins at B_0, is ours.

A rule says what it wants; `fitted` and the limits of a controller make a batch size of it. The rules remember what they
have heard in plain numbers, for a checkpoint. `rate_factor` says what becomes of the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from batchscope.errors import UsageError

SCALES = ("linear", "square root", "held")


@dataclass(frozen=True)
class Seen:
    """What is known after a step; sizes are global, in examples."""

    step: int  # optimiser steps made
    batch_size: int
    first_batch_size: int
    unit: int  # the least by which the batch can grow
    loss: float = math.nan  # nan: not looked at
    noise_scale: float = math.nan  # B_simple; nan: not measured
    bound: bool = False  # the noise scale is at least that


class Rule(Protocol):
    """Which batch size the next step should have, by one rule."""

    name: ClassVar[str]

    @property
    def may_shrink(self) -> bool:
        """Whether what it wants counts where it is less than the batch size."""
        ...

    def wanted(self, seen: Seen) -> tuple[float, str] | None:
        """(examples, why), or None where the rule has nothing to say. Called after every step, in order."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...


@dataclass
class OnPlateau:
    """The batch is multiplied when the loss has not improved for so many looks; a look is a step with a finite loss.

    Attributes:
        patience: looks without a lower loss, after which it grows and the count begins anew. (5 is a guess.)
        factor: by which it grows; by one unit at least.
        least_gain: of the lowest loss so far, by which a look has to be lower. 0: any decrease.

    Give it validation losses, or training losses averaged over many batches: the lowest of single noisy ones is hard
    to beat, and the batch would grow too early.
    """

    patience: int = 5
    factor: float = 2.0
    least_gain: float = 0.0
    lowest: float | None = field(default=None, init=False)
    since: int = field(default=0, init=False)
    name: ClassVar[str] = "on plateau"
    may_shrink: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.patience >= 1, "patience of at least 1 look", self.patience, "patience=5")
        _check(self.factor > 1, "a factor above 1", self.factor, "factor=2")
        _check(0 <= self.least_gain < 1, "least_gain as a share from 0 to 1", self.least_gain, "least_gain=0")

    def wanted(self, seen: Seen) -> tuple[float, str] | None:
        """`factor` times the batch size, at the end of the patience."""
        if not math.isfinite(seen.loss):
            return None
        if self.lowest is None or seen.loss < self.lowest - self.least_gain * abs(self.lowest):
            self.lowest, self.since = seen.loss, 0
            return None
        self.since += 1
        if self.since < self.patience:
            return None
        self.since = 0
        why = f"the loss has not been below {self.lowest:.6g} for {_counted(self.patience, 'look')}"
        return max(self.factor * seen.batch_size, seen.batch_size + seen.unit), why

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss, and the looks since."""
        return {"lowest": self.lowest, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.lowest, self.since = state["lowest"], state["since"]


@dataclass
class WithNoiseScale:
    """The batch follows the gradient noise scale, smoothed over its readings.

    Attributes:
        times: B / B_simple. 1: as much noise as signal; Naganuma et al.: 1 / 0.6^2 = 2.8.
        smoothing: weight of what was read before; 0: the last reading alone. (0.9: Naganuma et al., 100 steps apart.)
        may_shrink: whether the batch may become smaller again.

    Readings x_1, x_2, .. are averaged as logarithms, since they are ratios and range over decades:

        log m_n = sum_i s^(n - i) log x_i / sum_i s^(n - i).

    (A reading of `NoiseMonitor` is itself a ratio of averages, tr(Sigma) over |G|^2.) A lower bound, which is what it
    gives where |G|^2 cannot be told from 0, counts only where it lies above m; what is not positive and finite, never.
    """

    times: float = 1.0
    smoothing: float = 0.9
    may_shrink: bool = False
    total: float = field(default=0.0, init=False)  # sum_i s^(n - i) log x_i
    weight: float = field(default=0.0, init=False)  # sum_i s^(n - i)
    name: ClassVar[str] = "with the noise scale"

    def __post_init__(self) -> None:
        _check(0 < self.times < math.inf, "a positive multiple of the noise scale", self.times, "times=1")
        _check(0 <= self.smoothing < 1, "smoothing from 0 to less than 1", self.smoothing, "smoothing=0.9")

    def wanted(self, seen: Seen) -> tuple[float, str] | None:
        """`times` the smoothed noise scale, where there is a reading."""
        if not (0 < seen.noise_scale < math.inf):
            return None
        value = math.log(seen.noise_scale)
        if seen.bound and self.weight and value <= self.total / self.weight:
            return None
        self.total = self.smoothing * self.total + value
        self.weight = self.smoothing * self.weight + 1
        smoothed = math.exp(self.total / self.weight)
        return self.times * smoothed, f"the noise scale is {'at least ' * seen.bound}{smoothed:.4g}, smoothed"

    def state_dict(self) -> dict[str, Any]:
        """The sums of the average."""
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.total, self.weight = state["total"], state["weight"]


@dataclass
class PowerOfSteps:
    """B_t = B_0 (1 + t / t0)^c, whatever the loss.

    T steps use about B_0 t0 / (c + 1) ((1 + T / t0)^(c + 1) - 1) examples, the path's integral.

    Attributes:
        t0: steps; the batch has grown by 2^c after so many.
        c: 1/2: Merrill et al. 2025, app. D.
    """

    t0: float
    c: float = 0.5
    name: ClassVar[str] = "power of the steps"
    may_shrink: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(0 < self.t0 < math.inf, "a positive number of steps t0", self.t0, "t0=1000")
        _check(0 < self.c < math.inf, "a positive exponent c", self.c, "c=0.5")

    def wanted(self, seen: Seen) -> tuple[float, str] | None:
        """The path's value at the next step."""
        size = seen.first_batch_size * (1 + seen.step / self.t0) ** self.c
        return size, f"the path is at {size:.4g} after {_counted(seen.step, 'step')}"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the path follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


BY_NAME: dict[str, type[OnPlateau] | type[WithNoiseScale]] = {
    rule.name: rule for rule in (OnPlateau, WithNoiseScale)
}  # what can be had without parameters


def fitted(wanted: float, *, unit: int, most: int | None = None) -> int:
    """The multiple of `unit` nearest to what is wanted (halves go up), at least one of it, at most `most`."""
    if most is not None:
        wanted = min(wanted, most)  # before rounding: it may be infinite
    size = max(1, math.floor(wanted / unit + 0.5)) * unit
    return min(size, most // unit * unit) if most is not None else size


def rate_factor(scale: str, times: float) -> float:
    """What the learning rate is multiplied by where the batch is `times` as large.

    "linear": SGD (Goyal et al. 2017); "square root": Adam and its like (Malladi et al. 2022), and Hoffer et al. 2017
    for SGD; "held": it stays, as where the batch grows instead of a decay (Smith et al. 2018).
    """
    return {"linear": times, "square root": math.sqrt(times), "held": 1.0}[scale]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _check(fine: bool, expected: str, came: object, instead: str) -> None:
    if not fine:
        raise UsageError(f"expected {expected}, got {came!r}: write {instead}")
