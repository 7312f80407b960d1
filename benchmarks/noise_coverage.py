"""Do the gradient noise scale's 95 % intervals cover, bounds included?

Draws the squared norms of Gaussian gradients in d dimensions exactly, for a covariance with eigenvalues ~ i^-power
(|g|^2 from d normals, the parts' spread from d chi-squares), and hands them to `analysis.noise_scale.noise_scale`.
An interval counts as covering if it holds the true ratio of the run's averages; a bound, if the ratio is not below it.

Target (`--check` exits 1 where a case misses it): 95 +- 2 % over 1,000 repeats. Cases below the line have none and show
where the method ends: it is on the safe side where |G|^2 is all but 0 (Fieller's empty set becomes a bound) and where
the true values change by as much as their noise from one measurement to the next; it covers too little where a short
series is correlated, and where errors are the sum of white and correlated ones, which differences of neighbours cannot
tell from white.

    python benchmarks/noise_coverage.py [--repeats N] [--seed K] [--save] [--check]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from batchscope.analysis.noise_scale import noise_scale
from batchscope.records import GradientNorms
from environment import environment, save

Array = NDArray[np.float64]
BATCH_SIZE, PARTS = 64, 8
LEAST, MOST = 0.93, 0.97


@dataclass(frozen=True)
class Case:
    """One line: at progress s from 0 to 1, tr(Sigma) = trace * trace_drift^s and |G|^2 = squared * squared_drift^s."""

    name: str
    measurements: int
    trace: float
    squared: float = 1.0
    trace_drift: float = 1.0
    squared_drift: float = 1.0
    correlation: float = 0.0  # of the errors of successive measurements: AR(1)
    white: float = 0.0  # share of the errors' variance that is not correlated
    shorter_every: int = 0  # each so many measurements one batch of a quarter of the size
    data_size: int | None = None
    dimensions: int = 100
    power: float = 0.5
    decay: float = 0.0  # instead of the drift: |G|^2 = squared (1 + decay / k) at measurement k
    target: bool = True


CASES = (
    Case("well resolved", 200, 50.0),
    Case("a third negative, few", 16, 700.0),
    Case("a third negative, many", 200, 700.0),
    Case("nearly always a bound", 50, 8000.0),
    Case("AR(1) 0.5", 400, 700.0, correlation=0.5),
    Case("AR(1) 0.8", 400, 700.0, correlation=0.8),
    Case("drift x30, apart", 400, 100.0, 30.0, trace_drift=30.0, squared_drift=1 / 30),
    Case("drift x30, together", 400, 100.0, 1.0, trace_drift=30.0, squared_drift=30.0),
    Case("eight measurements", 8, 100.0),
    Case("short last batches", 200, 200.0, shorter_every=8),
    Case("finite population", 100, 200.0, data_size=256),
    Case("|G|^2 all but 0", 50, 1e6, target=False),
    Case("16, few directions", 16, 50.0, dimensions=60, power=1.0, target=False),
    Case("AR(1) 0.5, 64", 64, 200.0, correlation=0.5, target=False),
    Case("AR(1) 0.8 + white", 400, 700.0, correlation=0.8, white=0.5, target=False),
    Case("precise, drift x30", 400, 3.0, 30.0, trace_drift=30.0, squared_drift=1 / 30, target=False),
    Case("|G|^2 ~ 1 + 30/k", 400, 100.0, decay=30.0, target=False),
)


def truth(case: Case) -> tuple[Array, Array, Array]:
    """tr(Sigma), |G|^2 and the batch size at every measurement."""
    k = np.arange(1.0, case.measurements + 1)
    s = (k - 1) / (case.measurements - 1)
    sizes = np.full_like(k, BATCH_SIZE)
    if case.shorter_every:
        sizes[case.shorter_every - 1 :: case.shorter_every] /= 4
    squared = case.squared * case.squared_drift**s * (1 + case.decay / k)
    return case.trace * case.trace_drift**s, squared, sizes


def norms(case: Case, repeats: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """mean_squared and parts_squared, each (repeats, measurements).

    |g|^2 = sum_j (G_j + sqrt(l_j (1/B - 1/N)) z_j)^2 and sum_i |g_i - g|^2 / R = sum_j l_j / (R m) chi^2_(R-1) are
    independent; l_j are the eigenvalues of the covariance with divisor N - 1.
    """
    trace, squared, sizes = truth(case)
    per_data = 0.0 if case.data_size is None else 1 / case.data_size
    shares = np.arange(1, case.dimensions + 1) ** -case.power
    shares /= shares.sum()
    trace = trace / (1 - per_data)
    shape = (repeats, case.measurements, case.dimensions)
    noise = np.sqrt(np.outer(trace * (1 / sizes - per_data), shares)) * rng.standard_normal(shape)
    mean = np.sum((np.sqrt(squared / case.dimensions)[:, None] + noise) ** 2, axis=-1)
    spread = (rng.chisquare(PARTS - 1, shape) @ shares) * trace / sizes
    return mean, mean + spread


def correlated(x: Array, level: Array, case: Case, rng: np.random.Generator) -> Array:
    """The same expectation (`level`) and marginal variance with AR(1) errors, and white ones beside them."""
    deviation = x - level
    errors = deviation.copy()
    for k in range(1, x.shape[1]):
        fresh = math.sqrt(1 - case.correlation**2) * deviation[:, k]
        errors[:, k] = case.correlation * errors[:, k - 1] + fresh
    white = rng.permuted(deviation, axis=0)
    return level + math.sqrt(1 - case.white) * errors + math.sqrt(case.white) * white


def measure(case: Case, repeats: int, seed: int) -> dict[str, Any]:
    """Coverage, the shares of the outcomes, the median half width of log B_simple."""
    rng = np.random.default_rng(seed)
    trace, squared, sizes = truth(case)
    weights = np.minimum(1.0, sizes / np.median(sizes))
    ratio = float(weights @ trace / (weights @ squared))
    hits, below, outcomes, widths, negative, effective = [], [], Counter(), [], [], []
    for batch in np.array_split(np.arange(repeats), max(1, repeats // 50)):
        mean, parts = norms(case, len(batch), rng)
        if case.correlation:
            spread = correlated(parts - mean, trace * (PARTS - 1) / sizes, case, rng)
            mean = correlated(mean, squared + trace / sizes, case, rng)
            parts = mean + spread
        for m, p in zip(mean.tolist(), parts.tolist(), strict=True):
            run = [
                GradientNorms(k, k * BATCH_SIZE, PARTS, b / PARTS, b, x, y)
                for k, (b, x, y) in enumerate(zip(sizes.tolist(), m, p, strict=True))
            ]
            scale = noise_scale(run, data_size=case.data_size)
            low, high = scale.b_simple.low, scale.b_simple.high
            outcomes[scale.outcome] += 1
            hits.append((low or 0.0) <= ratio <= (math.inf if high is None else high))
            below.append((low or 0.0) > ratio)
            widths.append(math.log(high / low) / 2 if low and high else math.inf)
            negative.append(scale.negative_share)
            effective.append(scale.effective_measurements)
    width = float(np.median(widths))
    return {
        "coverage": float(np.mean(hits)),
        "bound_above_truth": float(np.mean(below)),
        "shares": {name: outcomes[name] / repeats for name in ("resolved", "at_least", "not_enough")},
        "negative_share": float(np.mean(negative)),
        "median_half_width": width if math.isfinite(width) else None,
        "median_effective": float(np.median(effective)),
        "repeats": repeats,
    }


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description="Coverage of the gradient noise scale's 95 % intervals.")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 where a case misses the target")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    args = parser.parse_args()
    where = environment() | {"numpy": np.__version__, "scipy": scipy.__version__}
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    print("case                       K | cover   resolved at_least not_enough | |G|^2 < 0  half width  effective")
    lines, failures, begun = [], 0, time.perf_counter()
    for number, case in enumerate(CASES):
        if not case.target and CASES[number - 1].target:
            print("-" * 100)
        got = measure(case, args.repeats, args.seed)
        missed = case.target and not LEAST <= got["coverage"] <= MOST
        failures += missed
        lines.append({"case": asdict(case), **got, "missed": missed})
        shares = "".join(f"{100 * share:9.1f}" for share in got["shares"].values())
        width = "open" if got["median_half_width"] is None else f"{got['median_half_width']:.3f}"
        print(
            f"{case.name:23s} {case.measurements:4d} | {100 * got['coverage']:4.1f} % {shares} | "
            f"{got['negative_share']:9.2f} {width:>11s} {got['median_effective']:10.1f}{'  MISSED' * missed}",
            flush=True,
        )
    print(f"{time.perf_counter() - begun:.0f} s")
    if args.save:
        print(save("noise_coverage", {"environment": where, "lines": lines}))
    return 1 if args.check and failures else 0


if __name__ == "__main__":
    sys.exit(main())
