"""What does a profile say, in words? The answer's sentences, and how bytes, sizes and outcomes are written.

The terminal and the page say the same. Bytes are in binary units (1 GiB = 2^30 bytes); sizes of batches are exact
counts, never rounded to three digits, for they are what a user types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from batchscope.analysis.step_time import KNEE_SHARE, scaled
from batchscope.records import (
    Measured,
    MemoryProbe,
    MemoryProfile,
    ProfileResult,
    Split,
    ThroughputRow,
)
from batchscope.report.words import count, list_of, measured, number, plain, seconds, sentence

ABSENT = "–"  # what a cell says of a quantity that was not measured
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
OUTCOMES = {
    "fits": "fits",
    "fits_with_retries": "fits, with allocator retries",
    "out_of_memory": "out of memory",
    "crashed": "crashed",
    "timed_out": "timed out",
}
BOUND = {"data": "data", "compute": "compute", "optimizer": "optimiser"}
BINDERS = {"data": "waiting for data", "compute": "compute (forward and backward)", "optimizer": "the optimiser"}
PARTS = {
    "process": "process: interpreter, torch, the task's data",
    "weights": "weights, with the copy of the initial ones",
    "gradients": "gradients",
    "optimizer_state": "optimiser state",
    "activations": "activations, batches and work space",
}


def size_of(amount: float | None) -> str:
    """Bytes to three significant digits in the unit that keeps them below 1,000: 512 B · 1.50 KiB · 0.998 GiB."""
    if amount is None or not math.isfinite(amount):
        return ABSENT
    unit = 0
    while unit < len(BYTE_UNITS) - 1 and float(f"{abs(amount):.3g}") >= 1000.0:
        amount, unit = amount / 1024.0, unit + 1
    return f"{number(amount) if unit else round(amount)} {BYTE_UNITS[unit]}"


def cell(m: Measured | None, factor: float = 1.0) -> str:
    """A measured value for a table, or a dash where it was not measured."""
    return ABSENT if m is None or (m.estimate is None and m.low is None) else measured(scaled(m, factor))


def size_interval(m: Measured, dash: str = "-") -> str:
    """A micro-batch size with its interval, exact: `256 [128-512]`, `256 [> 128]` where no upper end is known."""
    if m.low is None or m.high is None:
        low, high = (f"{mark} {count(v)}" if v is not None else "" for mark, v in ((">", m.low), ("<", m.high)))
        return f"{count(m.estimate)}{f' [{low or high}]' if low or high else ''}"
    return f"{count(m.estimate)} [{count(m.low)}{dash}{count(m.high)}]"


def runs_of(sizes: Sequence[int], chosen: Sequence[int], dash: str = "-") -> str:
    """`chosen` as runs of neighbours among `sizes`: 1-32 and 256."""
    runs = [[s for s, _ in run] for on, run in groupby([(s, s in chosen) for s in sizes], key=lambda p: p[1]) if on]
    return list_of(count(r[0]) if len(r) == 1 else f"{count(r[0])}{dash}{count(r[-1])}" for r in runs)


# --- the answer ---


def answer_sentences(result: ProfileResult, dash: str = "-") -> list[str]:
    """The answer: what fits, the knee, what binds a step, how the task's own batch size is best split."""
    return [
        *memory_sentences(result.memory),
        *knee_sentences(result, dash),
        *bound_sentences(result, dash),
        *split_sentences(result, dash),
    ]


def memory_sentences(memory: MemoryProfile | None) -> list[str]:
    """The largest micro-batch that ran, and why none larger did; "not even 1 fits" is an answer."""
    if memory is None:
        return ["Memory was not measured, so no largest micro-batch size is known."]
    limit, largest = size_of(memory.limit_bytes), memory.largest_micro_batch_size
    why = [sentence(memory.reason)] if memory.reason else []
    if largest is None:
        smallest = min((p.micro_batch_size for p in memory.probes), default=1)
        return [f"No micro-batch that was tried fits under {limit}, down to {count(smallest)}.", *why]
    probe = largest_probe(memory)
    peak = f"; peak {size_of(probe.peak_bytes)}" if probe is not None and probe.peak_bytes is not None else ""
    retried = ", with allocator retries" if probe is not None and probe.outcome == "fits_with_retries" else ""
    return [f"The largest micro-batch under {limit} is {count(largest)} (ran{retried}{peak}).", *why]


def largest_probe(memory: MemoryProfile) -> MemoryProbe | None:
    """The probe that the answer rests on: that of the largest micro-batch size that ran below the limit."""
    return next((p for p in memory.probes if p.fits and p.micro_batch_size == memory.largest_micro_batch_size), None)


def largest_parted(memory: MemoryProfile | None) -> MemoryProbe | None:
    """The largest probe that fits and whose peak was told apart."""
    probes = memory.probes if memory is not None else ()
    return max((p for p in probes if p.fits and p.parts), key=lambda p: p.micro_batch_size, default=None)


