"""Which passes does a replica make over its part of a batch? Its own ones, or the same number as every other.

A replica whose model needs nothing of the others until the gradient is complete goes its own way (`Apart`), and makes
no pass for a part that is empty. With synchronised batch norm or sharded weights all make every pass (`InStep`):

    passes = ceil(largest part / micro-batch),    pieces of a part: sizes that differ by at most one

A replica with nothing in a pass (fewer examples than replicas, or only examples that count no unit) runs its model on a
stand-in, two training examples, with a loss that weighs 0: a gradient of zeros, and nothing added to the others' batch
norm. The stand-in's own mark on buffers, the statistics of batch norm per replica say, is taken back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import AbstractContextManager

import torch
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.task import Batch, Task
from batchscope.training.batch_norm import meeting, norms_of
from batchscope.training.batches import FixedBatches, examples_in, split, units_in
from batchscope.training.distributed import Replicas
from batchscope.training.seeding import drawing_from

SEARCHED = 1000  # pairs of training examples in which one that counts units is looked for (a guess)


class Apart:
    """Passes of a replica that goes its own way until gradients are averaged."""

    def __init__(self, micro_batch_size: int | None) -> None:
        self.micro_batch_size = micro_batch_size

    def pieces(self, part: Batch, whole: int) -> list[Batch]:
        """The part in micro-batches; [None] for an empty one."""
        own = examples_in(part) if part is not None else 0
        size = self.micro_batch_size or own
        return split(part, size) if own > size else [part if own > 0 else None]

    def taking(self, piece: Batch, units: int) -> AbstractContextManager[Batch]:
        """What the model sees in a pass over a piece that counts so many units; None: nothing."""
        return contextlib.nullcontext(piece if units > 0 else None)


class InStep(Apart):
    """Passes that all replicas make together."""

    def __init__(self, task: Task, model: nn.Module, replicas: Replicas, micro_batch_size: int | None) -> None:
        super().__init__(micro_batch_size)
        self.task, self.replicas, self.norms = task, replicas, norms_of(model)
        of_norms = {id(b) for layer in self.norms for b in layer.buffers()}
        self.buffers = [b for b in model.buffers() if id(b) not in of_norms]
        self.stand_in = stand_in(task, replicas.device)

    def pieces(self, part: Batch, whole: int) -> list[Batch]:
        """The part in as many pieces as every replica has; None for those that are empty."""
        largest = -(-whole // self.replicas.size)
        passes = -(-largest // (self.micro_batch_size or largest))
        own = examples_in(part) if part is not None else 0
        sizes = [(k + 1) * own // passes - k * own // passes for k in range(passes)]
        filled = iter(split(part, [size for size in sizes if size > 0]) if own > 0 else [])
        return [next(filled) if size > 0 else None for size in sizes]

    @contextlib.contextmanager
    def taking(self, piece: Batch, units: int) -> Generator[Batch]:
        """See the base; the stand-in where there is nothing."""
        absent = units == 0
        if absent and piece is not None and self.norms:
            raise CannotAnswer(
                f"task {self.task.name!r}: expected examples that count units on every device, got {examples_in(piece)}"
                ' on one that count none, whose batch norm cannot be synchronised: use batch_norm="per replica"'
            )
        before = [b.clone() for b in self.buffers] if absent else []
        meets = self.norms if self.replicas.averages else []
        with meeting(meets, self.replicas.group, absent):
            yield self.stand_in if absent else piece
        for buffer, value in zip(self.buffers, before, strict=False):
            buffer.copy_(value)


def stand_in(task: Task, device: torch.device) -> Batch:
    """Two training examples, which count at least one unit; nothing is drawn."""
    with drawing_from(0):
        for i in range(min(task.train_size - 1, SEARCHED)):
            batch = next(iter(FixedBatches(task, task.train, [i, i + 1], device)))
            if units_in(task, batch) > 0:
                return batch
    raise CannotAnswer(f"task {task.name!r}: expected training examples that count units, got none: check the targets")
