"""Is this the task whose trials are stored? A fingerprint of what a task *does*; its source text is never read.

Components, each hashed by itself so that a change can be named:
    parameters   names, shapes, types and which of them train
    gradient     loss, metrics, gradients and weights over two seeded steps at learning rate 1e-3, on a few examples
    data         every byte of tensors; of a Dataset, its length and 256 items spread evenly over it
    optimizer    its class, its settings at learning rate 1e-3, the layout of its state, clipping
    schedule     its own settings, and all the optimiser's over a horizon of 1000 steps
    goal         goal, unit, metric names
    precision    precision
    sharing      how replicas share the model, where it is not as usual (batch norm per replica, weights whole)
    versions     torch's version and the training loop's
The same task gives the same fingerprint on the same kind of machine; other hardware rounds differently, and then its
trials are rightly not mixed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from batchscope.records import Goal
from batchscope.task import Data, Task, data_size
from batchscope.training.batches import FixedBatches
from batchscope.training.seeding import drawing_from, seed_everything
from batchscope.training.step import evaluate, make_model, make_step

LOOP_VERSION = 1  # raised whenever the loop's arithmetic changes
EXAMPLES = 8  # examples of each of the two steps: enough to notice a change, cheap for a large model
ITEMS = 256  # items of a Dataset that are hashed (a guess at what is cheap)
LEARNING_RATE = 1e-3  # of the two steps; not the task's own, which is part of the trial and not of the task
SCHEDULE_STEPS = 1000  # some 10 ms; a change that only shows in later steps must show in the schedule's settings
CPU = torch.device("cpu")


def fingerprint(task: Task) -> tuple[str, dict[str, str]]:
    """16 hex digits that name the task, and the hashes of the components they are made of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        components = _of_training(task) | {
            "data": _hash(*[_data(task, part) for part in (task.train, task.valid, task.test) if part is not None]),
            "goal": _hash(_goal(task.goal), task.unit, sorted(task.metrics)),
            "precision": _hash(task.precision),
            "versions": _hash(str(torch.__version__), LOOP_VERSION),
        }
    finally:
        torch.set_num_threads(threads)
    if task.shard or task.batch_norm != "per replica":
        components["sharing"] = _hash(task.batch_norm, task.shard)
    return _hash(*[f"{k}={v}" for k, v in sorted(components.items())]), components


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Names of the components that differ, in plain words."""
    words = {
        "gradient": "model, loss or metrics",
        "parameters": "the model's parameters",
        "data": "the data",
        "sharing": "how replicas share the model (batch_norm, shard)",
    }
    return [words.get(k, f"the {k}") for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]


def _goal(goal: Goal | None) -> str:
    return "none" if goal is None else str(goal)


def _of_training(task: Task) -> dict[str, str]:
    """Hashes of everything that takes a model: two seeded steps on the first examples, on the CPU."""
    seed_everything(0)
    model = make_model(task, CPU)
    optimizer = task.optimizer(model, LEARNING_RATE)
    parameters = [(n, tuple(p.shape), str(p.dtype), p.requires_grad) for n, p in model.named_parameters()]
    modes = [module.training for module in model.modules()]
    settings = _settings(optimizer)
    batch = next(iter(FixedBatches(task, task.train, list(range(min(EXAMPLES, task.train_size))), CPU)))
    step = make_step(task, model, optimizer, precision=task.precision)
    seen: list[Any] = [evaluate(task, model, [batch], task.precision)]
    for _ in range(2):
        step(batch)
        seen += [p.grad for p in model.parameters()] + list(model.state_dict().values())
    layout = [sorted((k, str(getattr(v, "shape", v))) for k, v in s.items()) for s in optimizer.state.values()]
    return {
        "parameters": _hash(parameters, modes),
        "gradient": _hash(*seen),
        "optimizer": _hash(type(optimizer).__name__, settings, layout, task.clip_norm),
        "schedule": _schedule(task, optimizer),
    }


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of every parameter group, the learning rate among them."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def _schedule(task: Task, optimizer: torch.optim.Optimizer) -> str:
    """Hash of a schedule: its state, which holds its settings, and what it does to the optimiser."""
    if task.schedule is None:
        return _hash()
    scheduler = task.schedule(optimizer, SCHEDULE_STEPS)
    seen = [type(scheduler).__name__, scheduler.state_dict(), _settings(optimizer)]
    optimizer.zero_grad()  # no gradient, no change of the weights: the step is made only because schedules expect one
    optimizer.step()
    for _ in range(SCHEDULE_STEPS):
        scheduler.step()
        seen.append(_settings(optimizer))
    return _hash(*seen)


def _data(task: Task, data: Data) -> str:
    """Hash of a data set: all bytes of tensors, a spread sample of a Dataset."""
    if isinstance(data, (tuple, list)):
        return _hash(*data)
    size = data_size(data)
    chosen = sorted({i * size // ITEMS for i in range(ITEMS)})
    with drawing_from(0):
        return _hash(size, *[data[i] for i in chosen])


def _hash(*values: Any) -> str:
    """16 hex digits over tensors (type, shape, bytes) and plain values, nested."""
    digest = hashlib.sha256()
    for value in values:
        _update(digest, value)
    return digest.hexdigest()[:16]


def _update(digest: Any, value: Any) -> None:
    """Feed one value to the hash, with its kind, so that unlike values never look alike."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().to_dense().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)}".encode())
        for key in value:
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(f"{type(value).__name__} {value!r}".encode())
    else:  # an image, an array, an object of the user's
        digest.update(_contents(value))


def _contents(value: Any) -> bytes:
    """An object by what it holds; by its class alone where that cannot be had."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except (AttributeError, TypeError, pickle.PicklingError):
        return type(value).__qualname__.encode()
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Writes a tensor by its contents instead of its address, and a function or class by its name."""

    def persistent_id(self, obj: Any) -> str | None:
        if isinstance(obj, torch.Tensor):
            return _hash(obj)
        return getattr(obj, "__qualname__", None) if callable(obj) else None
