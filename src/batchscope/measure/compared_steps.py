"""What does a remedy's step cost beside a plain one? Windows of whole steps, interleaved, on one device.

A remedy that decides during a trial (`training/control.py`) does so here too: what it measures is in its seconds.
Each round visits every task and batch size once, up on even rounds and down on odd ones; just before each window one of
the plain task's own batch is timed, so that a slow drift of the machine divides out (`throughput.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from batchscope.measure.throughput import ROUNDS, StepClock, Tell, Windows, drift_of, tell_of
from batchscope.records import Conditions, TimingPass
from batchscope.task import Batch, Task
from batchscope.training.batches import examples_in
from batchscope.training.control import Controlled, MakeControl
from batchscope.training.engine import PLAIN
from batchscope.training.step import make_step


class ControlledClock(StepClock):
    """The steps of a trial that somebody decides on, at its one batch size."""

    def __init__(self, task: Task, device: torch.device, precision: str, make: MakeControl, batch_size: int) -> None:
        super().__init__(task, device, precision, PLAIN)  # as its trials are run
        control = make(Controlled(task, self.model, self.optimizer, batch_size, task.budget_examples, 0))
        once = make_step(task, self.model, self.optimizer, precision=precision, engine=PLAIN, watch=control.complete)

        def step(batch: Batch) -> None:
            once(batch)
            control.stepped(examples_in(batch))

        self.step = step


def time_compared(
    plain: Task,
    treated: Mapping[str, tuple[Task, Sequence[int]]],
    device: torch.device,
    conditions: Conditions,
    rounds: int = ROUNDS,
    *,
    controls: Mapping[tuple[str, int], MakeControl] | None = None,
    tell: Tell = lambda line: None,
) -> dict[str, TimingPass]:
    """Seconds per step of each task at its batch sizes, by name; the reference is the plain task's own batch.

    `controls`: by (name, batch size), what decides in trials there. Every task has a model and an optimiser of its own
    on the device, every control too, all at once.
    """
    reference, how = plain.batch_size, (device, conditions.precision, conditions.engine)
    beside = StepClock(plain, *how)
    in_window = beside.steps_for(reference)
    tell_of(tell, reference, beside)
    clocks: dict[tuple[str, int], StepClock] = {}
    for name, (task, sizes) in treated.items():
        made = {size: make for size in sizes if (make := (controls or {}).get((name, size))) is not None}
        usual = StepClock(task, *how) if len(made) < len(sizes) else beside
        clocks |= {(name, b): ControlledClock(task, *how[:2], made[b], b) if b in made else usual for b in sizes}
    steps, taken = {}, {turn: Windows() for turn in clocks}
    for turn, clock in clocks.items():
        steps[turn] = clock.steps_for(turn[1])
        tell_of(tell, turn[1], clock)
    turns = list(clocks)
    for number in range(rounds):
        for turn in turns if number % 2 == 0 else list(reversed(turns)):
            taken[turn].reference.append(beside.window(reference, in_window))
            taken[turn].seconds.append(clocks[turn].window(turn[1], steps[turn]))
            tell_of(tell, turn[1], clocks[turn])
    passes = {}
    for name, (_, sizes) in treated.items():
        timings = tuple(taken[name, size].timing(size, steps[name, size]) for size in sizes)
        passes[name] = TimingPass(reference, timings, conditions, drift_of([t.reference for t in timings]))
    return passes
