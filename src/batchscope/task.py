"""What does the user bring? A `Task`: model, loss, data, optimiser, goal. And where is it found? `load_task`.

A task file is plain Python with a function that returns a `Task`:

    def task() -> bs.Task:
        return bs.Task(name="mine", model=make_model, loss=F.cross_entropy, train=(x, y), valid=(xv, yv),
                       optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
                       lr=0.1, batch_size=64, goal=bs.Goal("loss", at_most=0.36))

What can be seen without running anything is checked here; what needs a forward pass in `training/checks.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from batchscope.errors import TaskError, UnsupportedTask, UsageError
from batchscope.records import Goal
from batchscope.tasks import BUILT_IN

__all__ = ["Goal", "Task", "load_task"]

Data = Any  # a tuple of tensors of equal length, or a map-style Dataset
Batch = Any  # what the data set's items collate to; (input, target) unless `step` says otherwise


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training task.

    Attributes:
        name: what tables and the store call it.
        model: () -> nn.Module, freshly initialised from torch's random generator. It is trained in training mode;
            layers that you put into eval mode inside it (frozen batch norm) stay so.
        loss: (output, target) -> scalar, the *mean* over the batch (over the counted tokens with unit="tokens").
        train, valid, test: a tuple of tensors with equal first dimension, or a map-style torch Dataset.
        optimizer: (model, lr) -> one torch optimiser.
        lr, batch_size: the user's own point today; not assumed to be good. batch_size is in examples.
        goal: what counts as trained; None: the validation loss that the own point reaches.
        metrics: name -> (output, target) -> mean over the batch; reported beside the loss, usable as goals.
        step: (model, batch) -> mean loss, for batches that are not (input, target); then `loss` is not used.
        evaluate: (model, batch) -> {"loss": mean, ...}; with `step`, for evaluation. Default: `step` itself.
        schedule: (optimizer, total_steps) -> scheduler, stepped once per optimiser step; total_steps is how many
            steps the trial's budget of examples takes at its batch size, so that it follows the examples.
        clip_norm: largest global gradient norm; None: no clipping.
        precision: "fp32", or "bf16" (autocast; weights stay fp32).
        batch_norm: what batch norm sees where several devices share a batch: "per replica", a device's own part, or
            "synchronised", the parts of all, as on one device. On one device it changes nothing.
        shard: where several devices share a batch, each keeps a piece of every weight and of the optimiser's state
            (FSDP2), for models that are too large for one; the losses are the same within rounding.
        collate_fn, num_workers: as in torch's DataLoader; used for Datasets.
        unit: what throughput counts and what the loss averages over: "examples" or "tokens".
        count: batch -> how many units the loss averages over; default: examples, or with unit="tokens" the targets
            other than -100 (cross_entropy's ignore_index).
        budget: the most examples that a trial may use; None: 40 epochs (a guess).
        targets: further goal values of the same metric to report.
    """

    name: str
    model: Callable[[], torch.nn.Module]
    train: Data
    valid: Data
    optimizer: Callable[[torch.nn.Module, float], torch.optim.Optimizer]
    lr: float
    batch_size: int
    loss: Callable[[Any, Any], torch.Tensor] | None = None
    goal: Goal | None = None
    test: Data | None = None
    metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    step: Callable[[torch.nn.Module, Batch], torch.Tensor] | None = None
    evaluate: Callable[[torch.nn.Module, Batch], Mapping[str, Any]] | None = None
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None
    clip_norm: float | None = None
    precision: str = "fp32"
    batch_norm: str = "per replica"
    shard: bool = False
    collate_fn: Callable[[list[Any]], Batch] | None = None
    num_workers: int = 0
    unit: str = "examples"
    count: Callable[[Batch], int] | None = None
    budget: int | None = None
    targets: Sequence[float] = ()

    def __post_init__(self) -> None:
        _check_fields(self)
        for part in ("train", "valid", "test"):
            data = getattr(self, part)
            if data is not None or part != "test":
                _check_data(self.name, part, data)

    @property
    def train_size(self) -> int:
        """Examples in the training set."""
        return data_size(self.train)

    @property
    def budget_examples(self) -> int:
        """The most examples that a trial may use."""
        return self.budget if self.budget is not None else 40 * self.train_size

    def batch_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The mean loss of one batch, as a scalar tensor with gradient."""
        if self.step is not None:
            return self.step(model, batch)
        return self.loss_of(model(batch[0]), batch[1])

    def loss_of(self, output: Any, target: Any) -> torch.Tensor:
        """The mean loss of a model's output; only for a task that has a `loss`."""
        if self.loss is None:
            raise TaskError(f"task {self.name!r}: expected a loss function, got only step: write loss=F.cross_entropy")
        return self.loss(output, target)


