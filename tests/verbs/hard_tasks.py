"""Which small tasks are hard to tune, each in one way? A training run of each takes about a tenth of a second.

Two families, with the own point put where it hurts: a classifier (a noisy rule on 16 features, a network of 700
weights) and a noisy quadratic (a diagonal Hessian, gradient noise proportional to it). What is said of their best
points was measured, by `benchmarks/hard_advice.py`, at powers of four of the batch size and powers of two of the rate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs
from batchscope.records import Advice, Conditions, StepTiming, TimingPass

TRAIN, VALID, FEATURES, CLASSES, HIDDEN = 512, 256, 16, 4, 32
ROUNDS = 10
KNEE = 64  # of the made-up seconds, in examples
FLAT = 1e5  # a device that no batch fills
KNEES = {"large_critical": FLAT, "small_only": FLAT}
CASES = (  # whose goal is given, and reached by some point
    "slow_rate",
    "fast_rate",
    "small_critical",
    "large_critical",
    "batch_norm",
    "with_adam",
    "cosine",
    "small_only",
    "own_never",
    "accuracy_goal",
)


def slow_rate() -> bs.Task:
    """Own learning rate 8 times too small: 0.6 is best at batch size 32."""
    return classifier("slow rate", lr=0.075)


def fast_rate() -> bs.Task:
    """Own learning rate 4 times too large: 1 is best at batch size 64."""
    return classifier("fast rate", lr=4.0, batch_size=64, goal=bs.Goal("accuracy", at_least=0.7))


def small_critical() -> bs.Task:
    """B_crit is about 8."""
    return quadratic("small critical", noise=0.5, lr=0.8)


def large_critical() -> bs.Task:
    """B_crit lies above the 128 training examples: tuned, all of them at once take half as many as any part."""
    goal = bs.Goal("loss", at_most=0.5)
    return quadratic("large critical", noise=200.0, train=128, lr=0.1, batch_size=16, goal=goal)


def batch_norm() -> bs.Task:
    return classifier("batch norm", model=normed, lr=0.1)


def with_adam() -> bs.Task:
    return classifier("adam", optimizer=adam, lr=0.004)


def cosine() -> bs.Task:
    """The rate falls to nothing over the task's whole budget, whatever the batch size."""
    return classifier("cosine", schedule=annealed, lr=0.2, budget=10 * TRAIN)


def small_only() -> bs.Task:
    """In so small a budget no batch size from 256 on can reach the goal."""
    return classifier("small only", lr=0.2, budget=3 * TRAIN)


def own_never() -> bs.Task:
    """Reached by other learning rates, not by the own."""
    return classifier("own never", lr=4.8, budget=5 * TRAIN)


def out_of_reach() -> bs.Task:
    """No point reaches it."""
    return classifier("out of reach", goal=bs.Goal("loss", at_most=0.05), budget=5 * TRAIN)


def open_goal() -> bs.Task:
    """What the own point reaches is the goal."""
    return classifier("open goal", goal=None, lr=0.1, budget=10 * TRAIN)


def accuracy_goal() -> bs.Task:
    return classifier("accuracy goal", goal=bs.Goal("accuracy", at_least=0.7), lr=0.2)


# --- the two families ---


def classifier(name: str, **changes: Any) -> bs.Task:
    """`changes` are fields of `Task`."""
    x = torch.randn(TRAIN + VALID, FEATURES, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(TRAIN + VALID, CLASSES, generator=torch.Generator().manual_seed(2))
    y = (x[:, :CLASSES] + 0.5 * x[:, CLASSES : 2 * CLASSES] + 0.3 * noise).argmax(1)
    fields: dict[str, Any] = {
        "name": name,
        "model": network,
        "loss": F.cross_entropy,
        "train": (x[:TRAIN], y[:TRAIN]),
        "valid": (x[TRAIN:], y[TRAIN:]),
        "metrics": {"accuracy": accuracy},
        "optimizer": sgd,
        "lr": 0.4,
        "batch_size": 32,
        "goal": bs.Goal("loss", at_most=0.7),
        "budget": 20 * TRAIN,
    }
    return bs.Task(**fields | changes)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def normed() -> nn.Module:
    """With batch norm: micro-batches are part of the mathematics."""
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def annealed(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


class Quadratic(nn.Module):
    """l_n(w) = 1/2 w' H w + x_n . w, as the built-in noisy quadratic, in fewer dimensions."""

    curvature: torch.Tensor

    def __init__(self, curvature: torch.Tensor) -> None:
        """Signs are drawn; every direction holds an equal share of the loss, 1 in all."""
        super().__init__()
        self.register_buffer("curvature", curvature)
        signs = torch.randint(0, 2, (len(curvature),)) * 2 - 1
        self.w = nn.Parameter(signs * (2 / (len(curvature) * curvature)).sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.curvature * self.w) @ self.w + x @ self.w


def quadratic(name: str, noise: float, train: int = TRAIN, dimensions: int = 256, **changes: Any) -> bs.Task:
    """The loss begins at 1 and is to fall to 0.1; `noise`: tr(Sigma)."""
    h = (1 + torch.arange(dimensions) / 16.0) ** -2
    x = torch.randn(train, dimensions, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) * (noise * h / h.sum() / x.var(0, correction=0)).sqrt()
    fields: dict[str, Any] = {
        "name": name,
        "model": lambda: Quadratic(h),
        "loss": lambda losses, at_minimum: (losses - at_minimum).mean(),
        "train": (x, torch.zeros(train)),
        "valid": (torch.zeros(64, dimensions), torch.zeros(64)),
        "optimizer": sgd,
        "lr": 0.4,
        "batch_size": 32,
        "goal": bs.Goal("loss", at_most=0.1),
        "budget": 40 * train,
    }
    return bs.Task(**fields | changes)


# --- seconds, made up ---


def made_up_timing(task: bs.Task, knee: float = KNEE, smallest: int = 4, **changes: Any) -> TimingPass:
    """Seconds per step 1e-3 (1 + B / knee) at powers of two, each round within 1 % of it: as a meter reports them."""
    sizes = [2**k for k in range(smallest.bit_length() - 1, task.train_size.bit_length())]
    timings = tuple(StepTiming(b, 10, tuple(_seconds(b, knee, k) for k in range(ROUNDS)), ()) for b in sizes)
    return TimingPass(sizes[0], timings, Conditions(), loop="made up", **changes)


def _seconds(size: int, knee: float, round_: int) -> float:
    return 1e-3 * (1 + size / knee) * (1 + 0.01 * ((7 * round_ + size) % 3 - 1))


def advise(task: bs.Task | str, path: Path, knee: float = KNEE, **asked: Any) -> Advice:
    """`recommend` on made-up seconds, with its store at `path` and no page."""
    timing = None if isinstance(task, str) else made_up_timing(task, knee)
    settings: dict[str, Any] = {"timing": timing, "store": path, "draw": False}
    return bs.recommend(task, **settings | asked)
