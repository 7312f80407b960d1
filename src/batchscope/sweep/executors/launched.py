"""Trials on processes that a launcher started: torchrun, srun, Kubernetes. Rank 0 drives, the others serve it.

Each launched process keeps one worker process, as a local executor does (`local.py`), and passes jobs in and news out:
so a trial has the same bits as on the ranks of a group (`group.py`), and one that ends badly can be tried again, with
new workers, without the launcher noticing. A worker takes its launched process's place: its card, or its core.

Rank 0 alone reads and writes the store of results, decides and prints. A launched process that is gone gives `Died`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from typing import Any

import torch

from batchscope.errors import CannotAnswer
from batchscope.sweep.control import BEAT_SECONDS, JOIN_SECONDS, POLL_SECONDS, Control
from batchscope.sweep.executors.base import Died, Done, Event, Line, Refused
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.executors.local import LocalWorker
from batchscope.sweep.executors.workers import CLOSE_SECONDS, Hearing, Said, Worker
from batchscope.sweep.launch import Launch
from batchscope.sweep.messages import Job, TaskReference
from batchscope.sweep.watch import STALL_SECONDS

LOST_SECONDS = 10.0  # without a beat a launched process is gone: it does nothing but pass messages on
LOST_MARGIN = 5.0  # for rank 0 to find that out (a guess)
END_SECONDS = 5.0  # for the others to hear of the end
EVENTS = {kind.__name__: kind for kind in (Line, Said, Done, Died, Refused)}


class LaunchedExecutor(GroupExecutor):
    """One slot; a trial with replicas runs on all launched processes. On rank 0; the others are in `serve`."""

    def __init__(self, control: Control, stall: float = STALL_SECONDS) -> None:
        self.control = control
        super().__init__(None, control.launch.size, stall, self._at, LOST_SECONDS + LOST_MARGIN)

    def start(self, job: Job) -> None:
        """See the base; CannotAnswer where a launched process is gone: no other can take its place."""
        if self.control.lost:
            raise CannotAnswer(
                f"expected all {self.ranks} launched processes to live, {self.control.lost}: launch the same command "
                "again to go on"
            )
        super().start(job)

    def _at(self, events: Hearing) -> Worker:
        """The worker of the next rank."""
        rank = len(self._workers)
        return OwnWorker(events, self.control.launch) if rank == 0 else FarWorker(events, self.control, rank)


class OwnWorker(LocalWorker):
    """A launched process's own: it takes that one's place."""

    def __init__(self, events: Hearing, launch: Launch) -> None:
        self.place, self.host = place_of(launch), launch.address
        super().__init__(events)

    def give(self, job: Job) -> None:
        """See `workers.Worker`."""
        if "rank" in job.details:
            job = dataclasses.replace(job, details=job.details | {"place": self.place})
        super().give(job)


def place_of(launch: Launch) -> int | None:
    """Its number among the cards that it sees, or among the cores that it may use."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return launch.place % cards if launch.place is not None and cards else launch.place


