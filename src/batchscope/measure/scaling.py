"""How many seconds does a step take on several devices, and how many of them are spent on averaging the gradients?

All ranks run this together. For each device count n the first n ranks form a group and train one model; the others
wait. A window is whole steps on real batches, begins when all ranks have met, and lasts as long as its slowest rank.
Each is timed with the gradients averaged and without ("alone": the same steps, each rank by itself), side by side; the
difference is the exposed time of the all-reduce, whatever of it hides behind the backward pass. Before them comes a
window of the task's own batch on one device, the reference that all device counts share.

Bare all-reduces of several sizes are timed in the same rounds: they tell latency from bandwidth.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from batchscope.measure.coupling import batch_norms
from batchscope.measure.throughput import (
    LEAST_ROUNDS,
    PREFETCHED,
    ROUNDS,
    SLOWED,
    WINDOW_SECONDS,
    Tell,
    drift_of,
    endless,
)
from batchscope.records import AllReduceTiming, Conditions, Engine, ScalingPass, StepTiming, TimingPass
from batchscope.task import Batch, Task
from batchscope.training.batch_norm import synchronised
from batchscope.training.batches import make_source
from batchscope.training.device import now
from batchscope.training.distributed import Replicas
from batchscope.training.seeding import seed_everything
from batchscope.training.step import SharedStep, make_model, make_shared_model, make_shared_step, make_step

SMALLEST_MESSAGE, LARGEST_MESSAGE = 1 << 12, 1 << 26  # bytes of an all-reduce; the gradient's own is among them
MESSAGE_STEP = 4  # from one size to the next
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20  # bytes: torch's DDP averages the gradient in such pieces
MIN_WINDOW_SHARE = 4  # a window is long enough to be scaled up from, once it lasts a fourth of what is wanted


def prepared_by(task: Task) -> int:
    """Batches that loader workers have ready when a window begins."""
    return PREFETCHED * task.num_workers if not isinstance(task.train, (tuple, list)) else 0


class GroupClock:
    """A task's training step on the ranks of one group, ready to be timed; one rank: the step of a single device."""

    def __init__(self, task: Task, device: torch.device, precision: str, engine: Engine, group: Replicas) -> None:
        seed_everything(0)
        self.group, self.device = group, device
        self.prepared = prepared_by(task)
        several = group.size > 1
        model = make_shared_model(task, device, engine, group) if several else make_model(task, device, engine)
        if not several and task.batch_norm == "synchronised":
            model = synchronised(model, device)  # else torch's own layers, if it has any, would wait for all ranks
        optimizer = task.optimizer(model, SLOWED * task.lr)
        self.source = make_source(task, 0, device, engine, part=group.part if several else None)
        self.step: SharedStep
        if several:
            self.step = make_shared_step(task, model, optimizer, group, precision=precision, engine=engine)
        else:
            alone = make_step(task, model, optimizer, precision=precision, engine=engine)
            self.step = lambda batch, whole: alone(batch)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._streams: dict[int, Iterator[Batch]] = {}

    @property
    def gradient_bytes(self) -> list[int]:
        """Of every parameter that is trained, in the model's order."""
        return [p.nbytes for p in self.parameters]

    def window(self, batch_size: int, steps: int, averages: bool) -> float:
        """Seconds of `steps` steps of this global batch size on this rank, data included."""
        self.group.averages = averages
        stream = self._streams.setdefault(batch_size, endless(self.source, batch_size))
        for _ in range(self.prepared):  # loaded meanwhile
            self.step(next(stream), batch_size)
        start = now(self.device)
        for _ in range(steps):
            self.step(next(stream), batch_size)
        return now(self.device) - start


def needs_others(task: Task) -> bool:
    """Whether a rank cannot train by itself: its weights are in pieces on all, or its batch norm sees the whole batch.

    Then steps without averaging are not timed, and all ranks must train together.
    """
    return task.shard or task.batch_norm == "synchronised"


