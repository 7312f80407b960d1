"""How many seconds does a training step take, against batch size? Measured alone, interleaved, after warm-up.

Each round visits every batch size once, up on even rounds and down on odd ones, and times a window of whole steps
on real batches of the task (data included, evaluation not). Just before each window a window of the reference size
is timed, so that a slow drift of the machine divides out. The clock is read, and the device synchronised, at window
edges only. Where worker processes load the data, a window begins once what they had prepared meanwhile is used up.

Parts of a step are windows of their own beside it (`records.StepTiming` names them): clocks inside a step would
synchronise the device at every one of them, and so change what they measure.

All sizes train one model, at a thousandth of the task's learning rate: the seconds do not depend on the weights, and
the weights must not run away.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from batchscope.measure.energy import EnergyMeter
from batchscope.records import Conditions, Engine, SplitTiming, StepTiming, TimingPass
from batchscope.task import Batch, Task
from batchscope.training.batches import Source, make_source, mapped, to_device
from batchscope.training.device import now
from batchscope.training.seeding import seed_everything
from batchscope.training.step import Step, make_model, make_step

WINDOW_SECONDS = 0.05  # long against the clock and the scheduler's slice, short enough for many rounds (a guess)
ROUNDS = 7
LEAST_ROUNDS = 5  # below it, Student's t is more than 2.8 and intervals say little
SLOWED = 1e-3  # of the task's own learning rate
PREFETCHED = 2  # batches that each loader worker has ready: torch.utils.data.DataLoader's default prefetch_factor

Tell = Callable[[dict[str, Any]], None]


class _WithoutStep:
    """An optimiser that zeroes gradients and does not step: what is left of a step is forward and backward."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self) -> None:
        """Nothing."""


class StepClock:
    """A task's training step, ready to be timed at any batch size, whole or in part."""

    def __init__(
        self, task: Task, device: torch.device, precision: str, engine: Engine | None = None, seed: int = 0
    ) -> None:
        seed_everything(0)
        self.examples = self.steps = 0  # trained so far
        self.task, self.device, self.precision, self.engine = task, device, precision, engine or Engine()
        self.prepared = PREFETCHED * task.num_workers if not isinstance(task.train, (tuple, list)) else 0
        self.model = make_model(task, device, self.engine)
        self.optimizer = task.optimizer(self.model, SLOWED * task.lr)
        self.source = make_source(task, seed, device, self.engine)
        self.step = self._step(task, self.optimizer, self.engine)
        plain = dataclasses.replace(self.engine, graphed=False)
        bare: Any = _WithoutStep(self.optimizer)
        self._backward = self._step(dataclasses.replace(task, clip_norm=None), bare, plain)
        self._accumulating: dict[int, Step] = {}
        self._streams: dict[int, Iterator[Batch]] = {}
        self._resident: dict[int, Batch] = {}

    def _step(self, task: Task, optimizer: Any, engine: Engine, micro_batch_size: int | None = None) -> Step:
        return make_step(
            task,
            self.model,
            optimizer,
            micro_batch_size=micro_batch_size,
            precision=self.precision,
            engine=engine,
        )

    def window(self, batch_size: int, steps: int, micro_batch_size: int | None = None) -> float:
        """Seconds per step over `steps` whole steps, data included."""
        step = self.step if micro_batch_size is None else self._in_micro_batches(micro_batch_size)
        stream = self._stream(batch_size)
        self._count(batch_size, steps + self.prepared)
        for _ in range(self.prepared):
            step(next(stream))
        start = now(self.device)
        for _ in range(steps):
            step(next(stream))
        return (now(self.device) - start) / steps

    def phase(self, name: str, batch_size: int, steps: int) -> float:
        """Seconds per step of one part of it, over `steps` steps; see `records.StepTiming.phases`."""
        if name == "data":
            stream = self._stream(batch_size)
            return self._timed(lambda: next(stream), steps + self.prepared)
        batch = self._resident_batch(batch_size)
        if name == "copy":
            host = mapped(batch, lambda t: t.cpu().pin_memory())
            return self._timed(lambda: to_device(host, self.device), steps)
        step = self.step if name == "resident" else self._backward
        self._count(batch_size, steps)
        return self._timed(lambda: step(batch), steps)

    def phases(self) -> tuple[str, ...]:
        """The parts that exist here: copying is one only where the data come from the host."""
        copied = self.device.type == "cuda" and getattr(self.source, "device", self.device).type != "cuda"
        return ("data", "copy", "resident", "backward") if copied else ("data", "resident", "backward")

    def steps_for(self, batch_size: int, seconds: float = WINDOW_SECONDS) -> int:
        """Warm up, and choose how many steps make a window of about `seconds`."""
        self.window(batch_size, 2)
        steps = 1
        while (spent := self.window(batch_size, steps) * steps) < seconds / 4:
            steps *= 2
        return max(1, round(steps * seconds / spent))

    def _count(self, batch_size: int, steps: int) -> None:
        self.examples += batch_size * steps
        self.steps += steps

    def spent(self) -> dict[str, int]:
        """Examples and steps since the last call."""
        since = {"examples": self.examples, "steps": self.steps}
        self.examples = self.steps = 0
        return since

    def _timed(self, work: Callable[[], Any], times: int) -> float:
        start = now(self.device)
        for _ in range(times):
            work()
        return (now(self.device) - start) / times

    def _stream(self, batch_size: int) -> Iterator[Batch]:
        if batch_size not in self._streams:
            self._streams[batch_size] = endless(self.source, batch_size)
        return self._streams[batch_size]

    def _resident_batch(self, batch_size: int) -> Batch:
        if batch_size not in self._resident:
            self._resident[batch_size] = mapped(next(self._stream(batch_size)), torch.clone)
        return self._resident[batch_size]

    def _in_micro_batches(self, size: int) -> Step:
        if size not in self._accumulating:
            self._accumulating[size] = self._step(self.task, self.optimizer, self.engine, size)
        return self._accumulating[size]


