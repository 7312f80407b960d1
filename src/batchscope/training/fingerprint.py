"""Is this the task whose trials are stored? A fingerprint of what a task *does*; its source text is never read.

Components, each hashed by itself so that a change can be named:
    parameters   names, shapes, types and which of them train
    gradient     loss, gradients and weights over two seeded steps at learning rate 1e-3, on a few examples, metrics too
    data         every byte of tensors; of a Dataset, its length and 256 items spread evenly over it
    optimizer    its class, its settings at learning rate 1e-3 and the layout of its state
    schedule     the learning rates over ten steps
    goal         goal, unit, metric names, clipping
    precision    precision
    versions     torch's version and the training loop's
The same task gives the same fingerprint on the same kind of machine; other hardware rounds differently, and then its
trials are rightly not mixed.
"""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch

from batchscope.records import Goal
from batchscope.task import Data, Task, data_size
from batchscope.training.batches import FixedBatches, tensors_in
from batchscope.training.seeding import drawing_from, seed_everything
from batchscope.training.step import evaluate, make_step

LOOP_VERSION = 1  # raised whenever the loop's arithmetic changes
EXAMPLES = 8  # examples of each of the two steps: enough to notice a change, cheap for a large model
ITEMS = 256  # items of a Dataset that are hashed (a guess at what is cheap)
LEARNING_RATE = 1e-3  # of the two steps; not the task's own, which is part of the trial and not of the task


def fingerprint(task: Task) -> tuple[str, dict[str, str]]:
    """16 hex digits that name the task, and the hashes of the components they are made of."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        components = _of_training(task) | {
            "data": _hash(*[_data(task, part) for part in (task.train, task.valid, task.test) if part is not None]),
            "goal": _hash(_goal(task.goal), task.unit, sorted(task.metrics), task.clip_norm),
            "precision": _hash(task.precision),
            "versions": _hash(str(torch.__version__), LOOP_VERSION),
        }
    finally:
        torch.set_num_threads(threads)
    return _hash(*[f"{k}={v}" for k, v in sorted(components.items())]), components


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Names of the components that differ, in plain words."""
    words = {"gradient": "model, loss or metrics", "parameters": "the model's parameters", "data": "the data"}
    return [words.get(k, f"the {k}") for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]


def _goal(goal: Goal | None) -> str:
    return "none" if goal is None else str(goal)


def _of_training(task: Task) -> dict[str, str]:
    """Hashes of everything that takes a model: two seeded steps on the first examples, on the CPU."""
    seed_everything(0)
    model = task.model().train()
    optimizer = task.optimizer(model, LEARNING_RATE)
    scheduler = task.schedule(optimizer, 10) if task.schedule is not None else None
    parameters = [(n, tuple(p.shape), str(p.dtype), p.requires_grad) for n, p in model.named_parameters()]
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    batch = next(iter(FixedBatches(task, task.train, list(range(min(EXAMPLES, task.train_size))), torch.device("cpu"))))
    step = make_step(task, model, optimizer, precision=task.precision)
    seen: list[Any] = [evaluate(task, model, [batch], task.precision)]
    for _ in range(2):
        step(batch)
        seen += [p.grad for p in model.parameters()] + list(model.state_dict().values())
    layout = [sorted((k, str(getattr(v, "shape", v))) for k, v in s.items()) for s in optimizer.state.values()]
    rates = []
    for _ in range(10 if scheduler is not None else 0):
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return {
        "parameters": _hash(parameters),
        "gradient": _hash(*seen),
        "optimizer": _hash(type(optimizer).__name__, settings, layout),
        "schedule": _hash(rates),
    }


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
        tensor = value.detach().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    elif isinstance(value, dict):
        digest.update(b"dict")
        for key in value:
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (str, int, float, bool, type(None))):
        digest.update(f"{type(value).__name__} {value!r}".encode())
    elif next(tensors_in(value), None) is None:  # an image, an array, an object of the user's: by its content
        digest.update(pickle.dumps(value))
