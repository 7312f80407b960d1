"""Which steps are metered, on a clock that passes only where it is told to?"""

from __future__ import annotations

from batchscope.measure.meter import StepMeter

TICK = 2**-10  # seconds: sums of multiples of it are exact


class Clock:
    """Stands still but where it is told to pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


def take(meter: StepMeter, clock: Clock, steps: int, size: int = 8, step: float = 16 * TICK, wait: float = 0.0) -> None:
    """Steps of known seconds, each after a known wait."""
    for _ in range(steps):
        clock.passes(wait)
        with meter.step(batch_size=size):
            clock.passes(step)
