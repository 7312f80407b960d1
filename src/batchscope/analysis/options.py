"""Which batch sizes can be used on this machine, in which micro-batches, and what does a step of each cost?

From a profile alone: the sizes that were timed, and powers of two above them that accumulation of what fits can make.
Each gets one split: the whole batch where it fits, unless a cut one is clearly faster; so that a batch size has one
price, and with batch norm (where the split changes the mathematics) one training.

With several devices, and a pass over them (`scaling`), each batch size goes to as many of them as make the objective
least. What a run of it *here* takes stays as it is: steps are a fact of the task, and runs are made on one device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from batchscope.analysis.particles import Array
from batchscope.analysis.scaling import Predictor
from batchscope.analysis.splits import fastest_split, largest_micro_batch, predicted_splits
from batchscope.analysis.step_time import by_size, rows_of
from batchscope.analysis.target import effective_batch_size
from batchscope.analysis.uncertainty import LEVEL
from batchscope.errors import CannotAnswer
from batchscope.records import Measured, ProfileData, Split

CLEARLY = 1.05  # times faster than the whole batch: only then is a batch that fits cut (the width of the 5 % band)
UNKNOWN_SD = 0.1  # of log seconds that have no interval (a guess)


@dataclass(frozen=True)
class Option:
    """A batch size in its split, with what a step costs."""

    split: Split  # on each device
    seconds: Measured  # per step
    joules: Measured | None  # per example, at the micro-batch size that was timed nearest
    devices: int = 1
    here: Split | None = None  # how runs are made on one device, where that is another split

    @property
    def batch_size(self) -> int:
        """Global, examples."""
        return self.split.batch_size


def options_of(profile: ProfileData, train_size: int, coupled: bool = False, own: int | None = None) -> list[Option]:
    """Every batch size that can be used, ascending; `coupled`: the model mixes a batch's examples (batch norm).

    Raises CannotAnswer where no step was timed, or nothing fits.
    """
    if profile.timing is None or not by_size(profile.timing):
        raise CannotAnswer("expected seconds per step, got none: no batch fits, raise --memory-limit or leave it out")
    rows = {r.micro_batch_size: r for r in rows_of(profile.timing)}
    top = 2 ** (train_size.bit_length() - 1)
    largest = max(rows)
    beyond = [2**k for k in range(largest.bit_length(), top.bit_length()) if largest < 2**k <= top]
    sizes = sorted({*rows, *([own] if own is not None else []), *beyond} & set(range(1, train_size + 1)))
    found = []
    for size in sizes:
        split = _split(profile, size, coupled)
        nearest = min(rows, key=lambda timed: abs(math.log(timed / split.micro_batch_size)))
        found.append(Option(split, split.seconds_per_step, rows[nearest].joules_per_example))
    return found


def on_devices(
    options: Sequence[Option], predictor: Predictor, devices: int, objective: str, ceiling: int
) -> list[Option]:
    """Every option on the number of devices, of those measured up to `devices`, that makes the objective least.

    Several devices take a batch whole, each its part, which must fit (`ceiling`, examples). Examples and energy do not
    follow from the number of devices as far as is known: there one device stays.
    """
    counts = [n for n in predictor.counts if 1 < n <= devices] if objective in ("time", "cost") else []
    alone = [_as_timed(option, predictor) for option in options]
    return [min((option, *_shared(option, predictor, counts, ceiling)), key=_price(objective)) for option in alone]


def _as_timed(option: Option, predictor: Predictor) -> Option:
    """On one device as the pass over several timed it, where it did: the profile's may have had more threads."""
    if option.split.accumulation > 1 or not predictor.can(1, option.batch_size):
        return option
    seconds, measured = predictor.seconds(1, option.batch_size)
    split = dataclasses.replace(option.split, seconds_per_step=seconds, measured=measured)
    return dataclasses.replace(option, split=split, seconds=seconds)


