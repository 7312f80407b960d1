"""Are the numbers behind `recommend` calibrated? Coverage, P(best), regret and spending over simulated studies.

Tasks and machines of which everything is known (`advice_worlds`) ask for advice: `verbs.deciding` chooses the runs,
`analysis.advice` answers, only the runs and the timing windows are drawn.

    coverage   share of studies whose 90 % interval of seconds to goal at the recommended point holds the truth
    ECE        expected calibration error of P(best) over all candidates, ten bins: sum of share |mean P - truly best|
    top        the same of the most probable candidate of each study alone, a stricter figure
    regret     true seconds to goal at the recommended point over those of the best point that there is

Targets (`--check` exits 1 where one is missed, with no allowance for the simulation's own error): over all studies with
the default budget, 10 reference runs, coverage 87 to 93 % and ECE at most 0.05; no study ever passes its budget.

    python benchmarks/advice_calibration.py [--studies 600] [--others 120] [--seed K] [--save] [--check]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy

from advice_worlds import FALLS, QUADRATIC, RANGES, RISES, Simulated, world
from batchscope.analysis.advice import analyse_advice
from environment import environment, save

BUDGETS, DEFAULT = (3.0, 5.0, 20.0), 10.0
LEAST, MOST, WORST_ERROR = 0.87, 0.93, 0.05
BINS, PROCESSES, NICE, EVERY = 10, 2, 10, 50


@dataclass(frozen=True)
class Outcome:
    """What one study said, beside the truth; None where it could not recommend any point."""

    seed: int
    budget: float
    octaves: float  # of the own learning rate beside the best one there
    noise: float | None  # noise scale that was measured, over the true critical batch size
    quadratic: bool
    regret: float | None
    covered: bool | None
    high_over_low: float | None
    verified: bool
    b_crit_covered: bool
    spent: float  # reference runs
    runs: int
    p_best: tuple[float, ...]  # of the candidates
    best: tuple[bool, ...]  # whether it is truly the best of them

    @property
    def known(self) -> bool:
        """Whether the own learning rate was about the best."""
        return abs(self.octaves) <= 0.5


def study(asked: tuple[int, float]) -> Outcome:
    """One study from its question to its answer, and the truth."""
    seed, budget = asked
    true = world(seed)
    simulated = Simulated(true, budget)
    advice = analyse_advice(simulated.run())
    options = simulated.options
    logs = [
        true.log_examples(c.batch_size, math.log2(c.learning_rate)) + true.log_seconds(options[c.batch_size])
        for c in advice.candidates
    ]
    regret, covered, wide = None, None, None
    if advice.chosen is not None:
        seconds, found = advice.chosen.seconds_to_goal, logs[advice.candidates.index(advice.chosen)]
        low, high = seconds.low or 0.0, seconds.high or math.inf
        regret = math.exp(found - true.fastest(list(options.values())))
        covered, wide = low <= math.exp(found) <= high, high / low
    critical = advice.critical_batch_size
    return Outcome(
        seed=seed,
        budget=budget,
        octaves=true.own_rate - true.best_rate,
        noise=None if true.noise is None else true.noise / true.b_crit,
        quadratic=true.quadratic,
        regret=regret,
        covered=covered,
        high_over_low=wide,
        verified=advice.verified,
        b_crit_covered=(critical.low or 0.0) <= true.b_crit <= (critical.high or math.inf),
        spent=advice.spent.reference_runs,
        runs=advice.spent.trials,
        p_best=tuple(c.p_best for c in advice.candidates),
        best=tuple(k == int(np.argmin(logs)) for k in range(len(logs))),
    )


# --- what they say together ---


def calibration(chances: Sequence[float], came: Sequence[bool]) -> tuple[float, list[tuple[float, float, int]]]:
    """(expected calibration error, (mean probability, share that came true, count) of each bin that holds any)."""
    p, true = np.array(chances), np.array(came, float)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    found = [(float(p[bins == k].mean()), float(true[bins == k].mean()), int((bins == k).sum())) for k in set(bins)]
    error = sum(abs(said - share) * count for said, share, count in found) / len(p)
    return error, sorted(found)


def line_of(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One line of the table."""
    answered = [o for o in outcomes if o.regret is not None]
    regrets = [o.regret for o in answered if o.regret is not None]
    error, bins = calibration([p for o in outcomes for p in o.p_best], [b for o in outcomes for b in o.best])
    top = [max(range(len(o.p_best)), key=lambda k, o=o: o.p_best[k]) for o in outcomes]
    top_error, top_bins = calibration(
        [o.p_best[k] for o, k in zip(outcomes, top, strict=True)],
        [o.best[k] for o, k in zip(outcomes, top, strict=True)],
    )
    return {
        "name": name,
        "studies": len(outcomes),
        "answered": len(answered),
        "verified": statistics.mean(o.verified for o in answered),
        "coverage": statistics.mean(bool(o.covered) for o in answered),
        "error_p_best": error,
        "error_p_best_top": top_error,
        "median_regret": statistics.median(regrets),
        "p90_regret": float(np.quantile(regrets, 0.9)),
        "worst_regret": max(regrets),
        "median_spent": statistics.median(o.spent for o in outcomes),
        "largest_share_spent": max(o.spent / o.budget for o in outcomes),
        "median_runs": statistics.median(o.runs for o in outcomes),
        "median_high_over_low": statistics.median(o.high_over_low for o in answered if o.high_over_low is not None),
        "coverage_b_crit": statistics.mean(o.b_crit_covered for o in outcomes),
        "bins_p_best": bins,
        "bins_p_best_top": top_bins,
    }


