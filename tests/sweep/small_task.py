"""Which task is small enough to be trained hundreds of times in a test? And one like it that misbehaves on purpose.

256 examples of a noisy linear rule, a network of 200 weights, 12 epochs at most: a trial takes a tenth of a second.
The odd one misbehaves only where a file in the folder `BATCHSCOPE_TEST_FOLDER` says so: the same task, of the same
fingerprint, runs with and without.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs

TRAIN, VALID, FEATURES, CLASSES = 256, 128, 8, 3
BATCH_SIZES = (8, 16, 64)


def task() -> bs.Task:
    """The small task."""
    x = torch.randn(TRAIN + VALID, FEATURES, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(TRAIN + VALID, CLASSES, generator=torch.Generator().manual_seed(2))
    y = (x[:, :CLASSES] + 0.3 * noise).argmax(1)
    return bs.Task(
        name="small",
        model=lambda: nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES)),
        loss=F.cross_entropy,
        train=(x[:TRAIN], y[:TRAIN]),
        valid=(x[TRAIN:], y[TRAIN:]),
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).float().mean()},
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.4,
        batch_size=16,
        goal=bs.Goal("loss", at_most=0.55),
        budget=12 * TRAIN,
    )


def odd() -> bs.Task:
    """The same task, which misbehaves at a trial's step (batches of 16 or 64) as the files of the folder say."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(target) in (16, 64):
            for name, act in ACTS.items():
                if (folder() / name).exists():
                    act()
        return F.cross_entropy(output, target)

    return dataclasses.replace(task(), name="odd", loss=loss)


def folder() -> Path:
    """Where the test says what is to happen."""
    return Path(os.environ["BATCHSCOPE_TEST_FOLDER"])


def _print() -> None:
    """From Python, as a reply would look, and from a program."""
    print('{"kind": "done"}', flush=True)
    os.system("echo from a program")


def _stick() -> None:
    """A step of minutes, inside torch."""
    for _ in range(1000):
        torch.mm(torch.ones(3000, 3000), torch.ones(3000, 3000))


ACTS = {
    "slow": lambda: time.sleep(0.003),  # long enough to be killed in
    "print": _print,
    "raise": lambda: [].pop(),
    "exit": lambda: os._exit(7),
    "crash": lambda: ctypes.string_at(0),
    "stick": _stick,
}
