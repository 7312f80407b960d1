"""Which processes are alive? Read from /proc, so that what a killed parent leaves behind is seen too."""

from __future__ import annotations

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if int(of) == parent and state not in "ZX" and b"batchscope.sweep.worker" in command:
            found.append(int(entry.name))
    return found


def gone_within(seconds: float, *pids: int) -> bool:
    """Wait until none of them is alive; False if that takes longer."""
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
