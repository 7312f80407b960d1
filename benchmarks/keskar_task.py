"""Network F1 of Keskar et al. 2016: 784, 5 x [512, batch norm, ReLU], 10; on Fashion-MNIST, with Adam.

`keskar.py` trains it; it is also a task for `batchscope study benchmarks/keskar_task.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs

WIDTH, LAYERS = 512, 5


def model() -> nn.Module:
    """Torch's own initialisation: uniform, as the paper's starting points."""
    layers: list[nn.Module] = [nn.Flatten()]
    for k in range(LAYERS):
        layers += [nn.Linear(784 if k == 0 else WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def task() -> bs.Task:
    """The data of the built-in task, validation and test sets included."""
    base = bs.load_task("fashion-mnist-mlp")
    return bs.Task(
        name="keskar-f1",
        model=model,
        loss=F.cross_entropy,
        train=base.train,
        valid=base.valid,
        test=base.test,
        metrics=base.metrics,
        optimizer=lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr),
        lr=1e-3,
        batch_size=256,
        goal=bs.Goal("loss", at_most=0.35),
    )
