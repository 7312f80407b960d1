"""What do the papers' formulas say, line by line? One weight at a time, every step from the last: held against ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch


def adam(
    start: torch.Tensor, gradients: Iterable[torch.Tensor], lr: float, betas, eps: float
) -> Iterator[torch.Tensor]:
    """Kingma and Ba 2015, algorithm 1: the weight after each gradient."""
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = w - lr * m_hat / (v_hat.sqrt() + eps)
        yield w


def lars(
    start: torch.Tensor,
    gradients: Iterable[torch.Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    excluded: bool,
) -> Iterator[torch.Tensor]:
    """You et al. 2017, algorithm 1, at a constant rate; an excluded weight is trained by SGD, without weight decay."""
    w, v = start.clone(), torch.zeros_like(start)
    for g in gradients:
        norm, slope = float(torch.sqrt((w * w).sum())), float(torch.sqrt((g * g).sum()))
        local = 1.0 if excluded or norm == 0 else trust * norm / (slope + weight_decay * norm)
        v = momentum * v + lr * local * (g + (0.0 if excluded else weight_decay) * w)
        w = w - v
        yield w


def lamb(
    start: torch.Tensor,
    gradients: Iterable[torch.Tensor],
    lrs: Iterable[float],
    betas,
    eps: float,
    weight_decay: float,
    excluded: bool,
    largest: float,
) -> Iterator[torch.Tensor]:
    """You et al. 2019, algorithm 2, with phi(z) = min(z, largest); an excluded weight: Adam's step, no weight decay."""
    w, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        r = m_hat / (v_hat.sqrt() + eps)
        u = r if excluded else r + weight_decay * w
        norm, size = float(torch.sqrt((w * w).sum())), float(torch.sqrt((u * u).sum()))
        ratio = 1.0 if excluded or norm == 0 or size == 0 else min(norm, largest) / size
        w = w - lr * ratio * u
        yield w
