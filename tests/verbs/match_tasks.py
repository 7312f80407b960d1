"""On which tasks is it known what a match must find? Quadratics without gradient noise: an epoch is so many steps.

All examples are alike, so that a batch of any size has the same gradient h w, and S steps at the rate r leave
(1 - r h)^S of each weight. A run takes hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import batchscope as bs
from batchscope.task import Batch

TRAIN, OWN = 64, 4  # examples; of a batch of the baseline
EPOCHS = 12


class Bowl(nn.Module):
    """l(w) = 1 + 1/2 sum_i h_i w_i^2, the same for every example; |w_i| is drawn within 1 % of `start`."""

    h: torch.Tensor

    def __init__(self, h: Sequence[float], start: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("h", torch.tensor(h))
        self.w = nn.Parameter(start * (1 + 0.01 * torch.randn(len(h))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + 0.5 * (self.h * self.w**2).sum()).expand(len(x)) + 0 * x.sum(-1)


def easy(**changes: Any) -> bs.Task:
    """Every direction curves alike: a few steps suffice, so that any batch size ends at the same loss of 1."""
    fields: dict[str, Any] = {"goal": bs.Goal("loss", at_most=1.01)}
    return bowl("easy", [1.0, 1.0], **fields | changes)


def stiff(**changes: Any) -> bs.Task:
    """One direction curves 50 times less than the one that bounds the rate: what counts is the number of steps."""
    fields: dict[str, Any] = {"lr": 0.8, "goal": bs.Goal("loss", at_most=1.02)}
    return bowl("stiff", [1.0, 0.02], 10.0, **fields | changes)


def stepped() -> bs.Task:
    """A step function in place of model output and loss; a batch is one tensor of two tokens an example."""

    def step(model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(batch).mean()

    def evaluate(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        return {"loss": model(batch).mean()}

    data = torch.ones(TRAIN, 2), torch.ones(8, 2)
    return bs.Task(
        name="stepped",
        model=lambda: Bowl([1.0, 1.0]),
        step=step,
        evaluate=evaluate,
        train=_Rows(data[0]),
        valid=_Rows(data[1]),
        optimizer=sgd,
        lr=0.2,
        batch_size=OWN,
        goal=bs.Goal("loss", at_most=1.01),
        budget=EPOCHS * TRAIN,
        unit="tokens",
    )


def normed(train: int, batch_size: int) -> bs.Task:
    """A classifier with batch norm, of so many examples."""
    x = torch.randn(train, 3, generator=torch.Generator().manual_seed(0))
    return bs.Task(
        name="normed",
        model=lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
        loss=nn.functional.cross_entropy,
        train=(x, (x[:, 0] > 0).long()),
        valid=(x[:8], (x[:8, 0] > 0).long()),
        optimizer=sgd,
        lr=0.1,
        batch_size=batch_size,
        goal=bs.Goal("loss", at_most=0.4),
        budget=EPOCHS * train,
    )


class _Rows(torch.utils.data.Dataset):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.x[index]


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def bowl(name: str, h: Sequence[float], start: float = 1.0, /, **changes: Any) -> bs.Task:
    """`changes` are fields of `Task`."""
    fields: dict[str, Any] = {
        "name": name,
        "model": lambda: Bowl(h, start),
        "loss": lambda losses, target: losses.mean(),
        "train": (torch.ones(TRAIN, 2), torch.zeros(TRAIN)),
        "valid": (torch.ones(8, 2), torch.zeros(8)),
        "optimizer": sgd,
        "lr": 0.2,
        "batch_size": OWN,
        "budget": EPOCHS * TRAIN,
    }
    return bs.Task(**fields | changes)