def data_size(data: Data) -> int:
    """Examples in a tuple of tensors or a Dataset."""
    return len(data[0]) if isinstance(data, (tuple, list)) else len(data)


def _check_fields(task: Task) -> None:
    """Everything about the fields that needs no data and no model; raises TaskError with what to write instead."""

    def refuse(expected: str, came: object, instead: str) -> None:
        shown = " ".join(repr(came).split())  # a module's or an optimiser's own text has several lines
        raise TaskError(f"task {task.name!r}: expected {expected}, got {shown[:100]}: {instead}")

    if not isinstance(task.name, str) or not task.name:
        refuse("a name", task.name, 'write name="my-classifier"')
    if not callable(task.model) or isinstance(task.model, torch.nn.Module):
        refuse("model to be a function that makes a fresh nn.Module", task.model, "write model=lambda: MyModel()")
    if task.step is None and not callable(task.loss):
        refuse("a loss function", task.loss, "write loss=F.cross_entropy, or step=lambda model, batch: ...")
    for part in ("step", "evaluate", "schedule", "collate_fn", "count"):
        if getattr(task, part) is not None and not callable(getattr(task, part)):
            refuse(f"{part} to be a function or None", getattr(task, part), f"write {part}=lambda ...: ...")
    if not isinstance(task.metrics, Mapping) or not all(map(callable, task.metrics.values())):
        refuse("metrics to be functions by name", task.metrics, 'write metrics={"accuracy": fn(output, target)}')
    if isinstance(task.optimizer, (list, tuple)):
        raise UnsupportedTask(
            f"task {task.name!r}: several optimisers are not supported: give one (model, lr) -> optimiser"
        )
    if not callable(task.optimizer) or isinstance(task.optimizer, torch.optim.Optimizer):
        instead = "write optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr)"
        refuse("optimizer to be a function of (model, lr)", task.optimizer, instead)
    if not isinstance(task.lr, (int, float)) or not math.isfinite(task.lr) or task.lr <= 0:
        refuse("a positive learning rate", task.lr, "write lr=0.1")
    if not isinstance(task.batch_size, int) or task.batch_size < 1:
        refuse("a batch size of at least 1", task.batch_size, "write batch_size=64")
    if task.goal is not None and not isinstance(task.goal, Goal):
        refuse("goal to be a bs.Goal or None", task.goal, 'write goal=bs.Goal("loss", at_most=0.36)')
    if task.goal is not None and task.evaluate is None and task.goal.metric not in ("loss", *task.metrics):
        known = ", ".join(("loss", *task.metrics))
        refuse(
            f"the goal's metric to be one of {known}", task.goal.metric, "add it to metrics={name: fn(output, target)}"
        )
    if "loss" in task.metrics:
        refuse("metrics under other names than 'loss'", "loss", "the loss is always reported; rename the metric")
    if task.precision not in ("fp32", "bf16"):
        refuse('precision "fp32" or "bf16"', task.precision, 'write precision="fp32"')
    if task.batch_norm not in ("per replica", "synchronised"):
        refuse('batch_norm "per replica" or "synchronised"', task.batch_norm, 'write batch_norm="synchronised"')
    if not isinstance(task.shard, bool):
        refuse("shard to be True or False", task.shard, "write shard=True, or leave it out")
    if task.unit not in ("examples", "tokens"):
        refuse('unit "examples" or "tokens"', task.unit, 'write unit="examples"')
    if task.budget is not None and (not isinstance(task.budget, int) or task.budget < 1):
        refuse("budget to be a number of examples", task.budget, "write budget=1_000_000, or leave it out")
    if task.clip_norm is not None and not task.clip_norm > 0:
        refuse("a positive clip_norm", task.clip_norm, "write clip_norm=1.0, or leave it out")


