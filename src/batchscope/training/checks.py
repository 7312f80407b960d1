"""Can this task be measured as it stands? Checks that need a forward pass, made before compute is spent.

Each refusal is one sentence: what was expected, what came, what to change. In order: the model is fresh and has
parameters; one optimiser and schedule follow the learning rate; data repeat and fit the loss; the loss is a scalar, a
mean, finite and carries gradient; two seeded passes agree; the goal is not met at initialisation; the first step at the
task's own point works. And `check_batch_sizes`: every batch size fits the data and the model.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from batchscope.errors import TaskError, UnsupportedTask, UsageError
from batchscope.task import Batch, Task, data_size
from batchscope.training.batches import FixedBatches, tensors_in
from batchscope.training.fingerprint import CPU, SCHEDULE_STEPS, fingerprint
from batchscope.training.seeding import seed_everything
from batchscope.training.step import evaluate, make_model, make_step

SAMPLE = 8  # examples of the probe batch
MEAN_TOLERANCE = 1e-2  # relative; a sum over twice the examples is off by a factor of 2
NOISY_SEEDS, NOISY_TOLERANCE = 32, 0.5  # for a loss that draws at random: averaged, and nearer to 1 than to 2 (guesses)


@dataclass(frozen=True)
class CheckedTask:
    """A task that passed: its fingerprint, the fingerprint's components and the metric names of an evaluation."""

    fingerprint: str
    components: dict[str, str]
    metrics: tuple[str, ...]


def check_task(task: Task) -> CheckedTask:
    """Run all checks that do not depend on what will be asked; raises TaskError or UnsupportedTask."""
    if task.batch_size > task.train_size:
        came = f"{task.batch_size}"
        most = f"batch_size to be at most the {task.train_size} training examples"
        raise _refusal(task, most, came, "lower it or give more data")
    _check_optimizer(task, _fresh_model(task))
    _check_learning_rate(task)
    _check_loss(task, _batch(task))
    _check_mean(task)
    metrics = _check_start(task)
    _check_first_step(task)
    name, components = fingerprint(task)
    return CheckedTask(name, components, metrics)


def check_batch_sizes(task: Task, batch_sizes: Sequence[Any], devices: int = 1) -> tuple[int, ...]:
    """Sorted batch sizes, or UsageError / TaskError for one that the data, the model or the devices cannot take."""
    for size in batch_sizes:
        if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
            raise UsageError(f"expected batch sizes that are whole numbers from 1 up, got {size!r}: remove it")
        if size > task.train_size:
            raise UsageError(
                f"expected batch sizes up to the {task.train_size} training examples of {task.name!r}, got {size}: "
                "remove it"
            )
    sizes = sorted(int(size) for size in batch_sizes)
    if not sizes:
        raise UsageError("expected at least one batch size, got none: write --batch-sizes 32,256")
    repeated = next((size for size in sizes if sizes.count(size) > 1), None)
    if repeated is not None:
        raise UsageError(
            f"expected each batch size once, got {repeated} {sizes.count(repeated)} times: remove the repeats"
        )
    for size in sizes:
        if size < devices:
            raise UsageError(
                f"expected batch sizes of at least {devices} examples on {devices} devices, got {size}: remove it, or "
                "use fewer devices"
            )
        parts = devices if task.batch_norm == "per replica" else 1
        if any(0 < examples < 2 * parts for examples in (size, task.train_size % size)):
            _check_single_example(task, size, parts)
    return tuple(sizes)


def _refusal(
    task: Task, expected: str, came: str, instead: str, kind: type[TaskError] = TaskError, what: str = "got "
) -> TaskError:
    """The error for one refused task, in one sentence."""
    return kind(f"task {task.name!r}: expected {expected}, {what}{came}: {instead}")


def _sample(task: Task, size: int, repeat: int = 1) -> Batch:
    """The first `size` training examples as one batch, `repeat` times over."""
    try:
        return next(iter(FixedBatches(task, task.train, list(range(size)) * repeat, CPU)))
    except TaskError:
        raise
    except Exception as error:
        raise _refusal(
            task, f"to read the first {size} training examples", _text(error), "check the data set", what="it raised "
        ) from error


