"""What does a worker do to take its rank in a trial of several processes? Meet the others, and show that it is alive.

Rank 0 listens at a port that the system chose and says which (`port`); the others are told. Whoever starts the ranks
says at which address they reach rank 0 (`host`). From the loading of the task to the end, a thread says once in a while
how far this rank is and where (`beat`): whoever started the ranks tells from that which of them stands still
(`watch.py`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from batchscope.sweep.watch import LOADING, MEETING, WORKING
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


class Pulse:
    """The beats of a rank, from a thread of its own while this is entered by the thread that trains."""

    def __init__(self, say: Say) -> None:
        self.say, self.phase = say, LOADING
        self.replicas: Replicas | None = None  # once it has met the others
        self._thread, self._ended = threading.get_ident(), threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self.say("beat", self.beat())
            self._ended.wait(BEAT_SECONDS)

    def beat(self) -> dict[str, Any]:
        """How far this rank is, and where."""
        waits, at = place(sys._current_frames().get(self._thread))
        done, marked = (self.replicas.done, self.replicas.waiting) if self.replicas is not None else (0, False)
        waits = waits or marked
        return {"phase": self.phase, "done": done, "cpu": cpu_seconds(), "waits": waits, "marked": marked, "at": at}


@contextlib.contextmanager
def ranked(details: dict[str, Any], device: torch.device, pulse: Pulse) -> Generator[Replicas]:
    """This process among `details["ranks"]`, as rank `details["rank"]`.

    They meet where rank 0 listens: at `details["host"]`, and a port that is in `details["meet"]` of the others.

    The group is left when the next trial begins, not at its own end: else a rank that failed would end the others
    with an error of the connection before its own reason was heard.
    """
    part_ways()
    pulse.phase = MEETING
    rank, size = details["rank"], details["ranks"]
    if rank == 0:
        store = listening(details["host"])
        pulse.say("port", {"port": store.port})
        replicas = met(rank, size, device, store)
    else:
        host, port = details["meet"]
        replicas = met(rank, size, device, (host, port))
    pulse.replicas, pulse.phase = replicas, WORKING
    yield replicas


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children, a data loader's: those that live, where Linux tells."""
    own, living = os.times(), 0.0
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            living += sum(map(_cpu_seconds_of, tasks.read_text().split()))
    return own.user + own.system + own.children_user + own.children_system + living


def _cpu_seconds_of(pid: str) -> float:
    """Of another process, its reaped children included; 0 where it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # proc(5), from the third on
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


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
