"""Where do a study's and a profile's seconds come from? One piece of code times steps, and the store remembers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from batchscope.measure.throughput import ROUNDS
from batchscope.records import Conditions, ScalingPass, TimingPass, from_plain
from batchscope.records.hardware import OWN_LOOP
from batchscope.store.base import Store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.jobs import Job, place
from batchscope.verbs.machine import call

Heard = Callable[[dict[str, Any]], None]


def timing_pass(
    executor: Executor,
    batch_sizes: Sequence[int],
    conditions: Conditions,
    beat: Callable[[], None] = lambda: None,
    *,
    on_line: Heard = lambda line: None,
    **options: Any,
) -> TimingPass:
    """Time whole steps at these sizes, alone and interleaved; `options` are those of `throughput.time_steps`.

    Under the conditions of several devices, whole steps on all of them: see `shared_timing_pass`.
    """
    if conditions.world_size > 1:
        return shared_timing_pass(executor, batch_sizes, conditions, beat, on_line)
    details = {**place(conditions), "batch_sizes": list(batch_sizes), "options": options}
    return from_plain(TimingPass, call(executor, Job("timing", "timing", details), beat, on_line=on_line))


def shared_timing_pass(
    executor: Executor, batch_sizes: Sequence[int], conditions: Conditions, beat: Callable[[], None], on_line: Heard
) -> TimingPass:
    """The same on all the devices of the conditions together: a window is that of the slowest rank."""
    devices = conditions.world_size
    sizes = {"batch_sizes": list(batch_sizes), "counts": [devices]}
    details = {**place(conditions), **sizes, "devices": devices, "options": {"rounds": ROUNDS, "messages": False}}
    job = Job("timing", "scaling", details)
    (found,) = from_plain(ScalingPass, call(executor, job, beat, on_line=on_line)).passes
    return found


def stored_timing(
    store: Store, fingerprint: str, conditions: Conditions, batch_sizes: Sequence[int]
) -> TimingPass | None:
    """The newest stored profile's seconds of our loop at these very sizes, under these conditions; None without one."""
    for _, profile in store.profiles(fingerprint):
        timing = profile.timing
        if timing is None or timing.loop != OWN_LOOP or timing.conditions != conditions:
            continue
        by_size = {t.batch_size: t for t in timing.timings}
        if set(batch_sizes) <= set(by_size):
            return dataclasses.replace(timing, timings=tuple(by_size[size] for size in batch_sizes))
    return None
