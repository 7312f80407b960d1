"""What is one optimiser step? Zero, forward, backward, clip, step; and what does an evaluation compute?

Accumulation: a batch of n units (examples, or counted tokens) in micro-batches of n_i gives

    grad = sum_i (n_i / n) grad(mean loss of micro-batch i) = grad(mean loss of the whole batch)

so that the gradient is the big batch's up to float rounding, a ragged last micro-batch and unequal token counts
included. (Batch norm sees micro-batches: there the micro-batch size changes the mathematics and is part of the trial.)

An evaluation leaves no mark on the training: the modes of the model's modules and torch's generators are as before,
and what a loss draws at random comes from one fixed seed, so that evaluations differ by the weights alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from batchscope.errors import CannotAnswer
from batchscope.records import Engine
from batchscope.task import Batch, Task
from batchscope.training.batch_norm import norms_of, refuse_torchs_own, synchronised
from batchscope.training.batches import FixedBatches, examples_in, mapped, split, units_in
from batchscope.training.distributed import LossOf, Replicas, averaging, shared
from batchscope.training.engine import PLAIN, channels_innermost, compiled, prepared_model
from batchscope.training.graphs import GraphedStep, Step, refusal
from batchscope.training.in_step import Apart, InStep
from batchscope.training.seeding import drawing_from, torch_drawing_from
from batchscope.training.sharding import gathered, loss_under, root_of, sharded

SharedStep = Callable[[Batch, int], None]

EVALUATION_SEED = 0  # of what a loss draws at random while it is evaluated


def make_model(task: Task, device: torch.device, engine: Engine = PLAIN) -> torch.nn.Module:
    """A fresh model in training mode, on the device, as the engine wants it.

    A model that comes in eval mode (a loaded one, say) is switched; layers that the task itself put into eval mode
    inside a model in training mode (frozen batch norm) are left so.
    """
    model = task.model().to(device)
    return prepared_model(model if model.training else model.train(), engine)


def make_shared_model(task: Task, device: torch.device, engine: Engine, replicas: Replicas) -> torch.nn.Module:
    """The same for one of several replicas: batch norm synchronised, weights in pieces on the devices, as asked for.

    Made before the optimiser, which then holds the pieces. Raises CannotAnswer for layers that several cannot use.
    """
    model = make_model(task, torch.device("cpu") if task.shard else device, engine)
    if task.batch_norm == "synchronised":
        model = synchronised(model, device)
    else:
        refuse_torchs_own(task.name, model)
    return sharded(model, replicas) if task.shard else model


def make_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    micro_batch_size: int | None = None,
    precision: str = "fp32",
    engine: Engine = PLAIN,
    batch_size: int | None = None,
    watch: Step | None = None,
) -> Step:
    """A function that trains on one batch. The plain case is as short as a hand-written loop's body.

    Args:
        engine: its switches; with `graphed` the step is a `GraphedStep`, made before the optimiser's first step.
        batch_size: with `graphed`, examples of the batches that are replayed; None: batches of all sizes are.
        watch: called with the batch when its gradient is complete, before clipping; not in a replayed step.
    """
    loss_of = loss_function(task, model, precision, engine)
    finish = _finish(task, optimizer)

    def accumulate(batch: Batch, size: int) -> None:
        parts = split(batch, size)
        units = [units_in(task, part) for part in parts]
        total = max(1, sum(units))
        for part, n in zip(parts, units, strict=True):
            if n > 0:
                (loss_of(model, part) * (n / total)).backward()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        if micro_batch_size is not None and examples_in(batch) > micro_batch_size:
            accumulate(batch, micro_batch_size)
        else:
            loss_of(model, batch).backward()
        if watch is not None:
            watch(batch)
        finish()

    if not engine.graphed:
        return step
    return GraphedStep(step, model, optimizer, batch_size, refusal(task, optimizer, micro_batch_size))


def make_shared_step(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    replicas: Replicas,
    *,
    micro_batch_size: int | None = None,
    precision: str = "fp32",
    engine: Engine = PLAIN,
) -> SharedStep:
    """The same on this replica's part of every batch; gradients are those of the whole batch (`distributed`).

    What it returns takes the part and how many examples the whole batch has. Counted units (tokens) are summed over
    the replicas in every step. With micro-batches, of at most `micro_batch_size` examples on each replica, only the
    last one's backward pass averages; with sharded weights, every one's. `model`: from `make_shared_model`.
    """
    loss_of, root = loss_function(task, model, precision, engine), root_of(model)
    if root is None:
        together = shared(model, loss_of, replicas, unused_in(task, model, loss_of))
    else:
        together = loss_under(root, loss_of)
    in_step = root is not None or len(norms_of(model)) > 0
    passes = InStep(task, model, replicas, micro_batch_size) if in_step else Apart(micro_batch_size)
    counted, finish = task.count is not None or task.unit == "tokens", _finish(task, optimizer)

    def step(part: Batch, whole: int) -> None:
        if root is not None and not replicas.averages:
            raise CannotAnswer(f"task {task.name!r}: expected whole weights to time a rank by itself, got shard=True")
        replicas.done += 1  # it has its batch
        optimizer.zero_grad()
        pieces = passes.pieces(part, whole)
        units = [units_in(task, piece) if piece is not None else 0 for piece in pieces]
        total = max(1, units_of_all(replicas, sum(units)) if counted else whole)
        for k, (piece, n) in enumerate(zip(pieces, units, strict=True)):
            now = replicas.averages and k == len(pieces) - 1
            with averaging(together, now), passes.taking(piece, n) as seen:
                loss, weight = together(seen), replicas.size * n / total
                (loss * weight if weight != 1 else loss).backward()  # it is 1 where parts are equal
            replicas.done += 1
        finish()

    return step


def units_of_all(replicas: Replicas, units: int) -> int:
    """Counted units of the whole batch; of a rank timed by itself, as if all had as many."""
    return replicas.total(units) if replicas.averages else replicas.size * units


def unused_in(task: Task, model: torch.nn.Module, loss_of: LossOf) -> set[str]:
    """The weights that get no gradient: found on two examples and a copy of the model; nothing is drawn."""
    device, beside = next(model.parameters()).device, copy.deepcopy(model)
    with drawing_from(0), torch_drawing_from(0, device):
        batch = next(iter(FixedBatches(task, task.train, [0, min(1, task.train_size - 1)], device)))
        loss_of(beside, batch).backward()
    return {name for name, p in beside.named_parameters() if p.requires_grad and p.grad is None}


def _finish(task: Task, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Clip and step, once the gradient is complete."""
    updated, clip = [p for group in optimizer.param_groups for p in group["params"]], task.clip_norm

    def finish() -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(updated, clip)
        optimizer.step()

    return finish


