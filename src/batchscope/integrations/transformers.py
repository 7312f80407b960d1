"""What does Transformers' Trainer tell Batchscope? Step times to a `StepMeter`, gradients to a `NoiseMonitor`.

    meter = bs.StepMeter(loop="Transformers")
    trainer = transformers.Trainer(callbacks=[StepMeterCallback(meter)], ...)

    noise = NoiseCallback()
    trainer = transformers.Trainer(callbacks=[noise], ...)
    trainer.train()
    print(noise.report())

A *step* is an optimiser step, all of its accumulated micro-batches included. Its batch size is

    examples per process and micro-batch  x  gradient_accumulation_steps  x  processes

as Trainer itself sets it (`per_device_train_batch_size`, times the devices of a process that drives several, or what
`auto_find_batch_size` found); or the meter's own `batch_size`, where one was given (for processes that share examples:
tensor, context or sequence parallelism). Trainer does not show its callbacks the batch, and the last one of an epoch
may be short: the change from one epoch to the next breaks the meter's window, so that batch is never timed. So do
evaluation, prediction and checkpoints. The wait called "data" is what Trainer does between two optimiser steps:
fetching all micro-batches of the next one, logging, other callbacks.

Trainer's only event with gradients, `on_pre_optimizer_step`, comes after it has clipped and unscaled them. In a single
process the monitor therefore copies them as the backward pass leaves them. Data-parallel processes average gradients
later than that: there neither clipping (`max_grad_norm=0`) nor a loss scale (`bf16`) is possible. Micro-batches count
alike: where Trainer weighs them by their tokens, and they differ much in that, the noise scale is somewhat off.

A batch that grows in Trainer there is not. Were a callback to set `gradient_accumulation_steps`, (a) Trainer would step
at the epoch's multiples of it, but draw batches and divide losses as if it stepped after so many: the step after a
change is wrong; (b) Trainer moves the schedule once per step, and no callback can stop it; (c) a checkpoint knows its
steps only, and Trainer takes the first number of steps in an epoch to find where it was: saved after 26 micro-batches,
a run went on after 9 (transformers 5.23). The first two could be worked around, the third cannot. Grow the batch in a
loop with Accelerate (`accelerate.py`) or of your own instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from batchscope.errors import UsageError
from batchscope.integrations.callback import HoldsMonitor
from batchscope.measure.meter import StepMeter


class _MeterEvents:
    """The hooks of Transformers' `TrainerCallback` that a meter needs to hear."""

    def __init__(self, meter: StepMeter) -> None:
        self.meter = meter

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.meter.begin(self.meter.batch_size or _examples(args, state))

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
    """A `TrainerCallback` for Transformers' Trainer."""
    return _callback("StepMeterCallback", _MeterEvents)(meter)


class _NoiseEvents(HoldsMonitor):
    """The hooks of Transformers' `TrainerCallback` that a noise monitor needs to hear."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._watching: RemovableHandle | None = None
        self._loss: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        model, optimizer = now["model"], now["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        _check(args, scaler)
        clipped = args.max_grad_norm > 0 or scaler is not None
        self.start(model, optimizer=optimizer, scaler=scaler, before_clipping=clipped)
        if args.world_size == args.gradient_accumulation_steps == 1:  # else Trainer may have rescaled the model's loss
            self._watching = model.register_forward_hook(self._see_loss)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss, self._loss = self._loss, None
        if self.monitor is not None:
            self.monitor.step(loss, examples=_examples(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.remove()

    def remove(self) -> None:
        if self._watching is not None:
            self._watching.remove()
        self._watching, self._loss = None, None
        super().remove()

    def _see_loss(self, module: Any, args: Any, output: Any) -> None:
        """Trainer shows its callbacks no loss: a model that returns one does."""
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if torch.is_grad_enabled() and isinstance(loss, torch.Tensor) and loss.dim() == 0:
            self._loss = loss


def _check(args: Any, scaler: Any) -> None:
    """Refuse what cannot be measured from Trainer's events."""
    if args.n_gpu > 1:
        raise UsageError(
            f"expected one device in each process, got {args.n_gpu} in this one (DataParallel): launch it with "
            f"torchrun --nproc-per-node {args.n_gpu}, or show it one device (CUDA_VISIBLE_DEVICES=0)"
        )
    if args.world_size > 1 and scaler is not None:
        raise UsageError(
            "expected gradients without a loss scale under data parallelism, got fp16=True, whose scale Trainer takes "
            "out before callbacks see gradients: use bf16=True, or a single process"
        )


def NoiseCallback(**options: Any) -> Any:
    """A `TrainerCallback` that measures the gradient noise scale of Trainer's run; `.report()` says it.

    Args:
        options: of `NoiseMonitor`; its model, optimizer and scaler are known.

    `train` raises UsageError with clipping under data parallelism: write `max_grad_norm=0`. Trainer has no event for a
    run that fails: hooks are then left in the model until `.remove()`, or the next `train`.
    """
    return _callback("NoiseCallback", _NoiseEvents)(**options)


def _callback(name: str, events: type) -> Any:
    """A class of callbacks; Transformers is imported here, not with this module."""
    return type(name, (events, importlib.import_module("transformers").TrainerCallback), {})


def _examples(args: Any, state: Any) -> int:
    """The batch size of an optimiser step, of all processes."""
    micro_batch = state.train_batch_size if args.auto_find_batch_size else args.train_batch_size
    return micro_batch * args.gradient_accumulation_steps * args.world_size
