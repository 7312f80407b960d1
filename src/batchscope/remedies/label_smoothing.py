"""Does a large batch train better towards softer targets? Label smoothing (Szegedy et al. 2016).

The cross-entropy is taken against (1 - s) of the target and s / K of each of the K classes, while training only: the
task is evaluated by its own loss. Shallue et al. 2019 needed it for ResNet-50 on ImageNet beyond a batch of 2^14.

It is defined for torch's cross-entropy; what another loss would have to smooth is not known here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from batchscope.remedies.base import Case, Remedy
from batchscope.task import Batch, Task
from batchscope.training.step import evaluation_of

SMOOTHING = 0.1  # Szegedy et al. 2016, section 7


def smoothed(loss: Any, smoothing: float) -> Any:
    """The same cross-entropy, (output, target) -> loss, with label smoothing; None for a loss that is not torch's.

    `loss`: `F.cross_entropy`, or an `nn.CrossEntropyLoss`, whose weights and ignored target are kept.
    """
    if loss is F.cross_entropy:
        return lambda output, target: F.cross_entropy(output, target, label_smoothing=smoothing)
    if type(loss) is torch.nn.CrossEntropyLoss:
        return lambda output, target: F.cross_entropy(
            output,
            target,
            weight=loss.weight,
            ignore_index=loss.ignore_index,
            reduction=loss.reduction,
            label_smoothing=smoothing,
        )
    return None


@dataclass(frozen=True)
class LabelSmoothing(Remedy):
    """Smoothed targets in training.

    Attributes:
        smoothing: s.
    """

    title: ClassVar[str] = "label smoothing"
    source: ClassVar[str] = "szegedy2016"
    also: ClassVar[tuple[str, ...]] = ("shallue2019",)
    changes: ClassVar[str] = "The training loss is the cross-entropy with smoothed targets; evaluations are as before."
    cost: ClassVar[str] = "Nothing."
    sets: ClassVar[tuple[str, ...]] = ("loss",)

    smoothing: float = SMOOTHING

    def why_not(self, task: Task, case: Case) -> str | None:
        """A step of the task's own, another loss, or one that is smoothed already."""
        if not 0 < self.smoothing < 1:
            return f"{self.title} expects a share between 0 and 1, got {self.smoothing:g}: leave it at {SMOOTHING:g}"
        if task.step is not None:
            return f"{self.title} expects loss=F.cross_entropy, got a step function, whose loss it cannot see into"
        if smoothed(task.loss, self.smoothing) is None:
            name = getattr(task.loss, "__qualname__", type(task.loss).__name__)
            return f"{self.title} expects torch's cross_entropy as the loss, got {name}: write loss=F.cross_entropy"
        if getattr(task.loss, "label_smoothing", 0.0) > 0:
            return f"{self.title} expects a loss without it, got one smoothed already: leave the remedy out"
        return None

    def apply(self, task: Task, case: Case) -> Task:
        """The task trained on the smoothed loss and evaluated on its own."""
        loss = smoothed(task.loss, self.smoothing)

        def step(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return loss(model(batch[0]), batch[1])

        return dataclasses.replace(task, step=step, evaluate=evaluation_of(task), lr=case.own_learning_rate)


REMEDIES = (LabelSmoothing(),)
