"""Passes over device counts of which everything is known: windows drawn about the model's own seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from batchscope.records import AllReduceTiming, Conditions, Network, ScalingPass, StepTiming, TimingPass

LINK = Network(5e-5, 2e9)


@dataclasses.dataclass(frozen=True)
class World:
    """What is true: see `analysis.scaling`."""

    overhead: float = 1e-3  # seconds of a step of no examples
    per_example: float = 1e-5
    slowdown: float = 1.1
    wrapper: float = 2e-4
    factor: float = 1.2
    overlap: float = 1.5
    link: Network = LINK
    gradient_bytes: int = 4_000_000
    noise: float = 0.0  # of log seconds
    drift: float = 0.0  # of log seconds, from the first round to the last

    def compute(self, examples: float) -> float:
        return self.overhead + self.per_example * examples

    def ring(self, devices: int, size: float) -> float:
        """By passing pieces round, counted: n - 1 times to add up, n - 1 times to tell."""
        passes, piece = 0.0, size / devices
        for _ in range(2 * (devices - 1)):
            passes += self.link.latency + piece / self.link.bandwidth
        return passes

    def alone(self, devices: int, batch_size: int) -> float:
        if devices == 1:
            return self.compute(batch_size)
        return self.wrapper + self.slowdown * self.compute(batch_size / devices)

    def step(self, devices: int, batch_size: int) -> float:
        if devices == 1:
            return self.compute(batch_size)
        averaging = self.factor * self.ring(devices, self.gradient_bytes)
        return (self.alone(devices, batch_size) ** self.overlap + averaging**self.overlap) ** (1 / self.overlap)


def made_up_pass(
    world: World,
    counts: Sequence[int] = (1, 2, 4),
    batch_sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
    rounds: int = 7,
    own: int = 64,
    seed: int = 0,
) -> ScalingPass:
    """What a timing pass would have measured."""
    rng = np.random.default_rng(seed)
    slow = np.exp(world.drift * np.linspace(0.0, 1.0, rounds))

    def windows(seconds: float) -> tuple[float, ...]:
        return tuple(float(s) for s in seconds * slow * np.exp(world.noise * rng.standard_normal(rounds)))

    passes = []
    for n in counts:
        timings = []
        for b in (b for b in batch_sizes if b >= n):
            phases = {"alone": windows(world.alone(n, b))} if n > 1 else {}
            timings.append(StepTiming(b, 10, windows(world.step(n, b)), windows(world.compute(own)), phases))
        passes.append(TimingPass(own, tuple(timings), Conditions(world_size=n), abs(world.drift)))
    sizes = sorted({*(4**k for k in range(6, 14)), world.gradient_bytes})
    reduces = [AllReduceTiming(n, m, windows(world.ring(n, m))) for n in counts if n > 1 for m in sizes]
    return ScalingPass(tuple(passes), tuple(reduces), world.gradient_bytes, (world.gradient_bytes,))
