"""Which task misbehaves on one rank? In the tenth of every hundred steps, rank 1 does what a file says; else not.

The file lies in the folder `BATCHSCOPE_TEST_FOLDER`: "raise", "sleep" or "think" (compute for ever, alone). It does
what it says once, and is taken away by that; so the trial goes through when it is tried again.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import batchscope as bs

FEATURES, EVERY, AT = 4, 100, 10


def task() -> bs.Task:
    """A linear rule; every batch counts as a step."""
    x = torch.randn(96, FEATURES, generator=torch.Generator().manual_seed(0))
    steps = [0]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and dist.is_initialized():
            steps[0] += 1
            if dist.get_rank() == 1 and steps[0] % EVERY == AT:
                misbehave()
        return F.mse_loss(output, target)

    return bs.Task(
        name="ranked",
        model=lambda: nn.Linear(FEATURES, 1),
        loss=loss,
        train=(x, x.sum(1, keepdim=True)),
        valid=(x[:32], x[:32].sum(1, keepdim=True)),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.01,
        batch_size=8,
        goal=bs.Goal("loss", at_most=1e-9),
    )


def open_goal() -> bs.Task:
    """Its goal is what the own point reaches, if that trains."""
    return dataclasses.replace(task(), goal=None)


def misbehave() -> None:
    """As the file says."""
    for path in Path(os.environ["BATCHSCOPE_TEST_FOLDER"]).glob("do-*"):
        path.unlink()
        if path.name == "do-raise":
            raise ValueError("the eleventh is too much")
        while path.name == "do-sleep":
            time.sleep(1000.0)
        end = time.monotonic() + float(path.name.removeprefix("do-think-"))
        while time.monotonic() < end:
            pass
