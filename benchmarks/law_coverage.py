"""Do the law's 95 % intervals cover, and is the fit fast enough to be made at every drawing of a report?

Simulates studies that obey S(B) = S_min (1 + B_crit / B) with lack of fit tau between batch sizes, noise sigma between
seeds and, in one line, a shift that each seed has at every batch size; fits them with `analysis.tradeoff.fit_law`.

Targets (`--check` exits 1 where one is missed; the allowance for the simulation itself is 3 binomial standard errors):
    coverage of B_crit and of S_min: 93 % to 97 % with 8 batch sizes x 3 seeds, none censored
                                     at least 93 % with a seed shift, 5 batch sizes, or batch sizes censored
    median seconds of a fit: below 0.3, largest batch sizes censored or not

    python benchmarks/law_coverage.py [--repeats N] [--seed K] [--save] [--check]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy

from batchscope.analysis.target import Value
from batchscope.analysis.tradeoff import fit_law
from batchscope.records import Measured
from environment import environment, save

EIGHT = tuple(8 * 2**i for i in range(8))
FIVE = (8, 32, 128, 512, 1024)
S_MIN, SEEDS, TRAIN_SIZE = 100.0, 3, 2**20
LEAST, MOST, SLOWEST = 0.93, 0.97, 0.3
SHARE_CENSORED = 0.2  # of the repeats: a censored fit takes ten times as long


@dataclass(frozen=True)
class Setting:
    """One line of the table; `censored`: how many of the largest batch sizes the budget mostly cuts off."""

    sizes: tuple[int, ...]
    b_crit: float
    tau: float
    sigma: float
    censored: int = 0
    shift: float = 0.0

    @property
    def two_sided(self) -> bool:
        return len(self.sizes) == 8 and not self.censored and not self.shift


SETTINGS = (
    *(Setting(EIGHT, b, t, s) for b in (20.0, 60.0, 200.0) for t, s in ((0.03, 0.02), (0.05, 0.05), (0.10, 0.10))),
    Setting(EIGHT, 60.0, 0.03, 0.03, shift=0.05),
    Setting(FIVE, 60.0, 0.05, 0.05),
    Setting(FIVE, 60.0, 0.10, 0.10),
    *(Setting(EIGHT, b, 0.05, 0.05, censored=2) for b in (20.0, 60.0, 200.0)),
    Setting(EIGHT, 60.0, 0.10, 0.10, censored=2),
    Setting(FIVE, 60.0, 0.05, 0.05, censored=1),
)


def simulate(setting: Setting, rng: np.random.Generator) -> dict[int, list[Value]]:
    """One study's steps to goal. The budget lies, in examples, half way (log) between two batch sizes' needs."""
    needs = [S_MIN * (b + setting.b_crit) for b in setting.sizes]
    k = setting.censored
    budget = math.sqrt(needs[-k - 1] * needs[-k]) if k else math.inf
    shift = setting.shift * rng.standard_normal(SEEDS)
    steps = {}
    for b, need in zip(setting.sizes, needs, strict=True):
        logs = math.log(need / b) + setting.tau * rng.standard_normal() + setting.sigma * rng.standard_normal(SEEDS)
        steps[b] = [Value(min(s, budget / b), s > budget / b) for s in np.exp(logs + shift).tolist()]
    return steps


def covers(m: Measured, truth: float) -> bool:
    """Whether the interval holds the truth; an open end holds everything on its side."""
    return (m.low or 0.0) <= truth <= (math.inf if m.high is None else m.high)


def measure(setting: Setting, repeats: int, seed: int) -> tuple[float, float, float, float, int]:
    """(coverage of B_crit, of S_min, median high/low of B_crit, median seconds of a fit, fits)."""
    rng = np.random.default_rng(seed)
    hits_b, hits_s, widths, seconds = [], [], [], []
    for _ in range(repeats):
        steps = simulate(setting, rng)
        begun = time.perf_counter()
        fit = fit_law(steps, TRAIN_SIZE)
        seconds.append(time.perf_counter() - begun)
        b, s = fit.critical_batch_size, fit.s_min
        if b.n == 0:
            continue
        hits_b.append(covers(b, setting.b_crit))
        hits_s.append(covers(s, S_MIN))
        widths.append(b.high / b.low if b.low and b.high is not None else math.inf)
    return (
        float(np.mean(hits_b)),
        float(np.mean(hits_s)),
        float(np.median(widths)),
        float(np.median(seconds)),
        len(hits_b),
    )


def missed(setting: Setting, result: tuple[float, float, float, float, int]) -> list[str]:
    """The targets of the header that a line misses."""
    *coverages, _, seconds, n = result
    wrong = []
    for name, got in zip(("B_crit", "S_min"), coverages, strict=True):
        slack = 3 * math.sqrt(LEAST * (1 - LEAST) / n)
        if got < LEAST - slack or (setting.two_sided and got > MOST + slack):
            wrong.append(f"{name} covered {100 * got:.1f} %")
    if seconds > SLOWEST:
        wrong.append(f"{seconds:.2f} s a fit")
    return wrong


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description="Coverage of the law's 95 % intervals.")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 where a target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    args = parser.parse_args()
    where = environment() | {"numpy": np.__version__, "scipy": scipy.__version__}
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    lines: list[dict[str, Any]] = []
    print("sizes censored B_crit   tau sigma shift | cover B_crit  S_min | high/low  s/fit  fits")
    failures = 0
    for s in SETTINGS:
        repeats = max(1, round(args.repeats * (SHARE_CENSORED if s.censored else 1.0)))
        result = measure(s, repeats, args.seed)
        b, m, width, seconds, n = result
        wrong = missed(s, result)
        failures += bool(wrong)
        names = ("coverage_b_crit", "coverage_s_min", "median_high_over_low", "median_seconds", "fits")
        lines.append({"setting": asdict(s), **dict(zip(names, result, strict=True)), "missed": wrong})
        print(
            f"{len(s.sizes):5d} {s.censored:8d} {s.b_crit:6.0f} {s.tau:5.2f} {s.sigma:5.2f} {s.shift:5.2f} | "
            f"{100 * b:10.1f} % {100 * m:4.1f} % | {width:8.2f} {seconds:6.3f} {n:5d}{'  MISSED: ' * bool(wrong)}"
            f"{', '.join(wrong)}",
            flush=True,
        )
    if args.save:
        print(save("law_coverage", {"environment": where, "lines": lines}))
    return 1 if args.check and failures else 0


if __name__ == "__main__":
    sys.exit(main())
