"""Which small models are trained, and how, while a monitor watches?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive_gradients import CLOSE, naive
from small_models import CLASSES, WIDTH, cross_entropy
from torch import nn

from batchscope.measure.monitor import WARM_UP, NoiseMonitor
from batchscope.records import GradientNorms

M = 8  # examples in a batch
FIRST = WARM_UP + 1  # steps before the first measured one: those left alone, and the look


def batch(step: int, m: int = M) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a step: learnable, with noise."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(m, WIDTH, generator=generator)
    return x, (x[:, :CLASSES] + torch.randn(m, CLASSES, generator=generator)).argmax(1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def with_state() -> nn.Module:
    """Batch norm and dropout: running statistics, and draws at every step."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers)


class Positions(nn.Module):
    """An embedding of arange(T): examples are not to be had, which shows only when it is checked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.head = nn.Embedding(WIDTH, 1), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.positions(torch.arange(WIDTH)).squeeze(1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(
    model: nn.Module,
    steps: int = 12,
    *,
    pieces: int = 1,
    before: Callable[[int], None] = lambda step: None,
    weights: list[nn.Module] | None = None,
    **settings: Any,
) -> NoiseMonitor:
    """The three lines in a loop; `weights` collects the model before each step."""
    optimizer = sgd(model)
    given: dict[str, Any] = {"every": 1, "optimizer": optimizer} | settings
    monitor = NoiseMonitor(model, **given)
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        loss = torch.zeros(())
        if weights is not None:
            weights.append(copy.deepcopy(model))
        for x, y in zip(*(t.chunk(pieces) for t in batch(step)), strict=True):
            loss = cross_entropy(model, x, y)
            (loss / pieces).backward()
        monitor.step(loss)
        optimizer.step()
    return monitor


def pairs(found: tuple[GradientNorms, ...]) -> list[tuple[float, float]]:
    return [(n.parts_squared, n.mean_squared) for n in found]


def expected(weights: list[nn.Module], found: tuple[GradientNorms, ...], cut: Any) -> list[Any]:
    """The naive sums at the steps that were measured."""
    totals = [naive(weights[n.step], cross_entropy, cut(*batch(n.step))) for n in found]
    return [pytest.approx((float(p.sum()), float(m.sum())), rel=CLOSE) for p, m in totals]
