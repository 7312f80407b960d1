"""Does a large batch need a large batch's statistics? Ghost batch norm: those of small parts of it.

A batch of n examples is cut along its first dimension into shards of `size`. In training mode each shard is normalised
by its own mean and variance, so that they are as noisy as those of a small batch (Hoffer, Hubara, Soudry 2017, arXiv
1705.08741). Running statistics are updated once for each shard, in order: with batch norm's momentum m and k shards,

    run <- (1 - m)^k run + sum_(j = 1 .. k) m (1 - m)^(k - j) shard_j,

which is what k small batches would have left, and what the authors' own code does, where the whole model sees one shard
after another. In eval mode nothing differs from torch's batch norm.

A last shard that is not full has statistics of its own where it has more than half the size, else it is joined to the
one before it: every shard of a batch of at least `size` examples has between 1/2 and 3/2 of it (our choice: the
authors' batches are multiples of the size). A batch of less is one shard.

With micro-batches, or with several devices, a layer sees a part of the batch and cuts that.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.errors import CannotAnswer
from batchscope.remedies.base import CPU, Case, Remedy
from batchscope.task import Task
from batchscope.training.batches import FixedBatches, examples_in
from batchscope.training.seeding import drawing_from
from batchscope.training.step import make_model

LEAST = 2  # examples of a shard: one value has no variance


def shards(examples: int, size: int) -> list[int]:
    """How many examples each shard of a batch has; they add up to `examples`."""
    whole, rest = divmod(examples, size)
    if whole == 0:
        return [examples]
    sizes = [size] * whole
    if 2 * rest > size:
        return [*sizes, rest]
    sizes[-1] += rest
    return sizes


class Ghost(_BatchNorm):
    """Batch norm whose statistics, while it trains, are those of shards of its input's first dimension."""

    ghost_size: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape. Raises ValueError for a single value per channel, as torch does."""
        if not self.training or len(input) <= self.ghost_size:
            return _BatchNorm.forward(self, input)
        parts = input.split(shards(len(input), self.ghost_size))
        return torch.cat([_BatchNorm.forward(self, part) for part in parts])

    def extra_repr(self) -> str:
        """As torch's, and the size of a shard."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(Ghost, nn.BatchNorm1d):
    """Of (N, C) or (N, C, L)."""


class GhostBatchNorm2d(Ghost, nn.BatchNorm2d):
    """Of (N, C, H, W)."""


class GhostBatchNorm3d(Ghost, nn.BatchNorm3d):
    """Of (N, C, D, H, W)."""


GHOSTS: dict[type[nn.Module], type[Ghost]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


def ghost(model: nn.Module, size: int) -> nn.Module:
    """The same model, whose batch norm layers take the statistics of shards of `size` rows of their input.

    Layers change their class and nothing else: parameters, their names, buffers, hooks and modes stay, so that an
    optimiser or a `state_dict` made before fits after. A model that has ghost batch norm already gets the new size.
    Rows are examples, unless the model itself folds positions into its first dimension.

    Raises CannotAnswer, with the model as it was, for a size below 2, a model without batch norm, and layers other than
    torch's own nn.BatchNorm1d, 2d and 3d: synchronised ones, which take the statistics of more than a device's part of
    the batch, lazy ones, and those with a forward pass of their own.
    """
    refused = _why_no_ghost(model, size)
    if refused:
        raise CannotAnswer(refused)
    for layer in _norms(model).values():
        layer.__class__ = GHOSTS.get(type(layer), type(layer))
        cast(Ghost, layer).ghost_size = size
    return model


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name or "the top": layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def _why_no_ghost(model: nn.Module, size: int) -> str | None:
    """One sentence; None where the model's layers can be changed."""
    if not isinstance(size, int) or isinstance(size, bool) or size < LEAST:
        return f"expected shards of at least {LEAST} examples, got {size!r}: one value has no variance"
    norms = _norms(model)
    if not norms:
        return "expected a model with batch norm, got one without: ghost batch norm has nothing to change in it"
    for name, layer in norms.items():
        if type(layer) not in (*GHOSTS, *GHOSTS.values()):
            return (
                f"expected batch norm of torch's own kinds, not synchronised, got {type(layer).__name__} at {name!r}: "
                "use nn.BatchNorm1d, 2d or 3d"
            )
    return None


@dataclass(frozen=True)
class GhostBatchNorm(Remedy):
    """Batch norm with the statistics of shards of the batch; at the baseline's learning rate.

    Attributes:
        size: examples of a shard; None: those of the baseline's batch.
    """

    title: ClassVar[str] = "ghost batch norm"
    source: ClassVar[str] = "hoffer2017"
    changes: ClassVar[str] = "Batch norm normalises each shard of the batch by that shard's own statistics."
    cost: ClassVar[str] = "No further passes or state; batch norm's kernels run once for each shard."
    sets: ClassVar[tuple[str, ...]] = ("batch norm",)

    size: int | None = None

    def why_not(self, task: Task, case: Case) -> str | None:
        """Batch norm is missing, frozen, synchronised, of another make, or not over examples; or one shard is all."""
        size = self._size(case)
        if task.batch_norm == "synchronised":
            return (
                'expected batch norm over a device\'s own part of a batch, got batch_norm="synchronised": write '
                'batch_norm="per replica"'
            )
        with drawing_from(0):
            model = make_model(task, CPU)
        refused = _why_no_ghost(model, size)
        if refused is not None:
            return refused
        if not any(layer.training for layer in _norms(model).values()):
            return "expected batch norm that takes a batch's statistics, got layers in eval mode: it changes nothing"
        if len(shards(case.batch_size, size)) < 2:
            return f"expected a batch of several shards, got {case.batch_size} examples in shards of {size}: lower size"
        return _why_not_rows(task, model)

    def apply(self, task: Task, case: Case) -> Task:
        """The task whose model has ghost batch norm. Raises CannotAnswer, once the model is made, as `ghost` does."""
        make, size = task.model, self._size(case)
        return dataclasses.replace(task, model=lambda: ghost(make(), size), lr=case.own_learning_rate)

    def _size(self, case: Case) -> int:
        return case.own_batch_size if self.size is None else self.size


def _why_not_rows(task: Task, model: nn.Module) -> str | None:
    """One sentence where a layer's rows are not examples: shards would be of fewer; seen on as few as can be."""
    seen: dict[str, int] = {}
    for name, layer in _norms(model).items():
        layer.register_forward_pre_hook(lambda layer, given, name=name: seen.update({name: len(given[0])}))
    with drawing_from(0), torch.no_grad():
        batch = next(iter(FixedBatches(task, task.train, list(range(LEAST)), CPU)))
        task.batch_loss(model, batch)
    for name, rows in seen.items():
        if rows != examples_in(batch):
            return (
                f"expected examples along the first dimension of what batch norm sees, got {rows} rows of "
                f"{examples_in(batch)} examples at {name!r}: keep positions in a dimension of their own"
            )
    return None


REMEDIES = (GhostBatchNorm(),)
