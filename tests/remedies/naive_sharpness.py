"""SAM and ASAM as two explicit passes with the weights moved and moved back: what `sam.py` is held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from batchscope.remedies.base import Remedy
from batchscope.remedies.sam import Asam, Sam
from batchscope.task import Batch


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [p.grad for p in model.parameters()]


def first_step(model: nn.Module, rho: float, eta: float | None) -> dict[nn.Parameter, torch.Tensor]:
    """From the gradients that are there, up to w + eps; returns eps."""
    scale = {
        p: p.detach().abs() + eta if eta is not None and name.rpartition(".")[2].startswith("weight") else 1.0
        for name, p in model.named_parameters()
    }
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float((scale[p] * p.grad).pow(2).sum()) for p in trained))
    eps = {p: rho * scale[p] * scale[p] * p.grad / norm for p in trained}
    with torch.no_grad():
        for p, e in eps.items():
            p.add_(e)
    model.zero_grad()
    return eps


def second_step(eps: dict[nn.Parameter, torch.Tensor]) -> None:
    """Back to w."""
    with torch.no_grad():
        for p, e in eps.items():
            p.sub_(e)


def naive_gradient(
    loss_of: Callable[[nn.Module, Any], torch.Tensor], model: nn.Module, batch: Any, remedy: Remedy
) -> list[torch.Tensor | None]:
    """The gradient at w + eps; batch norm remembers the first pass alone, and both draw the same."""
    assert isinstance(remedy, (Sam, Asam))
    drawn = torch.get_rng_state()
    model.zero_grad()
    loss_of(model, batch).backward()
    eps = first_step(model, remedy.rho, remedy.eta if isinstance(remedy, Asam) else None)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    counts, momenta = [n.num_batches_tracked.clone() for n in norms], [n.momentum for n in norms]
    for n in norms:
        n.momentum = 0.0
    torch.set_rng_state(drawn)
    loss_of(model, batch).backward()
    for n, count, momentum in zip(norms, counts, momenta, strict=True):
        n.momentum = momentum
        n.num_batches_tracked.copy_(count)
    second_step(eps)
    return [p.grad for p in model.parameters()]


def naive_step(
    loss_of: Callable[[nn.Module, Any], torch.Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Any],
    remedy: Remedy,
) -> None:
    """A step on parts of a batch, (x, y) each, of which each is looked uphill from by itself."""
    sizes = [len(part[1]) for part in parts]
    total: list[torch.Tensor | None] = [None for _ in model.parameters()]
    for part, n in zip(parts, sizes, strict=True):
        gradient = naive_gradient(loss_of, model, part, remedy)
        for k, g in enumerate(gradient):
            if g is not None:
                before = total[k]
                share = g.detach().clone() * (n / sum(sizes))
                total[k] = share if before is None else before + share
    for p, g in zip(model.parameters(), total, strict=True):
        p.grad = g
    optimizer.step()
