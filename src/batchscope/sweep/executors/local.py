"""Trials in worker processes on this machine: one process a slot, kept for many jobs, replaced when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import IO

from batchscope.records import Conditions
from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line, Refused
from batchscope.sweep.executors.workers import CLOSE_SECONDS, Hearing, Said
from batchscope.sweep.messages import Job, TaskReference

NO_THREAD_CACHE = "glibc.malloc.tcache_count=0"  # in GLIBC_TUNABLES, which glibc reads when a process begins


def environment_of_workers() -> dict[str, str]:
    """Ours, and glibc's cache of small blocks for each thread switched off, which only a process's beginning can do.

    Crumbs in that cache lie between large blocks that were freed and keep them from merging: the same training then
    peaked anywhere from 0.8 to 1.1 GB, by chance, and grew as it went on. Without it the peak was 0.54 GB every time,
    and steps took as long as before (a wide MLP, Adam; measured). It changes no bits, and is no condition of a trial.
    Whoever sets GLIBC_TUNABLES decides for themselves.
    """
    return {"GLIBC_TUNABLES": NO_THREAD_CACHE} | os.environ


class LocalWorker:
    """One process, at most one job. See `workers.Worker`."""

    host, placed = "127.0.0.1", True

    def __init__(self, events: Hearing) -> None:
        self.job: str | None = None
        self._events, self._lock, self._ended = events, threading.Lock(), ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batchscope.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment_of_workers(),
            start_new_session=True,  # Ctrl-C is the parent's to handle, and its group is ended with it
        )
        self._input, replies = self.process.stdin, self.process.stdout
        assert self._input is not None  # both are pipes
        assert replies is not None
        self._listener = threading.Thread(target=self._listen, args=(replies,), daemon=True)
        self._undertaker = threading.Thread(target=self._bury, daemon=True)
        self._listener.start()
        self._undertaker.start()

    def introduce(self, task: TaskReference) -> None:
        """Tell it the task that all its jobs are of; comes before the first job."""
        self._send(asdict(task))

    def give(self, job: Job) -> None:
        """Send a job; if the process has just died, say so at once (its listener is gone)."""
        with self._lock:
            if self._ended:
                self._events.put(Died(job.id, self._ended))
                return
            self.job = job.id
        self._send(asdict(job))

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError, ValueError):  # it died, or is being closed: the listener reports that
            print(json.dumps(message), file=self._input, flush=True)

    def _listen(self, replies: IO[str]) -> None:
        """Turn the worker's lines into events, until it closes its output or dies."""
        with replies:
            for text in replies:
                try:
                    message = json.loads(text)
                except json.JSONDecodeError:  # cut off in mid-line by its death
                    break
                self._report(message["kind"], message["job"], message["content"])
        how = _how(self.process.wait())
        self._close_input()
        with self._lock:
            self._ended, lost, self.job = how, self.job, None
        if lost is not None:
            self._events.put(Died(lost, how))

    def _report(self, kind: str, job: str, content: dict) -> None:
        if kind == "line":
            self._events.put(Line(job, content))
            return
        if kind not in ("refused", "done"):
            self._events.put(Said(job, kind, content))
            return
        self.job = None
        self._events.put(Refused(job, **content) if kind == "refused" else Done(job, content))

    def _bury(self) -> None:
        """When the process is gone, end what it has started: a data loader's processes would keep its output open."""
        self.process.wait()
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _close_input(self) -> None:
        if self._input is not None:
            with contextlib.suppress(OSError):
                self._input.close()

    @property
    def pid(self) -> int:
        """Its process's id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether jobs can be given to it."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it now; the undertaker ends its group."""
        self.process.kill()

    def end(self) -> None:
        """Close its input, which ends it; nothing more is heard of its job."""
        self.job = None
        self._close_input()

    def wait(self, seconds: float) -> None:
        """Wait until it is gone with all that it started; kill it if that takes longer."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._undertaker.join()
        self._listener.join()


class LocalExecutor(Executor):
    """`slots` worker processes that load the same task.

    The first process starts at once, before it is known what it will `serve`: loading torch takes seconds, which the
    caller can use to check the task.
    """

    def __init__(self, task: TaskReference | None, slots: int) -> None:
        self.slots, self._task = slots, task
        self._events: queue.Queue[Event | Said] = queue.Queue()
        self._workers = [LocalWorker(self._events)]
        if task is not None:
            self.serve(task)

    def serve(self, task: TaskReference) -> None:
        """The task of all jobs to come; said once, before the first."""
        self._task = task
        for worker in self._workers:
            worker.introduce(task)

    def open_slots(self, workers: int, conditions: Conditions) -> None:
        """See the base."""
        self.slots = workers

    def start(self, job: Job) -> None:
        """Give the job to an idle worker; start one where there is none."""
        self._workers = [w for w in self._workers if w.alive]
        idle = next((w for w in self._workers if w.job is None), None)
        if idle is None:
            if len(self._workers) >= self.slots:
                raise RuntimeError(f"expected a free slot of {self.slots}, all are busy")
            idle = self._hire()
        idle.give(job)

    def _hire(self) -> LocalWorker:
        """One more process, for the task."""
        if self._task is None:
            raise RuntimeError("expected serve(task) before the first job")
        worker = LocalWorker(self._events)
        worker.introduce(self._task)
        self._workers.append(worker)
        return worker

    def events(self, timeout: float) -> list[Event]:
        """See the base."""
        found: list[Event | Said] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=timeout))
            while True:
                found.append(self._events.get_nowait())
        return [event for event in found if not isinstance(event, Said)]

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes that are alive."""
        return [worker.process.pid for worker in self._workers if worker.alive]

    def kill(self) -> bool:
        """End every worker at once, with what it has started; its job ends in `Died`."""
        for worker in self._workers:
            worker.kill()
        return True

    def close(self) -> None:
        """Close every worker's input; kill the ones that do not exit on it."""
        for worker in self._workers:
            worker.end()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
        self._workers = []


def _how(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"the worker process exited with status {code}"
    name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
    hint = " (often the system's memory killer)" if name == "SIGKILL" else ""
    return f"the worker process was ended by {name}{hint}"
