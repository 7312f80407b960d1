"""How long does it take to average m bytes of gradients over n devices?

    ring   2 (n - 1) (latency + m / (n bandwidth))          all pass pieces of m / n bytes on, 2 (n - 1) times
    tree   2 ceil(log2 n) latency + 2 m / bandwidth         up and down a (double, pipelined) binary tree

(Patarasuk & Yuan 2009; Sanders, Speck & Traeff 2009). Latency and bandwidth are fitted to bare all-reduces of the
device counts and sizes that were timed, as rings, least squares on log seconds. A real all-reduce is not that smooth
(it changes its algorithm, messages outgrow caches): seconds at a measured device count are therefore interpolated in
what was timed, log against log, and at other counts the rings' are corrected by what the fit misses at that size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from batchscope.analysis.uncertainty import of_rounds
from batchscope.records import AllReduceTiming, Measured, Network, NetworkFit

Array = NDArray[np.float64]
Seconds = Mapping[tuple[int, int], float]  # (devices, bytes) -> of one all-reduce

LEAST_SIZES = 3  # two parameters and one degree of freedom


def ring_seconds(link: Network, devices: int, size: float) -> float:
    """Of an all-reduce of `size` bytes as a ring; 0 on one device."""
    return 2.0 * (devices - 1) * (link.latency + size / (devices * link.bandwidth))


def tree_seconds(link: Network, devices: int, size: float) -> float:
    """The same over a double binary tree."""
    return 2.0 * math.ceil(math.log2(devices)) * link.latency + 2.0 * size / link.bandwidth if devices > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Reduce:
    """Seconds of an all-reduce: measured ones where there are any, and a link for the rest."""

    link: Network
    measured: Seconds = dataclasses.field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything was measured, or a link described."""
        return bool(self.measured) or math.isfinite(self.link.bandwidth)

    def seconds(self, devices: int, sizes: Sequence[int], tree: bool = False) -> float:
        """Of pieces of so many bytes, one after the other; 1 s where nothing is known."""
        if not self.known:
            return 1.0
        return sum(self._one(devices, size, tree) for size in sizes) if devices > 1 else 0.0

    def _one(self, devices: int, size: int, tree: bool) -> float:
        formula = tree_seconds if tree else ring_seconds
        counts = {n for n, _ in self.measured}
        if not counts:
            return formula(self.link, devices, size)
        if devices in counts:
            return self._interpolated(devices, size)
        nearest = min(counts, key=lambda n: abs(math.log(n / devices)))
        missed = self._interpolated(nearest, size) / ring_seconds(self.link, nearest, size)
        return formula(self.link, devices, size) * missed

    def _interpolated(self, devices: int, size: int) -> float:
        """Log against log between the measured sizes; beyond them as the nearest is missed by the ring."""
        known = sorted(m for n, m in self.measured if n == devices)
        at = float(np.clip(size, known[0], known[-1]))
        logs = np.interp(math.log(at), np.log(known), [math.log(self.measured[devices, m]) for m in known])
        return math.exp(logs) * ring_seconds(self.link, devices, size) / ring_seconds(self.link, devices, at)


def medians(timings: Sequence[AllReduceTiming]) -> dict[tuple[int, int], float]:
    """The median window of each."""
    return {(t.devices, t.bytes): float(np.median(t.seconds)) for t in timings}


def in_round(timings: Sequence[AllReduceTiming], number: int) -> dict[tuple[int, int], float]:
    """The windows of one round."""
    return {(t.devices, t.bytes): t.seconds[number] for t in timings}


def fit_link(seconds: Seconds) -> Network:
    """Least squares on the logs of rings' seconds; both are positive."""
    places = list(seconds)
    logs = np.log([seconds[place] for place in places])
    small = min(places, key=lambda p: p[1])
    large = max(places, key=lambda p: p[1])
    first = np.log([seconds[small] / (2 * (small[0] - 1)), 2 * (large[0] - 1) * large[1] / large[0] / seconds[large]])

    def residuals(x: Array) -> Array:
        link = Network(*np.exp(x))
        return np.log([ring_seconds(link, n, m) for n, m in places]) - logs

    found = optimize.least_squares(residuals, first, method="lm" if len(places) > 1 else "trf")
    latency, bandwidth = np.exp(found.x)
    return Network(float(latency), float(bandwidth))


def fit_network(timings: Sequence[AllReduceTiming]) -> NetworkFit:
    """Latency and bandwidth with intervals: each round is fitted by itself, t over their logs about the estimate."""
    middle = medians(timings)
    points = tuple((n, m, seconds) for (n, m), seconds in sorted(middle.items()))
    if len({m for _, m in middle}) < LEAST_SIZES:
        why = f"latency and bandwidth need {LEAST_SIZES} sizes of all-reduce, {len({m for _, m in middle})} were timed"
        nothing = Measured(None, None, None, 0, 0, f"none: {why}")
        return NetworkFit(nothing, nothing, math.nan, points, why)
    link, rounds = fit_link(middle), min(len(t.seconds) for t in timings)
    refits = [fit_link(in_round(timings, k)) for k in range(rounds)]
    misses = [math.log(ring_seconds(link, n, m) / seconds) for n, m, seconds in points]
    sd = math.sqrt(sum(x * x for x in misses) / max(1, len(misses) - 2))
    latency = about(link.latency, [r.latency for r in refits])
    return NetworkFit(latency, about(link.bandwidth, [r.bandwidth for r in refits]), sd, points)


def about(estimate: float, refits: Sequence[float]) -> Measured:
    """A positive estimate from the medians, with the interval of the same from single rounds."""
    rounds = of_rounds(np.array(refits))
    if rounds.low is None or rounds.high is None or rounds.estimate is None:
        return dataclasses.replace(rounds, estimate=estimate)
    half = math.log(rounds.high / rounds.estimate)
    method = f"t on logs of the fits of {len(refits)} single rounds, {len(refits) - 1} df"
    return Measured(estimate, estimate * math.exp(-half), estimate * math.exp(half), len(refits), 0, method)
