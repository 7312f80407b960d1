"""At which learning rate does a batch k times as large train alike? Linear and square-root scaling, warmed up.

    linear          lr' = k lr          k small steps add up to one large one, as long as the gradient hardly changes
                                        meanwhile (Goyal et al. 2017; Krizhevsky 2014)
    square root     lr' = sqrt(k) lr    the covariance of a step, lr^2 Sigma / B, stays what it was (Hoffer et al. 2017)

Neither is safe over a wide range: both hold well below the critical batch size only. They say where tuning begins.

Gradual warm-up (Goyal et al. 2017, section 2.2): the rate rises in equal parts, step by step, from that of the small
batch to that of the large one over the first 5 epochs, since the gradient changes most when training begins. It is
counted in examples, and never longer than a share of the training. The task's own schedule goes on beneath it: the rate
is the schedule's times a factor that rises from 1 / k (or 1 / sqrt(k)) to 1 and stays there; a schedule with a warm-up
of its own is thus warmed up twice. torch's SGD keeps the rate out of its velocity, so that a rising rate needs no
correction of the momentum (their section 3, remark 2).
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from batchscope.remedies.base import Case, Remedy
from batchscope.task import Task
from batchscope.training.loop import steps_within

WARM_UP_EPOCHS = 5.0  # Goyal et al. 2017, section 2.2
WARM_UP_SHARE = 0.1  # of the training at most (a guess; theirs was 5 of 90 epochs)


def linear(rate: float, times: float) -> float:
    """k lr."""
    return times * rate


def square_root(rate: float, times: float) -> float:
    """sqrt(k) lr."""
    return math.sqrt(times) * rate


class WarmUp:
    """Another schedule's learning rates, times a factor that rises linearly to 1 over the first steps.

    Use it as any scheduler: made before the first step, `step()` after each. Step t (from 0) is made at the rate

        inner rate x (first + (1 - first) t / steps)   while t < steps,   the inner rate from then on.

    Args:
        optimizer: its rates, as they are now or as `inner` leaves them, are what the factor applies to.
        steps: of warm-up; 0: none.
        first: the factor at the first step, above 0.
        inner: the scheduler beneath, made on the same optimiser; None: constant rates.

    The rates without the factor are kept aside and put back for `inner`, which may compute one rate from the last.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, first: float, inner: Any = None) -> None:
        self.optimizer, self.steps, self.first, self.inner, self.done = optimizer, steps, first, inner, 0
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._set(self.factor)

    @property
    def factor(self) -> float:
        """What the rates are multiplied by at the coming step."""
        return self.first + (1 - self.first) * self.done / self.steps if self.done < self.steps else 1.0

    def step(self) -> None:
        """After each step of the optimiser."""
        self._set(None)
        if self.inner is not None:
            self.inner.step()
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.done += 1
        self._set(self.factor)

    def get_last_lr(self) -> list[float]:
        """The rates of the coming step, one for each parameter group."""
        return [self.factor * rate for rate in self.rates]

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, the inner scheduler's state included."""
        inner = self.inner.state_dict() if self.inner is not None else None
        return {"steps": self.steps, "first": self.first, "done": self.done, "rates": self.rates, "inner": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the scheduler would have that wrote the state; the optimiser's own state is loaded by itself."""
        self.steps, self.first, self.done = state["steps"], state["first"], state["done"]
        self.rates = list(state["rates"])
        if self.inner is not None:
            self.inner.load_state_dict(state["inner"])

    def _set(self, factor: float | None) -> None:
        """Write the rates into the optimiser, times the factor; None: as they are."""
        put_rates(self.optimizer, [rate if factor is None else factor * rate for rate in self.rates])


def put_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Write a learning rate into each parameter group; where one is a tensor, it stays that tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def warmed_up(
    task: Task, case: Case, first: float, epochs: float, share: float
) -> Callable[[torch.optim.Optimizer, int], Any]:
    """The task's schedule, or a constant rate, with a warm-up of so many epochs, or a share of the steps if fewer."""
    wanted = steps_within(round(epochs * case.train_size), case.train_size, case.batch_size)

    def schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> WarmUp:
        inner = task.schedule(optimizer, total_steps) if task.schedule is not None else None
        return WarmUp(optimizer, min(wanted, round(share * total_steps)), first, inner)

    return schedule


@dataclass(frozen=True)
class _Scaling(Remedy):
    """A rule for the learning rate, with gradual warm-up from the small batch's.

    Attributes:
        warm_up_epochs: how long it is, in epochs.
        warm_up_share: the largest share of the training's steps that it takes.
    """

    sets: ClassVar[tuple[str, ...]] = ("learning rate",)
    cost: ClassVar[str] = "Nothing per step; the warm-up's epochs are trained at lower rates."

    warm_up_epochs: float = WARM_UP_EPOCHS
    warm_up_share: float = WARM_UP_SHARE

    @abstractmethod
    def factor(self, case: Case) -> float:
        """What the baseline's learning rate is multiplied by."""

    def why_not(self, task: Task, case: Case) -> str | None:
        """A warm-up of less than nothing, or of more than all, has no meaning."""
        if self.warm_up_epochs >= 0 and 0 <= self.warm_up_share <= 1:
            return None
        return (
            f"{self.title} expects a warm-up of at least 0 epochs and a share from 0 to 1, got {self.warm_up_epochs:g} "
            f"and {self.warm_up_share:g}: leave them at their defaults"
        )

    def apply(self, task: Task, case: Case) -> Task:
        """The task at the scaled rate, its schedule warmed up where the rate has grown."""
        factor = self.factor(case)
        rate = factor * case.own_learning_rate
        if factor <= 1 or self.warm_up_epochs == 0 or self.warm_up_share == 0:
            return dataclasses.replace(task, lr=rate)
        schedule = warmed_up(task, case, 1 / factor, self.warm_up_epochs, self.warm_up_share)
        return dataclasses.replace(task, lr=rate, schedule=schedule)


@dataclass(frozen=True)
class LinearScaling(_Scaling):
    """Goyal et al. 2017, for SGD."""

    title: ClassVar[str] = "linear scaling"
    source: ClassVar[str] = "goyal2017"
    also: ClassVar[tuple[str, ...]] = ("krizhevsky2014",)
    changes: ClassVar[str] = "The learning rate grows with the batch size, after a gradual warm-up."

    def factor(self, case: Case) -> float:
        """k."""
        return linear(1.0, case.times)


@dataclass(frozen=True)
class SquareRootScaling(_Scaling):
    """Hoffer et al. 2017, after Krizhevsky 2014, who derives it and trains with the linear one. Same warm-up."""

    title: ClassVar[str] = "square-root scaling"
    source: ClassVar[str] = "hoffer2017"
    also: ClassVar[tuple[str, ...]] = ("krizhevsky2014", "goyal2017")
    changes: ClassVar[str] = "The learning rate grows with the square root of the batch size, after a gradual warm-up."

    def factor(self, case: Case) -> float:
        """sqrt(k)."""
        return square_root(1.0, case.times)


REMEDIES = (LinearScaling(), SquareRootScaling())
