"""What should a monitor see? A batch whose squared norms are computed part by part, and what it must leave behind.

With a learning rate of 0 and batches that are the whole data, every step measures the same two numbers.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import batchscope as bs

EXAMPLES = 32


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """(32, 5) inputs and (32,) labels of three classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, 5, generator=generator), torch.randint(3, (EXAMPLES,), generator=generator)


def network() -> nn.Sequential:
    """Two linear layers; the same weights at every call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def exact(net: nn.Module, parts: int) -> tuple[float, float]:
    """(sum_i |g_i|^2 / parts, |g|^2), g_i the gradient of the i-th of so many equal parts of the data."""
    x, y = data()
    losses = [nn.functional.cross_entropy(net(a), b) for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)]
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]) for loss in losses]
    mean = torch.stack(gradients).mean(0)
    return float(sum(g.square().sum() for g in gradients)) / parts, float(mean.square().sum())


def last_loss(parts: int = 1) -> float:
    """Mean loss of the last of so many equal parts of the data."""
    x, y = data()
    return nn.functional.cross_entropy(network()(x.chunk(parts)[-1]), y.chunk(parts)[-1]).item()


def assert_saw(report: bs.NoiseReport, source: str, parts: int, loss: float | None = None, rel: float = 1e-4) -> None:
    """Every measured step is the exact one."""
    parts_squared, mean_squared = exact(network(), parts)
    assert (report.source, report.parts, report.batch_size) == (source, parts, EXAMPLES)
    assert len(report.measurements) >= 5
    for seen in report.measurements:
        assert seen.parts_squared == pytest.approx(parts_squared, rel=rel)
        assert seen.mean_squared == pytest.approx(mean_squared, rel=rel)
        assert seen.loss == (loss if loss is None else pytest.approx(loss, rel=rel))
        assert (seen.part_size, seen.examples) == (EXAMPLES / parts, EXAMPLES * seen.step)


def hooks_in(model: nn.Module) -> list[Any]:
    """Every hook of a model and of its parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]
    of_parameters = [
        hook
        for parameter in model.parameters()
        for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        for hook in (hooks or {}).values()
    ]
    return modules + of_parameters


def left_behind(model: nn.Module) -> list[bytes]:
    """Bits of the weights, and of every generator's state."""
    weights = [p.detach().numpy().tobytes() for p in model.parameters()]
    return [*weights, torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()).encode(), _python_state()]


def _python_state() -> bytes:
    return repr(random.getstate()).encode()


def seed() -> None:
    """Every generator."""
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
