"""Does a batch that grows during training take fewer steps than the best fixed one, at equal examples and equal loss?

`fashion-mnist-mlp`, EPOCHS for everybody. Fixed batch sizes, each with its learning rate tuned (RATES of them on one
seed, extended while the best lies on the edge), give a curve: lowest validation loss against steps. The controller
begins at the batch size FIRST, its learning rate tuned alike, and grows by the measured noise scale, as a power of the
steps, or on plateau. Its loss is found on the curve of the same seed, log loss linear in log steps between two sizes:

    ratio = steps that the fixed batch takes which ends at the controller's loss / the controller's own steps

with a t interval on the logarithms, paired by seed; once beside fixed batches at a constant learning rate, as the
controller's, and once beside fixed ones whose rate is brought to 0 along a cosine, tuned alike. Where a seed's loss
lies beyond the curve there is only a bound, the least or the most that every seed allows. Seeds that report have not
chosen. Runs are kept in .work/growing, so that the script can be stopped and run again.

    python benchmarks/growing.py [--seeds 5] [--reverse] [--save]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.remedies.base import Case, by_name
from batchscope.task import Task
from batchscope.tasks import fashion_mnist_mlp
from batchscope.training.loop import Evaluator, train
from environment import environment, save

WORK = Path(__file__).parent / ".work" / "growing"
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
FIRST, MOST = 32, 2048
EPOCHS, CADENCE = 8, 8192
RATES, TUNING_SEED = (-1, 0, 1, 2), 900  # powers of two about the square-root rule from the task's own point
RULES = ("growing batch", "growing batch (rule='power of the steps')", "growing batch (rule='on plateau')")
COSINE = "cosine"
CPU = torch.device("cpu")


class Runs:
    """Training runs, kept."""

    def __init__(self, task: Task) -> None:
        self.task, self.evaluator = task, Evaluator(task, CPU)
        self.budget = EPOCHS * task.train_size

    def one(self, remedy: str, size: int, rate: float, seed: int) -> dict[str, Any]:
        """Steps, lowest validation loss, and where the batch size went."""
        path = WORK / f"{remedy}_{size}_{rate:.6g}_{seed}.json".replace(" ", "_").replace("'", "")
        if path.exists():
            return json.loads(path.read_text())
        task, control = self.task, None
        arm = Arm(size, rate)
        if remedy == COSINE:
            task = annealed(task)
        elif remedy != "none":
            case = Case(MOST, size, rate, self.task.train_size)
            task, control = by_name(remedy).apply(self.task, case), by_name(remedy).control(self.task, case)
            arm = Arm(MOST, rate, remedy=remedy, own_batch_size=size, own_learning_rate=rate)
        stop = StopRule(self.budget, CADENCE)
        result = train(task, TrialSpec(arm, seed, stop), device=CPU, evaluator=self.evaluator, control=control)
        losses = [e.validation["loss"] for e in result.trace if math.isfinite(e.validation["loss"])]
        row = {"steps": result.steps, "loss": min(losses, default=math.inf), "outcome": result.outcome}
        if result.outcome in ("diverged", "failed"):
            row["loss"] = 1e9
        pairs = [(e.step, e.examples) for e in result.trace]
        row["batch sizes"] = [
            round((x1 - x0) / (s1 - s0)) for (s0, x0), (s1, x1) in zip(pairs[::6], pairs[6::6], strict=False)
        ]
        WORK.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
        print(f"{remedy} {size} lr {rate:.4g} seed {seed}: {row}", flush=True)
        return row

    def best_rate(self, remedy: str, size: int) -> float:
        """The rate with the lowest loss on the tuning seed; further ones are tried while it lies on the edge."""
        centre = self.task.lr * math.sqrt(size / self.task.batch_size)
        tried = {k: self.one(remedy, size, centre * 2.0**k, TUNING_SEED)["loss"] for k in RATES}
        while True:
            best = min(tried, key=lambda k: tried[k])
            if best not in (min(tried), max(tried)):
                return centre * 2.0**best
            k = best - 1 if best == min(tried) else best + 1
            tried[k] = self.one(remedy, size, centre * 2.0**k, TUNING_SEED)["loss"]


def annealed(task: Task) -> Task:
    """The same with the learning rate brought to 0 along a cosine: what a growing batch may stand in for."""
    return dataclasses.replace(task, schedule=lambda o, steps: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps))


def steps_at(loss: float, curve: list[tuple[int, float]]) -> tuple[float, int]:
    """(steps of the fixed batch that ends at this loss, side); `curve`: (steps, loss).

    side 0: it was found; 1: no fixed batch is as good, it takes more than these (the best one's); -1: all are better,
    it takes fewer than these (the largest one's). Where the curve is not monotone, from its large end.
    """
    ordered = sorted(curve)  # fewest steps first: largest batch
    if ordered[0][1] <= loss:
        return float(ordered[0][0]), -1
    for (s0, l0), (s1, l1) in itertools.pairwise(ordered):
        if l1 <= loss < l0:
            share = (math.log(l0) - math.log(loss)) / (math.log(l0) - math.log(l1))
            return math.exp(math.log(s0) + share * (math.log(s1) - math.log(s0))), 0
    return float(min(ordered, key=lambda pair: pair[1])[0]), 1


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--reverse", action="store_true", help="begin at the other end: beside another process")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    where = environment()
    print("  ".join(f"{k}: {v}" for k, v in where.items()), flush=True)
    runs = Runs(fashion_mnist_mlp.task())
    arms = [(kind, size) for kind in ("none", COSINE) for size in SIZES] + [(rule, FIRST) for rule in RULES]
    seeds = list(range(arguments.seeds))
    table: dict[tuple[str, int], list[dict[str, Any]]] = {}
    rates = {}
    for arm in reversed(arms) if arguments.reverse else arms:
        rates[arm] = runs.best_rate(*arm)
        table[arm] = [runs.one(*arm, rates[arm], seed) for seed in seeds]
    for arm in arms:
        losses, steps = ([row[k] for row in table[arm]] for k in ("loss", "steps"))
        print(
            f"{arm[0]:45} {arm[1]:5} lr {rates[arm]:.4g} steps {statistics.mean(steps):8.1f} loss "
            f"{statistics.mean(losses):.4f} +- {statistics.stdev(losses):.4f}"
        )
    found = [compared(rule, kind, table, seeds) for kind in ("none", COSINE) for rule in RULES]
    if arguments.save:
        plain = [{"remedy": r, "batch size": b, "learning rate": rates[r, b], "runs": table[r, b]} for r, b in arms]
        print(save("growing", {"environment": where, "epochs": EPOCHS, "arms": plain, "ratios": found}))


def compared(
    rule: str, kind: str, table: dict[tuple[str, int], list[dict[str, Any]]], seeds: list[int]
) -> dict[str, Any]:
    """One rule against the curve of the fixed batch sizes."""
    logs, sides = [], []
    for seed in seeds:
        own = table[rule, FIRST][seed]
        curve = [(table[kind, size][seed]["steps"], table[kind, size][seed]["loss"]) for size in SIZES]
        steps, side = steps_at(own["loss"], curve)
        logs.append(math.log(steps / own["steps"]))
        sides.append(side)
    row = {"rule": rule, "beside": "fixed, constant rate" if kind == "none" else "fixed, cosine"} | ratio_of(
        logs, sides
    )
    row |= {"no fixed one as good": sides.count(1), "all fixed ones better": sides.count(-1), "seeds": len(seeds)}
    said = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("ratio", "low", "high"))
    print(
        "{}, beside {}: the fixed batch of equal loss takes {} [{}, {}] times its steps; in {} of {} seeds no fixed "
        "batch is as good, in {} all are better".format(
            rule, row["beside"], *said, sides.count(1), len(seeds), sides.count(-1)
        )
    )
    return row


def ratio_of(logs: list[float], sides: list[int]) -> dict[str, float | None]:
    """The mean ratio with its t interval; with bounds among the seeds only what all of them allow."""
    if not any(sides):
        mean = statistics.mean(logs)
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}
    least = min(logs) if min(sides) >= 0 else None
    most = max(logs) if max(sides) <= 0 else None
    return {
        "ratio": None,
        "low": None if least is None else math.exp(least),
        "high": None if most is None else math.exp(most),
    }


if __name__ == "__main__":
    main()
