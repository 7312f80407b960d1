"""Trials on a Ray cluster: actors up to the number of slots, each with one worker process on its node.

An actor (`seat.py`) keeps the same process as a local executor (`local.py`) and passes jobs in and news out; so a trial
has the same bits there, nothing of Ray's is in the process that trains, and it ends with its actor. A job on several
devices takes that many actors (`group.py`); one whose process, actor or node is lost gives `Died`. Only the driver,
which holds the executor, writes the store. A node needs the task's files at the same path, and the same packages.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from batchscope.errors import CannotAnswer
from batchscope.records import Conditions
from batchscope.sweep.executors.base import Died, Event, Executor, Line
from batchscope.sweep.executors.cluster import LOCAL, Cluster
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.executors.seat import Seat, carried
from batchscope.sweep.executors.workers import Hearing, Said
from batchscope.sweep.messages import Job, TaskReference
from batchscope.sweep.watch import STALL_SECONDS

NEWS_SECONDS = 5.0  # that an actor waits for news before it answers with none
POLL_SECONDS = 0.02
NODE_SECONDS = 30.0  # within which an actor is there if a node has room (a guess)
LOST_SECONDS = 25.0  # within which Ray knows that a node is lost: about five of its checks, 3 s apart (a guess)
_IDENTIFIERS = ("class_name", "actor_id", "pid", "name", "namespace")  # Ray's, in what it says of a dead actor


class RayWorker:
    """An actor and its worker, as a worker of an executor here. See `workers.Worker`."""

    def __init__(self, events: Hearing, cluster: Cluster, threads: int) -> None:
        self.job: str | None = None
        self.host, self.pid = "", 0
        self._events, self._cluster, self._threads = events, cluster, threads
        self._lock, self._ended = threading.Lock(), ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._seat: Any = None

    def introduce(self, task: TaskReference) -> None:
        """Ask for the actor; it starts once a node has room."""
        wanted = self._cluster.request(self._threads)
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "max_concurrency": 3}
        self._seat = self._cluster.ray.remote(Seat).options(**options).remote(task, carried())
        self._listener.start()

    def give(self, job: Job) -> None:
        """Send a job; a rank takes the place that Ray has given its actor."""
        with self._lock:
            if self._ended:
                self._events.put(Died(job.id, self._ended))
                return
            self.job = job.id
        if "rank" in job.details:
            job = replace(job, details=job.details | {"place": None})
        self._seat.give.remote(job)

    def _listen(self) -> None:
        """Pass the news on, until the worker, its actor or its node is gone."""
        get, alive, how = self._cluster.ray.get, True, "the worker process is gone"
        try:
            self.host, self.pid = get(self._seat.where.remote())
            while alive:
                events, alive = get(self._seat.news.remote(NEWS_SECONDS))
                for event in events:
                    if not isinstance(event, (Line, Said)):
                        self.job = None
                    self._events.put(event)
        except Exception as error:  # of several kinds: the actor's death, the node's, the connection's
            how = _how(error)
        self._dismiss()
        with self._lock:
            self._ended, lost, self.job = how, self.job, None
        if lost is not None:
            self._events.put(Died(lost, how))

    def _dismiss(self) -> None:
        """End the actor; one that Ray has lost sight of too."""
        with contextlib.suppress(Exception):  # it is gone already, or the connection is
            self._cluster.ray.kill(self._seat)

    @property
    def placed(self) -> bool:
        """Whether a node had room for its actor."""
        return self.pid != 0

    @property
    def alive(self) -> bool:
        """Whether jobs can be given to it."""
        return not self._ended

    def kill(self) -> None:
        """End the worker; or the wait for a node, where there is no worker yet."""
        if self.pid:
            self._seat.stop.remote()
        else:
            self._dismiss()

    def wait(self, seconds: float) -> None:
        """Wait until it is gone; end the actor if that takes longer."""
        self._listener.join(seconds)
        if self._listener.is_alive():
            self._dismiss()
            self._listener.join(seconds)


@dataclass(eq=False)
class _Crew:
    """Actors that are kept for jobs of one kind (devices, threads), and the last job that they were given."""

    group: GroupExecutor
    kind: tuple[int, int]
    job: Job
    formed: float

    @property
    def waits(self) -> bool:
        """Whether its job still waits for a node with room."""
        late = time.monotonic() - self.formed > NODE_SECONDS
        return self.group.busy and late and 0 in self.group.processes


class RayExecutor(Executor):
    """`slots` jobs at once, each on one actor or on as many as it has devices.

    Actors are kept for jobs that ask for as much. `slots` may be set at any time; `open_slots` sets it to what the
    cluster has room for. Raises CannotAnswer where no Ray is to be had.
    """

    def __init__(
        self, task: TaskReference | None, slots: int = 1, on: str = LOCAL, stall: float = STALL_SECONDS
    ) -> None:
        self.cluster, self.slots, self.stall, self._task = Cluster(on), slots, stall, task
        self._crews: list[_Crew] = []
        self._wanted = (1, 1)

    def serve(self, task: TaskReference) -> None:
        """See the base."""
        self._task = task

    def open_slots(self, workers: int, conditions: Conditions) -> None:
        """See the base; CannotAnswer where the cluster has no room for one."""
        self.slots = self._room(conditions.world_size, conditions.threads)

    def _room(self, devices: int, threads: int) -> int:
        room = self.cluster.room(threads, devices)
        if room < 1:
            each = f"{threads} cores{' and a card' * self.cluster.has_cards}"
            raise CannotAnswer(
                f"expected a Ray cluster with room for {devices} actors of {each} each, it has less: use fewer "
                "devices, or add nodes"
            )
        return room

    def start(self, job: Job) -> None:
        """Give the job to idle actors of its kind, or ask Ray for new ones; CannotAnswer where no node has the room."""
        if sum(crew.group.busy for crew in self._crews) >= self.slots:
            raise RuntimeError(f"expected a free slot of {self.slots}, all are busy")
        self._wanted = job.devices, job.details.get("threads", 1)
        self._let_go()
        crew = self._idle() or self._form(job)
        crew.job = job
        crew.group.start(job)

    def _idle(self) -> _Crew | None:
        """A crew without a job, of the kind that was wanted last: there are no idle others."""
        return next((crew for crew in self._crews if not crew.group.busy), None)

    def _form(self, job: Job) -> _Crew:
        if self._task is None:
            raise RuntimeError("expected serve(task) before the first job")
        devices, threads = self._wanted
        self._room(devices, threads)

        def hire(events: Hearing) -> RayWorker:
            return RayWorker(events, self.cluster, threads)

        group = GroupExecutor(self._task, devices, self.stall, hire, LOST_SECONDS)
        crew = _Crew(group, self._wanted, job, time.monotonic())
        self._crews.append(crew)
        return crew

    def _let_go(self) -> None:
        """End idle actors of another kind than was wanted last: they hold what the new ones may wait for."""
        for crew in [crew for crew in self._crews if crew.kind != self._wanted and not crew.group.busy]:
            self._end(crew)

    def _move(self) -> None:
        """A job that waits in vain for a node, which others use, goes to actors that have become idle."""
        for crew in [crew for crew in self._crews if crew.waits and crew.kind == self._wanted]:
            if (idle := self._idle()) is None:
                return
            self._end(crew)
            idle.job = crew.job
            idle.group.start(crew.job)

    def _end(self, crew: _Crew) -> None:
        crew.group.close()
        self._crews.remove(crew)

    def events(self, timeout: float) -> list[Event]:
        """See the base."""
        deadline = time.monotonic() + timeout
        while True:
            found = [event for crew in self._crews for event in crew.group.events(0.0)]
            self._let_go()
            self._move()
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(POLL_SECONDS, left))

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes that are alive, each on its node; 0 where one waits for a node."""
        return [pid for crew in self._crews for pid in crew.group.processes]

    def kill(self) -> bool:
        """See the base."""
        for crew in self._crews:
            crew.group.kill()
        return True

    def close(self) -> None:
        """End all actors, and leave the cluster."""
        for crew in list(self._crews):
            self._end(crew)
        self.cluster.close()


def _how(error: Exception) -> str:
    """The loss of an actor in one line: what Ray knows of it, without its guesses at causes and its identifiers."""
    lines = [" ".join(line.split()) for line in str(error).partition("Some common causes")[0].splitlines()]
    told = [line for line in lines[1:] or lines if line.partition(":")[0] not in _IDENTIFIERS]
    return f"the worker's Ray actor was lost: {' '.join(told).strip()[:400]}"
