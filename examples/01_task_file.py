"""A task file: 569 breast-tissue measurements (scikit-learn's wheel), a small network with batch norm, Adam.

batchscope study examples/01_task_file.py --batch-sizes 8,32,128
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn

import batchscope as bs


def make_model() -> nn.Module:
    """Freshly initialised at every call, from torch's generator."""
    return nn.Sequential(nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean over the batch, as every metric must be."""
    return (output.argmax(1) == target).float().mean()


def task() -> bs.Task:
    """384 examples to train on, 185 to validate."""
    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid = order[:384], order[384:]
    return bs.Task(
        name="breast-cancer",
        model=make_model,
        loss=F.cross_entropy,
        train=(x[train], y[train]),
        valid=(x[valid], y[valid]),
        metrics={"accuracy": accuracy},
        optimizer=lambda model, lr: torch.optim.Adam(model.parameters(), lr=lr),
        lr=0.003,
        batch_size=32,
        goal=bs.Goal("loss", at_most=0.12),
        budget=40 * 384,
    )
