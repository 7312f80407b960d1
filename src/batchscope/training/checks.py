"""Can this task be measured as it stands? Checks that need a forward pass, made before compute is spent.

Each refusal is one sentence: what was expected, what came, what to change. In order: the model makes parameters and
one optimiser; an output fits its targets; the loss is a scalar, a mean, finite and carries gradient; two seeded passes
agree; the goal is not met at initialisation; every batch size fits the data and the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from batchscope.errors import TaskError, UnsupportedTask, UsageError
from batchscope.task import Batch, Task
from batchscope.training.batches import FixedBatches, tensors_in
from batchscope.training.fingerprint import fingerprint
from batchscope.training.seeding import seed_everything
from batchscope.training.step import evaluate, make_step

SAMPLE = 8  # examples of the probe batch
MEAN_TOLERANCE = 1e-2  # relative; a sum over twice the examples is off by a factor of 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CheckedTask:
    """A task that passed: its fingerprint, the fingerprint's components and the metric names of an evaluation."""

    fingerprint: str
    components: dict[str, str]
    metrics: tuple[str, ...]


def check_task(task: Task) -> CheckedTask:
    """Run all checks that do not depend on what will be asked; raises TaskError or UnsupportedTask."""
    if task.batch_size > task.train_size:
        raise TaskError(
            f"task {task.name!r}: expected batch_size to be at most the {task.train_size} training examples, "
            f"got {task.batch_size}: lower it or give more data"
        )
    model = _make_model(task)
    _check_optimizer(task, model)
    batch = _sample(task, min(SAMPLE, task.train_size))
    _check_loss(task, batch)
    metrics = _check_start(task)
    _check_first_step(task)
    name, components = fingerprint(task)
    return CheckedTask(name, components, metrics)


def check_batch_sizes(task: Task, batch_sizes: Sequence[Any]) -> tuple[int, ...]:
    """Sorted batch sizes, or UsageError / TaskError for one that the data or the model cannot take."""
    sizes = list(batch_sizes)
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"expected batch sizes of at least 1, got {size!r}: remove it")
        if size > task.train_size:
            raise UsageError(
                f"expected batch sizes up to the {task.train_size} training examples of {task.name!r}, got {size}: remove it"
            )
    if not sizes:
        raise UsageError("expected at least one batch size, got none: write --batch-sizes 32,256")
    repeated = sorted({s for s in sizes if sizes.count(s) > 1})
    if repeated:
        raise UsageError(
            f"expected each batch size once, got {repeated[0]} {sizes.count(repeated[0])} times: remove the repeats"
        )
    for size in sizes:
        if size == 1 or task.train_size % size == 1:
            _check_single_example(task, size)
    return tuple(sorted(sizes))


def _make_model(task: Task) -> torch.nn.Module:
    """A fresh model, or the reason why there is none."""
    seed_everything(0)
    try:
        model = task.model()
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: making the model raised {_text(error)}: call it by itself to see why"
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise TaskError(
            f"task {task.name!r}: expected model() to return an nn.Module, got {type(model).__name__}: return the module"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise TaskError(
            f"task {task.name!r}: expected parameters to train, got none that require gradient: unfreeze some"
        )
    return model.train()


def _check_optimizer(task: Task, model: torch.nn.Module) -> None:
    """One ordinary torch optimiser over the model's parameters, whose learning rate is the one asked for."""
    try:
        optimizer = task.optimizer(model, task.lr)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: making the optimiser raised {_text(error)}: check optimizer=lambda model, lr: ..."
        ) from error
    if isinstance(optimizer, (list, tuple, dict)):
        raise UnsupportedTask(f"task {task.name!r}: several optimisers are not supported: return one torch optimiser")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedTask(
            f"task {task.name!r}: optimisers that need a closure (LBFGS) are not supported: use SGD, Adam or the like"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TaskError(
            f"task {task.name!r}: expected a torch optimiser, got {type(optimizer).__name__}: return torch.optim.SGD(...)"
        )
    if all(group["lr"] != task.lr for group in optimizer.param_groups):
        raise TaskError(
            f"task {task.name!r}: expected an optimiser with the learning rate it was given ({task.lr}), got "
            f"{optimizer.param_groups[0]['lr']}: pass lr on, or tuning it would do nothing"
        )


def _sample(task: Task, size: int, repeat: int = 1) -> Batch:
    """The first `size` training examples as one batch, `repeat` times over."""
    try:
        return next(iter(FixedBatches(task, task.train, list(range(size)) * repeat, CPU)))
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: reading the first {size} training examples raised {_text(error)}: check the data set"
        ) from error