def endless(source: Source, batch_size: int) -> Iterator[Batch]:
    """Full batches, epoch after epoch; the last short one is left out (the analysis accounts for it)."""
    whole = max(1, source.size // batch_size)
    for epoch in itertools.count():
        yield from itertools.islice(source.epoch(epoch, batch_size), whole)


def time_steps(
    task: Task,
    batch_sizes: Sequence[int],
    device: torch.device,
    conditions: Conditions,
    rounds: int = ROUNDS,
    *,
    phases: bool = False,
    most_seconds: float = float("inf"),
    seed: int = 0,
    tell: Tell = lambda line: None,
) -> TimingPass:
    """One interleaved pass over `batch_sizes`; seconds per step and the reference beside each, per round.

    With `phases`, parts of the step are timed in every round too, and the energy of the whole step where the device
    tells it. After `most_seconds` no further round begins, but LEAST_ROUNDS are made. `tell` hears of every window.
    """
    clock = StepClock(task, device, conditions.precision, conditions.engine, seed)
    reference, started = task.batch_size, time.monotonic()
    steps = {}
    for size in (*batch_sizes, reference):
        steps[size] = clock.steps_for(size)
        tell_of(tell, size, clock)
    parts = clock.phases() if phases else ()
    meter = EnergyMeter(device) if phases else None
    taken = {size: Windows() for size in batch_sizes}
    for number in range(rounds):
        for size in batch_sizes if number % 2 == 0 else list(reversed(batch_sizes)):
            windows = taken[size]
            windows.reference.append(clock.window(reference, steps[reference]))
            before = meter.joules() if meter else None
            windows.seconds.append(clock.window(size, steps[size]))
            after = meter.joules() if meter else None
            if before is not None and after is not None:
                windows.joules.append((after - before) / steps[size])
            for name in parts:
                windows.phases.setdefault(name, []).append(clock.phase(name, size, max(1, steps[size] // 2)))
            tell_of(tell, size, clock)
        if number + 1 >= LEAST_ROUNDS and time.monotonic() - started > most_seconds:
            break
    timings = tuple(taken[size].timing(size, steps[size]) for size in batch_sizes)
    return TimingPass(reference, timings, conditions, drift_of([t.reference for t in timings]))


@dataclasses.dataclass
class Windows:
    """What was timed at one batch size."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    reference: list[float] = dataclasses.field(default_factory=list)
    phases: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    joules: list[float] = dataclasses.field(default_factory=list)

    def timing(self, batch_size: int, steps: int) -> StepTiming:
        phases = {name: tuple(windows) for name, windows in self.phases.items()}
        return StepTiming(batch_size, steps, tuple(self.seconds), tuple(self.reference), phases, tuple(self.joules))


def tell_of(tell: Tell, batch_size: int, clock: StepClock) -> None:
    """A window has ended: a sign of life, with what it cost."""
    tell({"phase": "timing", "batch_size": batch_size, **clock.spent()})


def drift_of(references: Sequence[Sequence[float]]) -> float:
    """(largest - smallest) / median of the reference's windows, each round's median over the sizes."""
    by_round = [statistics.median(windows) for windows in zip(*references, strict=True)]
    return (max(by_round) - min(by_round)) / statistics.median(by_round) if by_round else 0.0


def time_splits(
    task: Task,
    splits: Sequence[tuple[int, int]],
    device: torch.device,
    conditions: Conditions,
    rounds: int = LEAST_ROUNDS,
    tell: Tell = lambda line: None,
) -> tuple[SplitTiming, ...]:
    """Whole steps of (batch size, micro-batch size) pairs, interleaved in one pass; equal sizes are the whole batch."""
    clock = StepClock(task, device, conditions.precision, conditions.engine)
    reference = clock.steps_for(task.batch_size)
    steps: dict[tuple[int, int], int] = {}
    for size, micro in splits:
        once = clock.window(size, 1, micro if micro < size else None)
        steps[size, micro] = max(1, round(WINDOW_SECONDS / once))
        tell_of(tell, size, clock)
    taken: dict[tuple[int, int], Windows] = {split: Windows() for split in splits}
    for number in range(rounds):
        for size, micro in splits if number % 2 == 0 else list(reversed(splits)):
            windows = taken[size, micro]
            windows.reference.append(clock.window(task.batch_size, reference))
            windows.seconds.append(clock.window(size, steps[size, micro], micro if micro < size else None))
            tell_of(tell, size, clock)
    return tuple(
        SplitTiming(size, micro, tuple(windows.seconds), tuple(windows.reference))
        for (size, micro), windows in taken.items()
    )


def fastest_threads(
    task: Task, batch_sizes: Sequence[int], device: torch.device, cores: int
) -> tuple[int, dict[int, float]]:
    """How many threads a worker should have, so that `cores // threads` workers get most done together.

    Times a step at the given sizes with 1, 2, 4 ... `cores` threads (one process alone: that workers slow each other
    by sharing memory is not seen). Returns the best count, fewest threads within 5 %, and relative work per second.
    """
    clock = StepClock(task, device, task.precision)
    counts = sorted({min(2**k, cores) for k in range(cores.bit_length())} | {cores})
    work: dict[int, float] = {}
    before = torch.get_num_threads()
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            per_size = [clock.window(size, clock.steps_for(size, WINDOW_SECONDS / 2)) for size in batch_sizes]
            work[threads] = (cores // threads) / statistics.geometric_mean(per_size)
    finally:
        torch.set_num_threads(before)
    best = max(work.values())
    return next(t for t in counts if work[t] >= 0.95 * best), {t: w / best for t, w in work.items()}
