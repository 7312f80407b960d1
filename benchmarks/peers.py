"""What do other people's loops take for the same work? Each: (task, batch size, steps) -> seconds per step.

`by_hand` is what a careful user writes for data in memory. `Lightning` and `Transformers` are the frameworks' trainers,
as lean as their options allow; each comes twice, for the two ways to give it tensors:

    one by one       a TensorDataset, whose examples the DataLoader takes singly and stacks: what their guides show
    whole batches    a Dataset that answers a list of indices with one gather (`__getitems__`): the leanest there is

The work is the same everywhere: model, loss, optimiser, batch size, steps, fp32, one epoch in random order; no
clipping, decay, schedule, evaluation, logging or saving. Timed is the inside of the epoch: data, steps, hooks; not the
trainer's construction. A DataLoader may fetch one batch more than is trained on (Transformers' does).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from batchscope.task import Task

Loop = Callable[[Task, int, int], float]
ONE_BY_ONE, WHOLE_BATCHES = "one by one", "whole batches"
NEEDS = {"Lightning": ("lightning",), "Transformers": ("transformers", "accelerate")}


def by_hand(task: Task, batch_size: int, steps: int) -> float:
    """What a careful user writes for data in memory."""
    x, y = task.train
    model = task.model()
    optimizer = task.optimizer(model, task.lr)
    model.train()
    done, start = 0, time.perf_counter()
    while done < steps:
        order = torch.randperm(len(x))
        for indices in order.split(batch_size):
            optimizer.zero_grad()
            loss = task.loss_of(model(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return (time.perf_counter() - start) / steps


class _Gathered(Dataset):
    """Tensors whose batches are gathered at once; `collate_fn` gets the finished batch."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, ...]:
        chosen = torch.tensor(indices)
        return tuple(t[chosen] for t in self.tensors)


def _data(task: Task, data: str) -> tuple[Dataset, Callable[[Any], Any]]:
    """The training set given in one of the two ways, with the function that makes a batch of what is fetched."""
    tensors = tuple(task.train)
    if data == ONE_BY_ONE:
        return TensorDataset(*tensors), default_collate
    return _Gathered(tensors), lambda batch: batch


def lightning_loop(data: str) -> Loop:
    """Lightning's Trainer with `barebones=True`, its fastest mode."""
    import lightning

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # advice on loader workers and saving

    class Module(lightning.LightningModule):
        def __init__(self, task: Task) -> None:
            super().__init__()
            self.task, self.model, self.times = task, task.model(), [0.0, 0.0]

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.task.loss_of(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.task.optimizer(self.model, self.task.lr)

        def on_train_epoch_start(self) -> None:
            self.times[0] = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.times[1] = time.perf_counter()

    def loop(task: Task, batch_size: int, steps: int) -> float:
        module = Module(task)
        dataset, collate = _data(task, data)
        loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, collate_fn=collate)
        trainer = lightning.Trainer(max_epochs=1, limit_train_batches=steps, barebones=True, accelerator="cpu")
        trainer.fit(module, loader)
        _expect(trainer.global_step, steps)
        return (module.times[1] - module.times[0]) / steps

    return loop


class _WithLoss(nn.Module):
    """A model as Transformers' Trainer wants it: keywords in, a dict with the loss out."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.model = task, task.model()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.task.loss_of(self.model(x), labels)}


class _Constant:
    """A schedule that leaves the learning rate alone and costs nothing."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def step(self) -> None:
        """Nothing."""

    def get_last_lr(self) -> list[float]:
        """The learning rate, once per parameter group."""
        return [self.learning_rate]


def transformers_loop(data: str) -> Loop:
    """Transformers' Trainer with everything off that can be, the task's own optimiser and a constant learning rate."""
    import transformers

    transformers.logging.set_verbosity_error()

    class Times(transformers.TrainerCallback):
        begun = ended = 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun = time.perf_counter()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended = time.perf_counter()

    def loop(task: Task, batch_size: int, steps: int) -> float:
        model, times = _WithLoss(task), Times()
        optimizer = task.optimizer(model.model, task.lr)
        schedule: Any = _Constant(task.lr)
        dataset, collate = _data(task, data)
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model=model,
                args=_lean_arguments(folder, batch_size, steps),
                train_dataset=dataset,
                data_collator=lambda items: dict(zip(("x", "labels"), collate(items), strict=True)),
                optimizers=(optimizer, schedule),
                callbacks=[times],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        _expect(trainer.state.global_step, steps)
        return (times.ended - times.begun) / steps

    return loop


def _lean_arguments(folder: str, batch_size: int, steps: int) -> Any:
    """TrainingArguments with nothing but training."""
    import transformers

    return transformers.TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        max_grad_norm=0.0,  # no clipping
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def _expect(done: int, steps: int) -> None:
    """Refuse a timing of other work than was asked for."""
    if done != steps:
        raise RuntimeError(f"expected {steps} steps, got {done}: take fewer, they must fit into one epoch")


def loops() -> dict[str, Loop]:
    """Every loop that runs here, by name. Says which frameworks are left out."""
    made: dict[str, Loop] = {"by hand": by_hand}
    for name, make in (("Lightning", lightning_loop), ("Transformers", transformers_loop)):
        missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name} is left out: not installed here ({', '.join(missing)}); pip install 'batchscope[bench]'")
            continue
        made |= {f"{name}, {data}": make(data) for data in (ONE_BY_ONE, WHOLE_BATCHES)}
    return made


def versions() -> dict[str, str]:
    """The frameworks' versions, for the record."""
    found = {}
    for package in (name for names in NEEDS.values() for name in names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