def _loss(task: Task, batch: Batch, training: bool = True) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The seeded loss of a fresh model on a batch, and its gradients."""
    seed_everything(0)
    model = task.model().train(training)
    loss = task.batch_loss(model, batch)
    weights = [p for p in model.parameters() if p.requires_grad]
    usable = isinstance(loss, torch.Tensor) and loss.dim() == 0 and loss.requires_grad
    return loss, list(torch.autograd.grad(loss, weights, allow_unused=True)) if usable else []


def _check_loss(task: Task, batch: Batch) -> None:
    """The loss fits, is a finite scalar mean with gradient, and repeats."""
    try:
        loss, gradients = _loss(task, batch)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: expected a loss on {_shapes(task, batch)}, it raised {_text(error)}: "
            "make the model's output match the targets"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        came = (
            f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        )
        raise TaskError(
            f"task {task.name!r}: expected the loss to be a scalar tensor (the mean over the batch), got {came}: average it"
        )
    if not math.isfinite(float(loss.detach())):
        raise TaskError(
            f"task {task.name!r}: expected a finite loss at initialisation, got {float(loss.detach())}: check data and model"
        )
    if not loss.requires_grad:
        raise TaskError(
            f"task {task.name!r}: expected the loss to carry gradient, got one that does not: remove no_grad, detach or item"
        )
    if not any(g is not None and bool(g.abs().sum() > 0) for g in gradients):
        raise TaskError(
            f"task {task.name!r}: expected gradient to reach the parameters, got none: check detach, frozen layers and the loss"
        )
    again, gradients_again = _loss(task, batch)
    same = all(a is b or torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))  # type: ignore[arg-type]
    if not torch.equal(loss, again) or not same:
        raise TaskError(
            f"task {task.name!r}: expected two passes with the same seed to agree, got losses {float(loss.detach())!r} and {float(again.detach())!r}: "
            "draw all randomness from torch's generator"
        )
    _check_mean(task)


def _check_mean(task: Task) -> None:
    """In eval mode the mean over a batch given twice is the mean over it once; a sum is twice as large."""
    size = min(SAMPLE, task.train_size)
    once = float(_loss(task, _sample(task, size), training=False)[0].detach())
    twice = float(_loss(task, _sample(task, size, repeat=2), training=False)[0].detach())
    if abs(twice - once) > MEAN_TOLERANCE * max(abs(once), 1e-6):
        raise TaskError(
            f"task {task.name!r}: expected the loss to be a mean over the batch, got {once:.6g} for {size} examples and {twice:.6g} "
            "for the same ones twice: use reduction='mean' (a sum changes the step size with the batch size)"
        )


def _check_start(task: Task) -> tuple[str, ...]:
    """An evaluation works, and the goal is not yet met; returns the names of what an evaluation gives."""
    seed_everything(0)
    model = task.model().train()
    try:
        values = evaluate(task, model, FixedBatches(task, task.valid, None, CPU), task.precision)
    except Exception as error:
        raise TaskError(
            f"task {task.name!r}: evaluating the validation data raised {_text(error)}: check valid=, metrics and evaluate="
        ) from error
    if "loss" not in values:
        raise TaskError(f"task {task.name!r}: expected evaluate to return a 'loss', got {sorted(values)}: add it")
    if task.goal is not None and task.goal.metric not in values:
        raise TaskError(
            f"task {task.name!r}: expected the goal's metric among {sorted(values)}, got {task.goal.metric!r}: let evaluate return it"
        )
    if task.goal is not None and task.goal.met(values[task.goal.metric]):
        raise TaskError(
            f"task {task.name!r}: expected a goal that training must reach, got {task.goal} which initialisation already meets "
            f"({values[task.goal.metric]:.6g}): set a harder one"
        )
    return tuple(values)


def _check_first_step(task: Task) -> None:
    """The loss is still finite after one step at the task's own point."""
    seed_everything(0)
    model = task.model().train()
    batch = _sample(task, task.batch_size)
    make_step(task, model, task.optimizer(model, task.lr), precision=task.precision)(batch)
    loss = evaluate(task, model, [batch], task.precision)["loss"]
    if not math.isfinite(loss):
        raise TaskError(
            f"task {task.name!r}: expected a finite loss after the first step at its own point (lr={task.lr}, "
            f"batch_size={task.batch_size}), got {loss}: lower lr, or check the loss for overflow"
        )


def _check_single_example(task: Task, size: int) -> None:
    """Batch norm cannot train on one example: a batch of 1, or a last short batch of 1, is refused with the reason."""
    seed_everything(0)
    model = task.model().train()
    try:
        task.batch_loss(model, _sample(task, 1))
    except Exception as error:
        norm = next((m for m in model.modules() if "BatchNorm" in type(m).__name__), None)
        why = "batch norm has no variance over one example" if norm is not None else f"the model raised {_text(error)}"
        what = (
            "a batch size of 1"
            if size == 1
            else f"batch size {size} (its last batch of an epoch is 1 of {task.train_size} examples)"
        )
        raise TaskError(f"task {task.name!r}: {what} cannot be trained: {why}: leave it out") from error


def _shapes(task: Task, batch: Batch) -> str:
    """Shapes of output and target in words, as far as they can be had."""
    if task.step is not None:
        return "a batch of shapes " + ", ".join(str(tuple(t.shape)) for t in tensors_in(batch))
    try:
        seed_everything(0)
        output = tuple(task.model()(batch[0]).shape)
    except Exception:
        return f"input of shape {tuple(batch[0].shape)}"
    return f"output of shape {output} and target of shape {tuple(batch[1].shape)}, {batch[1].dtype}"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]
