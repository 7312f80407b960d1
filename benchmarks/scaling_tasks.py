"""Models that differ in the bytes of their gradient alone: one to fit on, and others with half and twice as many.

Fully connected networks and a convolutional one on Fashion-MNIST; `scaling_check.py` loads them by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs
from batchscope.task import Task

WIDTH, FILTERS = 1024, 32


def wide(width: int, name: str) -> Task:
    """One hidden layer of this width: 3,180 bytes of gradient for each unit."""
    base = bs.load_task("fashion-mnist-mlp")
    return Task(
        name=name,
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)),
        loss=F.cross_entropy,
        train=base.train,
        valid=base.valid,
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.1,
        batch_size=64,
    )


def convolutional(units: int, name: str) -> Task:
    """Two convolutions, and a fully connected layer whose width sets the bytes."""
    base = bs.load_task("fashion-mnist-cnn")

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, FILTERS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Linear(FILTERS * 49, units),
            nn.ReLU(),
            nn.Linear(units, 10),
        )

    return Task(
        name=name,
        model=model,
        loss=F.cross_entropy,
        train=base.train,
        valid=base.valid,
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.1,
        batch_size=64,
    )


def fitted() -> Task:
    """The model that the network and its overlap are fitted on."""
    return wide(WIDTH, "mlp-1024")


def half() -> Task:
    """With half the gradient bytes."""
    return wide(WIDTH // 2, "mlp-512")


def twice() -> Task:
    """With twice the gradient bytes."""
    return wide(2 * WIDTH, "mlp-2048")


def cnn_half() -> Task:
    """Another kind of model, with half the bytes of the fitted one."""
    return convolutional(256, "cnn-half")


def cnn_twice() -> Task:
    """Another kind of model, with twice the bytes of the fitted one."""
    return convolutional(1024, "cnn-twice")
