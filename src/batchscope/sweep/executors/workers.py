"""What is a worker, to an executor? A process somewhere that knows one task, does one job at a time, and tells of it.

`local.py` has those of this machine, `ray.py` those of a cluster. Their news are put where the executor hears them: the
events of `base.py`, and what only a group of ranks needs (`Said`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from batchscope.sweep.executors.base import Event
from batchscope.sweep.messages import Job, TaskReference

CLOSE_SECONDS = 5.0  # a worker ends as soon as it is told to; after this it is killed


@dataclass(frozen=True)
class Said:
    """What a worker says of its job besides lines: `sweep/ranks.py`."""

    job: str
    kind: str
    content: dict[str, Any]


class Hearing(Protocol):
    """What takes a worker's news: a queue does."""

    def put(self, event: Event | Said, /) -> None:
        """One more."""
        ...


class Worker(Protocol):
    """At most one job at a time; each ends in one `Done`, `Died` or `Refused`."""

    job: str | None
    """The job that it does."""

    def introduce(self, task: TaskReference) -> None:
        """Tell it the task that all its jobs are of; comes before the first job."""
        ...

    def give(self, job: Job) -> None:
        """Send a job; a worker that has just died says so of this job."""
        ...

    @property
    def host(self) -> str:
        """The address at which workers of the same group reach its machine; known once it has said anything.

        Where it is not known earlier, the worker adds it itself to a job in which it is rank 0 (`host`).
        """
        ...

    @property
    def pid(self) -> int:
        """Its process on that machine; known once it has said anything."""
        ...

    @property
    def placed(self) -> bool:
        """Whether its machine has room for it: from then on it is expected to say something."""
        ...

    @property
    def alive(self) -> bool:
        """Whether jobs can be given to it."""
        ...

    def kill(self) -> None:
        """End it now, with all that it started; its job ends in `Died`."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait until it is gone with all that it started; end it for good if that takes longer."""
        ...
