"""Does a study find the truth where the truth is known? S_min and B_crit of `noisy-quadratic`, over and over.

The truth: the least *expected* steps over the same learning rates, batch sizes and crossing rule, by the exact
recursion of moments, with the law fitted to them as the study fits it. Targets (checked with --check), 8 batch sizes,
3 seeds, tuned:
    the median estimates of S_min and B_crit within 15 % of the truth, and 90 of 100 single ones
    95 % intervals that cover the truth in at least 90 of 100 repeats, with a median high/low of at most 2.5

Training 100 studies takes hours on two cores, so --repeats are *simulated*: the study's own search, choice, fit and
seeds, on trials drawn from the task's exact first and second moments (`noisy_quadratic_truth.simulate`). --studies are
real ones, trained end to end by `bs.study`, and are held to the same intervals.

    python benchmarks/noisy_quadratic.py [--repeats 100] [--studies 3] [--save] [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchscope.analysis.target import steps_to_goal
from batchscope.analysis.tradeoff import fit_law
from batchscope.records import Conditions, LawFit, StopRule, TrialRecord, TrialResult, TrialSpec
from batchscope.sweep.plan import (
    LearningRateSearch,
    arms_of,
    default_batch_sizes,
    default_cadence,
    seeds_of,
    tuning_seeds_of,
)
from batchscope.task import Task, load_task
from batchscope.tasks.noisy_quadratic_truth import built_in, expected_steps_table, simulated_trace, true_law
from environment import environment, save

WITHIN, COVERED, WIDTH = 0.15, 0.90, 2.5


class Simulated:
    """Studies of the task without training: trials from the exact moments."""

    def __init__(self, task: Task) -> None:
        self.task, self.instance = task, built_in()
        self.sizes = default_batch_sizes(task.train_size)
        budget = task.budget_examples
        self.stop = StopRule(budget, default_cadence(task.train_size, budget))

    def trial(self, spec: TrialSpec) -> TrialRecord:
        """One trial, to its crossing or to the end that its stop rule sets."""
        end = spec.stop.cap_examples or spec.stop.budget_examples
        seed = int(spec.key(), 16) % 2**63  # a stream of its own for every trial
        trace = simulated_trace(
            self.instance,
            spec.arm.batch_size,
            spec.arm.learning_rate,
            seed,
            self.task.goal.value,
            spec.stop.cadence_examples,
            end,
        )
        result = TrialResult("not_reached", "budget", "", trace[-1].step, trace[-1].examples, trace)
        return TrialRecord(spec, result, Conditions())

    def study(self, seed: int) -> tuple[LawFit, dict[int, float]]:
        """The fitted law and the chosen learning rates of one study."""
        task = self.task
        search = LearningRateSearch(
            self.sizes, task.batch_size, task.lr, self.stop, task.goal, "fp32", tuning_seeds_of(seed)
        )
        while cells := search.next_round():
            for spec, cell in cells.items():
                search.add(cell, self.trial(spec))
        rates = {b: search.choice(b).learning_rate for b in self.sizes}
        steps: dict[int, list] = {b: [] for b in self.sizes}
        for spec in arms_of(self.sizes, rates, "fp32", self.stop, seeds_of(seed, 3)):
            b = spec.arm.batch_size
            result = self.trial(spec).result
            steps[b].append(steps_to_goal(result, task.goal, self.stop.budget_examples, task.train_size, b))
        return fit_law(steps, task.train_size), rates

    def truth(self, rates: Sequence[float]) -> dict[str, Any]:
        """The law of the least expected steps over these learning rates."""
        where = (self.task.goal.value, self.stop.cadence_examples, self.stop.budget_examples)
        table = expected_steps_table(self.instance, self.sizes, rates, *where)
        law = true_law(self.sizes, table, self.task.train_size)
        return {
            "s_min": law.s_min,
            "critical_batch_size": law.critical_batch_size,
            "learning_rates": list(rates),
            "expected_steps": np.nanmin(table, axis=1).tolist(),
            "log_residuals": law.residuals.tolist(),
        }


def row(seed: int, fit: LawFit) -> dict[str, Any]:
    """A fit as plain numbers."""
    values = {"s_min": fit.s_min, "critical_batch_size": fit.critical_batch_size}
    return {"seed": seed} | {k: [m.estimate, m.low, m.high] for k, m in values.items()}


def verdicts(rows: Sequence[dict[str, Any]], truth: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each quantity: bias of the median, share within 15 %, coverage, median and largest high/low."""
    found = {}
    for name in ("s_min", "critical_batch_size"):
        true, values = truth[name], [r[name] for r in rows]
        found[name] = {
            "truth": true,
            "median": statistics.median(v[0] for v in values),
            "within_15_percent": sum(abs(v[0] / true - 1) <= WITHIN for v in values) / len(values),
            "coverage": sum(v[1] <= true <= (v[2] or np.inf) for v in values) / len(values),
            "median_width": statistics.median((v[2] or np.inf) / v[1] for v in values),
            "largest_width": max((v[2] or np.inf) / v[1] for v in values),
        }
    return found


def real_studies(count: int) -> list[dict[str, Any]]:
    """`bs.study("noisy-quadratic")`, trained end to end, one after the other."""
    from batchscope.verbs.study import study

    rows = []
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            result = study("noisy-quadratic", policy="tuned", seed=seed, store=Path(folder) / "q.db", draw=False)
        rows.append(row(seed, result.law))
        print(f"real study {seed}: B_crit {rows[-1]['critical_batch_size']}, S_min {rows[-1]['s_min']}", flush=True)
    return rows


def main() -> None:
    """Simulate, train, compare, print; with --check fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()))
    simulated = Simulated(load_task("noisy-quadratic"))
    fits = [simulated.study(seed) for seed in range(arguments.repeats)]
    rates = sorted({rate for _, chosen in fits for rate in chosen.values()})
    spread = [rates[0] / 2, *rates, 2 * rates[-1]]
    truth = simulated.truth(spread)
    rows = [row(seed, fit) for seed, (fit, _) in enumerate(fits)]
    result = {
        "environment": where,
        "truth": truth,
        "simulated": verdicts(rows, truth),
        "simulated_rows": rows,
        "real": real_studies(arguments.studies),
    }
    missed = []
    for name, found in result["simulated"].items():
        print(f"{name}: " + "  ".join(f"{k} {v:.4g}" for k, v in found.items()))
        if abs(found["median"] / found["truth"] - 1) > WITHIN or found["within_15_percent"] < COVERED:
            missed.append(f"{name}: within 15 % in {found['within_15_percent']:.0%}")
        if found["coverage"] < COVERED:
            missed.append(f"{name}: coverage {found['coverage']:.0%}")
        if found["median_width"] > WIDTH:
            missed.append(f"{name}: median high/low {found['median_width']:.2f}")
    for real in result["real"]:
        for name in ("s_min", "critical_batch_size"):
            estimate, low, high = real[name]
            if abs(estimate / truth[name] - 1) > WITHIN or not low <= truth[name] <= (high or np.inf):
                missed.append(f"real study {real['seed']}: {name} {estimate:.4g} [{low:.4g}, {high}]")
    if arguments.save:
        print(save("noisy_quadratic", result))
    for text in missed:
        print(f"MISSED  {text}")
    sys.exit(1 if missed and arguments.check else 0)


if __name__ == "__main__":
    main()
