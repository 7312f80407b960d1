"""Is `recommend` right where tuning is hard? Small tasks whose own point lies badly, against the best that there is.

The tasks are those of `tests/verbs/hard_tasks.py`, with made-up seconds per step. For each: a scan of batch sizes
(powers of two) and learning rates (powers of sqrt 2 of the own one) with two seeds, its best cells again with thirty
fresh ones; then `recommend` five times, with the seeds 0 to 4, and its point with the same thirty.

    regret = geometric mean over seeds of seconds to goal at the recommended point / at the best cell
    gain   = the same of the task's own point / of the recommended one

A run that does not reach the goal counts with LOST times its budget. Coverage: whether the advice's 90 % interval of
seconds to goal, which is of runs that reach it, holds the geometric mean of the fresh ones that do.

`--check` wants of every answer: the budget was never passed; the point reaches the goal in most of the fresh runs;
and over the tasks the issue's bounds on regret, and coverage within what so few answers allow about 90 %.

    python benchmarks/hard_advice.py [case ...] [--repeats 5] [--save] [--check]
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from batchscope.analysis.target import crossing, effective_batch_size
from batchscope.records import Arm, StopRule, TrialSpec, json_safe
from batchscope.sweep.plan import default_cadence
from batchscope.task import Task
from batchscope.training.loop import Evaluator, train
from batchscope.verbs.recommend import recommend
from environment import environment, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verbs"))
hard_tasks = importlib.import_module("hard_tasks")

CPU = torch.device("cpu")
COARSE, FRESH = (200, 201), tuple(range(300, 330))
OCTAVES = (-4, 6)  # of learning rates that are scanned, about the own one scaled with the root of the batch size
CUT = 3.0  # times the best seconds so far: a run of the scan is cut off there
NEAR = 1.4  # times the best: these cells get fresh seeds
MOST_NEAR = 6
PATIENCE_EPOCHS = 5.0
LOST = (
    10.0  # budgets that a run which does not reach the goal counts with: a sure point is to beat a lucky one (a guess)
)
LEVEL = 0.90  # of the intervals
MEDIAN, WORST = 1.05, 1.20  # bounds on the regret: its median, and the lower end of the worst (issue: recommend)

Point = tuple[int, float]


@dataclass
class Case:
    """A task with its seconds, and what is known of it."""

    task: Task
    knee: float

    def __post_init__(self) -> None:
        assert self.task.goal is not None
        self.goal = self.task.goal
        self.evaluator = Evaluator(self.task, CPU)
        self.budget = self.task.budget_examples
        self.cadence = default_cadence(self.task.train_size, self.budget)

    def seconds_per_example(self, size: int) -> float:
        """As `hard_tasks.made_up_timing` makes them up."""
        return 1e-3 * (1 + size / self.knee) / effective_batch_size(self.task.train_size, size)

    def seconds(self, point: Point, seed: int, most: float = math.inf) -> tuple[float, bool]:
        """(seconds to goal, reached); not reached counts with LOST budgets. Cut off at `most` seconds."""
        each = self.seconds_per_example(point[0])
        cap = min(self.budget, math.ceil(most / each)) if math.isfinite(most) else self.budget
        stop = StopRule(self.budget, self.cadence, PATIENCE_EPOCHS, self.goal, None if cap >= self.budget else cap)
        result = train(
            self.task,
            TrialSpec(Arm(*point), seed, stop),
            device=CPU,
            evaluator=self.evaluator,
            goal=self.goal,
            crossed=lambda trace, goal: crossing(trace, goal) is not None,
        )
        found = crossing(result.trace, self.goal)
        return (LOST * self.budget if found is None else found.examples) * each, found is not None

    def logs(self, point: Point, seeds: Sequence[int], most: float = math.inf) -> np.ndarray:
        """Log seconds of every seed."""
        return np.log([self.seconds(point, seed, most)[0] for seed in seeds])


def scan(case: Case) -> tuple[Point, np.ndarray]:
    """(the best cell, log seconds of its fresh seeds)."""
    task, best = case.task, math.inf
    found: dict[Point, float] = {}
    for size in [2**k for k in range(2, task.train_size.bit_length())]:
        about = 0.5 * math.log2(size / task.batch_size)
        for k in range(math.ceil(2 * (OCTAVES[0] + about)), math.floor(2 * (OCTAVES[1] + about)) + 1):
            point = (size, task.lr * 2.0 ** (k / 2))
            found[point] = float(np.mean(case.logs(point, COARSE, CUT * best)))
            best = min(best, math.exp(found[point]))
    near = sorted(found, key=lambda point: found[point])[:MOST_NEAR]
    near = [point for point in near if found[point] < math.log(NEAR * best)]
    fresh = {point: case.logs(point, FRESH) for point in near}
    least = min(near, key=lambda point: fresh[point].mean())
    return least, fresh[least]


def ask(name: str, case: Case, seed: int, truth: np.ndarray) -> dict[str, Any]:
    """One `recommend`, and what its point is worth."""
    with tempfile.TemporaryDirectory() as folder:
        advice = recommend(
            case.task,
            seed=seed,
            timing=hard_tasks.made_up_timing(case.task, case.knee),
            store=Path(folder) / "a.db",
            draw=False,
        )
    row: dict[str, Any] = {
        "case": name,
        "seed": seed,
        "spent": advice.spent.reference_runs,
        "runs": advice.spent.trials,
    }
    chosen = advice.chosen
    if chosen is None:
        return row | {"batch_size": None}
    point = (chosen.batch_size, chosen.learning_rate)
    runs = [case.seconds(point, s) for s in FRESH]
    logs = np.log([seconds for seconds, _ in runs])
    own = case.logs((case.task.batch_size, case.task.lr), FRESH)
    low, high = chosen.seconds_to_goal.low or math.nan, chosen.seconds_to_goal.high or math.nan
    regret, least = _ratio(logs - truth)
    return row | {
        "batch_size": point[0],
        "learning_rate": point[1],
        "verified": advice.verified,
        "p_best": chosen.p_best,
        "limit": advice.binding_limit,
        "reached": sum(reached for _, reached in runs) / len(runs),
        "regret": regret,
        "low": least,
        "gain": float(np.exp((own - logs).mean())),
        "covers": bool(low <= math.exp(np.mean([math.log(s) for s, there in runs if there])) <= high),
        "critical": [advice.critical_batch_size.low, advice.critical_batch_size.high],
    }


def _ratio(differences: np.ndarray) -> tuple[float, float]:
    """(geometric mean, lower end of its 95 % interval, t over the paired seeds)."""
    n = len(differences)
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n))
    return float(np.exp(differences.mean())), float(np.exp(differences.mean() - half))


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    head = f"{row['case']:15} seed {row['seed']} spent {row['spent']:5.2f} in {row['runs']:2} runs"
    if row["batch_size"] is None:
        return f"{head}: no answer"
    return (
        f"{head}: {row['batch_size']:4} at {row['learning_rate']:.4g}, regret {row['regret']:.3f} (from "
        f"{row['low']:.3f}), own/it {row['gain']:.2f}, reached {row['reached']:.0%}, verified {row['verified']}, "
        f"P(best) {row['p_best']:.0%}, covers {row['covers']}, {row['limit']}"
    )


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What of the header does not hold."""
    wrong = [f"{r['case']} {r['seed']}: spent {r['spent']:.2f} of 10" for r in rows if r["spent"] > 10]
    wrong += [f"{r['case']} {r['seed']}: no answer" for r in rows if r["batch_size"] is None]
    found = [r for r in rows if r["batch_size"] is not None]
    wrong += [f"{r['case']} {r['seed']}: reached {r['reached']:.0%}" for r in found if r["reached"] <= 0.5]
    median = statistics.median(r["regret"] for r in found)
    worst = max(r["low"] for r in found)
    wrong += [f"median regret {median:.3f} > {MEDIAN}"] * (median > MEDIAN)
    wrong += [f"worst regret, lower end {worst:.3f} > {WORST}"] * (worst > WORST)
    covered = sum(r["covers"] for r in found)
    least = int(stats.binom.ppf(0.025, len(found), LEVEL))
    wrong += [f"intervals hold {covered} of {len(found)}, fewer than {least}"] * (covered < least)
    return wrong


def main() -> int:
    """Scan, ask, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=hard_tasks.CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, best = [], {}
    for name in asked.cases:
        case = Case(getattr(hard_tasks, name)(), hard_tasks.KNEES.get(name, hard_tasks.KNEE))
        point, truth = scan(case)
        best[name] = {"batch_size": point[0], "learning_rate": point[1], "seconds": float(np.exp(truth.mean()))}
        print(f"{name}: the best is {point[0]} at {point[1]:.4g}, {best[name]['seconds']:.4g} s", flush=True)
        for seed in range(asked.repeats):
            rows.append(ask(name, case, seed, truth))
            print(line(rows[-1]), flush=True)
    wrong = missed(rows)
    print("\n".join(f"MISSED {w}" for w in wrong) or "all hold")
    if asked.save:
        print(save("hard_advice", {"environment": environment(), "best": best, "rows": json_safe(rows)}))
    return 1 if asked.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
