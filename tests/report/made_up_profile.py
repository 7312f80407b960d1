"""Made-up profiles, shared by the report's tests: what a profile could say, drawn from closed forms.

    seconds   t(b) = a + c (b^4 + s^4)^(1/4), told apart into data, copy, forward and backward, optimiser
    bytes     peak(b) = F + m b; a probe above the limit did not fit

Nothing here is a measurement.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from batchscope.analysis.profile import analyse_profile
from batchscope.records import (
    Conditions,
    Engine,
    FlopCount,
    Measured,
    MemoryFit,
    MemoryParts,
    MemoryProbe,
    MemoryProfile,
    ProfileData,
    ProfileResult,
    Split,
    StepTimeFit,
    StepTiming,
    ThroughputRow,
    TimingPass,
)
from batchscope.testing.example_profiles import make_profile

HOSTILE = "</script><script>alert(1)</script>"
MIB, GIB = 2**20, 2**30
OVERHEAD, PER_EXAMPLE, SATURATION = 3.1e-4, 4.6e-6, 90.0
FIXED, SLOPE = 342 * MIB, 130.0 * 1024
SIZES = tuple(2**k for k in range(3, 13))
TRIED = (64, 4096, 5312, 5504, 6144)
CONDITIONS = Conditions(
    device_name="Imaginary Processor 9",
    threads=2,
    platform="Linux x86_64",
    versions={"torch": "2.13.0", "python": "3.11.7", "batchscope": "0.2.0"},
)
BYTES_OF_WEIGHTS = 9 * MIB


def seconds(b: float) -> float:
    """Seconds per step at micro-batch size b, data included."""
    return OVERHEAD + PER_EXAMPLE * (b**4 + SATURATION**4) ** 0.25


def around(value: float, spread: float = 0.02, n: int = 10) -> Measured:
    """A value with an interval of +- `spread`, or with none where n is 1."""
    if n == 1:
        return Measured(value, None, None, 1, 0, "none: one round of timing has no spread")
    return Measured(value, value * (1 - spread), value * (1 + spread), n, 0, f"t on logs of {n} rounds, {n - 1} df")


def row(b: int, rounds: int = 10, waiting: float = 0.08, cuda: bool = False, phases: bool = True) -> ThroughputRow:
    """One size; `waiting` is the part of a step that waits for data."""
    whole = seconds(b) / (1 - waiting)
    parts = [whole * waiting, whole * 0.03 if cuda else 0.0, 0.88 * seconds(b), 0.12 * seconds(b)]
    wait, copy, compute, optimizer = (around(p, 0.05, rounds) if phases else None for p in parts)
    bound = "data" if waiting > 0.5 else "optimizer" if b < 16 else "compute"
    return ThroughputRow(
        micro_batch_size=b,
        seconds_per_step=around(whole, 0.02, rounds),
        examples_per_second=around(b / whole, 0.02, rounds),
        units_per_second=around(b / whole, 0.02, rounds),
        data_wait=wait,
        copy=copy,
        compute=compute,
        optimizer=optimizer,
        bound_by=bound if phases else "",
        flops_utilization=around(0.3 * b / (b + 200), 0.03, rounds) if cuda else None,
        joules_per_example=around(0.004 * (1 + 50 / b), 0.1, rounds) if cuda else None,
        peak_bytes=peak(b) if b in TRIED else None,
        predicted_peak_bytes=peak(b),
    )


def peak(b: int) -> int:
    """Peak bytes at micro-batch size b."""
    return round(FIXED + SLOPE * b)


def probe(b: int, limit: int) -> MemoryProbe:
    """One probe, as the closed form says it went."""
    top = max(peak(b), FIXED + 4 * MIB)
    activations = top - FIXED
    process = FIXED - 3 * BYTES_OF_WEIGHTS
    fits = top <= limit
    return MemoryProbe(
        b,
        "fits" if fits else "out_of_memory",
        "" if fits else f"it needs {top / MIB:.0f} MiB, above the limit of {limit / MIB:.0f} MiB",
        peak_bytes=top,
        training_bytes=top,
        evaluation_bytes=FIXED + 4 * MIB,
        checkpoint_bytes=FIXED + 2 * MIB,
        parts=MemoryParts(process, BYTES_OF_WEIGHTS, BYTES_OF_WEIGHTS, BYTES_OF_WEIGHTS, activations),
        saved_bytes_per_example=0.7 * SLOPE,
        steps=3,
        seconds=4.2,
    )


def memory_profile(limit: int = GIB, tried: tuple[int, ...] = TRIED, **changes: Any) -> MemoryProfile:
    """What fits under `limit`."""
    probes = tuple(probe(b, limit) for b in tried)
    fitting = [p.micro_batch_size for p in probes if p.fits]
    failing = [p.micro_batch_size for p in probes if not p.fits]
    told = f"{min(failing):,} does not: it needs more than the limit" if failing else "no larger size was tried"
    reason = (
        f"A micro-batch of {max(fitting):,} fits, {told}."
        if fitting
        else f"Not even a micro-batch of {min(tried)} fits."
    )
    fit = MemoryFit(around(float(FIXED), 0.02, 5), around(float(SLOPE), 0.03, 5), 0.013, tuple(sorted(tried)))
    memory = MemoryProfile(
        limit_bytes=limit,
        limit_is="asked for",
        measured_as="peak resident size of the training process (data-loading processes not counted)",
        sample_is="all examples are of one size",
        probes=probes,
        largest_micro_batch_size=max(fitting, default=None),
        binding="memory",
        reason=reason,
        conditions=CONDITIONS,
        fit=fit,
    )
    return dataclasses.replace(memory, **changes)


def timing_pass(sizes: tuple[int, ...], rounds: int, waiting: float, loop: str) -> TimingPass:
    """The windows behind the rows, 1 % noise."""
    rng = np.random.default_rng(0)

    def windows(b: int) -> tuple[float, ...]:
        return tuple(float(v) for v in seconds(b) / (1 - waiting) * np.exp(0.01 * rng.standard_normal(rounds)))

    timings = tuple(StepTiming(b, max(3, 2000 // b), windows(b), windows(64)) for b in sizes)
    return TimingPass(64, timings, CONDITIONS, 0.021, loop)


def splits(largest: int = 5312) -> tuple[Split, ...]:
    """The task's own batch size and a large one, in several ways."""
    overhead = seconds(64)
    pairs = ((64, 64), (64, 32), (8192, 4096), (8192, 2048), (8192, 512))
    return tuple(
        Split(
            batch_size=b,
            micro_batch_size=m,
            accumulation=b // m,
            seconds_per_step=around((b // m) * seconds(m), 0.02),
            measured=m != 2048,
            over_whole=around((b // m) * seconds(m) / overhead, 0.03) if b == 64 else None,
        )
        for b, m in pairs
    )


def profile(
    sizes: tuple[int, ...] = SIZES,
    rounds: int = 10,
    waiting: float = 0.08,
    cuda: bool = False,
    phases: bool = True,
    loop: str = "batchscope",
    name: str = "fashion-mnist-cnn",
    **changes: Any,
) -> ProfileResult:
    """A profile's answer; `changes` are fields of the result."""
    conditions = CONDITIONS
    if cuda:
        engine = Engine(channels_last=True, graphed=True, prefetched=True)
        conditions = dataclasses.replace(CONDITIONS, device="cuda", device_name="Imaginary Card", engine=engine)
    flops = FlopCount(8.4e6, 64, 9.89e14 if cuda else None, "the maker's data sheet, bf16, dense" if cuda else "")
    memory = memory_profile(conditions=conditions)
    data = ProfileData(
        task=name,
        fingerprint="0123456789abcdef",
        train_size=54_000,
        own_batch_size=64,
        conditions=conditions,
        memory_limit=GIB,
        timing=timing_pass(sizes, rounds, waiting, loop),
        memory=memory,
        flops=flops,
        examples=1_234_567,
        steps=23_456,
        seconds=61.2,
        measured_at="2026-03-01T12:00:00+00:00",
    )
    rows = tuple(row(b, rounds, waiting, cuda, phases) for b in sizes)
    step_time = StepTimeFit(
        around(OVERHEAD / (1 - waiting), 0.05),
        around(PER_EXAMPLE / (1 - waiting), 0.01),
        around(SATURATION, 0.3),
        tuple(0.01 * (-1) ** k for k in range(len(sizes))),
        sizes,
    )
    result = ProfileResult(
        task=name,
        fingerprint=data.fingerprint,
        unit="examples",
        loop=loop,
        rows=rows,
        step_time=step_time if len(sizes) > 2 else None,
        knee=Measured(1024, 512, 1024, rounds, 0, f"bootstrap over {rounds} rounds"),
        splits=splits(),
        memory=memory,
        flops=flops,
        energy_is="through NVML, idle power not subtracted" if cuda else "not measured",
        conditions=conditions,
        data=data,
        notes=("The optimum of the splits was predicted, not run",),
    )
    return dataclasses.replace(result, **changes)


def one_window() -> ProfileResult:
    """One round: no number has an interval."""
    knee = Measured(1024, None, None, 1, 0, "none: one round of timing has no spread")
    return profile(rounds=1, knee=knee, splits=())


def without_memory() -> ProfileResult:
    """A task object: no other process can load it, so memory was not measured."""
    result = profile(memory=None, notes=("Memory was not measured: this task is an object",))
    rows = tuple(dataclasses.replace(r, peak_bytes=None, predicted_peak_bytes=None) for r in result.rows)
    return dataclasses.replace(result, rows=rows, data=dataclasses.replace(result.data, memory=None))


def nothing_fits() -> ProfileResult:
    """Not even one example fits, so nothing was timed."""
    memory = memory_profile(300 * MIB, (64, 8, 1), fit=None)
    knee = Measured(None, None, None, 0, 0, "no size was timed")
    result = profile(rows=(), step_time=None, splits=(), knee=knee, memory=memory)
    return dataclasses.replace(result, data=dataclasses.replace(result.data, timing=None, memory=memory))


def loader_bound() -> ProfileResult:
    """Every step waits for its data for most of its time."""
    return profile(waiting=0.72, cuda=True)


def one_size() -> ProfileResult:
    """One size only: no fit, no interval of the knee."""
    knee = Measured(64, None, None, 10, 0, "none: one size was timed")
    return profile(sizes=(64,), knee=knee, splits=splits()[:1])


def odd_outcomes() -> ProfileResult:
    """Every outcome, peaks that nobody saw, and parts that were not measured."""
    limit = GIB
    probes = (
        probe(64, limit),
        dataclasses.replace(probe(4096, limit), outcome="fits_with_retries", alloc_retries=3, reason="after 3 retries"),
        MemoryProbe(16384, "out_of_memory", "the process was ended by SIGKILL in training"),
        MemoryProbe(8192, "crashed", "RuntimeError: a kernel does not take as many", peak_bytes=600 * MIB),
        MemoryProbe(5000, "timed_out", "no sign of life for 120 s in evaluation; it was ended", peak_bytes=700 * MIB),
    )
    memory = memory_profile(probes=probes, largest_micro_batch_size=4096, binding="time", reason="5,000 timed out")
    return profile(phases=False, memory=memory, splits=())


def analysed() -> ProfileResult:
    """What the analysis makes of the small profile that the store's tests begin with: tokens, two rounds, two sizes."""
    return analyse_profile(make_profile())


def hostile() -> ProfileResult:
    """A profile whose task, unit, loop, device, reasons and notes are named like an attack on the page."""
    result = profile(name=HOSTILE, loop=HOSTILE, unit=HOSTILE, notes=(f"a note on {HOSTILE}",), energy_is=HOSTILE)
    probes = tuple(dataclasses.replace(p, reason=HOSTILE) for p in memory_profile().probes)
    words: dict[str, Any] = {"limit_is": HOSTILE, "measured_as": HOSTILE, "sample_is": HOSTILE, "reason": HOSTILE}
    conditions = dataclasses.replace(CONDITIONS, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE})
    return dataclasses.replace(
        result,
        memory=memory_profile(probes=probes, **words),
        conditions=conditions,
        knee=dataclasses.replace(result.knee, interval=HOSTILE),
        report=f"/tmp/{HOSTILE}.html",
    )


ALL = {
    "whole": profile,
    "cuda": lambda: profile(cuda=True),
    "without memory": without_memory,
    "nothing fits": nothing_fits,
    "loader bound": loader_bound,
    "one size": one_size,
    "one window": one_window,
    "odd outcomes": odd_outcomes,
    "analysed": analysed,
    "hostile": hostile,
}
