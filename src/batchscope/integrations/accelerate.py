"""What does an Accelerator say of the gradients of a loop of one's own, and what is it told? When a step is complete.

    monitor = noise_monitor(accelerator, model, optimizer=optimizer)   # after accelerator.prepare
    ...
    accelerator.backward(loss)
    monitor.step(loss)                                                 # after every backward pass, before clipping
    ...
    print(monitor.report())

Only the call after a step's last backward pass counts, where `accelerator.sync_gradients` says that the gradients of
accumulated micro-batches and of all processes are together. Nothing of Accelerate is imported here.

The other way round, a controller tells the Accelerator how many micro-batches the next step has:

    controller = batch_size_controller(accelerator, optimizer, micro_batch_size=32, rule="with the noise scale",
                                       scheduler=scheduler)
    accelerator.register_for_checkpointing(controller)                 # for save_state and load_state
    ...
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model(x), y))
        monitor.step()
        optimizer.step()
        optimizer.zero_grad()
    controller.step(noise_scale=monitor)                               # in every micro-step; no scheduler.step()

An Accelerator counts the micro-batches of a loader and steps at the multiples of `gradient_accumulation_steps`: where
that changes, the count begins anew. By default it steps at a loader's end too, with a loss that it has divided by more
micro-batches than there were: the larger the batch, the more such a gradient lacks. Not so with

    plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=plugin)

where a step goes on in the next epoch. A schedule is made for steps of the first batch size, of all processes together,
and the controller moves it, be it prepared (then `save_state` stores it) or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.measure.gradients import Counts
from batchscope.measure.monitor import NoiseMonitor
from batchscope.records import NoiseReport, NoiseScale
from batchscope.remedies.controller import BatchSizeController
from batchscope.remedies.growing import Rule

THEIRS = ("DEEPSPEED", "MEGATRON_LM")  # whose engines accumulate by themselves


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


class AcceleratedBatchSizeController(BatchSizeController):
    """A `BatchSizeController` whose `step` is called in every micro-step."""

    def __init__(
        self,
        accelerator: Any,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch_size: int,
        scheduler: Any,
        **options: Any,
    ) -> None:
        replicas = accelerator.num_processes
        super().__init__(
            optimizer,
            batch_size=micro_batch_size * accelerator.gradient_accumulation_steps * replicas,
            micro_batch_size=micro_batch_size,
            scheduler=getattr(scheduler, "scheduler", scheduler),  # a prepared one moves once per process
            replicas=replicas,
            **options,
        )
        self.accelerator = accelerator
        self._told, self._loss = 0, None  # of the micro-steps so far

    def step(
        self,
        *,
        loss: torch.Tensor | float | None = None,
        noise_scale: float | NoiseScale | NoiseReport | NoiseMonitor | None = None,
        examples: int | None = None,
    ) -> bool:
        """A micro-step has been made; returns whether the batch size is another from now on.

        Args:
            loss: as in `BatchSizeController.step`; the last one that was given in a step's micro-steps counts.
            noise_scale: as there; asked for in the last micro-step.
            examples: in this micro-batch, of all processes; default: the micro-batch x processes.
        """
        self._told += self.micro_batch_size * self.replicas if examples is None else examples
        self._loss = self._loss if loss is None else loss
        if not self.accelerator.sync_gradients:
            return False
        loss, told = self._loss, self._told
        self._told, self._loss = 0, None
        changed = super().step(loss=loss, noise_scale=noise_scale, examples=told)
        if changed:
            self._begin()
        return changed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, with a whole step: gradients of one that was not complete are lost."""
        super().load_state_dict(state)
        self._told, self._loss = 0, None
        self._begin()

    def _begin(self) -> None:
        """The next micro-batch is a step's first."""
        self.accelerator.gradient_accumulation_steps = self.accumulation
        self.accelerator.step = 0


def batch_size_controller(
    accelerator: Any,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch_size: int,
    rule: Rule | str,
    scheduler: Any = None,
    most: int | None = None,
    scale: str = "square root",
) -> AcceleratedBatchSizeController:
    """A controller of the global batch size for a loop that calls `accelerator.accumulate`.

    Args:
        accelerator: whose `gradient_accumulation_steps` grow; the first batch size is made of those that it has.
        optimizer: prepared or not.
        micro_batch_size: examples that one process gets in one micro-step, always.
        rule, scheduler, most, scale: as of `BatchSizeController`.

    Raises UsageError as that does, and where the Accelerator steps at a loader's end; UnsupportedTask with DeepSpeed
    and Megatron-LM.
    """
    kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
    if kind in THEIRS:
        raise UnsupportedTask(f"expected an Accelerator that accumulates itself, got {kind}: use DDP or FSDP")
    if accelerator.gradient_state.sync_with_dataloader:
        raise UsageError(
            "expected an Accelerator whose steps are always complete, got one that steps at a loader's end too: write "
            "GradientAccumulationPlugin(num_steps=..., sync_with_dataloader=False)"
        )
    return AcceleratedBatchSizeController(
        accelerator,
        optimizer,
        micro_batch_size=micro_batch_size,
        rule=rule,
        scheduler=scheduler,
        most=most,
        scale=scale,
    )