def loss_function(task: Task, model: torch.nn.Module, precision: str, engine: Engine) -> LossOf:
    """(model, batch) -> mean loss, as engine and precision want it; the task's own function where nothing is on."""
    plain = compiled(task.batch_loss) if engine.compiled else task.batch_loss
    device_type = next(model.parameters()).device.type

    def ordered(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return plain(model, mapped(batch, channels_innermost))

    exact = ordered if engine.channels_last else plain

    def in_bf16(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return exact(model, batch)

    return in_bf16 if precision == "bf16" else exact


@torch.no_grad()
def evaluate(task: Task, model: torch.nn.Module, batches: Iterable[Batch], precision: str = "fp32") -> dict[str, float]:
    """Mean loss and metrics over all examples (token-weighted for the loss with unit="tokens"), in eval mode.

    A chunk whose loss is not finite ends the evaluation: everything is nan, and no metric sees such outputs. A chunk
    in which no unit counts has no mean and is left out. For a sharded model, every rank calls this with equal batches.
    """
    return gathered(model, lambda: _evaluated(task, model, batches, precision))


def _evaluated(task: Task, model: torch.nn.Module, batches: Iterable[Batch], precision: str) -> dict[str, float]:
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    with torch_drawing_from(EVALUATION_SEED, device):
        model.eval()
        try:
            for batch in batches:
                units = units_in(task, batch)
                values = _values(task, model, batch, precision) if units > 0 else {}
                if values and not math.isfinite(values.get("loss", math.nan)):
                    return dict.fromkeys(values, math.nan)
                for name, value in values.items():
                    weight = units if name == "loss" else examples_in(batch)
                    sums[name] = sums.get(name, 0.0) + weight * value
                    weights[name] = weights.get(name, 0.0) + weight
        finally:
            model.train()  # for modules that do something when their mode changes
            for module, training in modes:
                if module.training != training:
                    module.training = training
    return {name: total / weights[name] for name, total in sums.items()} or {"loss": math.nan}


def _values(task: Task, model: torch.nn.Module, batch: Batch, precision: str) -> dict[str, float]:
    """One chunk's loss and metrics as numbers."""
    device_type = next(model.parameters()).device.type
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        if task.evaluate is not None:
            return {name: float(value) for name, value in task.evaluate(model, batch).items()}
        if task.step is not None:
            return {"loss": float(task.step(model, batch))}
        output = model(batch[0])
        loss = float(task.loss_of(output, batch[1]))
    if not math.isfinite(loss):
        return dict.fromkeys(("loss", *task.metrics), math.nan)
    return {"loss": loss} | {name: float(metric(output, batch[1])) for name, metric in task.metrics.items()}


def evaluation_of(task: Task) -> Callable[[torch.nn.Module, Batch], Mapping[str, Any]]:
    """How the task is evaluated, as an `evaluate` of its own would do it: for one whose training sees another loss."""
    if task.evaluate is not None:
        return task.evaluate
    if (own := task.step) is not None:
        return lambda model, batch: {"loss": own(model, batch)}

    def evaluated(model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        output = model(batch[0])
        loss = float(task.loss_of(output, batch[1]))
        if not math.isfinite(loss):  # no metric sees such outputs
            return dict.fromkeys(("loss", *task.metrics), math.nan)
        return {"loss": loss} | {name: metric(output, batch[1]) for name, metric in task.metrics.items()}

    return evaluated
