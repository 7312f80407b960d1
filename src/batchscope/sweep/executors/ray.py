"""Trials on a Ray cluster: actors up to the number of slots, each with one worker process on its node.

An actor starts the same process as a local executor (`local.py`) and passes jobs in and news out; so a trial has the
same bits there, nothing of Ray's is in the process that trains, and it ends with its actor. A job on several devices
takes that many actors (`group.py`); one whose process, actor or node is lost gives `Died`. Only the driver, which holds
the executor, writes the store. A node needs the task's files at the same path, and the same packages.

A worker gets the driver's variables that decide bits or name data (`CARRIED`), and its node's others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import socket
import struct
import threading
import time
from dataclasses import replace
from typing import Any

from batchscope.errors import CannotAnswer
from batchscope.sweep.executors.base import Died, Event, Executor, Line
from batchscope.sweep.executors.cluster import LOCAL, Cluster
from batchscope.sweep.executors.group import STALL_SECONDS, GroupExecutor
from batchscope.sweep.executors.local import LocalWorker
from batchscope.sweep.executors.workers import CLOSE_SECONDS, Hearing, Said
from batchscope.sweep.messages import Job, TaskReference

NEWS_SECONDS = 5.0  # that an actor waits for news before it answers with none
POLL_SECONDS = 0.02
CARRIED = (
    "BATCHSCOPE_",
    "CUBLAS_",
    "GLIBC_TUNABLES",
    "MKL_",
    "NUMEXPR_",
    "OMP_",  # Ray sets OMP_NUM_THREADS for its workers
    "OPENBLAS_",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTORCH_",
    "TORCH",
)
MEETING = "GLOO_SOCKET_IFNAME"  # gloo's choice otherwise is the host name's address, on many machines the loopback
_ADDRESS_OF = 0x8915  # SIOCGIFADDR, Linux's ioctls.h
_IDENTIFIERS = ("class_name", "actor_id", "pid", "name", "namespace")  # Ray's, in what it says of a dead actor


# --- on the node ---


class Seat:
    """The actor. Its methods run on a few threads, as `news` waits."""

    def __init__(self, task: TaskReference, carried: dict[str, str]) -> None:
        import ray

        self._host = ray.util.get_node_ip_address()
        for name in [name for name in os.environ if name.startswith(CARRIED)]:
            del os.environ[name]
        os.environ.update(carried)
        if (name := interface_of(self._host)) is not None:
            os.environ.setdefault(MEETING, name)
        self._events: queue.Queue[Event | Said] = queue.Queue()
        self._worker = LocalWorker(self._events)
        self._worker.introduce(task)

    def where(self) -> tuple[str, int]:
        """The node's address, and the worker's process there."""
        return self._host, self._worker.pid

    def give(self, job: Job) -> None:
        """Pass a job in."""
        self._worker.give(job)

    def news(self, seconds: float) -> tuple[list[Event | Said], bool]:
        """What the worker said since the last call, waited for up to `seconds`; whether it is alive."""
        found: list[Event | Said] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
        alive = self._worker.alive
        if not alive:
            self._worker.wait(CLOSE_SECONDS)  # all that it said is there then, its death included
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found, alive

    def stop(self) -> None:
        """End the worker at once, with what it has started."""
        self._worker.kill()


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None where none is found (not on Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(asking, _ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


# --- at the driver ---


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
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        options = {"num_cpus": wanted["CPU"], "num_gpus": wanted.get("GPU", 0), "max_concurrency": 3}
        self._seat = self._cluster.ray.remote(Seat).options(**options).remote(task, carried)
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


class RayExecutor(Executor):
    """`slots` jobs at once, each on one actor or on as many as it has devices.

    Actors are kept for jobs that ask for as much (devices, threads). `slots` may be set at any time; `open_slots` sets
    it to what the cluster has room for. Raises CannotAnswer where no Ray is to be had.
    """

    def __init__(
        self, task: TaskReference | None, slots: int | None = None, on: str = LOCAL, stall: float = STALL_SECONDS
    ) -> None:
        self.cluster, self.stall, self._task = Cluster(on), stall, task
        self._groups: dict[GroupExecutor, tuple[int, int]] = {}  # -> the devices and threads that they are for
        self._wanted = (1, 1)
        self.slots = slots or 1

    def serve(self, task: TaskReference) -> None:
        """The task of all jobs to come; said once, before the first."""
        self._task = task

    def open_slots(self, threads: int, devices: int = 1) -> None:
        """As many slots as jobs like this have room."""
        self.slots = max(1, self.cluster.room(threads, devices))

    def start(self, job: Job) -> None:
        """Give the job to idle actors of its kind, or ask Ray for new ones; CannotAnswer where no node has the room."""
        if sum(group.busy for group in self._groups) >= self.slots:
            raise RuntimeError(f"expected a free slot of {self.slots}, all are busy")
        self._wanted = wanted = job.devices, job.details.get("threads", 1)
        self._let_go()
        group = next((group for group in self._groups if not group.busy), None) or self._form(*wanted)
        group.start(job)

    def _let_go(self) -> None:
        """End idle actors of another kind than was asked for last: they hold what the new ones may wait for."""
        for group in [g for g, kind in self._groups.items() if kind != self._wanted and not g.busy]:
            group.close()
            del self._groups[group]

    def _form(self, devices: int, threads: int) -> GroupExecutor:
        if self._task is None:
            raise RuntimeError("expected serve(task) before the first job")
        if self.cluster.room(threads, devices) < 1:
            each = f"{threads} cores{' and a card' * self.cluster.has_cards}"
            raise CannotAnswer(
                f"expected a Ray cluster with room for {devices} actors of {each} each, it has less: use fewer "
                "devices, or add nodes"
            )

        def hire(events: Hearing) -> RayWorker:
            return RayWorker(events, self.cluster, threads)

        group = GroupExecutor(self._task, devices, self.stall, hire)
        self._groups[group] = (devices, threads)
        return group

    def events(self, timeout: float) -> list[Event]:
        """See the base."""
        deadline = time.monotonic() + timeout
        while True:
            found = [event for group in self._groups for event in group.events(0.0)]
            self._let_go()
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(POLL_SECONDS, left))

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes that are alive, each on its node."""
        return [pid for group in self._groups for pid in group.processes]

    def kill(self) -> bool:
        """End every worker at once; its job ends in `Died`."""
        for group in self._groups:
            group.kill()
        return True

    def close(self) -> None:
        """End all actors, and leave the cluster."""
        for group in self._groups:
            group.close()
        self._groups = {}
        self.cluster.close()


def _how(error: Exception) -> str:
    """The loss of an actor in one line: what Ray knows of it, without its guesses at causes and its identifiers."""
    lines = [" ".join(line.split()) for line in str(error).partition("Some common causes")[0].splitlines()]
    told = [line for line in lines[1:] or lines if line.partition(":")[0] not in _IDENTIFIERS]
    return f"the worker's Ray actor was lost: {' '.join(told).strip()[:400]}"