KINDS: dict[str, Callable[[Outcome], bool]] = {
    "own rate within half an octave": lambda o: o.known,
    "own rate further off": lambda o: not o.known,
    "no noise scale": lambda o: o.noise is None,
    "noise scale off by 0.3 to 6": lambda o: o.noise is not None,
    "a quadratic's learning rates": lambda o: o.quadratic,
    "the model's learning rates": lambda o: not o.quadratic,
}


def table_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The default budget, what it is made of, and the other budgets."""
    default = [o for o in outcomes if o.budget == DEFAULT]
    groups = {"budget 10": default} | {name: [o for o in default if kind(o)] for name, kind in KINDS.items()}
    groups |= {f"budget {b:g}": [o for o in outcomes if o.budget == b] for b in BUDGETS}
    return [line_of(name, group) for name, group in groups.items() if any(o.regret is not None for o in group)]


def missed(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The targets of the header that are not met."""
    first, found = lines[0], []
    if not LEAST <= first["coverage"] <= MOST:
        found.append(f"coverage {first['coverage']:.1%}")
    if first["error_p_best"] > WORST_ERROR:
        found.append(f"expected calibration error {first['error_p_best']:.3f}")
    found += [f"{line['name']} was passed" for line in lines if line["largest_share_spent"] > 1.0]
    return found


def printed(lines: Sequence[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'':30}|          |    covers     | error of P(best) |   regret             |   median")
    print(f"{'':30}|  studies | B_crit   time |  all   top       | median   90 %  worst |  spent  runs")
    for line in lines:
        print(
            f"{line['name']:30s}| {line['answered']:3d}/{line['studies']:4d} | {line['coverage_b_crit']:5.1%}  "
            f"{line['coverage']:5.1%} | {line['error_p_best']:.3f} {line['error_p_best_top']:.3f}      | "
            f"{line['median_regret']:6.3f} {line['p90_regret']:6.3f} {line['worst_regret']:5.2f} | "
            f"{line['median_spent']:6.2f} {line['median_runs']:5.0f}   high/low {line['median_high_over_low']:.2f}"
        )


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=600, help="with the default budget")
    parser.add_argument("--others", type=int, default=120, help="with each other budget")
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target in the header is missed")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    args = parser.parse_args()
    where = environment() | {"numpy": np.__version__, "scipy": scipy.__version__}
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    asked = [(args.seed + k, DEFAULT) for k in range(args.studies)]
    asked += [(args.seed + k, budget) for budget in BUDGETS for k in range(args.others)]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started: the matrices are small
    begun, outcomes = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(PROCESSES, os.nice, (NICE,)) as pool:
        for outcome in pool.imap(study, asked):
            outcomes.append(outcome)
            if len(outcomes) % EVERY == 0:
                print(f"{len(outcomes)} of {len(asked)} studies, {time.monotonic() - begun:.0f} s", flush=True)
    lines = table_of(outcomes)
    printed(lines)
    wrong = missed(lines)
    print("missed: " + ", ".join(wrong) if wrong else "all targets met")
    if args.save:
        drawn = {"ranges": RANGES, "rises": RISES, "falls": FALLS, "quadratic": QUADRATIC, "first_seed": args.seed}
        studies = [asdict(o) for o in outcomes]
        print(save("advice_calibration", {"environment": where, "drawn": drawn, "lines": lines, "studies": studies}))
    return 1 if args.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
