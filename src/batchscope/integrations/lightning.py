"""How many seconds does an optimiser step take under Lightning's Trainer? Its events, told to a `StepMeter`.

    meter = bs.StepMeter(loop="Lightning")
    trainer = lightning.Trainer(callbacks=[StepMeterCallback(meter)], ...)

A *step* is an optimiser step: with `accumulate_grad_batches=k` it lasts from the beginning of its first micro-batch
to the end of its k-th. Its batch size is the sum of its micro-batches', each the first dimension of the batch's first
tensor, times the replicas of data-parallel training; or the meter's own `batch_size`, where one was given (for
batches whose first dimension is not examples).

The wait called "data" is what Trainer does between two optimiser steps: fetching, copying to the device, other
callbacks. What it waits for within an accumulated step is part of the step's seconds, not of that wait. Validation,
checkpoints and the change from one epoch to the next break the meter's window (Trainer does not tell its callbacks of
checkpoints with `save_weights_only=True`: their time counts).
"""

from __future__ import annotations

import sys
from typing import Any

from batchscope.errors import UsageError
from batchscope.measure.meter import StepMeter
from batchscope.training.batches import examples_in

LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")  # one code under two names, whose classes are not the same


class _Events:
    """The hooks of Lightning's `Callback` that a meter needs to hear."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter
        self._examples = 0  # of the step so far; 0 between steps
        self._optimizer_steps = 0  # that Trainer had made when the step began

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._break()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        examples = self._examples_in(trainer, batch)
        if self._examples == 0:
            self._optimizer_steps = trainer.global_step
            self.meter.begin(self.meter.batch_size or examples * trainer.accumulate_grad_batches)
        self._examples += examples

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._examples and trainer.global_step > self._optimizer_steps:
            self.meter.end(self.meter.batch_size or self._examples)
            self._examples = 0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.meter.discard_window()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.meter.discard_window()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._break()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._break()

    def _break(self) -> None:
        """The next batch begins a step."""
        self.meter.discard_window()
        self._examples = 0

    def _examples_in(self, trainer: Any, batch: Any) -> int:
        """Examples of this micro-batch, and of those that the other replicas work on at the same time."""
        if self.meter.batch_size is not None:
            return 1  # not asked for: the meter knows
        return examples_in(batch) * (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)


def StepMeterCallback(meter: StepMeter) -> Any:
    """A `Callback` for the Trainer of `lightning.pytorch` or of `pytorch_lightning`, whichever is loaded (or both).

    Raises UsageError where neither is.
    """
    bases = tuple(sys.modules[name].Callback for name in LIGHTNINGS if name in sys.modules)
    if not bases:
        raise UsageError(f"expected {' or '.join(LIGHTNINGS)} to be imported, got neither: import yours first")
    return type("StepMeterCallback", (_Events, *bases), {})(meter)
