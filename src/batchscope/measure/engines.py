"""Which switches of the engine make this task's steps faster here? Each is timed; only what pays is turned on.

The walk is `training.engine.choose`'s: from the plain engine, one switch at a time. torch.compile is tried only where
it could pay back within a trial at all: a trial whose plain steps take less than LONG_TRIAL_SECONDS is over before a
compiler has earned its seconds back, and trying it costs those seconds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch

from batchscope.measure.throughput import WINDOW_SECONDS, StepClock
from batchscope.records import Engine
from batchscope.task import Task
from batchscope.training.engine import PLAIN, available, choose, compile_pays_back, one_more
from batchscope.training.step import make_model

LONG_TRIAL_SECONDS = 300.0  # compiling takes 10 to 60 s a shape on a CPU core (a guess)
ROUNDS = 3
SHAPES = 2  # of batches in a trial: the full one and the short last one


def fastest_engine(task: Task, batch_sizes: Sequence[int], device: torch.device) -> Engine:
    """The engine for this task's trials and timings at the threads that are set, from short interleaved windows."""
    possible = available(make_model(task, device), device)
    plain = StepClock(task, device, task.precision)
    if possible.compiled and _trial_seconds(task, plain) < LONG_TRIAL_SECONDS:
        possible = dataclasses.replace(possible, compiled=False)
    if possible == PLAIN:
        return PLAIN
    seconds: dict[Engine, Sequence[float]] = {}
    candidates, tried = one_more(PLAIN, possible), {PLAIN}
    while candidates:
        seconds |= _timed(task, candidates, batch_sizes, device)
        tried |= set(candidates)
        candidates = [engine for engine in one_more(choose(seconds), possible) if engine not in tried]
    return choose(seconds)


def _trial_seconds(task: Task, clock: StepClock) -> float:
    """Seconds that all plain steps of a trial at the task's own batch size take."""
    once = clock.window(task.batch_size, clock.steps_for(task.batch_size, WINDOW_SECONDS / 2))
    return once * task.budget_examples / task.batch_size


def _timed(
    task: Task, engines: Sequence[Engine], batch_sizes: Sequence[int], device: torch.device
) -> dict[Engine, Sequence[float]]:
    """Median seconds per step of each engine at each size; an engine that cannot run this task is left out."""
    windows: dict[Engine, list[list[float]]] = {}
    clocks: dict[Engine, tuple[StepClock, list[int]]] = {}
    for engine in (PLAIN, *(e for e in engines if e != PLAIN)):
        started = time.monotonic()
        try:
            clock = StepClock(task, device, task.precision, engine)
            steps = [clock.steps_for(size, WINDOW_SECONDS / 2) for size in batch_sizes]
        except Exception:
            if engine == PLAIN:
                raise
            continue  # a switch is an offer: what cannot run with it runs without
        if getattr(clock.step, "reason", ""):
            continue  # it fell back on eager steps: it would be another name for the same thing
        if engine.compiled and not _pays_back(task, clocks, clock, steps, time.monotonic() - started):
            continue
        clocks[engine], windows[engine] = (clock, steps), [[] for _ in batch_sizes]
    for _ in range(ROUNDS):
        for engine, (clock, steps) in clocks.items():
            for k, size in enumerate(batch_sizes):
                windows[engine][k].append(clock.window(size, steps[k]))
    return {engine: [statistics.median(w) for w in per_size] for engine, per_size in windows.items()}


def _pays_back(
    task: Task,
    clocks: dict[Engine, tuple[StepClock, list[int]]],
    clock: StepClock,
    steps: list[int],
    warm_up_seconds: float,
) -> bool:
    """Whether what compiling took (warm-up at all sizes timed) is earned back within one trial."""
    plain, plain_steps = clocks[PLAIN]
    before = plain.window(task.batch_size, plain_steps[0])
    after = clock.window(task.batch_size, steps[0])
    each = warm_up_seconds / max(1, len(steps))
    return compile_pays_back(before * task.budget_examples / task.batch_size, before / after, each, SHAPES)