class Together:
    """All ranks, timing one after the other what groups of them do."""

    def __init__(self, task: Task, counts: Sequence[int], everyone: Replicas, precision: str, engine: Engine) -> None:
        self.everyone, self.steps, self.examples = everyone, 0, 0
        self.apart, self.prepared = not needs_others(task), prepared_by(task)
        self.groups: dict[int, Replicas] = {}
        self.clocks: dict[int, GroupClock] = {}
        for n in sorted({1, *counts}):
            handle = dist.new_group(range(n)) if 1 < n < everyone.size else None
            if everyone.rank < n:
                self.groups[n] = Replicas(everyone.rank, n, everyone.device, group=handle)
                self.clocks[n] = GroupClock(task, everyone.device, precision, engine, self.groups[n])

    def slowest(self, seconds: float) -> float:
        """The most that a rank hands in."""
        most = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return float(most)

    def window(self, devices: int, batch_size: int, steps: int, averages: bool = True) -> float:
        """Seconds per step on the slowest of the first `devices` ranks."""
        self.slowest(0.0)  # all are here
        spent = 0.0
        if devices in self.clocks:
            spent = self.clocks[devices].window(batch_size, steps, averages)
        self.everyone.done += 1
        made = steps + self.prepared
        self.steps, self.examples = self.steps + made, self.examples + made * batch_size
        return self.slowest(spent) / steps

    def steps_for(self, devices: int, batch_size: int, seconds: float = WINDOW_SECONDS) -> int:
        """Warm up, and choose how many steps make a window of about `seconds`."""
        self.window(devices, batch_size, 2)
        if self.apart:
            self.window(devices, batch_size, 2, averages=False)
        steps = 1
        while (spent := self.window(devices, batch_size, steps) * steps) < seconds / MIN_WINDOW_SHARE:
            steps *= 2
        return max(1, round(steps * seconds / spent))

    def all_reduce(self, devices: int, size: int, times: int) -> float:
        """Seconds of one all-reduce of `size` bytes of float32."""
        group = self.groups.get(devices)
        message = torch.zeros(size // 4, device=self.everyone.device) if group is not None else None
        self.slowest(0.0)
        spent = 0.0
        if group is not None and message is not None:
            start = now(self.everyone.device)
            for _ in range(times):
                dist.all_reduce(message, group=group.group)
            spent = now(self.everyone.device) - start
        self.everyone.done += 1
        return self.slowest(spent) / times

    def times_for(self, devices: int, size: int, seconds: float = WINDOW_SECONDS / 2) -> int:
        """How many all-reduces make a window."""
        self.all_reduce(devices, size, 2)
        return max(1, round(seconds / max(self.all_reduce(devices, size, 4), 1e-7)))


def time_scaling(
    task: Task,
    batch_sizes: Sequence[int],
    counts: Sequence[int],
    everyone: Replicas,
    conditions: Conditions,
    rounds: int = ROUNDS,
    *,
    messages: bool = True,
    ceiling: int | None = None,
    most_seconds: float = float("inf"),
    tell: Tell = lambda line: None,
) -> ScalingPass:
    """One interleaved pass over device counts and global batch sizes; called by every rank, with the same arguments.

    Args:
        counts: of devices, each at most `everyone.size`. Left out there are batch sizes that give a device no example
            (one, with batch norm), or more than `ceiling`.
        messages: time bare all-reduces too.
        most_seconds: after so many no further round begins, but LEAST_ROUNDS are made.
        tell: hears of every window (rank 0's only is heard).

    Returns: the pass, the same on every rank.
    """
    started = time.monotonic()
    together = Together(task, counts, everyone, conditions.precision, conditions.engine)
    places = _places(task, batch_sizes, counts, ceiling)
    several = [n for n in sorted(counts) if n > 1]
    gradient = everyone.from_lead(together.clocks[1].gradient_bytes if everyone.leads else None)
    sizes = _message_sizes(sum(gradient)) if messages else ()
    bare = [(n, size) for n in several for size in sizes]

    def heard(devices: int, batch_size: int) -> None:
        tell({"phase": "scaling", "devices": devices, "batch_size": batch_size, **_spent(together)})

    steps = {}
    for n, b in {(1, task.batch_size): None, **dict.fromkeys(places)}:
        steps[n, b] = together.steps_for(n, b)
        heard(n, b)
    times = {(n, size): together.times_for(n, size) for n, size in bare}
    taken = {place: _Windows() for place in places}
    reduced: dict[tuple[int, int], list[float]] = {place: [] for place in bare}
    for number in range(rounds):
        for n, b in places if number % 2 == 0 else places[::-1]:
            windows = taken[n, b]
            windows.reference.append(together.window(1, task.batch_size, steps[1, task.batch_size]))
            for averages in (True, False) if number % 2 == 0 else (False, True):
                if averages or (n > 1 and together.apart):
                    kept = windows.whole if averages else windows.alone
                    kept.append(together.window(n, b, steps[n, b], averages))
            heard(n, b)
        for n, size in bare if number % 2 == 0 else bare[::-1]:
            reduced[n, size].append(together.all_reduce(n, size, times[n, size]))
        if number + 1 >= LEAST_ROUNDS and together.slowest(time.monotonic() - started) > most_seconds:
            break
    return everyone.from_lead(
        ScalingPass(
            tuple(_pass(n, task.batch_size, taken, steps, conditions) for n in sorted(counts)),
            tuple(AllReduceTiming(n, size, tuple(seconds)) for (n, size), seconds in reduced.items()),
            sum(gradient),
            buckets_of(gradient),
        )
    )


@dataclasses.dataclass
class _Windows:
    """What was timed at one place."""

    whole: list[float] = dataclasses.field(default_factory=list)
    alone: list[float] = dataclasses.field(default_factory=list)
    reference: list[float] = dataclasses.field(default_factory=list)

    def timing(self, batch_size: int, steps: int) -> StepTiming:
        phases = {"alone": tuple(self.alone)} if self.alone else {}
        return StepTiming(batch_size, steps, tuple(self.whole), tuple(self.reference), phases)


def _places(
    task: Task, batch_sizes: Sequence[int], counts: Sequence[int], ceiling: int | None
) -> list[tuple[int, int]]:
    """(devices, batch size) that can be trained at: every device has an example, two with batch norm, and room."""
    least = 2 if batch_norms(task.model().train()) else 1
    found = [(n, b) for n in sorted(counts) for b in batch_sizes if b // n >= (least if n > 1 else 1)]
    return [(n, b) for n, b in found if ceiling is None or math.ceil(b / n) <= ceiling]


def _pass(
    devices: int,
    reference: int,
    taken: Mapping[tuple[int, int], _Windows],
    steps: Mapping[tuple[int, int], int],
    conditions: Conditions,
) -> TimingPass:
    """What was timed on so many devices."""
    timings = tuple(windows.timing(b, steps[n, b]) for (n, b), windows in taken.items() if n == devices)
    here = dataclasses.replace(conditions, world_size=devices)
    return TimingPass(reference, timings, here, drift_of([t.reference for t in timings]))


def buckets_of(parameter_bytes: Sequence[int]) -> tuple[int, ...]:
    """Bytes of the pieces that DDP averages, given those of each parameter in the model's order: the last ones first.

    A piece is full once it holds FIRST_BUCKET, then BUCKET bytes; parameters are not cut.
    """
    buckets, held = [], 0
    for size in reversed(parameter_bytes):
        held += size
        if held >= (BUCKET if buckets else FIRST_BUCKET):
            buckets.append(held)
            held = 0
    return (*buckets, held) if held else tuple(buckets)


def _message_sizes(gradient: int) -> tuple[int, ...]:
    """Powers of MESSAGE_STEP between the limits, and the gradient's own size."""
    sizes = {SMALLEST_MESSAGE}
    while max(sizes) < LARGEST_MESSAGE:
        sizes.add(max(sizes) * MESSAGE_STEP)
    return tuple(sorted(sizes | {max(4, gradient - gradient % 4)}))


def _spent(together: Together) -> dict[str, int]:
    """Examples and steps since the last call."""
    spent = {"examples": together.examples, "steps": together.steps}
    together.examples = together.steps = 0
    return spent
