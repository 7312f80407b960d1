"""`profile`: what do steps cost on this device? Bytes and seconds against batch size, ceiling, knee, splits.

    1. check the task; set workers, threads and engine up as the store knows them, or choose them now
    2. memory: probes in fresh processes, until the largest micro-batch below the limit has been run
    3. seconds: an interleaved pass over a geometric grid of micro-batch sizes up to there, whole steps and their parts
    4. splits: global batch sizes as accumulated micro-batches, beside the whole batch where that fits
    5. analyse, and draw the page

The store keeps every profile. The same question is answered from it, unless `again` asks for a new measurement.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.analysis.profile import analyse_profile
from batchscope.analysis.splits import candidates
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Conditions, FlopCount, ProfileData, ProfileResult, SplitTiming, from_plain
from batchscope.report.profile_html import write_profile
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.plan import default_batch_sizes
from batchscope.sweep.runner import Listener
from batchscope.task import Task, load_task
from batchscope.training.checks import CheckedTask, check_batch_sizes, check_task
from batchscope.training.seeding import drawing_from
from batchscope.verbs.ceiling import Ceiling, check_limit, largest
from batchscope.verbs.machine import call, choose, chosen, executor_for, is_here, machine
from batchscope.verbs.report import default_path, drawn
from batchscope.verbs.timing import timing_pass

ROUNDS = 10  # from here on the knee's interval is a bootstrap over rounds
MOST_SECONDS = 120.0  # of the timing pass: after that no further round begins, down to the five that intervals need
SMALLEST = 8  # the grid's smallest size; smaller where the task's own is, or where no more fits
NO_FILE = "Memory was not measured: probes are processes of their own, which need a task file; this one is an object."


@dataclasses.dataclass(frozen=True)
class Asked:
    """A profile as asked for, checked against the task; nothing has been run."""

    task: Task
    reference: str | None
    checked: CheckedTask
    batch_sizes: tuple[int, ...] | None
    memory_limit: int | None
    seed: int


def profile(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    memory_limit: int | None = None,
    devices: int = 1,
    seed: int = 0,
    again: bool = False,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    listen: Listener | None = None,
) -> ProfileResult:
    """Measure seconds per step and peak memory against micro-batch size, on one device.

    Args:
        task: a reference, as in `study`; or a `Task` object, of which no memory is measured.
        batch_sizes: micro-batch sizes to time; default: powers of two from 8 to the largest that fits.
        memory_limit: bytes; default: a share of the machine's memory on the CPU, the free device memory less a margin
            on CUDA. The answer says which.
        devices: 1.
        seed: of the order of examples.
        again: measure anew where the store has the answer already.
        store, report, draw, listen: as in `study`.

    Returns: rows, fit, knee, splits and memory, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    with drawing_from(0):  # a notebook keeps its random numbers
        asked = ask(task, batch_sizes=batch_sizes, memory_limit=memory_limit, devices=devices, seed=seed)
        with open_store(store) as opened:
            opened.remember_task(asked.task.name, asked.checked.fingerprint, asked.checked.components)
            data, profile_id = found_or_measured(opened, asked, hear, again)
    result = analyse_profile(data)
    if draw:
        result = drawn(
            result, report or default_path(store, f"{asked.task.name}-profile", profile_id), write_profile, hear
        )
    return result


def found_or_measured(store: Store, asked: Asked, hear: Listener, again: bool = False) -> tuple[ProfileData, str]:
    """(profile, its id): the store's, or measured now, alone on the machine, and stored."""
    data, profile_id = _stored(store, asked) if not again else (None, "")
    if data is None:
        with machine(store, hear, alone=True) as beat:
            data = _Measurement(store, asked, hear, beat).run()
        profile_id = store.save_profile(data)
    return data, profile_id


def ask(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    memory_limit: int | None = None,
    devices: int = 1,
    seed: int = 0,
) -> Asked:
    """Everything that can be refused before anything is run."""
    if devices != 1:
        raise CannotAnswer(
            f"expected 1 device, got {devices!r}: a profile is of one device; batchscope scale times steps on several"
        )
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    check_limit(memory_limit)
    loaded = load_task(task) if isinstance(task, str) else task
    if not isinstance(loaded, Task):
        raise UsageError(
            f"expected a task reference or a bs.Task, got {type(loaded).__name__}: write profile('digits')"
        )
    checked = check_task(loaded)
    sizes = check_batch_sizes(loaded, batch_sizes) if batch_sizes is not None else None
    return Asked(loaded, task if isinstance(task, str) else None, checked, sizes, memory_limit, seed)


def _stored(store: Store, asked: Asked) -> tuple[ProfileData | None, str]:
    """The newest profile that answers the same question under the conditions of this machine."""
    for profile_id, data in store.profiles(asked.checked.fingerprint):
        question = data.batch_sizes, data.memory_limit, data.seed
        if question == (asked.batch_sizes, asked.memory_limit, asked.seed) and data.timing and is_here(data.conditions):
            return data, profile_id
    return None, ""