def _check_data(name: str, part: str, data: Data) -> None:
    """Map-style, not empty, tensors of equal length; raises TaskError or UnsupportedTask."""
    where = f"task {name!r}: {part}"
    if isinstance(data, IterableDataset) or (not hasattr(data, "__getitem__") and hasattr(data, "__iter__")):
        raise UnsupportedTask(
            f"{where} data is iterable ({type(data).__name__}), which has no fixed order to pair trials by: "
            "give a tuple of tensors or a map-style Dataset with __len__ and __getitem__"
        )
    if isinstance(data, (tuple, list)):
        if not data or not all(isinstance(t, torch.Tensor) and t.dim() > 0 for t in data):
            kinds = ", ".join(type(t).__name__ for t in data) or "nothing"
            raise TaskError(
                f"{where} data: expected tensors, got ({kinds}): write (torch.as_tensor(x), torch.as_tensor(y))"
            )
        sizes = [len(t) for t in data]
        if len(set(sizes)) != 1:
            raise TaskError(f"{where} data: expected tensors of equal length, got {sizes}: give one target per example")
    elif not isinstance(data, Dataset) and not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TaskError(
            f"{where} data: expected a tuple of tensors or a map-style Dataset, got {type(data).__name__}: "
            f"write {part}=(x, y)"
        )
    try:
        size = data_size(data)
    except (TypeError, NotImplementedError) as error:
        raise TaskError(f"{where} data: expected a Dataset with a length, got {error}: give it a __len__") from error
    least = 2 if part == "train" else 1
    if size < least:
        raise TaskError(
            f"{where} data: expected at least {least} example{'s' * (least > 1)}, got {size}: "
            "check the path or the split that makes it"
        )


def load_task(reference: str) -> Task:
    """The task that a reference names: `path.py`, `path.py:function`, `package.module:function` or a built-in name.

    Raises UsageError for a reference that leads nowhere, TaskError where the task's own code raises or returns
    something else; the original exception is chained.
    """
    make = _find_function(BUILT_IN.get(reference, reference), reference)
    with _explained(f"task {reference!r}: its function"):
        made = make()
    if not isinstance(made, Task):
        raise TaskError(
            f"task {reference!r}: expected its function to return a bs.Task, got {type(made).__name__}: "
            "add 'return bs.Task(...)'"
        )
    return made


@contextlib.contextmanager
def _explained(what: str) -> Generator[None]:
    """Whatever the user's code inside raises (or a sys.exit) becomes a TaskError that says where."""
    try:
        yield
    except (TaskError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise TaskError(f"{what} raised {_where(error)}: run it in Python to see why") from error


def _find_function(target: str, reference: str) -> Callable[[], Any]:
    """The function behind `path.py[:function]` or `module:function`."""
    place, _, name = (target, "", "") if target.endswith(".py") else target.rpartition(":")
    if place.endswith(".py"):
        module = _module_from_file(Path(place), reference)
    elif place and name:
        module = _module_by_name(place, reference)
    else:
        known = ", ".join(sorted(BUILT_IN))
        raise UsageError(
            f"no task named {reference!r}: expected a built-in one ({known}), path.py, path.py:function or "
            "package.module:function"
        )
    function = getattr(module, name or "task", None)
    if not callable(function):
        own = (k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and callable(v))
        there = ", ".join(sorted(own)[:8]) or "no functions"
        raise UsageError(
            f"task {reference!r}: {place} has no function {name or 'task'!r} (it has {there}): write {place}:function"
        )
    return function


def _module_by_name(name: str, reference: str) -> types.ModuleType:
    """Import an installed module; one that is not there is the reference's fault, one that it needs the module's."""
    try:
        with _explained(f"task {reference!r}: importing {name}"):
            return importlib.import_module(name)
    except TaskError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise UsageError(
                f"task {reference!r}: no module named {name!r} can be imported: check the name and the folder "
                "you start in"
            ) from error.__cause__
        raise


def _module_from_file(path: Path, reference: str) -> types.ModuleType:
    """Run a task file as a module of its own name; its folder stays importable."""
    if not path.is_file():
        raise UsageError(f"task {reference!r}: no file at {path}: check the path")
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # the same in every process, so that it can be pickled
    module = types.ModuleType(f"batchscope_task_{path.stem}_{digest}")
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[module.__name__] = module
    with _explained(f"task {reference!r}: loading {path.name}"):
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


def _where(error: BaseException) -> str:
    """`ValueError: text (file.py, line 3)`: the innermost line of the user's own code, as far as it can be told."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '?').name}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}".replace("\n", " ")


def _is_library(filename: str) -> bool:
    """Whether a source file is this one, installed with pip, Python's own, or none at all."""
    return (
        filename == __file__
        or filename.startswith(("<", sysconfig.get_path("stdlib")))
        or "site-packages" in Path(filename).parts
    )
