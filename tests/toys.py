"""Which small tasks do the tests train? 46 examples, so that most batch sizes leave a short last batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from batchscope.records import Arm, Goal, StopRule, TrialSpec
from batchscope.task import Task

CPU = torch.device("cpu")
SIZE, VALID = 46, 20


def examples(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(size, 5) inputs in three classes that a linear map tells apart, mostly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=generator)
    return x, (x[:, :3] + 0.5 * torch.randn(size, 3, generator=generator)).argmax(1)


def mlp() -> nn.Module:
    """5 -> 8 -> 3."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def mlp_with_state() -> nn.Module:
    """With dropout, which draws at every step, and batch norm, which keeps running statistics."""
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def toy(**changes: Any) -> Task:
    """A task that trains in milliseconds; `changes` are fields of `Task`."""
    fields: dict[str, Any] = {
        "name": "toy",
        "model": mlp,
        "loss": F.cross_entropy,
        "train": examples(SIZE),
        "valid": examples(VALID, seed=1),
        "optimizer": sgd,
        "lr": 0.05,
        "batch_size": 8,
        "metrics": {"accuracy": accuracy},
        "goal": Goal("loss", at_most=0.3),
    }
    return Task(**fields | changes)


class Augmented(Dataset):
    """The toy's examples with noise from all three global generators in every input."""

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        self.x, self.y = examples(size, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(5) + float(np.random.rand()) + random.random()
        return self.x[index] + 0.1 * noise, self.y[index]


def trial(
    batch_size: int = 8,
    *,
    lr: float = 0.05,
    seed: int = 0,
    budget: int = 3 * SIZE,
    cadence: int = 20,
    micro: int | None = None,
    precision: str = "fp32",
    **stop: Any,
) -> TrialSpec:
    """What to run; `stop` are further fields of `StopRule`."""
    arm = Arm(batch_size, lr, micro_batch_size=micro, precision=precision)
    return TrialSpec(arm, seed, StopRule(budget, cadence, **stop))
