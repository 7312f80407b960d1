"""What do the tests of branches branch from? A small model a few steps into its training, and its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.branching import branches
from batchscope.records.branching import BranchAnswer
from toys import examples, mlp

BASE, WINDOW = 4, 64
DATA = examples(64)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def checkpoint(make: Any = mlp, kind: Any = torch.optim.Adam, lr: float = 0.01) -> tuple[nn.Module, Any]:
    """A model a few steps into its training."""
    torch.manual_seed(0)
    model = make()
    optimizer = kind(model.parameters(), lr=lr)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, DATA).backward()
        optimizer.step()
    return model, optimizer


def asked(model: nn.Module, optimizer: Any, batches: Any = DATA, **changes: Any) -> BranchAnswer:
    fields: dict[str, Any] = {"batch_size": BASE, "window": WINDOW, "ks": (1, 2), "seeds": (0, 1)} | changes
    return branches(model, optimizer, batches, fields.pop("loss", loss), **fields)


def in_order(batch_size: int, seed: int) -> Iterator[Any]:
    """The data in an order of the seed's, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(DATA[0]), generator=generator)
        yield from ((DATA[0][i], DATA[1][i]) for i in order.split(batch_size))
