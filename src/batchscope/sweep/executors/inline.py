"""Trials in the caller's own process, one at a time: for a `Task` object that no worker could import."""

from __future__ import annotations

import time

from batchscope.sweep.executors.base import Done, Event, Executor, Line, Refused
from batchscope.sweep.jobs import Job, Workbench, refusal
from batchscope.task import Task
from batchscope.training.device import remember_settings


class InlineExecutor(Executor):
    """One slot; a job runs inside `events`, and its lines are heard of through `meanwhile`."""

    slots = 1

    def __init__(self, task: Task) -> None:
        self._bench = Workbench(task)
        self._job: Job | None = None
        self._put_back = remember_settings()

    def start(self, job: Job) -> None:
        """Remember the job; `events` does it."""
        if self._job is not None:
            raise RuntimeError("expected a free slot of 1, it is busy")
        self._job = job

    def events(self, timeout: float) -> list[Event]:
        """Do the job, if there is one."""
        if self._job is None:
            time.sleep(timeout)
            return []
        job, self._job = self._job, None
        try:
            return [Done(job.id, self._bench.do(job, lambda line: self.meanwhile(Line(job.id, line))))]
        except Exception as error:
            return [Refused(job.id, **refusal(job, error))]

    def close(self) -> None:
        """Nothing runs between calls; the caller gets its threads and its determinism back."""
        self._job = None
        self._put_back()
