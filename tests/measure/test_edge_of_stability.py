"""Does full-batch gradient descent sharpen until the largest eigenvalue is 2 / learning rate, and stay there?"""

from __future__ import annotations

import statistics

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import batchscope as bs
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues
from batchscope.measure.sharpness import batch_sharpness
from batchscope.task import Task

EXAMPLES, RATE, STEPS, LOOKS = 300, 0.1, 2000, 8
CPU = torch.device("cpu")


def tanh_task() -> Task:
    """Digits, one-hot targets, mean squared error."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:EXAMPLES] / 16, dtype=torch.float32)
    y = torch.nn.functional.one_hot(torch.tensor(labels[:EXAMPLES]), 10).float()
    return bs.Task(
        name="edge",
        model=lambda: nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)),
        loss=lambda output, target: 0.5 * (output - target).square().sum(1).mean(),
        train=(x, y),
        valid=(x, y),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=RATE,
        batch_size=EXAMPLES,
    )


def test_gradient_descent_hovers_at_two_over_the_learning_rate() -> None:
    """Cohen et al. 2021; on the full batch, batch sharpness is the curvature along the gradient, below the largest."""
    task = tanh_task()
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, RATE)
    x, y = task.train
    found, along = [], []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        task.batch_loss(model, (x, y)).backward()
        optimizer.step()
        if step % (STEPS // 16) == 0 and step > STEPS // 2:
            copied = task.model()
            copied.load_state_dict(model.state_dict())
            loss = FullLoss(task, copied, task.train, CPU, chunk=EXAMPLES)
            at = loss.point()
            found.append(RATE * (eigenvalues(loss, at, both=False)[0].estimate or 0.0))
            along.append(RATE * (batch_sharpness(loss, at, EXAMPLES, draws=1).estimate or 0.0))
    assert len(found) == LOOKS
    assert 1.8 < statistics.mean(found) < 2.2
    assert all(a <= f * (1 + 1e-3) for a, f in zip(along, found, strict=True))
    assert pytest.approx(2.0, rel=0.3) == statistics.median(along)
