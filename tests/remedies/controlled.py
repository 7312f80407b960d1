"""Which controllers do the tests drive? Those of a bare optimiser, with schedules of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler

import batchscope as bs
from batchscope.remedies.growing import Rule
from toys import examples

X, Y = examples(512)
TOTAL = 64
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.01),  # recursive
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, TOTAL + 1),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [10, 40]),  # recursive
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 8), lr_scheduler.CosineAnnealingLR(o, TOTAL - 8)], [8]
    ),
}


class Doubling:
    """A rule of a user's own: twice as large after every so many steps."""

    name, may_shrink = "doubling", False

    def __init__(self, every: int) -> None:
        self.every = every

    def wanted(self, seen: Any) -> tuple[float, str] | None:
        return (2 * seen.batch_size, "it is time") if seen.step % self.every == 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def controlled(rule: Rule | str, lr: float = 0.1, **settings: Any) -> bs.BatchSizeController:
    """Of an optimiser with two groups."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * k} for k in (1, 3)]
    optimizer = torch.optim.SGD(groups)
    make = settings.pop("schedule", None)
    scheduler = make(optimizer) if make is not None else None
    return bs.BatchSizeController(optimizer, rule=rule, scheduler=scheduler, **{"batch_size": 8} | settings)


def rates(controller: bs.BatchSizeController) -> list[float]:
    return [group["lr"] for group in controller.optimizer.param_groups]
