"""How does one job run on several devices? A worker process for each, started and ended together.

A rank that dies, raises or stands still (`watch.py`) ends the job (a trial, or timing) on all: the others would wait
for it for ever. What is said names the rank. One that fails is not always the one to blame: where it lost its
connection to the others, the end of another is waited for.

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
from batchscope.sweep.messages import CONNECTION_LOST, Job, TaskReference
from batchscope.sweep.watch import STALL_SECONDS, Watch

POLL_SECONDS = 0.5
DEATH_SECONDS = 1.0  # within which a process's death is known on this machine (a guess)

Bad = Done | Refused  # an end of a rank that is the job's


class _Tagged:
    """A worker's way to the events of all: with its rank. Of a group that is no more, they go nowhere."""

    def __init__(self, rank: int, events: queue.Queue[tuple[int, Event | Said]]) -> None:
        self.rank, self.events = rank, events

    def put(self, event: Event | Said) -> None:
        """As a queue does."""
        self.events.put((self.rank, event))


@dataclasses.dataclass
class _Trial:
    """The trial that runs on all ranks."""

    job: Job
    watch: Watch
    results: dict[int, Any] = dataclasses.field(default_factory=dict)
    bad: tuple[int, Bad] | None = None  # how a rank failed: the end, unless it turns out by `due` that another died
    due: float = 0.0


class GroupExecutor(Executor):
    """One slot; a trial with replicas runs on that many ranks, a process each."""

    slots = 1

    def __init__(
        self,
        task: TaskReference | None,
        ranks: int,
        stall: float = STALL_SECONDS,
        hire: Callable[[Hearing], Worker] = LocalWorker,
        death: float = DEATH_SECONDS,
    ) -> None:
        """`death`: seconds within which the loss of a worker is known."""
        self.ranks, self.stall, self.death, self._task, self._hire_one = ranks, stall, death, task, hire
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
            self._trial = _Trial(job, Watch(self.ranks, self.stall))
            self._give(0, {"rank": 0, "ranks": self.ranks, "host": self._workers[0].host})
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
            self._trial.watch.began(rank)
            self._workers[rank].give(dataclasses.replace(job, details=job.details | details))

    def events(self, timeout: float) -> list[Event]:
        """See the base."""
        found: list[Event] = []
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            with contextlib.suppress(queue.Empty):
                found += self._heard(*self._events.get(timeout=min(left, POLL_SECONDS)))
            found += self._overdue()
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
            trial.watch.beat(rank, event.content)

    def _ended(self, rank: int, event: Bad | Died, trial: _Trial) -> list[Event]:
        trial.watch.ended(rank)
        if isinstance(event, Done) and event.result.get("outcome") != "failed":
            trial.results[rank] = event.result
            if len(trial.results) < self.ranks:
                return []
            self._trial = None
            return [Done(event.job, trial.results[0])]
        if isinstance(event, Died):
            return self._end(rank, event)
        if trial.bad is None or (_lost(trial.bad[1]) and not _lost(event)):
            trial.bad = rank, event
            trial.due = time.monotonic() + (self.death if _lost(event) else DEATH_SECONDS)
        return []

    def _end(self, rank: int, event: Bad | Died) -> list[Event]:
        """End the job on all, as it ended on this rank."""
        who = f"rank {rank} of {self.ranks}"
        self._disband()
        if isinstance(event, Done):
            return [Done(event.job, event.result | {"reason": f"{who}: {event.result['reason']}"})]
        if isinstance(event, Died):
            return [Died(event.job, f"{who}: {event.reason}")]
        if _lost(event):
            return [Died(event.job, f"{who} lost its connection to the others: {event.sentence}")]
        return [Refused(event.job, event.error, f"{who}: {event.sentence}")]

    def _overdue(self) -> list[Event]:
        """The end of a job in which a rank failed a while ago, or that no rank takes any further."""
        trial = self._trial
        if trial is None:
            return []
        if trial.bad is not None:
            return self._end(*trial.bad) if time.monotonic() >= trial.due else []
        if not all(self._workers[rank].placed for rank in trial.watch.beats):
            trial.watch.went_on()
        if not (reason := trial.watch.verdict()):
            return []
        self._disband()
        return [Died(trial.job.id, reason)]

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
        self._workers, self._events = [], queue.Queue()

    def close(self) -> None:
        """Nothing of it runs any more."""
        self._disband()


def _lost(event: Bad) -> bool:
    """Whether a rank's end is due to another's, or to the network."""
    return isinstance(event, Refused) and event.error == CONNECTION_LOST
