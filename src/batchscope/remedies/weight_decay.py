"""How strong must weight decay be at another batch size? As strong per example: the same averaging time in epochs.

A step multiplies the weights by 1 - lr lambda (torch's SGD and AdamW alike), so that they are an average over the last

    tau = 1 / (lr lambda) steps = B / (lr lambda N) epochs.

To keep tau in epochs at a batch k times as large, and at whatever learning rate lr' it is trained with,

    lambda' = k lambda lr / lr'.

At the same rate that is k lambda (found best by Bergsma et al. 2025, for AdamW and a fixed amount of data), under
linear scaling lambda itself, under square-root scaling sqrt(k) lambda.

Adam's own weight decay (not AdamW's) is divided by the second moment and has no such time; it is refused, as is
LAMB's, which is measured against the step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from batchscope.remedies.base import Case, Remedy, optimizer_of
from batchscope.task import Task


def averaging_epochs(lr: float, weight_decay: float, batch_size: int, train_size: int) -> float:
    """tau: epochs over which weight decay averages."""
    return batch_size / (lr * weight_decay * train_size)


def rescaled(weight_decay: float, times: float, own_lr: float, lr: float) -> float:
    """lambda' of a batch `times` as large, trained at `lr` in the place of `own_lr`."""
    return times * weight_decay * own_lr / lr


def rescale_weight_decay(optimizer: torch.optim.Optimizer, times: float, own_lr: float, lr: float) -> None:
    """Every parameter group's weight decay, in place; call it once, on an optimiser made at `lr`.

    It is in the optimiser's parameter groups, and thus in its state_dict.
    """
    for group in (*optimizer.param_groups, optimizer.defaults):
        group["weight_decay"] = rescaled(float(group["weight_decay"]), times, own_lr, lr)


@dataclass(frozen=True)
class WeightDecayRescaled(Remedy):
    """The same averaging time in epochs, whatever learning rate is tried."""

    title: ClassVar[str] = "weight decay rescaled"
    source: ClassVar[str] = "bergsma2025"
    changes: ClassVar[str] = "Weight decay averages the weights over as many epochs as at the small batch size."
    cost: ClassVar[str] = "Nothing."
    sets: ClassVar[tuple[str, ...]] = ("weight decay",)
    counts: ClassVar[bool] = True

    def why_not(self, task: Task, case: Case) -> str | None:
        """No weight decay, or one that does not multiply the weights."""
        optimizer = optimizer_of(task)
        decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        if not any(decays):
            return f"{self.title} expects an optimiser with weight decay, got a {type(optimizer).__name__} without"
        multiplies = isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW)) or all(
            group.get("decoupled_weight_decay", False) for group in optimizer.param_groups
        )
        if not multiplies:
            return (
                f"{self.title} expects SGD or AdamW, whose weight decay multiplies the weights, got "
                f"{type(optimizer).__name__}: use AdamW"
            )
        return None

    def apply(self, task: Task, case: Case) -> Task:
        """The task with its weight decay rescaled for each rate it is trained at; tuning begins at the baseline's."""

        def optimizer(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
            made = task.optimizer(model, lr)
            rescale_weight_decay(made, case.times, case.own_learning_rate, lr)
            return made

        return dataclasses.replace(task, optimizer=optimizer, lr=case.own_learning_rate)


REMEDIES = (WeightDecayRescaled(),)