def _price(objective: str) -> Callable[[Option], float]:
    """Seconds per step, times the devices where they are paid for."""
    paid = objective == "cost"
    return lambda option: (option.seconds.estimate or math.inf) * (option.devices if paid else 1)


def _shared(option: Option, predictor: Predictor, counts: Sequence[int], ceiling: int) -> list[Option]:
    """The option on each of these device counts."""
    found = []
    for n in counts:
        part = math.ceil(option.batch_size / n)
        if part <= ceiling and predictor.can(n, option.batch_size):
            seconds, measured = predictor.seconds(n, option.batch_size)
            split = Split(option.batch_size, part, 1, seconds, measured, None)
            found.append(Option(split, seconds, None, n, option.split))
    return found


def _split(profile: ProfileData, size: int, coupled: bool) -> Split:
    """The whole batch, unless it does not fit or a cut one is clearly faster; with batch norm the largest parts."""
    fastest, *others = _splits(profile, size)
    whole = [s for s in (fastest, *others) if s.accumulation == 1]
    if whole:
        best = whole[0]
        ratio = (best.seconds_per_step.estimate or math.inf) / (fastest.seconds_per_step.estimate or math.inf)
        return best if coupled or ratio <= CLEARLY else fastest
    return max((fastest, *others), key=lambda s: s.micro_batch_size) if coupled else fastest


def _splits(profile: ProfileData, size: int) -> list[Split]:
    """What is known of this size, the fastest first: as measured where it was, and as predicted where not whole."""
    timing = profile.timing
    if timing is None or all(t.batch_size != size for t in by_size(timing)):
        predicted = predicted_splits(profile, size)
        if predicted and all(s.batch_size != size for s in profile.splits):
            return sorted(predicted, key=lambda s: s.seconds_per_step.estimate or math.inf)
        return [fastest_split(profile, size), *predicted]
    fastest = fastest_split(profile, size)
    if fastest.accumulation == 1 or size > largest_micro_batch(profile):
        return [fastest]
    (row,) = (r for r in rows_of(timing) if r.micro_batch_size == size)
    exact = Measured(1.0, 1.0, 1.0, row.seconds_per_step.n, 0, "exact: this is the whole batch")
    return [fastest, Split(size, size, 1, row.seconds_per_step, True, exact)]


def draws_of(value: Measured, count: int, rng: np.random.Generator) -> Array:
    """(count,) draws of the log of a positive measured value: t about its estimate, as its 95 % interval says."""
    estimate = value.estimate or math.nan
    if value.low is None or value.high is None or value.low <= 0:
        return math.log(estimate) + UNKNOWN_SD * rng.standard_normal(count)
    df = max(1, value.n - 1)
    half = 0.5 * math.log(value.high / value.low)
    return math.log(estimate) + half / float(stats.t.ppf(0.5 + LEVEL / 2, df)) * rng.standard_t(df, count)


def log_weights(
    options: Sequence[Option], objective: str, train_size: int, price: float | None = None
) -> dict[int, float]:
    """log w(B): what an example costs at each batch size, by the objective. Raises CannotAnswer for unmeasured energy.

    time: seconds; cost: price of a device for an hour (1 without one) x devices x hours; examples: 1; energy: joules.
    Devices are those of each option.
    """
    weights = {}
    for option in options:
        size = option.batch_size
        seconds = (option.seconds.estimate or math.nan) / effective_batch_size(train_size, size)
        if objective == "examples":
            weights[size] = 0.0
        elif objective == "energy":
            if option.joules is None or option.joules.estimate is None:
                raise CannotAnswer(
                    "expected an energy meter on this device for --objective energy, found none: use --objective time"
                )
            weights[size] = math.log(option.joules.estimate)
        else:
            scale = (price or 1.0) * option.devices / 3600.0 if objective == "cost" else 1.0
            weights[size] = math.log(seconds * scale)
    return weights
