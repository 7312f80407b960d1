"""What if the batch size, or the pace of the schedule, changes during a trial? Somebody is asked before each step.

A trial without one has a batch size, and a schedule that makes a step when the optimiser does. With a `Control` both
are its own: it says how many examples the next step takes, and moves the schedule. An epoch is one permutation of the
data all the same, and ends with a shorter batch where it does not divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from batchscope.task import Batch, Task


class Control(Protocol):
    """Decides during a trial. What it remembers is in its `state_dict`, so that a trial resumes bit for bit."""

    @property
    def batch_size(self) -> int:
        """Examples of the next step; an epoch's last one may have fewer, or one more where one would be left alone."""
        ...

    def complete(self, batch: Batch) -> None:
        """The step's gradient is complete, not yet clipped; weights, gradients and generators stay as they are."""
        ...

    def stepped(self, examples: int) -> None:
        """The optimiser has made a step with so many examples. It moves the schedule and the learning rates."""
        ...

    def looked(self, validation_loss: float) -> None:
        """There has been an evaluation, after `stepped`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that its later decisions depend on, the schedule's state included; readable without pickle."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that wrote the state would have."""
        ...


@dataclass(frozen=True)
class Controlled:
    """What a control is made with, before the trial's first step."""

    task: Task
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer  # at the arm's learning rate
    batch_size: int  # the arm's
    budget_examples: int  # of the trial
    seed: int

    def schedule(self, total_steps: int) -> Any:
        """The task's schedule over so many steps; None where it has none."""
        return self.task.schedule(self.optimizer, total_steps) if self.task.schedule is not None else None


MakeControl = Callable[[Controlled], Control]
