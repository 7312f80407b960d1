"""Do averaged weights replace a falling learning rate? An exponential moving average, which evaluations see.

After step t (from 1), beside the weights w_t that are trained,

    a_t = a_(t-1) + max(1 - d, 1 / t) (w_t - a_(t-1)),    d = 2^(-B / h):

a plain mean over the first steps, which forgets where training began, and from then on an average that forgets half
after h examples, whatever the batch size B. (A decay per step that is kept would average k times as many examples at a
batch k times as large; Busbridge et al. 2023 scale it alike, d' = d^k.)

Batch norm's running statistics belong to the weights that were trained. Those of the averaged weights are taken anew
before an evaluation, over training examples, as for stochastic weight averaging (Izmailov et al. 2018): layers see
whole batches as in training, everything else is in eval mode, and the batches' statistics are averaged evenly.

The average lives in the model, as buffers beside its own ("averaged/..."), so that `state_dict` and checkpoints take it
along. The model's own weights are the trained ones: distances and kept weights are theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.remedies.base import Case, Remedy
from batchscope.task import Batch, Task
from batchscope.training.batches import FixedBatches, fixed_subset
from batchscope.training.seeding import torch_drawing_from
from batchscope.training.step import evaluation_of

HALF_LIFE_EPOCHS = 1.0  # a guess
NORM_EXAMPLES = 4096  # that batch norm's statistics are taken over, at most (a guess)
PREFIX, STEPS, ESTIMATED = "averaged/", "averaged_steps", "averaged_estimated"
_NORMS = "batchscope_averaged_norms"


def decay_of(batch_size: int, half_life: float) -> float:
    """d: what is kept of an average by a step of `batch_size` examples that forgets half after `half_life` examples."""
    return 2.0 ** (-batch_size / half_life)


def keep_average(model: nn.Module) -> nn.Module:
    """The same model, with buffers for an average of its weights; call it before the model moves to its device."""
    kept = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if model.training:  # in a model that comes in eval mode, none is frozen: it is put into training mode as a whole
        norms = [name for name in norms if model.get_submodule(name).training]
    model.__dict__[_NORMS] = norms
    for name in norms:
        layer = model.get_submodule(name)
        kept |= {f"{name}.{part}".lstrip("."): getattr(layer, part) for part in ("running_mean", "running_var")}
    for name, tensor in kept.items():
        model.register_buffer(_place(name), tensor.detach().clone())
    model.register_buffer(STEPS, torch.zeros((), dtype=torch.int64))
    model.register_buffer(ESTIMATED, torch.zeros((), dtype=torch.int64))
    return model


@torch.no_grad()
def update_average(model: nn.Module, decay: float) -> None:
    """After each step of the optimiser. Nothing waits for the device."""
    steps = model.get_buffer(STEPS).add_(1)
    share = torch.clamp(1 / steps, min=1 - decay)
    for name, p in model.named_parameters():
        if p.requires_grad:
            average = model.get_buffer(_place(name))
            average.lerp_(p.detach(), share.to(average.dtype))


@contextlib.contextmanager
def averaged(model: nn.Module) -> Generator[None]:
    """Inside, the model's weights and batch norm's statistics are the averaged ones; nothing is copied."""
    here = dict(model.named_parameters()) | dict(model.named_buffers())
    pairs = [(here[name], average) for name, average in _averages(model).items()]
    held = [tensor.data for tensor, _ in pairs]
    try:
        for tensor, average in pairs:
            tensor.data = average
        yield
    finally:
        for (tensor, _), data in zip(pairs, held, strict=True):
            tensor.data = data


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, batches: Iterable[Batch], run: Callable[[nn.Module, Batch], Any]) -> None:
    """Batch norm's running statistics as the even mean over these batches; all other layers are in eval mode.

    `run`: (model, batch) -> anything, with a forward pass. Modes, momenta and counts are afterwards as before.
    """
    layers = [model.get_submodule(name) for name in model.__dict__.get(_NORMS, ())]
    norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    before = [
        (n, n.momentum, n.num_batches_tracked.clone() if n.num_batches_tracked is not None else None) for n in norms
    ]
    for module, _ in modes:
        module.training = False
    for norm in norms:
        norm.training, norm.momentum = True, None  # None: the even mean
        norm.reset_running_stats()
    try:
        for batch in batches:
            run(model, batch)
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum, count in before:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _place(name: str) -> str:
    """The buffer that holds the average of a tensor of that name; a buffer's name has no dots."""
    return PREFIX + name.replace(".", "/")


def _averages(model: nn.Module) -> dict[str, torch.Tensor]:
    """Averages by the names of what they are averages of."""
    own = {name: b for name, b in model.named_buffers(recurse=False) if name.startswith(PREFIX)}
    return {name.removeprefix(PREFIX).replace("/", "."): average for name, average in own.items()}


@dataclass(frozen=True)
class WeightAveraging(Remedy):
    """An exponential moving average of the weights, seen by every evaluation.

    Attributes:
        half_life_epochs: h, in epochs.
    """

    title: ClassVar[str] = "weight averaging"
    source: ClassVar[str] = "busbridge2023"
    also: ClassVar[tuple[str, ...]] = ("izmailov2018",)
    changes: ClassVar[str] = "Evaluations see a moving average of the weights, whose memory is counted in examples."
    cost: ClassVar[str] = (
        "One more copy of the weights; with batch norm, a forward pass over some training examples per evaluation."
    )
    sets: ClassVar[tuple[str, ...]] = ("weights",)
    counts: ClassVar[bool] = True

    half_life_epochs: float = HALF_LIFE_EPOCHS

    def why_not(self, task: Task, case: Case) -> str | None:
        """Sharded weights, or a half-life of nothing."""
        if not self.half_life_epochs > 0:
            return f"{self.title} expects a half-life above 0 epochs, got {self.half_life_epochs:g}: leave it at 1"
        if task.shard:
            return f"{self.title} expects whole weights, which it swaps for evaluations, got shard=True: leave it out"
        return None

    def apply(self, task: Task, case: Case) -> Task:
        """The task trained as before, and evaluated at the average."""
        decay = decay_of(case.batch_size, self.half_life_epochs * case.train_size)

        def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
            made = task.optimizer(model, lr)
            made.register_step_post_hook(lambda *_: update_average(model, decay))
            return made

        return dataclasses.replace(
            task,
            model=lambda: keep_average(task.model()),
            optimizer=optimizer,
            evaluate=_at_the_average(task, case.batch_size),
            lr=case.own_learning_rate,
        )


def _at_the_average(task: Task, batch_size: int) -> Callable[[nn.Module, Batch], Mapping[str, Any]]:
    """The task's evaluation, of the averaged weights, whose batch norm is estimated where they have changed."""
    own, kept = evaluation_of(task), {}
    chunk = min(batch_size, task.train_size)
    chosen = fixed_subset(task.train_size, max(1, min(NORM_EXAMPLES, task.train_size) // chunk) * chunk)

    def evaluate(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        with averaged(model):
            steps, estimated = model.get_buffer(STEPS), model.get_buffer(ESTIMATED)
            if model.__dict__.get(_NORMS) and int(steps) != int(estimated):
                device = steps.device
                if device not in kept:
                    kept[device] = FixedBatches(task, task.train, chosen, device, chunk=chunk)
                with torch_drawing_from(0, device):
                    estimate_batch_norm(model, kept[device], task.batch_loss)
                estimated.copy_(steps)
            return own(model, batch)

    return evaluate


REMEDIES = (WeightAveraging(),)
