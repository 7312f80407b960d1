"""How many seconds does an optimiser step take under Transformers' Trainer? Its events, told to a `StepMeter`.

    meter = bs.StepMeter(loop="Transformers")
    trainer = transformers.Trainer(callbacks=[StepMeterCallback(meter)], ...)

A *step* is an optimiser step, all of its accumulated micro-batches included. Its batch size is

    examples per process and micro-batch  x  gradient_accumulation_steps  x  processes

as Trainer itself sets it (`per_device_train_batch_size`, times the devices of a process that drives several, or what
`auto_find_batch_size` found); or the meter's own `batch_size`, where one was given (for processes that share examples:
tensor, context or sequence parallelism). Trainer does not show its callbacks the batch, and the last one of an epoch
may be short: the change from one epoch to the next breaks the meter's window, so that batch is never timed. So do
evaluation, prediction and checkpoints. The wait called "data" is what Trainer does between two optimiser steps:
fetching all micro-batches of the next one, logging, other callbacks.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchscope.measure.meter import StepMeter


class _Events:
    """The hooks of Transformers' `TrainerCallback` that a meter needs to hear."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        micro_batch = state.train_batch_size if args.auto_find_batch_size else args.train_batch_size
        self.meter.begin(self.meter.batch_size or micro_batch * args.gradient_accumulation_steps * args.world_size)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.end()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.discard_window()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.discard_window()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.discard_window()

    def on_predict(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.discard_window()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.discard_window()


def StepMeterCallback(meter: StepMeter) -> Any:
    """A `TrainerCallback`; Transformers is imported here, not with this module."""
    base = importlib.import_module("transformers").TrainerCallback
    return type("StepMeterCallback", (_Events, base), {})(meter)
