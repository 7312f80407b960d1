"""How are trials of the small tasks run in a test? Specifications, worker processes, and a runner over a store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchscope.records import Arm, Conditions, StopRule, TrialSpec
from batchscope.store.sqlite import SqliteStore, open_store
from batchscope.sweep.executors.base import Executor, Line
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference, trial_job
from batchscope.sweep.runner import Listener, Runner
from batchscope.task import load_task
from batchscope.testing.examples import bits
from batchscope.training.fingerprint import fingerprint

SMALL = Path(__file__).parent / "small_task.py"
STOP = StopRule(12 * 256, 64)
NEVER = 1e9  # seconds between checkpoints


def spec(seed: int = 0, batch_size: int = 16, rate: float = 0.4, stop: StopRule = STOP) -> TrialSpec:
    """A trial of the small task."""
    return TrialSpec(Arm(batch_size, rate), seed, stop)


def trial(name: str, batch_size: int = 16) -> Job:
    """A trial of the small task, which saves nothing."""
    return trial_job(name, spec(batch_size=batch_size), None, 1, "fp32", None, NEVER)


def workers(function: str, slots: int = 2, fingerprinted: str | None = None) -> LocalExecutor:
    """Worker processes for one of the small tasks."""
    reference = f"{SMALL}:{function}"
    return LocalExecutor(TaskReference.here(reference, fingerprinted or fingerprint(load_task(reference))[0]), slots)


def runner(
    store: SqliteStore, executor: Executor, listen: Listener = lambda kind, details: None, **changes: Any
) -> Runner:
    """A runner of the small tasks that saves at every evaluation."""
    settings: dict[str, Any] = {"checkpoint_seconds": 0.0, "fingerprint": "f" * 16} | changes
    where = store.path.parent / "checkpoints"
    return Runner(
        store,
        None,
        settings["fingerprint"],
        Conditions(),
        None,
        executor,
        where,
        settings["checkpoint_seconds"],
        listen,
    )


def run(
    path: Path,
    executor: Executor,
    specs: list[TrialSpec],
    listen: Callable[..., None] = lambda kind, details: None,
    **changes: Any,
) -> list[Any]:
    """Run trials on an executor into the store at `path`; bits of the records, clock readings and attempts apart."""
    with open_store(path) as store:
        return [facts(record) for record in runner(store, executor, listen, **changes).run({"held": specs})["held"]]


def wait_until(true, seconds: float = 60.0) -> None:
    """Poll; fails after so long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(executor: Executor) -> list[Any]:
    """The next events that are not lines."""
    while True:
        found = [event for event in executor.events(1.0) if not isinstance(event, Line)]
        if found:
            return found


def facts(record: Any) -> Any:
    """Every bit of a record that must not depend on when it was interrupted."""
    return bits(dataclasses.replace(record, attempts=0, result=dataclasses.replace(record.result, seconds=0.0)))
