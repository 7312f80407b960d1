"""What if the learning rate follows the gain, measured inside the trial? AdaScale as a remedy; `gain.py` is the rule.

A trial begins at the small batch's learning rate and multiplies it by the gain r; the task's schedule is made for the
steps that the small batch would make with the trial's examples, and moves r of them at a step. Where r < S, it does not
get to its end: AdaScale trains on until it does, and at equal examples that is what it costs.

Measured are the two halves of a batch, by one more backward pass (`halves.py`), or the micro-batches of a step that has
several. READINGS of them fall into what the averages cover, MEMORY / S steps: one step in 7 at S = 8, in 3 at S = 16,
every one from S = 32 on, and every one of a trial's first 2 READINGS. A measured step takes 1.4 to 1.9 plain ones (the
built-in networks on one core; 2.4 on digits, where a step takes 0.3 ms, and more on noisy-quadratic). What is measured
depends on the trial's state alone, never on a clock.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from batchscope.measure.in_trial import HalvesOfSteps, why_not_measured
from batchscope.remedies.base import Case, Remedy, optimizer_of
from batchscope.remedies.gain import AdaScale, power_of
from batchscope.task import Batch, Task
from batchscope.training.control import Control, Controlled, MakeControl
from batchscope.training.loop import steps_within


class AdaScaleControl:
    """A `training.control.Control`: what is measured in a step decides on the learning rate of the next.

    An epoch's last, short batch is not measured, and made at the gain of a batch of its size.
    """

    def __init__(self, made: Controlled, small_batch_size: int, power: float | None) -> None:
        self.batch_size, self.train_size = made.batch_size, made.task.train_size
        self.whole, small = min(self.batch_size, self.train_size), min(small_batch_size, self.train_size)
        steps = steps_within(made.budget_examples, self.train_size, small)
        self.scheduler = made.schedule(steps)
        self.rule = AdaScale(
            made.optimizer,
            batch_size=self.whole,
            small_batch_size=small,
            scheduler=self.scheduler,
            total_steps=steps,
            power=power,
        )
        self.measuring = HalvesOfSteps(made.task, made.model, made.optimizer)
        self.examples = 0
        self._found: tuple[float, float] | None = None  # in the step that is being made
        self._arm()

    def complete(self, batch: Batch) -> None:
        """Read what the step shows, if it is measured."""
        self._found = self.measuring.read(batch)

    def stepped(self, examples: int) -> None:
        """Tell the rule; put hooks in if the coming step is to be measured."""
        self.examples += examples
        trace, squared = self._found if self._found is not None else (None, None)
        self._found = None
        self.rule.step(trace=trace, squared_gradient=squared, following=self._following)
        self._arm()

    def looked(self, validation_loss: float) -> None:
        """Whatever passes an evaluation made through the model are forgotten."""
        self._arm()

    @property
    def _following(self) -> int:
        """Examples of the coming step."""
        return min(self.batch_size, self.train_size - self.examples % self.train_size)

    def _arm(self) -> None:
        if self.rule.due and self._following == self.whole:
            self.measuring.arm()

    def state_dict(self) -> dict[str, Any]:
        """The rule's, the schedule's, and what the measurements go on from."""
        schedule = self.scheduler.state_dict() if self.scheduler is not None else None
        return {
            "rule": self.rule.state_dict(),
            "scheduler": schedule,
            "measuring": self.measuring.state_dict(),
            "examples": self.examples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.rule.load_state_dict(state["rule"])
        self.measuring.load_state_dict(state["measuring"])
        self.examples, self._found = state["examples"], None
        self._arm()


@dataclass(frozen=True)
class AdaScaled(Remedy):
    """Johnson et al. 2020, from the baseline's learning rate and schedule.

    Attributes:
        power: of the gain, in the learning rate; None: 1 for SGD, 1/2 for Adam and its like.
    """

    title: ClassVar[str] = "AdaScale"
    source: ClassVar[str] = "johnson2020"
    also: ClassVar[tuple[str, ...]] = ("qiao2021",)
    changes: ClassVar[str] = (
        "The learning rate grows with the measured gain of a large batch's step, and the schedule moves by it."
    )
    cost: ClassVar[str] = (
        "One more backward pass in measured steps: one in three at a batch 16 times as large, all from 32 times on."
    )
    sets: ClassVar[tuple[str, ...]] = ("learning rate",)

    power: float | None = None

    def why_not(self, task: Task, case: Case) -> str | None:
        """An optimiser without a known power, or steps that cannot be measured in parts."""
        if self.power is not None and not self.power > 0:
            return f"{self.title} expects a positive power of the gain, got {self.power:g}: leave it out"
        if min(case.batch_size, task.train_size) < 2:
            return f"{self.title} expects batches of at least 2 examples, to compare their halves, got 1"
        if task.shard:
            return f"{self.title} expects whole weights, to measure the gradient noise, got shard=True"
        optimizer = optimizer_of(task)
        if self.power is None and power_of(optimizer) is None:
            return (
                f"{self.title} expects torch's SGD or Adam, whose power of the gain is known, got "
                f"{type(optimizer).__name__}: give the power"
            )
        reason = why_not_measured(task)
        return f"{self.title} expects steps that can be measured in parts, got {reason}" if reason else None

    def apply(self, task: Task, case: Case) -> Task:
        """The task at the baseline's learning rate, which the gain multiplies."""
        return dataclasses.replace(task, lr=case.own_learning_rate)

    def control(self, task: Task, case: Case) -> MakeControl:
        """Who measures the gain, and sets the rate by it."""

        def make(made: Controlled) -> Control:
            return AdaScaleControl(made, case.own_batch_size, self.power)

        return make


REMEDIES = (AdaScaled(),)
