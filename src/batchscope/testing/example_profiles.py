"""Which small profile can a test of a store, or of what reads one, begin with? Nothing was measured for it."""

from __future__ import annotations

import dataclasses

from batchscope.records import (
    FlopCount,
    Measured,
    MemoryFit,
    MemoryParts,
    MemoryProbe,
    MemoryProfile,
    ProfileData,
    SplitTiming,
    StepTiming,
    TimingPass,
)
from batchscope.testing.examples import CONDITIONS

MIB = 1024**2
PHASED = TimingPass(
    reference_batch_size=32,
    timings=(
        StepTiming(
            batch_size=32,
            steps_per_window=10,
            seconds_per_step=(1e-3, 1.1e-3),
            reference=(1e-3, 0.1 + 0.2),
            phases={"data": (1e-4, 1 / 3), "resident": (9e-4, 1e-3), "backward": (7e-4, 8e-4)},
            joules_per_step=(0.05, 0.06),
        ),
        StepTiming(64, 5, (2e-3, 2.1e-3), (1e-3, 1.2e-3)),
    ),
    conditions=CONDITIONS,
    drift=0.125,
)
SPLITS = (SplitTiming(128, 32, (4e-3, 4.2e-3), (1e-3, 1e-3)), SplitTiming(128, 64, (3.9e-3, 4e-3), (1e-3, 1e-3)))
PROBES = (
    MemoryProbe(
        micro_batch_size=64,
        outcome="fits",
        peak_bytes=164 * MIB,
        training_bytes=164 * MIB,
        evaluation_bytes=120 * MIB,
        checkpoint_bytes=110 * MIB,
        parts=MemoryParts(100 * MIB, 4 * MIB, 4 * MIB, 8 * MIB, 48 * MIB),
        saved_bytes_per_example=0.75 * MIB,
        steps=3,
        seconds=1.5,
    ),
    MemoryProbe(256, "out_of_memory", "it asked for more than the limit of 256 MiB", peak_bytes=256 * MIB),
    MemoryProbe(1024, "timed_out", "it ran for 60 s"),
)
MEMORY = MemoryProfile(
    limit_bytes=256 * MIB,
    limit_is="given by --memory-limit",
    measured_as="the child's peak resident size",
    sample_is="the largest example, number 7",
    probes=PROBES,
    largest_micro_batch_size=64,
    binding="memory",
    reason="256 did not fit, 64 did",
    conditions=CONDITIONS,
    fit=MemoryFit(
        Measured(116.0 * MIB, 110.5 * MIB, 121.5 * MIB, 2, interval="t, 1 df"),
        Measured(0.75 * MIB, None, None, 2, interval="none: two sizes"),
        largest_residual=0.01,
        micro_batch_sizes=(32, 64),
    ),
)


def make_profile(**changes: object) -> ProfileData:
    """A small profile of the examples' task, under the conditions of `make_settings`; `changes` makes it another."""
    profile = ProfileData(
        task="a task",
        fingerprint="f" * 16,
        train_size=1000,
        own_batch_size=32,
        conditions=CONDITIONS,
        unit="tokens",
        units_per_example=16.5,
        batch_sizes=(32, 64),
        memory_limit=256 * MIB,
        seed=3,
        timing=PHASED,
        splits=SPLITS,
        memory=MEMORY,
        flops=FlopCount(1.5e6, 32, 9.89e14, "data sheet"),
        examples=4096,
        steps=99,
        seconds=12.25,
        notes=("the pass drifted",),
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(profile, **changes)


def at(hour: int) -> str:
    """A time of day, for profiles that were measured one after the other."""
    return f"2026-03-01T{hour:02d}:00:00+00:00"
