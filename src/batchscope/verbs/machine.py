"""Who has the machine, how is it set up, and how is a single job done on it? What `study` and `profile` share.

How a task is run (workers, threads, engine) is chosen once by a short measurement and then reused by every verb on
this store, so that trials and timings are made under the same conditions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Conditions, from_plain, to_plain
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.sweep.executors import launched
from batchscope.sweep.executors.base import Done, Executor, Line, Refused
from batchscope.sweep.executors.cluster import checked, reachable
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.executors.launched import LaunchedExecutor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.executors.ray import RayExecutor
from batchscope.sweep.jobs import Job
from batchscope.sweep.runner import Listener, as_error
from batchscope.task import Task
from batchscope.training.device import devices_here, pick_device, remember_settings, set_up

CLAIM_SECONDS = 600.0  # longer than a job is silent; a process that is gone loses its claim at once
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300.0  # without a sign of life a job that is not a trial counts as hung (a guess)


def executor_for(task: Task | str, devices: int = 1, on: str | None = None) -> Executor:
    """Worker processes for a task that they can find; this process for one that they cannot. `on`: a Ray cluster's."""
    if on is not None:
        check_cluster(task, on)
        return RayExecutor(None, on=on)
    if isinstance(task, str) and devices > 1:
        return LaunchedExecutor(launched.driven) if launched.driven is not None else GroupExecutor(None, devices)
    return LocalExecutor(None, 1) if isinstance(task, str) else InlineExecutor(task)


def check_cluster(task: Task | str, on: str) -> None:
    """Refuse what names no Ray cluster, cannot run on one, or does not answer; connects to nothing yet."""
    checked(on)
    if not isinstance(task, str):
        raise UsageError(
            f"expected a reference to the task for --on {on}, got a {type(task).__name__} object, which no other "
            'process can load: put the task into a file and write "path.py:function"'
        )
    if launched.driven is not None:
        raise UsageError(f"expected either a launcher or --on {on}, got both: leave one out")
    reachable(on)


def check_devices(task: Task | str, devices: int, on: str | None = None) -> None:
    """Refuse a number of devices on which the task cannot be trained; a cluster tells itself what it has."""
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise UsageError(f"expected a number of devices from 1 up, got {devices!r}: write --devices 2")
    if devices > 1 and not isinstance(task, str):
        raise UsageError(
            f"expected a reference to the task for {devices} devices, got a {type(task).__name__} object, which no "
            'other process can load: put the task into a file and write "path.py:function"'
        )
    most = devices_here()
    if devices > most and launched.driven is None and on is None:
        kind = "card" if pick_device().type == "cuda" else "processor core"
        raise CannotAnswer(
            f"expected at most {most} device{'s' * (most > 1)} on this machine, a {kind} each, got {devices}: write "
            f"--devices {most}, or run the command on more machines under torchrun"
        )


@contextmanager
def machine(store: Store, hear: Listener, alone: bool = False) -> Generator[Callable[[], None]]:
    """Claim the machine; with `alone`, wait for the trials of others to end. Gives the heartbeat of the claim."""
    owner, told = Owner.here(), False

    def beat() -> None:
        store.claim_machine(owner, CLAIM_SECONDS)

    try:
        while (state := store.claim_machine(owner, CLAIM_SECONDS)) == "busy" or (alone and state == "shared"):
            if not told:
                hear("note", {"text": "waiting for another command on this store, so as to measure alone"})
                told = True
            time.sleep(POLL_SECONDS)
        yield beat
    finally:
        store.free_machine(owner)


def chosen(store: Store, fingerprint: str, devices: int = 1) -> tuple[int, Conditions] | None:
    """Workers and conditions as an earlier study, profile or advice of this task chose them on a machine like this.

    And for as many devices.
    """
    studies = [store.study(s.id) for s in store.studies() if s.fingerprint == fingerprint]
    before = [(s.workers, s.conditions) for s in studies]
    before += [(p.workers, p.conditions) for _, p in store.profiles(fingerprint) if p.workers is not None]
    before += [(a.workers, a.conditions) for _, a in store.advices(fingerprint)]
    return next((choice for choice in before if is_here(choice[1], devices)), None)


