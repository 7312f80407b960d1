"""Does this micro-batch size fit? One fresh process a size, watched: its outcome has a name whatever happens to it.

    fits                 training steps, an evaluation and a checkpoint ran to their end, all below the limit
    fits_with_retries    so they did, but CUDA's allocator had to empty its cache to get there
    out_of_memory        the peak was above the limit; or torch could not allocate; or the process was ended by SIGKILL,
                         as the system's memory killer ends one, or by us when it went far above the limit
    crashed              it ended or raised for another reason, which is given
    timed_out            no sign of life for `patience` seconds; it was ended

A process of its own leaves nothing behind: no fragments in an allocator, no tensors held by a traceback, no memory on
the device. On the CPU nothing stops a process at the limit, so that one slightly above it still tells its true peak;
OVERSHOOT times the limit, or what the machine has left, ends it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from batchscope.errors import CannotAnswer
from batchscope.measure.memory import Observed
from batchscope.measure.peak import available_bytes, resident_bytes
from batchscope.records import Conditions, MemoryProbe, from_plain
from batchscope.sweep.executors.base import Died, Done, Event, Line, Refused
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.runner import as_error

OVERSHOOT = 1.25  # of the limit (a guess): a measured peak above the limit says where the limit is crossed
LEFT_FREE = 512 << 20  # bytes of the machine that a probe never takes (a guess)
LOOK_SECONDS = 0.02  # between looks at a process's size; a step that allocates faster than 10 GB/s outruns it
PATIENCE_SECONDS = 120.0  # without a sign of life (a guess); each step and each chunk of an evaluation is one

LOADING = "loading the task"
Listener = Callable[[dict[str, Any]], None]


class Prober:
    """Probes of one task under one limit."""

    def __init__(
        self,
        task: TaskReference,
        conditions: Conditions,
        limit_bytes: int,
        *,
        largest: int | None = None,
        patience: float = PATIENCE_SECONDS,
        listen: Listener = lambda line: None,
    ) -> None:
        """`largest` is the index of the task's largest example, None where all are of one size."""
        self.task, self.conditions, self.limit_bytes, self.largest = task, conditions, limit_bytes, largest
        self.patience, self.listen = patience, listen

    def probe(self, micro_batch_size: int) -> MemoryProbe:
        """Run one size in a process of its own; returns when that process is gone."""
        details = {
            **place(self.conditions),
            "micro_batch_size": micro_batch_size,
            "largest": self.largest,
            "limit_bytes": self.limit_bytes,
        }
        started = time.monotonic()
        with LocalExecutor(self.task, 1) as executor:
            watch = _Watch(executor, self._most_bytes(), self.patience, self.listen)
            end = watch.until_the_end_of(Job("memory", "memory", details))
        probe = self._named(micro_batch_size, end, watch)
        return dataclasses.replace(probe, seconds=time.monotonic() - started)

    def _most_bytes(self) -> float:
        """Above which resident size a process is ended; no such size on CUDA, where torch's allocator is bounded."""
        if self.conditions.device != "cpu":
            return float("inf")
        return max(1.0, min(OVERSHOOT * self.limit_bytes, available_bytes() - LEFT_FREE))

    def _named(self, size: int, end: Event, watch: _Watch) -> MemoryProbe:
        """The outcome of a probe from how its process ended."""
        if isinstance(end, Refused):
            raise as_error(end)
        if isinstance(end, Died):
            return _of_a_death(size, end.reason, watch)
        if not isinstance(end, Done):
            raise CannotAnswer(f"expected a memory probe to end, got {type(end).__name__}: run it again")
        seen = from_plain(Observed, end.result)
        peaks = [seen.training_bytes, seen.evaluation_bytes, seen.checkpoint_bytes]
        peak = max((p for p in peaks if p is not None), default=watch.highest or None)
        outcome, reason = seen.error, seen.reason
        if not outcome and peak is not None and peak > self.limit_bytes:
            outcome, reason = "out_of_memory", f"it needs {_mib(peak)}, above the limit of {_mib(self.limit_bytes)}"
        if not outcome:
            outcome = "fits_with_retries" if seen.alloc_retries else "fits"
            reason = f"after {seen.alloc_retries} allocator retries" if seen.alloc_retries else ""
        return MemoryProbe(
            size,
            outcome,
            reason,
            peak,
            seen.training_bytes,
            seen.evaluation_bytes,
            seen.checkpoint_bytes,
            seen.parts,
            seen.saved_bytes_per_example,
            seen.steps,
            seen.alloc_retries,
        )


class _Watch:
    """One process under watch: its highest size, its signs of life, and why we ended it, if we did."""

    def __init__(self, executor: LocalExecutor, most_bytes: float, patience: float, listen: Listener) -> None:
        self.executor, self.most_bytes, self.patience, self.listen = executor, most_bytes, patience, listen
        self.highest, self.steps, self.phase, self.ended_for = 0, 0, LOADING, ""
        self._alive = time.monotonic()

    def until_the_end_of(self, job: Job) -> Event:
        """The job's last event."""
        self.executor.start(job)
        while True:
            for event in self.executor.events(LOOK_SECONDS):
                if not isinstance(event, Line):
                    return event
                self._heard(event)
            self._look()

    def _heard(self, event: Line) -> None:
        self._alive = time.monotonic()
        self.phase, self.steps = event.line["phase"], event.line.get("step", self.steps)
        self.highest = max(self.highest, event.line["bytes"])
        self.listen(event.line)

    def _look(self) -> None:
        """End it where it is too large or too quiet."""
        if self.ended_for:
            return
        sizes = [resident_bytes(pid) or 0 for pid in self.executor.processes] if self.most_bytes < float("inf") else []
        if self.phase != LOADING:  # what importing takes meanwhile is no peak of training's
            self.highest = max([self.highest, *sizes])
        if sizes and max(sizes) > self.most_bytes:
            self.ended_for = "size"
        elif time.monotonic() - self._alive > self._patience_now():
            self.ended_for = "silence"
        if self.ended_for:
            self.executor.kill()

    def _patience_now(self) -> float:
        """Loading a task, its data and torch is silent, and may take long."""
        return max(self.patience, PATIENCE_SECONDS) if self.phase == LOADING else self.patience


def _of_a_death(size: int, how: str, watch: _Watch) -> MemoryProbe:
    """A probe whose process is gone: by us, by SIGKILL from elsewhere, or otherwise."""
    where = f"in training step {watch.steps + 1}" if watch.phase == "training" else f"in {watch.phase}"
    at = f" with {_mib(watch.highest)} resident" if watch.highest else ""
    if watch.ended_for == "silence":
        outcome, reason = "timed_out", f"no sign of life for {watch.patience:g} s {where}; it was ended"
    elif watch.ended_for == "size":
        outcome, reason = "out_of_memory", f"it was ended {where}{at}, above {_mib(int(watch.most_bytes))}"
    elif "SIGKILL" in how:
        outcome, reason = "out_of_memory", f"{how} {where}{at}"
    else:
        outcome, reason = "crashed", f"{how} {where}"
    return MemoryProbe(size, outcome, reason, watch.highest or None, steps=watch.steps)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
