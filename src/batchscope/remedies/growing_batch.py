"""What if the batch begins small and grows to the large one during training? The controller's rules as a remedy.

The first step has the baseline's batch; the learning rate, and the schedule, are the baseline's, and move as the batch
grows up to the large one (`controller.py`; the rules and their sources: `growing.py`). Nothing else changes. A trial
takes more steps than one of the large batch throughout: what it saves is counted in its own steps.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from batchscope.errors import UsageError
from batchscope.measure.in_trial import TrialNoise, why_not_measured
from batchscope.remedies.base import Case, Remedy, optimizer_of
from batchscope.remedies.controller import BatchSizeController
from batchscope.remedies.growing import SCALES, OnPlateau, PowerOfSteps, Rule, WithNoiseScale
from batchscope.task import Batch, Task
from batchscope.training.control import Control, Controlled, MakeControl
from batchscope.training.loop import steps_within

RULES = (WithNoiseScale.name, OnPlateau.name, PowerOfSteps.name)
EXPONENT = 0.5  # Merrill et al. 2025, app. D
AUTOMATIC = "by the optimiser"


def path_to(most: float, first: float, examples: float, c: float = EXPONENT) -> PowerOfSteps:
    """The path B_0 (1 + t / t0)^c that arrives at `most` when so many examples have been used.

    T steps use E = B_0 t0 / (c + 1) ((1 + T / t0)^(c + 1) - 1) examples; at the end (1 + T / t0)^c = k = most / B_0:

        t0 = (c + 1) E / (B_0 (k^((c + 1) / c) - 1))
    """
    times = most / first
    return PowerOfSteps(t0=(c + 1) * examples / (first * (times ** ((c + 1) / c) - 1)), c=c)


class GrowingControl:
    """A `training.control.Control` that asks a `BatchSizeController`.

    The rule hears the validation loss after each evaluation, and the noise scale after each measurement.
    """

    def __init__(self, made: Controlled, rule: Rule, first: int, scale: str) -> None:
        steps = steps_within(made.budget_examples, made.task.train_size, first)
        self.controller = BatchSizeController(
            made.optimizer,
            batch_size=first,
            most=made.batch_size,
            rule=rule,
            scale=scale,
            scheduler=made.schedule(steps),
        )
        self.noise: TrialNoise | None = None
        if isinstance(rule, WithNoiseScale):
            self.noise = TrialNoise(made.task, made.model, made.optimizer)
        self._loss: float | None = None  # of an evaluation that the rule has not heard of
        self._measured = False  # the step that is being made

    @property
    def batch_size(self) -> int:
        """Examples of the next step."""
        return self.controller.batch_size

    def complete(self, batch: Batch) -> None:
        """The step's gradient is there to be measured."""
        self._measured = self.noise is not None and self.noise.step(batch)

    def stepped(self, examples: int) -> None:
        """Tell the controller what is known."""
        scale = self.noise.scale if self.noise is not None and self._measured else None
        self.controller.step(loss=self._loss, noise_scale=scale, examples=examples)
        self._loss = None

    def looked(self, validation_loss: float) -> None:
        """For the rule to hear after the next step."""
        self._loss = validation_loss
        if self.noise is not None:
            self.noise.arm()

    def state_dict(self) -> dict[str, Any]:
        """The controller's, the schedule's and the measurements'."""
        scheduler = self.controller.scheduler
        return {
            "controller": self.controller.state_dict(),
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "noise": self.noise.state_dict() if self.noise is not None else None,
            "loss": self._loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self.controller.scheduler is not None:
            self.controller.scheduler.load_state_dict(state["scheduler"])
        self.controller.load_state_dict(state["controller"])
        if self.noise is not None:
            self.noise.load_state_dict(state["noise"])
        self._loss = state["loss"]


@dataclass(frozen=True)
class GrowingBatch(Remedy):
    """From the baseline's batch size to the large one.

    Attributes:
        rule: one of RULES. "power of the steps" arrives at the large batch with the last example.
        scale: of the learning rate with the batch, as in `BatchSizeController`; or by the optimiser:
            linear for torch's SGD, the square root for others; "on plateau" held: the batch grows instead of a decay.
    """

    title: ClassVar[str] = "growing batch"
    source: ClassVar[str] = "smith2018"
    also: ClassVar[tuple[str, ...]] = ("mccandlish2018", "merrill2025")
    changes: ClassVar[str] = (
        "The batch begins as the baseline's and grows towards the large one; the learning rate grows with it, but on "
        "plateau."
    )
    cost: ClassVar[str] = "More steps than the large batch throughout; with the noise scale, a measured step in four."
    sets: ClassVar[tuple[str, ...]] = ("batch size", "learning rate")

    rule: str = WithNoiseScale.name
    scale: str = AUTOMATIC

    def __post_init__(self) -> None:
        for field, known in (("rule", RULES), ("scale", (*SCALES, AUTOMATIC))):
            if getattr(self, field) not in known:
                names = ", ".join(map(repr, known))
                raise UsageError(f"expected a {field} of {names}, got {getattr(self, field)!r}: choose one of these")

    def why_not(self, task: Task, case: Case) -> str | None:
        """There is nowhere to grow to, or what decides cannot be seen."""
        if case.own_batch_size >= case.batch_size:
            return f"expected a batch larger than the baseline's {case.own_batch_size}, got {case.batch_size}"
        if task.shard:
            return "expected whole weights, got shard=True: leave the growing batch out"
        reason = why_not_measured(task) if self.rule == WithNoiseScale.name else None
        return f"expected steps that can be measured in parts, got {reason}: take another rule" if reason else None

    def apply(self, task: Task, case: Case) -> Task:
        """The task as it is, at the baseline's learning rate: that of the first batch."""
        return dataclasses.replace(task, lr=case.own_learning_rate)

    def control(self, task: Task, case: Case) -> MakeControl:
        """Who makes it grow."""
        scale = self._scale(task)

        def make(made: Controlled) -> Control:
            return GrowingControl(made, self._rule(made, case.own_batch_size), case.own_batch_size, scale)

        return make

    def _rule(self, made: Controlled, first: int) -> Rule:
        if self.rule == PowerOfSteps.name:
            return path_to(made.batch_size, first, made.budget_examples)
        return OnPlateau() if self.rule == OnPlateau.name else WithNoiseScale()

    def _scale(self, task: Task) -> str:
        if self.scale != AUTOMATIC:
            return self.scale
        if self.rule == OnPlateau.name:
            return "held"
        return "linear" if isinstance(optimizer_of(task), torch.optim.SGD) else "square root"


REMEDIES = (GrowingBatch(),)
