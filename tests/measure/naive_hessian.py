"""What are the full loss, its gradient and its Hessian? All examples at once, in double precision, dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from batchscope.measure.full_loss import FullLoss
from batchscope.task import Task

CPU = torch.device("cpu")
Function = Callable[[torch.Tensor], torch.Tensor]


def full_loss(task: Task, model: nn.Module | None = None, **options: object) -> FullLoss:
    """f in double precision over the training data; the model as the task makes it with seed 0."""
    options = {"double": True, "chunk": 16} | options
    return FullLoss(task, seeded(task) if model is None else model, task.train, CPU, **options)


def seeded(task: Task, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return task.model()


def naive(task: Task, model: nn.Module | None = None) -> Function:
    """f by itself, of x (n,): in eval mode, on a copy of the model, over all training tensors in one batch."""
    model = copy.deepcopy(seeded(task) if model is None else model).double().eval()
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    inputs, targets = (t.double() if t.is_floating_point() else t for t in task.train)

    def f(x: torch.Tensor) -> torch.Tensor:
        parts = x.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        fresh = copy.deepcopy(model)  # functional_call leaves a layer that has two names changed
        return task.loss_of(torch.func.functional_call(fresh, weights, (inputs,)), targets)

    return f


def dense(f: Function, x: torch.Tensor) -> torch.Tensor:
    """(n, n) Hessian."""
    found = torch.autograd.functional.hessian(f, x)
    assert isinstance(found, torch.Tensor)
    return found


def gradient(f: Function, x: torch.Tensor) -> torch.Tensor:
    """(n,)."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(f(x), x)
    return found


def differences(loss: FullLoss, x: torch.Tensor, v: torch.Tensor, step: float = 1e-5) -> tuple[float, torch.Tensor]:
    """(g'v, H v) by central differences of f's own values and gradients."""
    slope = (loss.value(x + step * v) - loss.value(x - step * v)) / (2 * step)
    curve = (loss.gradient(x + step * v)[1] - loss.gradient(x - step * v)[1]) / (2 * step)
    loss.move(x)
    return slope, curve


def direction(n: int, seed: int = 0) -> torch.Tensor:
    """(n,) of length 1."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / torch.linalg.vector_norm(v)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std()) / len(found) ** 0.5
