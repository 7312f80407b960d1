"""Does the model of step time, fitted on few devices, foretell many? A step of data parallel training, simulated.

Every device computes for a time of its own (log-normal jitter), its gradients come in pieces while it goes backward,
and each piece goes round a ring, pass by pass, device by device, once all devices' own link is free. Nothing of that is
in the formula that `scale` fits: so it is fitted to simulated passes on 1 to 8 devices and asked for 16 to 1,024. The
estimate compared is that over a ring, as is simulated; the interval is what `scale` says, which does not know whether a
library takes a ring or a tree there.

    efficiency = seconds on one device at its share / seconds on n devices            (weak scaling)

Links are described by their published bandwidth in one direction; latencies, and the computing, are assumptions:

    NVLink 4 (H100, NVIDIA data sheet)           450 GB/s, 3 us
    InfiniBand NDR, one port a device             50 GB/s, 5 us
    100 Gbit/s Ethernet                         12.5 GB/s, 15 us
    10 Gbit/s Ethernet                          1.25 GB/s, 50 us

The network: 25.6 million parameters (ResNet-50's number) in 32 bits, 64 examples on each device, 4 ms and 0.4 ms an
example; two thirds of a step are backward.

    python benchmarks/scaling_simulation.py [--steps 20] [--save]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchscope.analysis.network import ring_seconds
from batchscope.analysis.scaling import Predictor
from batchscope.measure.scaling import buckets_of
from batchscope.records import AllReduceTiming, Conditions, Network, ScalingPass, StepTiming, TimingPass
from environment import RESULTS, environment, save

LINKS = {
    "NVLink 4": Network(3e-6, 450e9),
    "InfiniBand NDR": Network(5e-6, 50e9),
    "100 Gbit/s Ethernet": Network(15e-6, 12.5e9),
    "10 Gbit/s Ethernet": Network(50e-6, 1.25e9),
}
OVERHEAD, PER_EXAMPLE, BACKWARD, JITTER = 4e-3, 4e-4, 2 / 3, 0.02
PARAMETERS = [4 * 25_600_000 // 50] * 50  # bytes of 50 layers alike
SHARES = (8, 16, 32, 64, 128)  # examples on each device
MEASURED, ASKED = (1, 2, 4, 8), (16, 32, 64, 128, 256, 512, 1024)
SHARE, ROUNDS = 64, 7

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices on a ring."""

    link: Network
    devices: int

    def all_reduce(self, ready: Array, free: Array, size: float) -> Array:
        """When each device has the sum of a piece of `size` bytes, pass by pass.

        Device i waits in each pass for what device i - 1 has sent; it begins when it has its own and its link is free.
        """
        at = np.maximum(ready, free)
        piece = size / self.devices / self.link.bandwidth
        for _ in range(2 * (self.devices - 1)):
            at = np.maximum(at, np.roll(at, 1)) + self.link.latency + piece
        return at

    def step(self, share: int, buckets: Sequence[int], averages: bool, rng: np.random.Generator) -> float:
        """Seconds of one step in which each device has `share` examples: of the slowest."""
        alone = (OVERHEAD + PER_EXAMPLE * share) * np.exp(JITTER * rng.standard_normal(self.devices))
        if not averages or self.devices == 1:
            return float(alone.max())
        forward, backward = (1 - BACKWARD) * alone, BACKWARD * alone
        free, done = np.zeros(self.devices), 0.0
        for size in buckets:
            done += size
            free = self.all_reduce(forward + backward * done / sum(buckets), free, size)
        return float(np.maximum(alone, free).max())


def simulated(link: Network, counts: Sequence[int], steps: int, rng: np.random.Generator) -> ScalingPass:
    """What a timing pass over these device counts would have measured."""
    buckets = buckets_of(PARAMETERS)
    passes, reduces = [], []
    for n in counts:
        machine, timings = Machine(link, n), []

        def windows(share: int, averages: bool, machine: Machine = machine) -> tuple[float, ...]:
            draws = [[machine.step(share, buckets, averages, rng) for _ in range(steps)] for _ in range(ROUNDS)]
            return tuple(float(np.mean(row)) for row in draws)

        for share in SHARES:
            phases = {"alone": windows(share, False)} if n > 1 else {}
            timings.append(StepTiming(share * n, steps, windows(share, True), (1.0,) * ROUNDS, phases))
        passes.append(TimingPass(SHARE, tuple(timings), Conditions(world_size=n)))
        if n > 1:
            for size in (4096, 65536, 2**20, 2**24, 2**27):
                seconds = float(machine.all_reduce(np.zeros(n), np.zeros(n), size).max())
                noise = np.exp(0.02 * rng.standard_normal(ROUNDS))
                reduces.append(AllReduceTiming(n, size, tuple(float(seconds * x) for x in noise)))
    return ScalingPass(tuple(passes), tuple(reduces), sum(PARAMETERS), buckets)


