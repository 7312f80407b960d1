"""What is an executor? Something that takes jobs up to its number of slots and reports how they went.

Rules that every executor keeps (`testing/executor_contract.py` holds them to it):
- `start` never blocks on the job; at most `slots` jobs run at once.
- Every started job ends in exactly one `Done`, `Died` or `Refused` event; `Line` events may come before.
- A job whose worker dies gives `Died`, costs no other job anything, and its slot can be used again.
- After `close` nothing of it runs any more. It reads and writes no store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from batchscope.records import Conditions
from batchscope.sweep.messages import Job, TaskReference


@dataclass(frozen=True)
class Line:
    """A trial's newest evaluation: {"examples", "loss"}."""

    job: str
    line: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A job's plain result."""

    job: str
    result: Any


@dataclass(frozen=True)
class Died:
    """The worker died under the job; `reason` says how."""

    job: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """The job cannot be done by any worker: the name of an error class and its sentence."""

    job: str
    error: str
    sentence: str


Event = Line | Done | Died | Refused


class Executor(ABC):
    """See the module's rules."""

    slots: int
    meanwhile: Callable[[Line], None] = staticmethod(lambda line: None)
    """Hears of lines at once where `events` does not return before its job is done."""

    def serve(self, task: TaskReference) -> None:
        """The task of all jobs to come, where workers have to load it; said once, before the first job."""
        return None

    def open_slots(self, workers: int, conditions: Conditions) -> None:
        """As many slots as there is room for jobs under these conditions; `workers` is what this machine has room for.

        An executor that always has one slot leaves it at that.
        """
        return None

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin a job; there must be a free slot."""

    @abstractmethod
    def events(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits up to `timeout` seconds for the first event."""

    def kill(self) -> bool:
        """End every worker at once: its job ends in `Died`. False where a job cannot be ended."""
        return False

    @abstractmethod
    def close(self) -> None:
        """End everything that still runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
