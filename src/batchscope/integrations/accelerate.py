"""What does an Accelerator say about the gradients of a loop of one's own? When a step's are complete, and how scaled.

    monitor = noise_monitor(accelerator, model, optimizer=optimizer)   # after accelerator.prepare
    ...
    accelerator.backward(loss)
    monitor.step(loss)                                                 # after every backward pass, before clipping
    ...
    print(monitor.report())

Only the call after a step's last backward pass counts, where `accelerator.sync_gradients` says that the gradients of
accumulated micro-batches and of all processes are together. Nothing of Accelerate is imported here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from batchscope.measure.gradients import Counts
from batchscope.measure.monitor import NoiseMonitor


class AcceleratedNoiseMonitor(NoiseMonitor):
    """A `NoiseMonitor` whose `step` is called in every micro-step."""

    def __init__(self, accelerator: Any, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **{"scaler": accelerator.scaler, **options})
        self.accelerator = accelerator
        self._told = 0  # examples of the micro-steps so far

    def step(
        self, loss: torch.Tensor | float | None = None, *, examples: int | None = None, counts: Counts = None
    ) -> None:
        """A backward pass is done: call after each `accelerator.backward`, before clipping and `optimizer.step`.

        Args:
            loss: of this micro-batch, as it was given to `accelerator.backward`.
            examples: in this micro-batch, of all processes; default: those of the measured steps.
            counts: as in `NoiseMonitor.step`; read in the last micro-step.
        """
        self._told += examples or 0
        if self.accelerator.sync_gradients:
            super().step(loss, examples=self._told or None, counts=counts)
            self._told = 0


def noise_monitor(accelerator: Any, model: nn.Module, **options: Any) -> AcceleratedNoiseMonitor:
    """A monitor of the gradient noise scale for a loop that calls `accelerator.backward`.

    Args:
        accelerator: the `accelerate.Accelerator` that prepared the model.
        model: as `accelerator.prepare` returned it.
        options: of `NoiseMonitor` (`optimizer=`, `every=`, ...); the loss scale of half precision is known.

    Raises UsageError and UnsupportedTask as `NoiseMonitor` does.
    """
    return AcceleratedNoiseMonitor(accelerator, model, **options)
