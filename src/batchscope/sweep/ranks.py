"""What does a worker do to take its rank in a trial of several processes? Meet the others, and show that it is alive.

Rank 0 listens at a port that the system chose and says which (`port`); the others are told. While the trial runs, a
thread says once in a while how far this rank is and where (`beat`): whoever started the ranks tells from that which of
them stands still (`executors/group.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from batchscope.training.device import pick_device
from batchscope.training.distributed import Replicas, listening, met, part_ways

Say = Callable[[str, dict[str, Any]], None]

BEAT_SECONDS = 1.0
TORCH, OURS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
WAITING = ("autograd", "distributed", "nn/parallel")  # torch's folders in which a rank waits for the others


CORES = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()  # when the process began


def take_place(number: int | None) -> torch.device:
    """The device of a rank, which this process works on from now on: this machine's card or core of that number.

    None: whoever started the process has given it its place, the one card that it sees, or the cores that it may use.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(number or 0)
        return torch.device("cuda", number or 0)
    if CORES and number is not None:
        os.sched_setaffinity(0, {CORES[number % len(CORES)]})
    return torch.device("cpu")


def leave_place() -> torch.device:
    """Where a process of no rank works: on the first card, or on any core."""
    if torch.cuda.is_available():
        torch.cuda.set_device(0)
    elif CORES:
        os.sched_setaffinity(0, CORES)
    return pick_device()


@contextlib.contextmanager
def ranked(details: dict[str, Any], device: torch.device, say: Say) -> Generator[Replicas]:
    """This process among `details["ranks"]`, as rank `details["rank"]`, which meet at `details["meet"]`.

    The group is left when the next trial begins, not at its own end: else a rank that failed would end the others
    with an error of the connection before its own reason was heard.
    """
    part_ways()
    rank, size = details["rank"], details["ranks"]
    if rank == 0:
        store = listening()
        say("port", {"port": store.port})
        replicas = met(rank, size, device, store)
    else:
        host, port = details["meet"]
        replicas = met(rank, size, device, (host, port))
    ended = threading.Event()
    threading.Thread(target=_beat, args=(replicas, threading.get_ident(), say, ended), daemon=True).start()
    try:
        yield replicas
    finally:
        ended.set()


def _beat(replicas: Replicas, thread: int, say: Say, ended: threading.Event) -> None:
    """Say how far the training thread is, until it has ended."""
    while True:
        waits, at = place(sys._current_frames().get(thread))
        say("beat", {"done": replicas.done, "cpu": time.process_time(), "waits": waits, "at": at})
        if ended.wait(BEAT_SECONDS):
            return


def place(frame: FrameType | None) -> tuple[bool, str]:
    """(whether a thread waits in torch for other ranks, the innermost line that is neither torch's nor ours)."""
    waits = False
    if frame is not None:
        file = frame.f_code.co_filename
        waits = file.startswith(TORCH) and any(f"/{part}/" in file[len(TORCH) :] for part in WAITING)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, OURS)):
        frame = frame.f_back
    if frame is None:
        return waits, "our own code"
    code = frame.f_code
    return waits, f"{Path(code.co_filename).name}:{frame.f_lineno} ({code.co_name})"