def main() -> None:
    """Fit on few devices, predict many, simulate them, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="of a simulated window")
    parser.add_argument("--save", action="store_true", help="write table and figure to benchmarks/results/")
    arguments = parser.parse_args()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    rows = [row for name, link in LINKS.items() for row in of_link(name, link, arguments.steps)]
    if arguments.save:
        print(save("scaling_simulation", {"environment": where, "rows": rows}))
        print(drawn(rows))


def of_link(name: str, link: Network, steps: int) -> list[dict[str, Any]]:
    """Predicted and simulated seconds at every device count."""
    rng = np.random.default_rng(0)
    predictor = Predictor(simulated(link, MEASURED, steps, rng))
    print(f"{name}: overlap {predictor.model.overlap:.2f}, factor {predictor.model.factor:.2f}")
    one = OVERHEAD + PER_EXAMPLE * SHARE
    rows = []
    for n in (*MEASURED, *ASKED):
        machine = Machine(link, n)
        seconds = float(np.mean([machine.step(SHARE, predictor.buckets, True, rng) for _ in range(steps)]))
        told = predictor.predicted((n, SHARE * n)) if n > 1 else None
        over_ring = predictor.predicted((n, SHARE * n), (False,)).estimate
        bare = sum(ring_seconds(link, n, size) for size in predictor.buckets)
        rows.append(
            {
                "link": name,
                "devices": n,
                "simulated": seconds,
                "efficiency": one / seconds,
                "predicted": None if told is None else over_ring,
                "faster_of_ring_and_tree": None if told is None else told.estimate,
                "low": None if told is None else told.low,
                "high": None if told is None else told.high,
                "all_reduce": bare,
                "fitted_on": n in MEASURED,
            }
        )
        if told is not None and over_ring and told.low and told.high:
            print(
                f"  {n:>5} devices: {1e3 * seconds:8.2f} ms, efficiency {one / seconds:4.0%}; predicted "
                f"{1e3 * over_ring:8.2f} ms ({over_ring / seconds - 1:+.1%}) [{1e3 * told.low:.1f} "
                f"{1e3 * told.high:.1f}] {'' if told.low <= seconds <= told.high else 'not held'}"
            )
    errors = [math.log(r["predicted"] / r["simulated"]) for r in rows if not r["fitted_on"]]
    print(f"  largest error beyond {MEASURED[-1]} devices: {max(map(abs, errors)):.1%}")
    return rows


def drawn(rows: Sequence[dict[str, Any]]) -> str:
    """Efficiency against devices, simulated points on predicted lines with their bands; as SVG."""
    import altair as alt

    one = OVERHEAD + PER_EXAMPLE * SHARE
    values = [
        {**r, "told": one / r["predicted"], "best": min(1.0, one / r["low"]), "worst": one / r["high"]}
        for r in rows
        if r["predicted"]
    ]
    values = [v for v in values if v["devices"] > 1]
    x = alt.X("devices:Q", title="devices", scale=alt.Scale(type="log", base=2))
    axis = alt.Axis(format="%")
    y = alt.Y("told:Q", title="efficiency (one device = 100 %)", axis=axis, scale=alt.Scale(domain=[0, 1]))
    colour = alt.Color("link:N", title="link", sort=list(LINKS))
    base = alt.Chart(alt.Data(values=values)).encode(x=x, color=colour)
    picture = (
        base.mark_area(opacity=0.15).encode(y=alt.Y("worst:Q", title=""), y2="best:Q")
        + base.mark_line().encode(y=y)
        + base.mark_point(filled=True, size=45).encode(y="efficiency:Q")
    ).properties(
        width=560, height=320, title="Weak scaling, 64 examples a device: predicted from 1 to 8 devices, and simulated"
    )
    path = RESULTS / "scaling_simulation.svg"
    picture.save(str(path))
    return str(path)


if __name__ == "__main__":
    main()
