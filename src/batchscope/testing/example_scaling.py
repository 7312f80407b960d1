"""Which pass over devices can a test begin with? Windows that are drawn from closed forms; nothing was measured.

    c(b)    2e-4 + 4e-6 b seconds: a step of b examples on one device
    t(B, n) ((d + k_n c(B / n))^2 + (h + r(n))^2)^(1/2) on n devices, the first part alone without averaging
    r(n)    2 (n - 1) (latency + m / (n bandwidth)): an all-reduce of m bytes, exactly a ring

Every window is multiplied by e^(2 % times a normal number), the same ones for the same seed.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

from batchscope.records import (
    AllReduceTiming,
    Network,
    ScalingData,
    ScalingPass,
    ScalingQuestion,
    StepTiming,
    TimingPass,
)
from batchscope.testing.examples import CONDITIONS

LINK = Network(latency=2e-5, bandwidth=1e9)
SLOWDOWN = {1: 1.0, 2: 1.1, 4: 1.25}
WRAPPER, ADDED = 5e-5, 1e-4  # d and h, seconds
GRADIENT_BYTES = 100_000
COUNTS, BATCH_SIZES = (1, 2, 4), (8, 16, 32, 64, 128, 256)
MESSAGES = (4096, 65536, GRADIENT_BYTES, 1 << 20, 1 << 24)
OWN_BATCH_SIZE = 32
NOISE = 0.02


def single_seconds(examples: float) -> float:
    """c(b)."""
    return 2e-4 + 4e-6 * examples


def reduce_seconds(devices: int, size: float) -> float:
    """r(n) of `size` bytes."""
    return 2 * (devices - 1) * (LINK.latency + size / (devices * LINK.bandwidth))


def alone_seconds(devices: int, batch_size: int) -> float:
    """A step of several devices without averaging."""
    return WRAPPER + SLOWDOWN.get(devices, 1.25) * single_seconds(batch_size / devices)


def whole_seconds(devices: int, batch_size: int) -> float:
    """t(B, n)."""
    if devices == 1:
        return single_seconds(batch_size)
    return math.hypot(alone_seconds(devices, batch_size), ADDED + reduce_seconds(devices, GRADIENT_BYTES))


def make_scaling_pass(
    counts: Sequence[int] = COUNTS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 5,
    seed: int = 0,
    drift: float = 0.02,
) -> ScalingPass:
    """Windows of every batch size on every device count that it can be divided among."""
    rng = random.Random(seed)

    def windows(seconds: float) -> tuple[float, ...]:
        return tuple(seconds * math.exp(NOISE * rng.gauss(0.0, 1.0)) for _ in range(rounds))

    def timing(n: int, b: int) -> StepTiming:
        phases = {"alone": windows(alone_seconds(n, b))} if n > 1 else {}
        return StepTiming(b, 20, windows(whole_seconds(n, b)), windows(single_seconds(OWN_BATCH_SIZE)), phases)

    passes = tuple(
        TimingPass(
            OWN_BATCH_SIZE,
            tuple(timing(n, b) for b in batch_sizes if b >= n),
            dataclasses.replace(CONDITIONS, world_size=n, threads=1),
            drift,
        )
        for n in counts
    )
    several = [n for n in counts if n > 1]
    messages = tuple(AllReduceTiming(n, m, windows(reduce_seconds(n, m))) for n in several for m in MESSAGES)
    return ScalingPass(passes, messages, GRADIENT_BYTES, (GRADIENT_BYTES,))


def make_scaling_data(
    counts: Sequence[int] = COUNTS, batch_sizes: Sequence[int] = BATCH_SIZES, rounds: int = 5, **changes: object
) -> ScalingData:
    """One `scale` of the examples' task; `changes` makes it another."""
    data = ScalingData(
        task="a task",
        fingerprint="f" * 16,
        train_size=1024,
        own_batch_size=OWN_BATCH_SIZE,
        own_learning_rate=0.05,
        question=ScalingQuestion(tuple(counts), tuple(batch_sizes), seed=3),
        conditions=dataclasses.replace(CONDITIONS, threads=1),
        timing=make_scaling_pass(counts, batch_sizes, rounds),
        unit="tokens",
        examples=4096,
        steps=99,
        seconds=12.25,
        notes=("the pass was made up",),
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(data, **changes)
