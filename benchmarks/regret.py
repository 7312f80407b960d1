"""How much slower than the best that there is does `recommend` train, and what does it spend to find out?

For every built-in task, five repeats (seeds) and budgets of 3, 5, 10 and 20 reference runs: `recommend`, with the step
times of `oracle.py`'s table, then its point run to the goal with the ten seeds that the best cells of the table have.

    regret = geometric mean of seconds to goal at the recommended point / at the best cell,     same step times

paired by seed: the interval is t on the ten differences of logs. Nothing of the table is known to `recommend`. All
trials of a task lie in one store, so that budgets share them, and the script can be stopped and run again; what a
budget spent is counted in full all the same.

    python benchmarks/regret.py [task ...] [--repeats 5] [--budgets 3,5,10,20] [--save]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import oracle_table as oracle
from batchscope.analysis.target import crossing
from batchscope.records import (
    Advice,
    Arm,
    Conditions,
    StepTiming,
    StopRule,
    TimingPass,
    TrialSpec,
    from_plain,
    json_safe,
)
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.runner import Runner
from batchscope.task import load_task
from batchscope.training.checks import check_task
from batchscope.verbs.recommend import recommend
from environment import environment, save

WORK = Path(os.environ.get("BATCHSCOPE_REGRET", Path(__file__).parent / ".work"))
ROUNDS = 10  # as the table was timed
FIELDS = (
    "batch_size",
    "learning_rate",
    "verified",
    "regret",
    "low",
    "high",
    "spent",
    "runs",
    "width",
    "p_best",
    "covers",
)


def main() -> None:
    """Run what is missing of the tasks asked for; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=oracle.TASKS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budgets", default="3,5,10,20")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    budgets = [float(b) for b in asked.budgets.split(",")]
    WORK.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in asked.tasks:
        for seed in range(asked.repeats):
            for budget in budgets:
                rows.append(one(name, seed, budget))
                print(line(rows[-1]), flush=True)
    print("\n".join(summary(rows, budgets)))
    if asked.save:
        where = save(
            "regret", {"environment": environment(), "summary": summary(rows, budgets), "rows": json_safe(rows)}
        )
        print(where)


def one(name: str, seed: int, budget: float) -> dict[str, Any]:
    """One `recommend`, and its regret."""
    truth, store = oracle.read(name), WORK / f"regret_{name}.db"
    advice = recommend(
        load_task(name), budget=budget, seed=seed, timing=timing_of(name), store=store, draw=False
    )  # as an object: in this process, so that two tasks can be run side by side without workers being started
    row = {
        "task": name,
        "seed": seed,
        "budget": budget,
        "spent": advice.spent.reference_runs,
        "runs": advice.spent.trials,
    }
    if advice.chosen is None:
        return row | dict.fromkeys(FIELDS)
    steps = run_to_goal(name, store, advice, truth)
    return row | compared(advice, steps, truth)


def timing_of(name: str) -> TimingPass:
    """The table's step times as a pass of ROUNDS rounds that has the same medians and the same intervals."""
    table = oracle.step_times()[name]
    scores = stats.norm.ppf((np.arange(ROUNDS) + 0.5) / ROUNDS)
    scores *= math.sqrt(ROUNDS) / (scores.std(ddof=1) * stats.t.ppf(0.975, ROUNDS - 1) * math.sqrt(math.pi / 2))
    timings = []
    for size, m in table["seconds_per_step"].items():
        half = 0.5 * math.log(m["high"] / m["low"])
        windows = tuple(float(m["estimate"] * math.exp(half * z)) for z in scores)
        timings.append(StepTiming(int(size), 1, windows, ()))
    return TimingPass(timings[0].batch_size, tuple(timings), from_plain(Conditions, table["conditions"]))


