"""What do Lightning's Trainer and its callbacks tell Batchscope? Step times to a `StepMeter`, gradients to a monitor.

    meter = bs.StepMeter(loop="Lightning")
    trainer = lightning.Trainer(callbacks=[StepMeterCallback(meter)], ...)

    noise = NoiseCallback()
    trainer = lightning.Trainer(callbacks=[noise], ...)
    trainer.fit(...)
    print(noise.report())

A *step* is an optimiser step: with `accumulate_grad_batches=k` it lasts from the beginning of its first micro-batch
to the end of its k-th. Its batch size is the sum of its micro-batches', each the first dimension of the batch's first
tensor, times the replicas of data-parallel training; or the meter's own `batch_size`, where one was given (for
batches whose first dimension is not examples).

The wait called "data" is what Trainer does between two optimiser steps: fetching, copying to the device, other
callbacks. What it waits for within an accumulated step is part of the step's seconds, not of that wait. Validation,
checkpoints and the change from one epoch to the next break the meter's window (Trainer does not tell its callbacks of
checkpoints with `save_weights_only=True`: their time counts).

Gradients are looked at right after the step's last backward pass, before Trainer unscales and clips them. Where the
module optimises by hand (`automatic_optimization = False`), nobody but the module knows which backward pass is the
last, and it may clip: there they are copied as they come and looked at when the optimiser steps.

The other way round, `GrowingBatchCallback` tells Trainer how many micro-batches the next step has: its hooks are in
`growing_lightning.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.integrations.callback import HoldsMonitor
from batchscope.integrations.called import Calls, TrainingSteps
from batchscope.integrations.growing_lightning import GrowingEvents, replicas_of
from batchscope.measure.meter import StepMeter
from batchscope.remedies.growing import Rule
from batchscope.training.batches import examples_in, tensors_in

LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")  # one code under two names, whose classes are not the same


class _MeterEvents:
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
        return examples_in(batch) * replicas_of(trainer)


def StepMeterCallback(meter: StepMeter) -> Any:
    """A `Callback` for the Trainer of `lightning.pytorch` or of `pytorch_lightning`, whichever is loaded (or both).

    Raises UsageError where neither is.
    """
    return _callback("StepMeterCallback", _MeterEvents)(meter)


class _NoiseEvents(HoldsMonitor):
    """The hooks of Lightning's `Callback` that a noise monitor needs to hear.

    The monitor wants the module whose `forward` a training step calls, and which one that is shows in the first batch.
    """

    def __init__(self, module: Callable[[Any], nn.Module] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._given = module
        self._calls = Calls()
        self._batches: TrainingSteps | None = None  # what is monitored, where no module's forward is the step's
        self._loss: torch.Tensor | None = None
        self._batch_idx = self._examples = 0  # the batch that is on, and the examples of the step so far

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.remove()
        self.monitor, self._batches, self._examples = None, None, 0
        if len(trainer.optimizers) != 1:
            raise UnsupportedTask(
                f"expected one optimizer for a noise scale, got {len(trainer.optimizers)}: leave NoiseCallback out, or "
                "use NoiseMonitor in training_step, once for each optimizer and its module"
            )
        if not pl_module.automatic_optimization and trainer.world_size > 1:
            raise UsageError(
                "expected automatic optimization under data parallelism, got manual: leave NoiseCallback out and call "
                "NoiseMonitor.step in training_step, after manual_backward and before clipping"
            )
        if self._given is not None:
            self._start(trainer, pl_module, self._given(pl_module))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx
        self._examples += next((len(t) for t in tensors_in(batch) if t.dim() > 0), 0) * replicas_of(trainer)
        if self.monitor is None:
            self._calls.count(pl_module)
        elif self._batches is not None:
            self._batches(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if self.monitor is None:
            self._start(trainer, pl_module, self._calls.only_one())
        self._loss = loss

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        accumulated = (self._batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.is_last_batch or self._batch_idx + 1 == trainer.num_training_batches
        if pl_module.automatic_optimization and (accumulated or last):
            self._step(_unscaled(self._loss, trainer))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not pl_module.automatic_optimization:
            self._step(_unscaled(self._loss, trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.remove()

    def remove(self) -> None:
        self._calls.forget()
        self._loss = None
        super().remove()

    def _start(self, trainer: Any, pl_module: Any, module: nn.Module | None) -> None:
        self._calls.forget()
        if module is None:
            _check_parts(trainer)
            module = self._batches = TrainingSteps(pl_module)
        self.start(
            module,
            optimizer=trainer.optimizers[0],
            scaler=_scaler(trainer),
            before_clipping=not pl_module.automatic_optimization,
        )

    def _step(self, loss: torch.Tensor | None) -> None:
        self._loss = None
        if self.monitor is not None:
            self.monitor.step(loss, examples=self._examples)
        self._examples = 0


def NoiseCallback(*, module: Callable[[Any], nn.Module] | None = None, **options: Any) -> Any:
    """A `Callback` that measures the gradient noise scale of the run that Trainer makes; `.report()` says it.

    Args:
        module: from the LightningModule to the module to monitor, `lambda lit: lit.net`. Default: the outermost that
            holds all trainable parameters and that `training_step` calls once. Where there is none (an encoder and a
            head, called one after the other), the training step as a whole, if it has micro-batches or replicas.
        options: of `NoiseMonitor`; its model, optimizer and scaler are known.

    Raises UsageError where neither `lightning.pytorch` nor `pytorch_lightning` is loaded. In training, before the first
    step: UnsupportedTask with several optimizers, UsageError where there is no such module.
    """
    return _callback("NoiseCallback", _NoiseEvents)(module, **options)


def GrowingBatchCallback(
    rule: Rule | str,
    *,
    noise: HoldsMonitor | None = None,
    monitor: str | None = None,
    most: int | None = None,
    scale: str = "square root",
    micro_batch_size: int | None = None,
    examples: int | None = None,
) -> Any:
    """A `Callback` that grows the global batch size by a rule; a `BatchSizeController` is its `.controller`.

    Args:
        rule, most, scale: of `BatchSizeController`; `most` is never more than an epoch.
        noise: the NoiseCallback of the same Trainer, whose noise scale the rule hears.
        monitor: name of a metric that validation logs, which the rule hears as the loss.
        micro_batch_size: what each of the loader's batches counts, in examples, on one replica. Default: the loader's
            `batch_size`, and the first dimension of a batch's first tensor.
        examples: ends the run after so many, of all replicas. Default: it ends with the Trainer's epochs.

    Raises UsageError where the rule would hear nothing, or neither `lightning.pytorch` nor `pytorch_lightning` is
    loaded. Before the first step: UnsupportedTask for optimisation by hand and for DeepSpeed; UsageError for schedules
    that are moved otherwise than once per step, for `max_steps` beside a schedule, for others who set the accumulation.
    """
    return _callback("GrowingBatchCallback", GrowingEvents)(
        rule, noise, monitor, most, scale, micro_batch_size, examples
    )


def _callback(name: str, events: type) -> Any:
    """A class of callbacks for whichever Lightning is loaded, or for both."""
    bases = tuple(sys.modules[lightning].Callback for lightning in LIGHTNINGS if lightning in sys.modules)
    if not bases:
        raise UsageError(f"expected {' or '.join(LIGHTNINGS)} to be imported, got neither: import yours first")
    return type(name, (events, *bases), {})


def _check_parts(trainer: Any) -> None:
    """Without a module whose output shows examples, a batch needs parts of its own: micro-batches or replicas."""
    if trainer.accumulate_grad_batches == trainer.world_size == 1:
        raise UsageError(
            "expected training_step to call one module that holds all trainable parameters, got none: call self(x) "
            "with a forward of your own, name the module in NoiseCallback(module=lambda lit: lit.net), or set "
            "accumulate_grad_batches=2"
        )


def _scaler(trainer: Any) -> Any:
    """The `torch.amp.GradScaler` of half precision; None where losses are not scaled."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _unscaled(loss: torch.Tensor | None, trainer: Any) -> torch.Tensor | None:
    """A batch's own mean loss: Trainer has divided it by the micro-batches and multiplied it by the scale."""
    scaler = _scaler(trainer)
    if loss is not None and scaler is not None:  # `get_scale` would wait for the device
        loss = loss / scaler.scale(torch.ones((), device=loss.device))
    k = trainer.accumulate_grad_batches
    return loss if loss is None or k == 1 else loss * k
