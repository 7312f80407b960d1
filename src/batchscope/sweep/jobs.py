"""What does a worker do? One of three jobs, each a plain message in and a plain message out.

The same functions serve worker processes and a notebook's own process, so that a trial is the same bits either way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from batchscope.analysis.target import crossing
from batchscope.errors import BatchscopeError, TaskError
from batchscope.measure.throughput import fastest_threads, time_steps
from batchscope.records import Goal, TrialSpec, from_plain, to_plain
from batchscope.task import Task, load_task
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.device import cores, pick_device, set_up
from batchscope.training.fingerprint import fingerprint
from batchscope.training.loop import Evaluator, train


@dataclass(frozen=True)
class TaskReference:
    """How a worker finds the task again: the reference, the folder and import path it was given in, and what it is."""

    reference: str
    folder: str
    path: tuple[str, ...]
    fingerprint: str

    @staticmethod
    def here(reference: str, fingerprint: str) -> TaskReference:
        """The task as this process sees it."""
        return TaskReference(reference, os.getcwd(), tuple(sys.path), fingerprint)


@dataclass(frozen=True)
class Job:
    """One piece of work. `kind` is "trial", "threads" or "timing"; `details` are its plain arguments."""

    id: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict)


def warm_up() -> None:
    """Make torch import what it imports late (its first optimiser takes seconds): done while there is nothing to do."""
    weight = torch.nn.Parameter(torch.zeros(1))
    torch.optim.SGD([weight], lr=0.1).zero_grad()


def trial_job(
    trial_id: str,
    spec: TrialSpec,
    goal: Goal | None,
    threads: int,
    precision: str,
    checkpoint: str | None,
    seconds: float,
) -> Job:
    """Train one trial, from its checkpoint where there is one."""
    details = {
        "spec": to_plain(spec),
        "goal": to_plain(goal),
        "threads": threads,
        "precision": precision,
        "checkpoint": checkpoint,
        "checkpoint_seconds": seconds,
    }
    return Job(trial_id, "trial", details)


def refusal(job: Job, error: Exception) -> dict[str, str]:
    """What to say when a job could not be done: the kind of error it is for the caller, and its sentence.

    The user's own code fails inside a trial as a trial (`failed`); what is raised around it, or in a job that is not a
    trial, would be raised again by the next worker.
    """
    if isinstance(error, BatchscopeError):
        return {"error": type(error).__name__, "sentence": str(error)}
    text = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    sentence = f"the task's {job.kind} job raised {text}: run one training step of the task in Python to see why"
    return {"error": "TaskError", "sentence": sentence}


class Workbench:
    """A loaded task in this process, ready for jobs; keeps what its trials share."""

    def __init__(self, task: Task) -> None:
        self.task, self.device = task, pick_device()
        self._evaluator: Evaluator | None = None

    @staticmethod
    def from_reference(found: TaskReference) -> Workbench:
        """Load the task where the reference says; TaskError if it is no longer the task that the study began with."""
        os.chdir(found.folder)
        sys.path[:] = [*found.path, *(p for p in sys.path if p not in found.path)]
        task = load_task(found.reference)
        name, _ = fingerprint(task)
        if name != found.fingerprint:
            raise TaskError(
                f"task {task.name!r}: expected the same task as when the study began ({found.fingerprint}), "
                f"got {name}: its file or data changed meanwhile, or it draws random data without a fixed seed; "
                "run the study again"
            )
        return Workbench(task)

    def do(self, job: Job, on_line: Callable[[dict[str, Any]], None]) -> Any:
        """Do one job; `on_line` hears of every evaluation. Returns a plain result."""
        return {"trial": self._trial, "threads": self._threads, "timing": self._timing}[job.kind](job.details, on_line)

    def _trial(self, details: dict[str, Any], on_line: Callable[[dict[str, Any]], None]) -> Any:
        set_up(details["threads"], self.device, details["precision"])
        if self._evaluator is None:
            self._evaluator = Evaluator(self.task, self.device)
        path = details["checkpoint"]
        result = train(
            self.task,
            from_plain(TrialSpec, details["spec"]),
            device=self.device,
            evaluator=self._evaluator,
            goal=from_plain(Goal | None, details["goal"]),
            crossed=lambda trace, goal: crossing(trace, goal) is not None,
            checkpoint=Checkpoint(path, details["checkpoint_seconds"]) if path else None,
            on_evaluation=lambda line: on_line({"examples": line.examples, "loss": line.validation["loss"]}),
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return to_plain(result)

    def _threads(self, details: dict[str, Any], _: Any) -> Any:
        set_up(1, self.device, self.task.precision)
        if self.device.type == "cuda":  # one trial at a time has the card
            threads, workers = min(4, cores()), 1
        else:
            threads, _work = fastest_threads(self.task, details["batch_sizes"], self.device, cores())
            workers = max(1, cores() // threads)
        conditions = set_up(threads, self.device, self.task.precision)
        return {"workers": workers, "conditions": to_plain(conditions)}

    def _timing(self, details: dict[str, Any], _: Any) -> Any:
        conditions = set_up(details["threads"], self.device, self.task.precision)
        return to_plain(time_steps(self.task, details["batch_sizes"], self.device, conditions))
