"""Which tasks misbehave at one micro-batch size and not at others? A fingerprint's small batches set none off."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

import batchscope as bs

EXAMPLES, FEATURES, LARGE = 4096, 4, 64  # batches of more than LARGE examples set a task off
BYTES_PER_EXAMPLE = 1 << 18  # of the hungry one's activations
IN_A_PROBE = "batchscope.sweep.worker" in " ".join(sys.orig_argv)


class Hungry(nn.Module):
    """Keeps 256 KiB an example between forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.mean(1, keepdim=True).expand(-1, BYTES_PER_EXAMPLE // 4).contiguous()
        return self.linear(x) + (wide * self.scale).mean(1, keepdim=True)


def _task(name: str, **changes: Any) -> bs.Task:
    x = torch.randn(EXAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    fields: dict[str, Any] = {
        "name": name,
        "model": lambda: nn.Linear(FEATURES, 3),
        "loss": F.cross_entropy,
        "train": (x, y),
        "valid": (x[:32], y[:32]),
        "optimizer": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        "lr": 0.1,
        "batch_size": 16,
        "goal": bs.Goal("loss", at_most=0.1),
    }
    return bs.Task(**fields | changes)


def _when_large(act: Any) -> Any:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(target) > LARGE:
            act()
        return F.cross_entropy(output, target)

    return loss


def hungry() -> bs.Task:
    """256 KiB an example are kept; in the backward pass it needs about four times that."""
    return _task("hungry", model=Hungry)


def jailed() -> bs.Task:
    """The hungry one, whose probes are put into the control group that BATCHSCOPE_TEST_CGROUP names."""
    if IN_A_PROBE:
        (Path(os.environ["BATCHSCOPE_TEST_CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
    return hungry()


def killed() -> bs.Task:
    """Ended as the system's memory killer ends a process."""
    return _task("killed", loss=_when_large(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def crashing() -> bs.Task:
    """A segmentation fault."""
    return _task("crashing", loss=_when_large(lambda: ctypes.string_at(0)))


def hanging() -> bs.Task:
    """A step that never ends, with a child process that would outlive it."""

    def hang() -> None:
        os.system("sleep 1000 & echo $! > " + os.environ["BATCHSCOPE_TEST_CHILD"])
        time.sleep(1000)

    return _task("hanging", loss=_when_large(hang))


def raising() -> bs.Task:
    """An error that is not about memory."""
    return _task("raising", loss=_when_large(lambda: [].pop()))


class _Examples(Dataset):
    """Something to load."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((FEATURES,), index / EXAMPLES), index % 2


def _collate(items: list[Any]) -> Any:
    """Ends the process that loads a large batch."""
    if len(items) > LARGE and torch.utils.data.get_worker_info() is not None:
        os._exit(3)
    return torch.utils.data.default_collate(items)


def dying_loader() -> bs.Task:
    """Data loading processes that die."""
    return _task("dying-loader", train=_Examples(), num_workers=1, collate_fn=_collate)
