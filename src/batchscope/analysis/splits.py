"""Into which micro-batches should a global batch size be cut: what does accumulation cost, which split is the fastest?

A step of B examples as k = ceil(B / m) micro-batches of m (the last one shorter) pays for data, forward and backward k
times, for clipping and optimiser once. With t the whole step and o the optimiser's part of it, at micro-batch size m,

    T(B, m) = sum over the k micro-batches of (t(m_i) - o)  +  o

so that what a loader hides behind the computation (t is not data + resident then) stays hidden. t at the last, shorter
micro-batch is interpolated between measured sizes, log t against log b. All of it round by round, so that the windows'
spread carries over. Where phases were not timed, o = 0: then T counts the optimiser k times, and `interval` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batchscope.analysis.quantities import typical_reference
from batchscope.analysis.step_time import Array, by_size, correction, optimizer_seconds, whole_steps
from batchscope.analysis.uncertainty import of_rounds
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Measured, ProfileData, Split, SplitTiming, StepTiming, TimingPass

FARTHEST = 2  # whole batches are predicted up to this multiple of the largest size that was timed (a guess)

# What `candidates` proposes to time:
GLOBAL_SIZES = 5  # global batch sizes: the task's own, one above what fits, and the largest that were timed (a guess)
MICRO_SIZES = 2  # micro-batch sizes of each, the fastest predicted, beside the whole batch (a guess)
MOST_SECONDS = 60.0  # of steps in all: large sizes that would take more are left out (a guess)
WINDOWS = 7  # that each split costs: five rounds, and warm-up
LEAST_WINDOW = 0.1  # seconds of a window and the reference window beside it


def measured_splits(splits: Sequence[SplitTiming], timing: TimingPass | None) -> tuple[Split, ...]:
    """Every split that was timed, by batch size and micro-batch size.

    `over_whole` is the median over rounds of (seconds / reference) over that of the whole batch: the one timed in the
    same pass (a split of one micro-batch), else that of `timing`. Without reference windows, seconds are compared.
    """
    typical = typical_reference(timing) if timing is not None else None
    ordered = sorted((s for s in splits if s.seconds_per_step), key=lambda s: (s.batch_size, s.micro_batch_size))
    wholes: dict[int, SplitTiming | StepTiming] = {t.batch_size: t for t in by_size(timing)} if timing else {}
    wholes |= {s.batch_size: s for s in ordered if s.micro_batch_size >= s.batch_size}
    return tuple(_measured(s, wholes.get(s.batch_size), typical) for s in ordered)


def _measured(split: SplitTiming, whole: SplitTiming | StepTiming | None, typical: float | None) -> Split:
    seconds = of_rounds(whole_steps(split, typical), note=correction(split, typical))
    accumulation = math.ceil(split.batch_size / split.micro_batch_size)
    over = None if whole is None else _ratio(split, whole)
    return Split(split.batch_size, split.micro_batch_size, accumulation, seconds, True, over)


def _ratio(split: SplitTiming, whole: SplitTiming | StepTiming) -> Measured:
    """Seconds of the split over those of the whole batch, paired by round."""
    rounds = min(len(split.seconds_per_step), len(whole.seconds_per_step))
    if split is whole:
        return Measured(1.0, 1.0, 1.0, rounds, 0, "exact: this is the whole batch")
    referenced = all(len(t.reference) == len(t.seconds_per_step) for t in (split, whole))
    unit = 1.0 if referenced else None  # any: it cancels out
    note = ", ratio paired by round" + (", each over its own reference" if referenced else "")
    return of_rounds(whole_steps(split, unit)[:rounds] / whole_steps(whole, unit)[:rounds], note=note)


def fastest_split(data: ProfileData, batch_size: int) -> Split:
    """The fastest way to train a global batch size, in micro-batches that fit.

    Where splits of this very batch size were timed (or the whole batch was), the fastest of those; else the fastest
    that is predicted, `measured=False`. A micro-batch size fits if it is at most the largest that ran below the memory
    limit; where memory was not measured, all are taken to.

    Raises UsageError for a batch size that is not in 1..training examples, CannotAnswer where nothing was timed or
    nothing fits.
    """
    if not 1 <= batch_size <= data.train_size:
        raise UsageError(f"expected a batch size from 1 to the {data.train_size} training examples, got {batch_size}")
    if data.timing is None or not by_size(data.timing):
        raise CannotAnswer("expected a profile with seconds per step, got none: measure one with profile")
    largest = largest_micro_batch(data)
    known = [s for s in measured_splits(data.splits, data.timing) if s.batch_size == batch_size]
    known += [_whole(t, data.timing) for t in by_size(data.timing) if t.batch_size == batch_size]
    known = [s for s in known if s.micro_batch_size <= largest] or predicted_splits(data, batch_size)
    if not known:
        raise CannotAnswer(
            f"expected some micro-batch size that was timed to fit, got none up to {largest}: "
            "measure smaller batch sizes, or raise the memory limit"
        )
    return min(known, key=lambda s: s.seconds_per_step.estimate or math.inf)


def largest_micro_batch(data: ProfileData) -> int:
    """The largest micro-batch size that may be used: what ran below the memory limit; 0 where nothing did."""
    if data.memory is None:
        return data.train_size
    return data.memory.largest_micro_batch_size or 0


def _whole(timing: StepTiming, within: TimingPass) -> Split:
    typical = typical_reference(within)
    seconds = of_rounds(whole_steps(timing, typical), note=correction(timing, typical))
    exact = Measured(1.0, 1.0, 1.0, seconds.n, 0, "exact: this is the whole batch")
    return Split(timing.batch_size, timing.batch_size, 1, seconds, True, exact)


def predicted_splits(data: ProfileData, batch_size: int) -> list[Split]:
    """A prediction for every micro-batch size that was timed and fits, and for the whole batch where that fits.

    The whole batch is predicted up to FARTHEST times the largest size that was timed.
    """
    if data.timing is None:
        return []
    timings, largest = by_size(data.timing), largest_micro_batch(data)
    sizes = {t.batch_size for t in timings if t.batch_size <= min(batch_size, largest)}
    if batch_size <= min(largest, FARTHEST * max((t.batch_size for t in timings), default=0)):
        sizes.add(batch_size)
    return [_predicted(data.timing, batch_size, m) for m in sorted(sizes)]


def _predicted(timing: TimingPass, batch_size: int, micro: int) -> Split:
    """T(B, m) of the formula above, as a Split."""
    timings, typical = by_size(timing), typical_reference(timing)
    rounds = min(len(t.seconds_per_step) for t in timings)
    sizes = np.array([t.batch_size for t in timings], float)
    steps = np.array([whole_steps(t, typical)[:rounds] for t in timings])
    optimizer, said = _optimizer(timings, typical, micro, rounds)
    whole, last = divmod(batch_size, micro)
    count = whole + (last > 0)
    seconds = whole * _at(sizes, steps, micro) + (_at(sizes, steps, last) if last else 0.0)
    seconds = seconds - (count - 1) * optimizer
    outside = ", beyond the sizes timed" if micro > sizes[-1] or (last or micro) < sizes[0] else ""
    note = f", predicted from micro-batch {micro:,}{said if count > 1 else ''}{outside}"
    over = None
    at_all = next((t for t in timings if t.batch_size == batch_size), None)
    if at_all is not None:
        ratio = seconds / whole_steps(at_all, typical)[:rounds]
        over = of_rounds(ratio, note=", ratio paired by round, predicted")
    return Split(batch_size, micro, count, of_rounds(seconds, note=note), False, over)


def _optimizer(timings: Sequence[StepTiming], typical: float | None, micro: int, rounds: int) -> tuple[Array, str]:
    """(clipping and optimiser seconds of each round at the timed size nearest to `micro`, what to say of it).

    Noise may take the difference to below 0 in the median, where it is 0; a round's is never above its whole step.
    """
    nearest = min(timings, key=lambda t: abs(math.log(t.batch_size / micro)))
    spent = optimizer_seconds(nearest, typical)
    if spent is None:
        return np.zeros(rounds), ", optimiser counted with every micro-batch"
    if np.median(spent) <= 0:
        return np.zeros(rounds), ""
    return np.minimum(spent, whole_steps(nearest, typical))[:rounds], ""


def _at(sizes: Array, steps: Array, batch_size: float) -> Array:
    """Seconds per step of each round at a batch size: linear in logs between sizes; upper bounds beyond them.

    Below the smallest size a step is taken to need as long as there, above the largest one as long per example.
    """
    logs, at = np.log(steps), math.log(min(max(batch_size, sizes[0]), sizes[-1]))
    inside = np.exp([np.interp(at, np.log(sizes), logs[:, r]) for r in range(logs.shape[1])])
    return inside * max(1.0, batch_size / sizes[-1])


def candidates(data: ProfileData) -> tuple[tuple[int, int], ...]:
    """(batch size, micro-batch size) pairs worth timing, the whole batch beside its splits where it fits.

    Batch sizes: the task's own, then one above what fits if memory is what binds, then those timed, from the largest
    down; of each, the micro-batch sizes with the fastest predictions. What would take too long is left out.
    """
    if data.timing is None:
        return ()
    timed, largest = [t.batch_size for t in by_size(data.timing)], largest_micro_batch(data)
    fitting = [b for b in timed if b <= largest]
    if not fitting:
        return ()
    beyond = [2 * fitting[-1]] if largest < 2 * fitting[-1] <= data.train_size else []
    pairs: list[tuple[int, int]] = []
    left, chosen = MOST_SECONDS, 0
    for size in dict.fromkeys([data.own_batch_size, *beyond, *reversed(fitting)]):
        ranked = sorted(predicted_splits(data, size), key=lambda s: s.seconds_per_step.estimate or math.inf)
        whole = [s for s in ranked if s.accumulation == 1]
        cut = [s for s in ranked if s.accumulation > 1][:MICRO_SIZES]
        cost = sum(WINDOWS * max(LEAST_WINDOW, s.seconds_per_step.estimate or 0.0) for s in (*whole, *cut))
        if not cut or cost > left:
            continue
        pairs += [(size, s.micro_batch_size) for s in (*whole, *cut)]
        left, chosen = left - cost, chosen + 1
        if chosen == GLOBAL_SIZES:
            break
    return tuple(sorted(pairs))
