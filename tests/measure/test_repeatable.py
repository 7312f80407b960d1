"""Is what is not a function found, and blamed on the right layer?"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_hessian import full_loss
from small_models import hooks
from torch import nn
from torch.utils.data import Dataset

from batchscope.measure.repeatable import probe
from batchscope.task import Task
from toys import examples, mlp_with_state, toy

OWN = torch.Generator().manual_seed(0)


class Always(nn.Module):
    """Dropout whose mode was forgotten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


class Noisy(nn.Module):
    """As a kernel that is not deterministic: another rounding at every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 1e-7 * torch.rand((), generator=OWN, dtype=x.dtype))


class Backwards(torch.autograd.Function):
    """The same, in the backward pass alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> torch.Tensor:
        return d * (1 + 1e-7 * torch.rand((), generator=OWN, dtype=d.dtype))


class NoisyBackwards(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Backwards.apply(x)


class Counter(nn.Module):
    """Keeps state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


class Block(nn.Module):
    """Draws between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.dropout(self.first(x)).relu_())


def with_layer(layer: type[nn.Module]) -> Task:
    return toy(model=lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), layer(), nn.Linear(8, 3)))


@pytest.mark.parametrize("task", [toy(), toy(model=mlp_with_state), with_layer(nn.Dropout)])
def test_a_function(task: Task) -> None:
    assert probe(full_loss(task)) == ()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Always, "layer '2' (Always) draws random numbers, though in eval mode: every chunk draws the same"),
        (Block, "layer '2' (Block) draws random numbers"),
        (Noisy, "layer '2' (Noisy) differs between equal passes, so a kernel of it is not deterministic"),
        (Counter, "layer '2' (Counter) differs between equal passes, so its buffers change with every pass"),
        (NoisyBackwards, "the backward pass (first seen in the gradient of '0.bias') differs between equal passes"),
    ],
)
def test_the_layer_that_is_to_blame(layer: type[nn.Module], expected: str) -> None:
    loss = full_loss(with_layer(layer))
    x, buffers = loss.point(), [b.clone() for b in loss.model.buffers()]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    (sentence,) = probe(loss)
    assert expected in sentence
    assert sentence.count("\n") == 0
    assert torch.equal(loss.point(), x)
    assert all(torch.equal(a, b) for a, b in zip(buffers, loss.model.buffers(), strict=True))
    assert hooks(loss.model) == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_loss_that_draws_and_data_that_change() -> None:
    drawing = toy(loss=lambda output, target: F.cross_entropy(output + torch.rand(()) * output, target))
    (sentence,) = probe(full_loss(drawing))
    assert "the loss, not a layer, draws random numbers" in sentence

    class Changing(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.rand(5, generator=OWN), examples(40)[1][index]

    loss = full_loss(toy(train=Changing()))
    loss._items.keep_bytes = 0  # as a data set that is too large to be kept
    (sentence,) = probe(loss)
    assert "the data set gives other examples when it is read again" in sentence


def test_what_is_not_finite_may_be_repeatable() -> None:
    assert probe(full_loss(toy(loss=lambda output, target: output.sum() * float("nan")))) == ()