def grid(task: Task, ceiling: int | None) -> tuple[int, ...]:
    """Powers of two from SMALLEST (or the own size, or less where less fits) to the ceiling, and the own size."""
    top = min(task.train_size, ceiling or task.train_size)
    bottom = min(SMALLEST, task.batch_size, top)
    powers = [2**k for k in range(top.bit_length()) if 2 ** (bottom.bit_length() - 1) <= 2**k <= top]
    own = [task.batch_size] if task.batch_size <= top else []
    return tuple(sorted({*powers, *own}))


class _Measurement:
    """One profile while it is measured; it holds the machine."""

    def __init__(self, store: Store, asked: Asked, hear: Listener, beat: Any) -> None:
        self.store, self.asked, self.task, self.hear, self.beat = store, asked, asked.task, hear, beat
        self.notes: list[str] = []
        self.examples = self.steps = 0
        self.started = time.monotonic()

    def run(self) -> ProfileData:
        """Everything, in order."""
        asked, task = self.asked, self.task
        with self._executor() as executor:
            fallback = asked.batch_sizes or default_batch_sizes(task.train_size)
            workers, conditions = chosen(self.store, asked.checked.fingerprint) or choose(
                executor, task, fallback, self.hear
            )
            facts = self._call(executor, Job("facts", "facts", place(conditions)))
        ceiling = self._ceiling(conditions, facts)
        memory = ceiling.memory if ceiling else None
        largest_size = memory.largest_micro_batch_size if memory else None
        data = ProfileData(
            task=task.name,
            fingerprint=asked.checked.fingerprint,
            train_size=task.train_size,
            own_batch_size=task.batch_size,
            conditions=conditions,
            unit=task.unit,
            units_per_example=facts["units_per_example"],
            batch_sizes=asked.batch_sizes,
            memory_limit=asked.memory_limit,
            seed=asked.seed,
            workers=workers,
            memory=memory,
            flops=from_plain(FlopCount | None, facts["flops"]),
            energy_is=facts["energy_is"],
        )
        if memory is None or largest_size is not None:
            data = self._timed(data, largest_size)
        return dataclasses.replace(
            data,
            notes=tuple(self.notes),
            examples=self.examples,
            steps=self.steps,
            seconds=time.monotonic() - self.started,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _executor(self) -> Executor:
        """A worker for this task; its process is gone when the block ends, with its memory."""
        executor = executor_for(self.asked.reference or self.task)
        if isinstance(executor, LocalExecutor) and self.asked.reference is not None:
            executor.serve(TaskReference.here(self.asked.reference, self.asked.checked.fingerprint))
        return executor

    def _call(self, executor: Executor, job: Job) -> Any:
        return call(executor, job, self.beat, on_line=self._heard)

    def _heard(self, line: dict[str, Any]) -> None:
        """A window or a probe's step: counts what it cost, and tells of it."""
        self.beat()
        self.examples += line.get("examples", 0)
        self.steps += line.get("steps", 0)
        self.hear("progress", line)

    def _ceiling(self, conditions: Conditions, facts: dict[str, Any]) -> Ceiling | None:
        """The probes; None for a task that no other process can load."""
        if self.asked.reference is None:
            self.notes.append(NO_FILE)
            return None
        self.hear("phase", {"roles": {"memory": 1}, "trials": 0})
        reference = TaskReference.here(self.asked.reference, self.asked.checked.fingerprint)
        return largest(
            reference,
            conditions,
            facts,
            first=self.task.batch_size,
            cap=self.task.train_size,
            memory_limit=self.asked.memory_limit,
            hear=self.hear,
            on_line=self._heard,
        )

    def _timed(self, data: ProfileData, ceiling: int | None) -> ProfileData:
        """The timing passes at the sizes that fit."""
        sizes = self._sizes(ceiling)
        if not sizes:
            self.notes.append(f"No batch size asked for fits below the limit; the largest that does is {ceiling}.")
            return data
        with self._executor() as executor:
            self.hear("phase", {"roles": {"seconds per step": len(sizes)}, "trials": 0})
            timing = timing_pass(
                executor,
                sizes,
                data.conditions,
                self.beat,
                on_line=self._heard,
                rounds=ROUNDS,
                phases=True,
                most_seconds=MOST_SECONDS,
                seed=data.seed,
            )
            data = dataclasses.replace(data, timing=timing)
            pairs = candidates(data)
            if pairs:
                self.hear("phase", {"roles": {"accumulation": len(pairs)}, "trials": 0})
                details = {**place(data.conditions), "splits": [list(pair) for pair in pairs]}
                splits = self._call(executor, Job("splits", "splits", details))
                data = dataclasses.replace(data, splits=from_plain(tuple[SplitTiming, ...], splits))
        return data

    def _sizes(self, ceiling: int | None) -> tuple[int, ...]:
        """The micro-batch sizes to time: those asked for, or the grid, that fit."""
        sizes = self.asked.batch_sizes or grid(self.task, ceiling)
        too_large = [size for size in sizes if ceiling is not None and size > ceiling]
        if too_large:
            self.notes.append(
                f"Batch sizes above the memory ceiling were not timed: {', '.join(map(str, too_large))}; they need "
                "accumulation."
            )
        return tuple(size for size in sizes if size not in too_large)
