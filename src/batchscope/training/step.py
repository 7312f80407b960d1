"""What is one optimiser step? Zero, forward, backward, clip, step; and what does an evaluation compute?

Accumulation: a batch of n units (examples, or counted tokens) in micro-batches of n_i gives

    grad = sum_i (n_i / n) grad(mean loss of micro-batch i) = grad(mean loss of the whole batch)

so that the gradient is the big batch's up to float rounding, a ragged last micro-batch and unequal token counts
included. (Batch norm sees micro-batches: there the micro-batch size changes the mathematics and is part of the trial.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from batchscope.task import Batch, Task
from batchscope.training.batches import examples_in, split, units_in

Step = Callable[[Batch], None]


def make_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch_size: int | None = None,
    precision: str = "fp32",
) -> Step:
    """A function that trains on one batch. The plain case is as short as a hand-written loop's body."""
    device_type = next(model.parameters()).device.type
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_of, clip = task.batch_loss, task.clip_norm

    def backward(batch: Batch, weight: float | None) -> None:
        if precision == "bf16":
            with torch.autocast(device_type, dtype=torch.bfloat16):
                loss = loss_of(model, batch)
        else:
            loss = loss_of(model, batch)
        (loss if weight is None else loss * weight).backward()

    def accumulate(batch: Batch) -> None:
        parts = split(batch, micro_batch_size)  # type: ignore[arg-type]
        units = [units_in(task, part) for part in parts]
        total = max(1, sum(units))
        for part, n in zip(parts, units, strict=True):
            if n > 0:
                backward(part, n / total)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        if micro_batch_size is not None and examples_in(batch) > micro_batch_size:
            accumulate(batch)
        else:
            backward(batch, None)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    return step


@torch.no_grad()
def evaluate(task: Task, model: torch.nn.Module, batches: Iterable[Batch], precision: str = "fp32") -> dict[str, float]:
    """Mean loss and metrics over all examples (token-weighted for the loss with unit="tokens"), in eval mode.

    A chunk whose loss is not finite ends the evaluation: everything is nan, and no metric sees such outputs.
    The model is left in training mode.
    """
    model.eval()
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    try:
        for batch in batches:
            values = _values(task, model, batch, precision)
            if not math.isfinite(values["loss"]):
                return dict.fromkeys(values, math.nan)
            for name, value in values.items():
                weight = units_in(task, batch) if name == "loss" else examples_in(batch)
                sums[name] = sums.get(name, 0.0) + weight * value
                weights[name] = weights.get(name, 0.0) + weight
    finally:
        model.train()
    return {name: total / weights[name] for name, total in sums.items()}


def _values(task: Task, model: torch.nn.Module, batch: Batch, precision: str) -> dict[str, float]:
    """One chunk's loss and metrics as numbers."""
    device_type = next(model.parameters()).device.type
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        if task.evaluate is not None:
            return {name: float(value) for name, value in task.evaluate(model, batch).items()}
        if task.step is not None:
            return {"loss": float(task.step(model, batch))}
        output = model(batch[0])
        loss = float(task.loss(output, batch[1]))  # type: ignore[misc]
    if not math.isfinite(loss):
        return dict.fromkeys(("loss", *task.metrics), math.nan)
    return {"loss": loss} | {name: float(metric(output, batch[1])) for name, metric in task.metrics.items()}