def _text(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def _fresh_model(task: Task) -> torch.nn.Module:
    """A fresh model, or the reason why there is none."""
    seed_everything(0)
    try:
        model = task.model()
    except Exception as error:
        what, instead = "model() to make a model", "call it by itself to see why"
        raise _refusal(task, what, _text(error), instead, what="it raised ") from error
    if not isinstance(model, torch.nn.Module):
        raise _refusal(task, "model() to return an nn.Module", type(model).__name__, "return the module")
    if any(torch.nn.parameter.is_lazy(p) for p in model.parameters()):
        came = "lazy ones without a shape"
        raise _refusal(task, "initialised parameters", came, "give the layers their sizes", UnsupportedTask)
    if not any(p.requires_grad for p in model.parameters()):
        raise _refusal(task, "parameters to train", "none that require gradient", "unfreeze some")
    return model


def _check_optimizer(task: Task, model: torch.nn.Module) -> None:
    """One ordinary torch optimiser over this model's parameters."""
    try:
        optimizer = task.optimizer(model, task.lr)
    except Exception as error:
        what, instead = "optimizer(model, lr) to make an optimiser", "check optimizer=lambda model, lr: ..."
        raise _refusal(task, what, _text(error), instead, what="it raised ") from error
    kind = type(optimizer).__name__
    if isinstance(optimizer, (list, tuple, dict)):
        came = f"a {kind} of {len(optimizer)} (several optimisers are not supported)"
        raise _refusal(task, "one torch optimiser", came, "return one, with parameter groups", UnsupportedTask)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise _refusal(task, "a torch optimiser", kind, "return torch.optim.SGD(...)")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        came = f"{kind}, whose step needs a closure (not supported)"
        raise _refusal(task, "an optimiser that steps by itself", came, "use SGD, Adam or the like", UnsupportedTask)
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        instead = "write optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)"
        raise _refusal(task, "an optimiser of the model it was given", "one of other parameters", instead)


def _check_learning_rate(task: Task) -> None:
    """Twice the learning rate changes what the optimiser uses, after the schedule had its say."""
    once, twice = _learning_rates(task, task.lr), _learning_rates(task, 2 * task.lr)
    if once == twice:
        came = f"the same ones at {task.lr} and {2 * task.lr}"
        instead = "pass lr on in optimizer= and schedule= (OneCycleLR: max_lr), or tuning it would do nothing"
        raise _refusal(task, "learning rates that follow the lr that optimizer= is given", came, instead)


def _learning_rates(task: Task, lr: float) -> list[list[float]]:
    """The learning rates of all parameter groups, over a schedule of some steps where there is one."""
    model = _fresh_model(task)
    optimizer = task.optimizer(model, lr)
    if task.schedule is None:
        return [[float(group["lr"]) for group in optimizer.param_groups]]
    try:
        scheduler = task.schedule(optimizer, SCHEDULE_STEPS)
    except Exception as error:
        what, instead = "schedule(optimizer, total_steps) to make a scheduler", "check schedule=lambda ...: ..."
        raise _refusal(task, what, _text(error), instead, what="it raised ") from error
    kind = type(scheduler).__name__
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        instead = "use one that follows the steps, such as CosineAnnealingLR"
        raise _refusal(task, "a schedule of steps alone", f"{kind} (not supported)", instead, UnsupportedTask)
    if not all(hasattr(scheduler, name) for name in ("step", "state_dict", "load_state_dict")):
        raise _refusal(task, "a scheduler with step and state_dict", kind, "return a torch.optim.lr_scheduler")
    rates = []
    optimizer.step()  # there is no gradient: only because schedules expect it
    try:
        for _ in range(SCHEDULE_STEPS):
            scheduler.step()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    except Exception as error:
        what, instead = f"a schedule of total_steps={SCHEDULE_STEPS} steps", "build it from the total_steps it is given"
        raise _refusal(task, what, _text(error), instead, what=f"after {len(rates)} it raised ") from error
    return rates


def _batch(task: Task) -> Batch:
    """A probe batch: it reads the same twice, and is (input, target) where the task has a loss and no step."""
    size = min(SAMPLE, task.train_size)
    batch, again = _sample(task, size), _sample(task, size)
    pairs = zip(tensors_in(batch), tensors_in(again), strict=True)
    if not all(a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
        instead = "draw augmentation from the global generators of torch, numpy or random, not from one of its own"
        raise _refusal(task, "examples that read the same twice with the same seed", "different ones", instead)
    if task.step is None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        came = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else f"a {type(batch).__name__}"
        instead = "write step=lambda model, batch: ... (and evaluate=)"
        raise _refusal(task, "batches (input, target)", came, instead)
    return batch


def _loss(task: Task, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The seeded loss of a fresh model on a batch, and its gradients."""
    seed_everything(0)
    model = make_model(task, CPU)
    loss = task.batch_loss(model, batch)
    weights = [p for p in model.parameters() if p.requires_grad]
    usable = isinstance(loss, torch.Tensor) and loss.dim() == 0 and loss.requires_grad
    gradients = torch.autograd.grad(loss, weights, allow_unused=True) if usable else ()
    return loss, [None if g is None else g.to_dense() for g in gradients]


def _check_loss(task: Task, batch: Batch) -> None:
    """The loss fits, is a finite scalar with gradient, and repeats."""
    try:
        loss, gradients = _loss(task, batch)
    except Exception as error:
        what = f"a loss on {_shapes(task, batch)}"
        raise _refusal(
            task, what, _text(error), "make the model's output match the targets", what="it raised "
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise _refusal(task, "the loss to be a scalar tensor (the mean over the batch)", shape, "average it")
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _refusal(task, "a finite loss at initialisation", f"{value}", "check data and model")
    if not loss.requires_grad:
        raise _refusal(task, "the loss to carry gradient", "one that does not", "remove no_grad, detach or item")
    if not any(g is not None and bool(g.abs().sum() > 0) for g in gradients):
        raise _refusal(
            task, "gradient to reach the parameters", "none", "check detach, frozen layers, dead units and the loss"
        )
    again, gradients_again = _loss(task, batch)
    if not torch.equal(loss, again) or not all(map(_same, gradients, gradients_again)):
        came = f"losses {value!r} and {float(again.detach())!r} (or other gradients)"
        raise _refusal(
            task, "two passes with the same seed to agree", came, "draw all randomness from torch's generator"
        )


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return torch.equal(a, b) if a is not None and b is not None else a is b


def _check_mean(task: Task) -> None:
    """The mean over a batch given twice is the mean over it once; a sum is twice as large.

    In eval mode, where dropout is off; in training mode for a model whose loss exists only there. A loss that draws at
    random is averaged over seeds, and only held to be nearer to a mean than to a sum.
    """
    size = min(SAMPLE, task.train_size)
    batches = _sample(task, size), _sample(task, size, repeat=2)
    try:
        losses = [_seeded_losses(task, batch, training=False) for batch in batches]
    except Exception:
        losses = [_seeded_losses(task, batch, training=True) for batch in batches]
    noisy = min(losses[0]) != max(losses[0])
    once, twice = (sum(values) / len(values) for values in losses)
    if abs(twice - once) > (NOISY_TOLERANCE if noisy else MEAN_TOLERANCE) * max(abs(once), 1e-6):
        came = f"{once:.6g} for {size} examples and {twice:.6g} for the same ones twice"
        instead = "use reduction='mean' (a sum changes the step size with the batch size)"
        raise _refusal(task, "the loss to be a mean over the batch", came, instead)


def _seeded_losses(task: Task, batch: Batch, training: bool) -> list[float]:
    """One model's loss under several seeds: twice, and more often only if the two differ."""
    seed_everything(0)
    model = make_model(task, CPU)
    if not training:
        model.eval()
    losses: list[float] = []
    while len(losses) < 2 or (losses[0] != losses[1] and len(losses) < NOISY_SEEDS):
        seed_everything(len(losses))
        losses.append(float(task.batch_loss(model, batch).detach()))
    return losses


def _check_start(task: Task) -> tuple[str, ...]:
    """Evaluations work, and the goal is not yet met; returns the names of what an evaluation gives."""
    seed_everything(0)
    model = make_model(task, CPU)
    part = "validation"
    try:
        values = evaluate(task, model, FixedBatches(task, task.valid, None, CPU), task.precision)
        if task.test is not None:
            part, first = "test", list(range(min(SAMPLE, data_size(task.test))))
            evaluate(task, model, FixedBatches(task, task.test, first, CPU), task.precision)
    except Exception as error:
        what, instead = f"to evaluate the {part} data", "check the data, metrics and evaluate="
        raise _refusal(task, what, _text(error), instead, what="it raised ") from error
    if "loss" not in values:
        raise _refusal(task, "evaluate to return a 'loss'", f"{sorted(values)}", "add it")
    if not math.isfinite(values["loss"]):
        what = "a finite validation loss at initialisation"
        raise _refusal(task, what, f"{values['loss']}", "check the validation data")
    if task.goal is None:
        return tuple(values)
    if task.goal.metric not in values:
        what = f"the goal's metric among {sorted(values)}"
        raise _refusal(task, what, repr(task.goal.metric), "let evaluate return it")
    if task.goal.met(values[task.goal.metric]):
        came = f"{task.goal}, which initialisation already meets ({values[task.goal.metric]:.6g})"
        raise _refusal(task, "a goal that training must reach", came, "set a harder one")
    return tuple(values)


def _check_first_step(task: Task) -> None:
    """One step at the task's own point works, leaves a finite loss, and leaves other models alone."""
    seed_everything(0)
    model, other = make_model(task, CPU), make_model(task, CPU)
    before = {name: value.clone() for name, value in other.state_dict().items() if isinstance(value, torch.Tensor)}
    batch = _sample(task, task.batch_size)
    point = f"lr={task.lr}, batch_size={task.batch_size}"
    try:
        make_step(task, model, task.optimizer(model, task.lr), precision=task.precision)(batch)
        loss = evaluate(task, model, [batch], task.precision)["loss"]
    except Exception as error:
        what, instead = f"a first step at its own point ({point})", "make that step by itself to see why"
        raise _refusal(task, what, _text(error), instead, what="it raised ") from error
    if not math.isfinite(loss):
        what = f"a finite loss after the first step at its own point ({point})"
        raise _refusal(task, what, f"{loss}", "lower lr, or check the loss for overflow")
    after = other.state_dict()
    if not all(torch.equal(value.nan_to_num(), after[name].nan_to_num()) for name, value in before.items()):
        came = "two models that share weights, so that a trial would begin where the last one ended"
        instead = "build the model inside the function: model=lambda: MyModel()"
        raise _refusal(task, "model() to make a fresh model each time", came, instead)


def _check_single_example(task: Task, size: int, devices: int = 1) -> None:
    """Batch norm cannot train on one example: a batch, or a last short one, that leaves a device with 1 is refused.

    `devices`: on which it sees their parts of a batch.
    """
    seed_everything(0)
    model = make_model(task, CPU)
    try:
        task.batch_loss(model, _sample(task, 1))
    except TaskError:
        raise
    except Exception as error:
        norm = any("BatchNorm" in type(module).__name__ for module in model.modules())
        why = "batch norm has no variance over one example" if norm else f"the model raised {_text(error)}"
        last = task.train_size % size
        short = f"batch size {size} (its last batch of an epoch is {last} of {task.train_size} examples)"
        came = f"a batch size of {size}" if size < 2 * devices else short
        came += f" on {devices} devices, so that one of them gets 1 example" * (devices > 1)
        raise _refusal(
            task, "batch sizes that the model can train at", f"{came}, where {why}", "leave it out"
        ) from error


def _shapes(task: Task, batch: Batch) -> str:
    """Shapes of output and target in words, as far as they can be had."""

    def shapes(values: Any) -> str:
        return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(values))

    if task.step is not None:
        return f"a batch of shapes {shapes(batch)}"
    try:
        seed_everything(0)
        return f"output of shape {shapes(make_model(task, CPU)(batch[0]))} and target of shape {shapes(batch[1])}"
    except Exception:
        return f"input of shape {shapes(batch[0])}"