class FarWorker:
    """Another launched process's worker, as rank 0 sees it. See `workers.Worker`."""

    hired = 0  # so far, by this process: each has a channel of its own for its news

    def __init__(self, events: Hearing, control: Control, rank: int) -> None:
        self.job: str | None = None
        self.host, self.pid = "", 0  # it is not asked for them: rank 0's worker says where to meet
        self._events, self._control, self._rank = events, control, rank
        FarWorker.hired += 1
        self._news = f"from {rank}, {FarWorker.hired}"
        self._lock, self._ended = threading.Lock(), ""
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def introduce(self, task: TaskReference) -> None:
        """Have the process started."""
        self._say({"do": "hire", "task": dataclasses.asdict(task), "news": self._news})
        self._listener.start()

    def give(self, job: Job) -> None:
        """Send a job."""
        with self._lock:
            if self._ended:
                self._events.put(Died(job.id, self._ended))
                return
            self.job = job.id
        self._say({"do": "job", "job": dataclasses.asdict(job)})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the listener reports that
            self._control.say(f"to {self._rank}", message)

    def _listen(self) -> None:
        """Pass the news on, until the worker or its launched process is gone."""
        how, since = "", time.monotonic()
        while not how:
            if (message := self._heard()) is not None:
                since, self._control.present = time.monotonic(), self._control.present | {self._rank}
                how = self._taken(message)
                continue
            patience = LOST_SECONDS if self._rank in self._control.present else JOIN_SECONDS
            if time.monotonic() - since > patience:
                how = "the launched process is gone"
                self._control.lost = f"rank {self._rank} gave no sign of life for {patience:g} s"
            time.sleep(POLL_SECONDS)
        with self._lock:
            self._ended, job, self.job = how, self.job, None
        if job is not None:
            self._events.put(Died(job, how))

    def _heard(self) -> dict[str, Any] | None:
        """The next news; none where the store is gone."""
        with contextlib.suppress(RuntimeError):
            return self._control.hear(self._news)
        return None

    def _taken(self, message: dict[str, Any]) -> str:
        """Take in one piece of news; returns how the worker ended, if it did."""
        if message["news"] in EVENTS:
            self._pass(EVENTS[message["news"]](**message["content"]))
        return "the worker process is gone" if message["news"] == "gone" else ""

    def _pass(self, event: Event | Said) -> None:
        if not isinstance(event, (Line, Said)):
            self.job = None
        self._events.put(event)

    @property
    def placed(self) -> bool:
        """Whether the launched process has been heard of: `_listen` has its own patience until then."""
        return self._rank in self._control.present

    @property
    def alive(self) -> bool:
        """Whether jobs can be given to it."""
        return not self._ended

    def kill(self) -> None:
        """Have it ended."""
        self._say({"do": "stop"})

    def wait(self, seconds: float) -> None:
        """Wait until it is gone."""
        self._listener.join(seconds + LOST_SECONDS)


class _ToRankZero:
    """Where another launched process's worker puts its news."""

    def __init__(self, control: Control, channel: str) -> None:
        self.control, self.channel = control, channel

    def put(self, event: Event | Said) -> None:
        """As a queue does."""
        with contextlib.suppress(RuntimeError):  # the store is gone: `serve` finds out
            content = dataclasses.asdict(event)
            self.control.say(self.channel, {"news": type(event).__name__, "content": content})


driven: Control | None = None  # by this process, rank 0 of several: see `drive`


def drive(control: Control) -> None:
    """From now on, this process's trials on several devices run on the launched processes."""
    global driven
    driven = control


def serve(control: Control) -> int:
    """Do what rank 0 says, until it ends; returns its exit code. Raises CannotAnswer where rank 0 is gone."""
    rank, worker, news, beaten = control.launch.rank, None, "", 0.0
    try:
        while True:
            message = control.hear(f"to {rank}")
            what = message["do"] if message is not None else ""
            if message is not None and what == "hire":
                news = message["news"]
                worker = OwnWorker(_ToRankZero(control, news), control.launch)
                worker.introduce(TaskReference(**message["task"]))
            elif message is not None and what == "job" and worker is not None:
                worker.give(Job(**message["job"]))
            elif message is not None and what == "end":
                control.say(f"ended {rank}", {})
                return message["code"]
            if worker is not None and (what == "stop" or not worker.alive):
                worker.kill()
                worker.wait(CLOSE_SECONDS)
                worker = None
                control.say(news, {"news": "gone"})
            if worker is not None and time.monotonic() - beaten > BEAT_SECONDS:
                beaten = time.monotonic()
                control.say(news, {"news": "beat"})
            if message is None:
                time.sleep(POLL_SECONDS)
    except RuntimeError as error:
        raise CannotAnswer(
            f"expected rank 0 to end the command, its store is gone: rank {rank} of {control.launch.size} ends too; "
            "run the same command to go on"
        ) from error
    finally:
        if worker is not None:
            worker.kill()
            worker.wait(CLOSE_SECONDS)


def end(control: Control, code: int) -> None:
    """On rank 0, at its own end: the others end with this code too."""
    others = range(1, control.launch.size)
    with contextlib.suppress(RuntimeError):
        for rank in others:
            control.say(f"to {rank}", {"do": "end", "code": code})
        deadline = time.monotonic() + END_SECONDS
        for rank in others:
            control.wait(f"ended {rank}", deadline - time.monotonic())