def reference_in(store: Store, fingerprint: str) -> float | None:
    """Examples of the task's reference run, where a study of this store has measured it, or a noise run followed it."""
    for summary in store.studies():
        known = store.reference(summary.id) if summary.fingerprint == fingerprint else None
        if known is not None:
            return known[0]
    return next((run.crossed_at for _, run in store.noise_runs(fingerprint) if run.crossed_at is not None), None)


def plainest(precision: str) -> Conditions:
    """This machine as one thread and no engine find it: what names it, whatever is chosen later."""
    put_back = remember_settings()
    try:
        return set_up(1, pick_device(), precision)
    finally:
        put_back()


def is_here(conditions: Conditions, devices: int = 1) -> bool:
    """Whether work done here on so many devices, set up alike, is done under these conditions."""
    put_back, like = remember_settings(), conditions
    try:
        return set_up(like.threads, pick_device(), like.precision, like.engine, devices) == conditions
    finally:
        put_back()


def choose(
    executor: Executor, task: Task, batch_sizes: Sequence[int], hear: Listener, devices: int = 1
) -> tuple[int, Conditions]:
    """A short measurement of the task's own and the largest batch size; of a replica's part on several devices."""
    sizes = sorted({task.batch_size, batch_sizes[-1]})
    hear("phase", {"roles": {"choosing workers, threads and engine": 1}, "trials": 0})
    found = call(executor, Job("threads", "threads", {"batch_sizes": sizes, "world_size": devices}))
    return found["workers"], from_plain(Conditions, found["conditions"])


def kept_choice(
    store: Store, task: Task, fingerprint: str, executor: Executor, batch_sizes: Sequence[int], hear: Listener
) -> tuple[int, Conditions]:
    """Workers and conditions as `chosen` finds them, or a choice made now and stored as a part.

    Another choice, by another measurement, would not find what is done under this one.
    """
    found = chosen(store, fingerprint)
    if found is not None:
        return found
    made = json.dumps([fingerprint, "choice", to_plain(plainest(task.precision))], sort_keys=True)
    key = hashlib.sha256(made.encode()).hexdigest()[:32]
    if store.part(key) is None:
        workers, conditions = choose(executor, task, batch_sizes, hear)
        store.save_part(key, fingerprint, "choice", {"workers": workers, "conditions": to_plain(conditions)})
    kept = store.part(key) or {}
    return kept["workers"], from_plain(Conditions, kept["conditions"])


def call(
    executor: Executor,
    job: Job,
    beat: Callable[[], None] = lambda: None,
    *,
    patience: float = PATIENCE_SECONDS,
    on_line: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Any:
    """Do one job that is not a trial, by itself; a worker that dies under it is replaced once.

    A worker that gives no sign of life for `patience` seconds is ended, and not tried again: it would hang again.
    """
    reason = ""
    executor.meanwhile = lambda line: on_line(line.line)
    for _ in range(2):
        executor.start(job)
        alive, hung = time.monotonic(), False
        while True:
            events = executor.events(1.0)
            for event in events:
                if isinstance(event, Line):
                    on_line(event.line)
            end = next((e for e in events if not isinstance(e, Line)), None)
            if end is not None:
                break
            alive = time.monotonic() if events else alive
            if time.monotonic() - alive > patience and not hung:
                hung = executor.kill()
            beat()
        if isinstance(end, Done):
            return end.result
        if isinstance(end, Refused):
            raise as_error(end)
        if hung:
            raise CannotAnswer(
                f"expected the task's {job.kind} job to go on, it gave no sign of life for {patience:g} s and was "
                "ended: look for a data loader or a lock that waits for ever"
            )
        reason = end.reason
    raise CannotAnswer(f"expected a worker to do the task's {job.kind} job, it died twice: {reason}")
