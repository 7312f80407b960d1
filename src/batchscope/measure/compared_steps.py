"""What does a remedy's step cost beside a plain one? Windows of whole steps, interleaved, on one device.

Each round visits every task and batch size once, up on even rounds and down on odd ones; just before each window one of
the plain task's own batch is timed, so that a slow drift of the machine divides out (`throughput.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from batchscope.measure.throughput import ROUNDS, StepClock, Tell, Windows, drift_of, tell_of
from batchscope.records import Conditions, TimingPass
from batchscope.task import Task


def time_compared(
    plain: Task,
    treated: Mapping[str, tuple[Task, Sequence[int]]],
    device: torch.device,
    conditions: Conditions,
    rounds: int = ROUNDS,
    *,
    tell: Tell = lambda line: None,
) -> dict[str, TimingPass]:
    """Seconds per step of each task at its batch sizes, by name; the reference is the plain task's own batch.

    Every task has a model and an optimiser of its own on the device, all at once.
    """
    reference, how = plain.batch_size, (device, conditions.precision, conditions.engine)
    beside = StepClock(plain, *how)
    in_window = beside.steps_for(reference)
    tell_of(tell, reference, beside)
    clocks = {name: StepClock(task, *how) for name, (task, _) in treated.items()}
    turns = [(name, size) for name, (_, sizes) in treated.items() for size in sizes]
    steps, taken = {}, {turn: Windows() for turn in turns}
    for name, size in turns:
        steps[name, size] = clocks[name].steps_for(size)
        tell_of(tell, size, clocks[name])
    for number in range(rounds):
        for turn in turns if number % 2 == 0 else list(reversed(turns)):
            name, size = turn
            taken[turn].reference.append(beside.window(reference, in_window))
            taken[turn].seconds.append(clocks[name].window(size, steps[turn]))
            tell_of(tell, size, clocks[name])
    passes = {}
    for name, (_, sizes) in treated.items():
        timings = tuple(taken[name, size].timing(size, steps[name, size]) for size in sizes)
        passes[name] = TimingPass(reference, timings, conditions, drift_of([t.reference for t in timings]))
    return passes