def knee_sentences(result: ProfileResult, dash: str = "-") -> list[str]:
    """The knee, the throughput that it is held against, and what limits it."""
    knee, best = result.knee, highest(result)
    if not result.rows:
        return ["Seconds per step were not measured, so no throughput and no knee are known."]
    if knee.estimate is None:
        why = plain(knee.interval).removeprefix("none: ")
        return [f"No knee was found{': ' if why else ''}{why}."]
    top = f", {measured(best.units_per_second, dash=dash)} {plain(result.unit)} per second" if best is not None else ""
    at = f" at {count(best.micro_batch_size)}" if best is not None else ""
    ceiling = " below the memory ceiling" if result.memory is not None else ""
    unsure = "" if knee.low is not None or knee.high is not None else ", without an interval"
    said = (
        f"The knee is {size_interval(knee, dash)}{unsure}: the smallest micro-batch measured that reaches "
        f"{100 * KNEE_SHARE:.0f} % of the highest throughput{ceiling}{top}{at}."
    )
    return [said, *edge_sentences(result)]


def edge_sentences(result: ProfileResult) -> list[str]:
    """That throughput still rises at the largest size measured, where a larger one could be used."""
    best, largest = highest(result), result.memory.largest_micro_batch_size if result.memory is not None else None
    most = min(result.data.train_size, largest or result.data.train_size)
    below = [r.micro_batch_size for r in result.rows if r.micro_batch_size <= most]
    if best is None or len(below) < 2 or best.micro_batch_size < max(below) or max(below) >= most:
        return []
    return [f"Throughput still rises at the largest size measured, {count(max(below))}: the knee may lie beyond it."]


def highest(result: ProfileResult) -> ThroughputRow | None:
    """The row with the highest throughput measured below the memory ceiling."""
    largest = result.memory.largest_micro_batch_size if result.memory is not None else None
    known = [r for r in result.rows if r.units_per_second.estimate is not None]
    below = [r for r in known if largest is None or r.micro_batch_size <= largest]
    return max(below, key=lambda r: r.units_per_second.estimate or 0.0, default=None)


def bound_sentences(result: ProfileResult, dash: str = "-") -> list[str]:
    """What most of a step goes to at which sizes; a loader-bound task is named as such."""
    known = [r for r in result.rows if r.bound_by]
    if not known:
        return []
    sizes = [r.micro_batch_size for r in known]
    by = {k: [r.micro_batch_size for r in known if r.bound_by == k] for k in dict.fromkeys(r.bound_by for r in known)}
    if len(by) == 1:
        (only,) = by
        said = [f"At every size measured, a step is bound by {BINDERS.get(only, plain(only))}."]
    else:
        parts = [f"by {BINDERS.get(k, plain(k))} at {runs_of(sizes, chosen, dash)}" for k, chosen in by.items()]
        said = [f"A step is bound {list_of(parts)}."]
    shares = [(s, r) for r in known if r.bound_by == "data" and (s := data_share(r)) is not None]
    if shares:
        share, row = max(shares, key=lambda p: p[0])
        there = "" if len(by) == 1 else " there"
        said.append(
            f"The task is loader-bound{there}: at {count(row.micro_batch_size)}, data that cost nothing would save "
            f"{number(100 * share)} % of a step, and no faster device will."
        )
    return said


def data_share(row: ThroughputRow) -> float | None:
    """The part of a step that waits for data, 0 to 1."""
    wait, whole = row.data_wait, row.seconds_per_step.estimate
    return None if wait is None or wait.estimate is None or not whole else min(1.0, max(0.0, wait.estimate / whole))


def split_sentences(result: ProfileResult, dash: str = "-") -> list[str]:
    """The fastest split of the task's own batch size."""
    own = result.data.own_batch_size
    split = fastest_split(result.splits, own)
    if split is None:
        return []
    how = "measured" if split.measured else "predicted"
    took = seconds(split.seconds_per_step.estimate)
    if split.accumulation == 1:
        return [f"The task's own batch size, {count(own)}, is fastest in one pass: {took} a step ({how})."]
    said = f"The task's own batch size, {count(own)}, is fastest as {written_split(split)}: {took} a step ({how})"
    return [f"{said}{over_words(split, dash)}."]


def over_words(split: Split, dash: str = "-") -> str:
    """The cost of accumulating, where the whole batch was run beside it."""
    over = split.over_whole
    return "" if over is None or over.estimate is None else f", {measured(over, dash=dash)} times the whole batch's"


def fastest_split(splits: Sequence[Split], batch_size: int) -> Split | None:
    """The split of a batch size that takes the fewest seconds per step."""
    known = [(s.seconds_per_step.estimate, s) for s in splits if s.batch_size == batch_size]
    return min(((t, s) for t, s in known if t is not None), key=lambda p: p[0], default=(0.0, None))[1]


def written_split(split: Split) -> str:
    """`256 × 4`: micro-batch size times accumulation."""
    return f"{count(split.micro_batch_size)} × {count(split.accumulation)}"
