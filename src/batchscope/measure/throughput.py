"""How many seconds does a training step take, against batch size? Measured alone, interleaved, after warm-up.

Each round visits every batch size once, up on even rounds and down on odd ones, and times a window of whole steps
on real batches of the task (data included, evaluation not). Just before each window a window of the reference size
is timed, so that a slow drift of the machine divides out. The clock is read, and the device synchronised, at window
edges only. Where worker processes load the data, a window begins once what they had prepared meanwhile is used up.

All sizes train one model, at a thousandth of the task's learning rate: the seconds do not depend on the weights, and
the weights must not run away.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch

from batchscope.records import Conditions, StepTiming, TimingPass
from batchscope.task import Batch, Task
from batchscope.training.batches import Source, make_source
from batchscope.training.device import now
from batchscope.training.seeding import seed_everything
from batchscope.training.step import Step, make_model, make_step

WINDOW_SECONDS = 0.05  # long against the clock and the scheduler's slice, short enough for many rounds (a guess)
ROUNDS = 7
SLOWED = 1e-3  # of the task's own learning rate
PREFETCHED = 2  # batches that each loader worker has ready: torch.utils.data.DataLoader's default prefetch_factor


class StepClock:
    """A task's training step, ready to be timed at any batch size."""

    def __init__(self, task: Task, device: torch.device, precision: str) -> None:
        seed_everything(0)
        model = make_model(task, device)
        self.device = device
        self.prepared = PREFETCHED * task.num_workers if not isinstance(task.train, (tuple, list)) else 0
        self.step: Step = make_step(task, model, task.optimizer(model, SLOWED * task.lr), precision=precision)
        self.source = make_source(task, 0, device)
        self._streams: dict[int, Iterator[Batch]] = {}

    def window(self, batch_size: int, steps: int) -> float:
        """Seconds per step over `steps` steps."""
        if batch_size not in self._streams:
            self._streams[batch_size] = _endless(self.source, batch_size)
        stream = self._streams[batch_size]
        for _ in range(self.prepared):
            self.step(next(stream))
        start = now(self.device)
        for _ in range(steps):
            self.step(next(stream))
        return (now(self.device) - start) / steps

    def steps_for(self, batch_size: int, seconds: float = WINDOW_SECONDS) -> int:
        """Warm up, and choose how many steps make a window of about `seconds`."""
        self.window(batch_size, 2)
        steps = 1
        while (spent := self.window(batch_size, steps) * steps) < seconds / 4:
            steps *= 2
        return max(1, round(steps * seconds / spent))


def _endless(source: Source, batch_size: int) -> Iterator[Batch]:
    """Full batches, epoch after epoch; the last short one is left out (the analysis accounts for it)."""
    whole = max(1, source.size // batch_size)
    epoch = 0
    while True:
        for number, batch in enumerate(source.epoch(epoch, batch_size)):
            if number < whole:
                yield batch
        epoch += 1


def time_steps(
    task: Task, batch_sizes: Sequence[int], device: torch.device, conditions: Conditions, rounds: int = ROUNDS
) -> TimingPass:
    """One interleaved pass over `batch_sizes`; seconds per step and the reference beside each, per round."""
    clock = StepClock(task, device, conditions.precision)
    reference = task.batch_size
    steps = {size: clock.steps_for(size) for size in (*batch_sizes, reference)}
    seconds: dict[int, list[float]] = {size: [] for size in batch_sizes}
    beside: dict[int, list[float]] = {size: [] for size in batch_sizes}
    for number in range(rounds):
        for size in batch_sizes if number % 2 == 0 else list(reversed(batch_sizes)):
            beside[size].append(clock.window(reference, steps[reference]))
            seconds[size].append(clock.window(size, steps[size]))
    timings = tuple(StepTiming(size, steps[size], tuple(seconds[size]), tuple(beside[size])) for size in batch_sizes)
    by_round = [statistics.median(beside[size][r] for size in batch_sizes) for r in range(rounds)]
    drift = (max(by_round) - min(by_round)) / statistics.median(by_round)
    return TimingPass(reference, timings, conditions, drift)


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