def run_to_goal(name: str, store: Path, advice: Advice, truth: oracle.Oracle) -> list[float | None]:
    """Steps to goal of the recommended point, with the table's fresh seeds."""
    assert advice.chosen is not None
    task = load_task(name)
    fingerprint = check_task(task).fingerprint
    stop = StopRule(truth.budget_examples, truth.cadence_examples, oracle.PATIENCE_EPOCHS, goal=truth.goal)
    arm = Arm(advice.chosen.batch_size, advice.chosen.learning_rate)
    specs = [TrialSpec(arm, s, stop) for s in oracle.FRESH]
    with open_store(store) as opened, InlineExecutor(task) as executor:
        where = store.parent / f"{store.name}.checkpoints"
        run = Runner(
            opened, None, fingerprint, truth.conditions, truth.goal, executor, where, 30.0, lambda kind, details: None
        )
        records = run.run({"tuned": specs})["tuned"]
    found = [crossing(r.result.trace, truth.goal) for r in records]
    return [None if c is None else c.steps for c in found]


def compared(advice: Advice, steps: Sequence[float | None], truth: oracle.Oracle) -> dict[str, Any]:
    """Regret with its interval; whether the advice's interval of seconds holds what the ten seeds took."""
    chosen = advice.chosen
    assert chosen is not None
    seconds = oracle.step_seconds(truth.task)
    best = truth.best(seconds)
    assert best is not None
    reference = {run.seed: run.steps for run in best.final()}
    of_best = [math.log(reference[s] * seconds[best.batch_size]) for s in oracle.FRESH]
    own = {
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
        "verified": advice.verified,
        "p_best": chosen.p_best,
        "width": (chosen.seconds_to_goal.high or math.nan) / (chosen.seconds_to_goal.low or math.nan),
        "best": [best.batch_size, best.learning_rate],
    }
    if any(s is None for s in steps):
        return own | {"regret": math.inf, "low": None, "high": None, "covers": False}
    of_point = [math.log(s * seconds[chosen.batch_size]) for s in steps if s is not None]
    ratio = np.array(of_point) - np.array(of_best)
    half = float(stats.t.ppf(0.975, len(ratio) - 1) * ratio.std(ddof=1) / math.sqrt(len(ratio)))
    took = math.exp(statistics.fmean(of_point))
    low, high = chosen.seconds_to_goal.low, chosen.seconds_to_goal.high
    regret, least, most = (math.exp(x) for x in (ratio.mean(), ratio.mean() - half, ratio.mean() + half))
    covers = low is not None and high is not None and low <= took <= high
    return own | {"regret": regret, "low": least, "high": most, "covers": covers, "took": took}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    head = f"{row['task']:18} seed {row['seed']} R {row['budget']:4g} spent {row['spent']:5.2f} in {row['runs']:2} runs"
    if row["regret"] is None:
        return f"{head}: no answer"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}-{row['high']:.3f}]"
    return (
        f"{head}: {row['batch_size']:4} at {row['learning_rate']:.4g}, regret {row['regret']:.3f}{interval}, "
        f"best {row['best']}, verified {row['verified']}, high/low {row['width']:.2f}, covers {row['covers']}"
    )


def summary(rows: Sequence[dict[str, Any]], budgets: Sequence[float]) -> list[str]:
    """Medians and worsts, budget by budget."""
    lines = []
    for budget in budgets:
        here = [r for r in rows if r["budget"] == budget and r["regret"] is not None]
        if not here:
            continue
        regrets, lows = [r["regret"] for r in here], [r["low"] or math.inf for r in here]
        spent, width = statistics.median(r["spent"] for r in here), statistics.median(r["width"] for r in here)
        lines.append(
            f"budget {budget:g}: {len(here)} answers, regret median {statistics.median(regrets):.3f}, worst "
            f"{max(regrets):.3f} (largest lower end {max(lows):.3f}), median spend {spent:.2f} (most "
            f"{max(r['spent'] for r in here):.2f}), median high/low {width:.2f}, 90 % interval holds the ten seeds' "
            f"mean in {sum(r['covers'] for r in here)}"
        )
    return lines


if __name__ == "__main__":
    main()
