"""How does one job run on several devices? A worker process for each, started and ended together.

A rank that dies, raises or stands still ends the job (a trial, or timing) on all: the others would wait for it for
ever. What is said names the rank. Standing still: no rank has come further for `stall` seconds, and none of those that
do not wait for the others has computed meanwhile. (A pass that computes for longer than that is not taken for it.)

Jobs that are not of several ranks run on the first worker alone. Workers are this machine's unless `hire` finds others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Callable
from typing import Any

from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line, Refused
from batchscope.sweep.executors.local import LocalWorker
from batchscope.sweep.executors.workers import CLOSE_SECONDS, Hearing, Said, Worker
from batchscope.sweep.messages import Job, TaskReference

STALL_SECONDS = 20.0  # a trial is to end within 30 s of a rank that hangs
IDLE_SHARE = 0.05  # of a core: below it a rank does not compute (a guess)
POLL_SECONDS = 0.5
DEATH_SECONDS = 1.0  # within which a process's death is known (a guess)


class _Tagged:
    """A worker's way to the events of all: with its rank."""

    def __init__(self, rank: int, events: queue.Queue[tuple[int, Event | Said]]) -> None:
        self.rank, self.events = rank, events

    def put(self, event: Event | Said) -> None:
        """As a queue does."""
        self.events.put((self.rank, event))


@dataclasses.dataclass
class _Trial:
    """The trial that runs on all ranks."""

    job: Job
    results: dict[int, Any] = dataclasses.field(default_factory=dict)
    beats: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    still: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # the beats when it last came further
    since: float = 0.0


class GroupExecutor(Executor):
    """One slot; a trial with replicas runs on that many ranks, a process each."""

    slots = 1

    def __init__(
        self,
        task: TaskReference | None,
        ranks: int,
        stall: float = STALL_SECONDS,
        hire: Callable[[Hearing], Worker] = LocalWorker,
    ) -> None:
        self.ranks, self.stall, self._task, self._hire_one = ranks, stall, task, hire
        self._events: queue.Queue[tuple[int, Event | Said]] = queue.Queue()
        self._workers: list[Worker] = []
        self._trial: _Trial | None = None
        self._alone: str | None = None

    def serve(self, task: TaskReference) -> None:
        """See the base."""
        self._task = task

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._trial is not None or self._alone is not None

    def start(self, job: Job) -> None:
        """Give the job to the first worker, or to rank 0: the others follow once it says where to meet."""
        if self.busy:
            raise RuntimeError("expected a free slot of 1, it is busy")
        if job.devices not in (1, self.ranks):
            raise RuntimeError(f"expected a job on {self.ranks} ranks or on one, got {job.devices}")
        several = job.together
        self._hire(self.ranks if several else 1)
        if several:
            self._trial = _Trial(job)
            self._give(0, {"rank": 0, "ranks": self.ranks})
        else:
            self._alone = job.id
            self._workers[0].give(job)

    def _hire(self, count: int) -> None:
        """So many live workers; all anew where one of them has died."""
        if any(not worker.alive for worker in self._workers):
            self._disband()
        if self._task is None:
            raise RuntimeError("expected serve(task) before the first job")
        while len(self._workers) < count:
            worker = self._hire_one(_Tagged(len(self._workers), self._events))
            worker.introduce(self._task)
            self._workers.append(worker)

    def _give(self, rank: int, details: dict[str, Any]) -> None:
        if self._trial is not None:
            job = self._trial.job
            self._workers[rank].give(dataclasses.replace(job, details=job.details | details))

    def events(self, timeout: float) -> list[Event]:
        """See the base."""
        found: list[Event] = []
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            with contextlib.suppress(queue.Empty):
                found += self._heard(*self._events.get(timeout=min(left, POLL_SECONDS)))
            found += self._stalled()
            if found or left == 0.0:
                return found

    def _heard(self, rank: int, event: Event | Said) -> list[Event]:
        """What of one worker's news is news of the job."""
        trial = self._trial
        if trial is None:
            if isinstance(event, Said) or event.job != self._alone:
                return []
            self._alone = self._alone if isinstance(event, Line) else None
            return [event]
        if event.job != trial.job.id:
            return []
        if isinstance(event, Line):
            return [event] if rank == 0 else []
        if isinstance(event, Said):
            self._said(rank, event, trial)
            return []
        return self._ended(rank, event, trial)

    def _said(self, rank: int, event: Said, trial: _Trial) -> None:
        if event.kind == "port":
            for other in range(1, self.ranks):
                meet = [self._workers[rank].host, event.content["port"]]
                self._give(other, {"rank": other, "ranks": self.ranks, "meet": meet})
        elif event.kind == "beat":
            before = trial.still.get(rank)
            trial.beats[rank] = event.content
            if before is None or event.content["done"] != before["done"]:
                trial.still, trial.since = dict(trial.beats), time.monotonic()

    def _ended(self, rank: int, event: Done | Died | Refused, trial: _Trial) -> list[Event]:
        if isinstance(event, Done) and event.result.get("outcome") != "failed":
            trial.results[rank] = event.result
            if len(trial.results) < self.ranks:
                return []
            self._trial = None
            return [Done(event.job, trial.results[0])]
        if isinstance(event, Done):
            rank, event = self._death(trial) or (rank, event)
        who = f"rank {rank} of {self.ranks}"
        self._disband()
        if isinstance(event, Done):
            return [Done(event.job, event.result | {"reason": f"{who}: {event.result['reason']}"})]
        if isinstance(event, Died):
            return [Died(event.job, f"{who}: {event.reason}")]
        return [Refused(event.job, event.error, f"{who}: {event.sentence}")]

    def _death(self, trial: _Trial) -> tuple[int, Died] | None:
        """A rank whose death is the reason why another failed: that one may hear of it before we do."""
        deadline = time.monotonic() + DEATH_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                rank, event = self._events.get(timeout=left)
                if isinstance(event, Died) and event.job == trial.job.id:
                    return rank, event
        return None

    def _stalled(self) -> list[Event]:
        """The end of a trial that no rank takes any further."""
        trial = self._trial
        if trial is None or len(trial.beats) < self.ranks or len(trial.results) > 0:
            return []
        waited = time.monotonic() - trial.since
        if waited < self.stall:
            return []
        standing = [r for r, beat in trial.beats.items() if not beat["waits"]]
        computed = [trial.beats[r]["cpu"] - trial.still[r]["cpu"] for r in standing if r in trial.still]
        if any(seconds > IDLE_SHARE * waited for seconds in computed):
            return []
        least = min(beat["done"] for beat in trial.beats.values())
        blamed = standing or [r for r, beat in trial.beats.items() if beat["done"] == least]
        told = "; ".join(f"rank {r} of {self.ranks} at {trial.beats[r]['at']}" for r in blamed)
        self._disband()
        return [Died(trial.job.id, f"no rank came further for {waited:.0f} s: {told}")]

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes that are alive, by rank."""
        return [worker.pid for worker in self._workers if worker.alive]

    def kill(self) -> bool:
        """See the base."""
        for worker in self._workers:
            worker.kill()
        return True

    def _disband(self) -> None:
        """End every worker at once, and what it has started."""
        self._trial = self._alone = None
        for worker in self._workers:
            worker.job = None
            worker.kill()
        for worker in self._workers:
            worker.wait(CLOSE_SECONDS)
        self._workers = []

    def close(self) -> None:
        """Nothing of it runs any more."""
        self._disband()
