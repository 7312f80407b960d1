"""Which small models and batches are measured?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from naive_gradients import Loss
from torch import nn
from torch.utils.checkpoint import checkpoint

M, WIDTH, CLASSES, VOCABULARY, LENGTH = 6, 4, 3, 11, 5


def cross_entropy(model: nn.Module, x: Any, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x), y)


def rows(m: int = M, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, WIDTH) inputs, (m,) classes."""
    generator = torch.Generator().manual_seed(100 * seed + m)
    return torch.randn(m, WIDTH, generator=generator), torch.randint(0, CLASSES, (m,), generator=generator)


def texts(m: int = M, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """(m, length) tokens, (m,) classes."""
    generator = torch.Generator().manual_seed(m)
    return torch.randint(0, VOCABULARY, (m, length), generator=generator), torch.arange(m) % CLASSES


def backward(model: nn.Module, loss: Loss, x: Any, y: torch.Tensor) -> Callable[[], None]:
    return lambda: loss(model, x, y).backward()


def hooks(model: nn.Module) -> int:
    """How many hooks there are in a model's modules and parameters."""
    found = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    for parameter in model.parameters():
        found += len(parameter._backward_hooks or ()) + len(parameter._post_accumulate_grad_hooks or ())
    return found


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, CLASSES))


class Net(nn.Module):
    """With a layer that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(WIDTH, 8)
        self.sometimes = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)
        self.used = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x).tanh()
        return self.head(self.sometimes(hidden) if self.used else hidden)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.reentrant = nn.Embedding(VOCABULARY, WIDTH), reentrant
        self.block = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.block, self.embedding(x), use_reentrant=self.reentrant)
        return self.head(hidden).mean(1)
