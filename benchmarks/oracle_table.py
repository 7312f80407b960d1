"""The oracle's table, and which trials come next: pure functions of it. See `oracle.py` for what it is.

A cell is a batch size at a learning rate, with its trials by seed; a figure of it is a geometric mean over seeds, a
bound where some did not reach. Nothing here trains, times or asks a store.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchscope.analysis.target import HOLDS_FOR, crossing
from batchscope.records import Arm, Conditions, Goal, StopRule, TrialRecord, TrialSpec, from_plain, json_safe, to_plain

TASKS = ("digits", "noisy-quadratic", "fashion-mnist-mlp", "stdlib-lm", "fashion-mnist-cnn")
BATCH_SIZES = (8, 32, 128, 512, 2048, 4096)
SMALLEST, LARGEST = 4, 4096  # that a refinement may go to: what is timed
SEEDS = (7000, 7001, 7002)  # of the search; blocks that no study's seeds fall into unless its own seed is 7
FRESH = tuple(range(7100, 7110))
NEAR = 1.25  # times the fastest cell's seconds: what gets fresh seeds
HOPELESS = 2.0  # times the fastest cell's seconds: where a trial of the search ends
TOO_EARLY = 1.5  # a cap below so many times the fastest cell's seconds, as they turn out, settles nothing
FARTHEST = 8  # factors of two from the centre that a walk goes at most
PATIENCE_EPOCHS = 5.0
HERE = Path(__file__).parent
OUT = Path(os.environ.get("BATCHSCOPE_ORACLE", HERE / "results" / "oracle"))

Seconds = Mapping[int, float]  # batch size -> seconds per step


# --- the table ---


@dataclass(frozen=True)
class Run:
    """One trial: where it crossed the goal, None where it did not; then `bound` is how many examples it needs more
    than: its cap where that ended it, else the task's budget (whatever ended it: analysis/target.py says why)."""

    seed: int
    examples: float | None
    steps: float | None
    bound: float | None
    ended_by: str
    cap: int | None
    lowest_loss: float | None  # validation; None where no evaluation was finite

    @property
    def least(self) -> float:
        """Examples to goal, or their bound."""
        found = self.examples if self.examples is not None else self.bound
        return max(found or 0.0, 1.0)


@dataclass(frozen=True)
class Figure:
    """A geometric mean over seeds, with bounds in the place of what is censored: then it is a bound itself."""

    value: float
    n: int
    censored: int
    fresh: bool  # whether these are seeds that chose nothing

    @property
    def rank(self) -> tuple[bool, float]:
        """Lower is better: no bound wins over what was reached."""
        return self.censored > 0, self.value


@dataclass(frozen=True)
class Cell:
    """All trials at one batch size and learning rate, by seed."""

    batch_size: int
    learning_rate: float
    runs: tuple[Run, ...] = ()

    def of(self, seeds: Sequence[int]) -> list[Run]:
        """The runs with these seeds, as far as they exist."""
        return [run for run in self.runs if run.seed in seeds]

    def missing(self, seeds: Sequence[int]) -> list[int]:
        """Which of these seeds it has no run of."""
        return [seed for seed in seeds if seed not in {run.seed for run in self.runs}]

    def final(self) -> list[Run]:
        """Its fresh runs once they are all there, else those of the search."""
        return self.of(SEEDS) if self.missing(FRESH) else self.of(FRESH)

    def score(self) -> tuple[bool, float, float]:
        """Of the walk, lower is better: any censored, mean log examples, and mean lowest loss where all are bounds."""
        runs = self.of(SEEDS)
        losses = [math.inf if run.lowest_loss is None else run.lowest_loss for run in runs]
        logs = statistics.fmean(math.log(run.least) for run in runs)
        return any(run.examples is None for run in runs), logs, statistics.fmean(losses)


@dataclass(frozen=True)
class Oracle:
    """The truth of one task."""

    task: str
    fingerprint: str
    conditions: Conditions
    goal: Goal
    train_size: int
    budget_examples: int
    cadence_examples: int
    own_batch_size: int
    own_learning_rate: float
    cells: tuple[Cell, ...] = ()

    def seconds_of(self, cell: Cell, seconds: Seconds | None = None) -> Figure:
        """Seconds to goal: steps to goal x seconds per step, at these step times or those of `step_times.json`."""
        per_step = (seconds or step_seconds(self.task))[cell.batch_size]
        runs = cell.final()
        effective = self.train_size / -(-self.train_size // cell.batch_size)
        steps = [run.steps if run.steps is not None else run.least / effective for run in runs]
        value = per_step * statistics.geometric_mean(max(s, 1e-9) for s in steps)
        censored = sum(run.examples is None for run in runs)
        return Figure(value, len(runs), censored, not cell.missing(FRESH))

    def best(self, seconds: Seconds | None = None) -> Cell | None:
        """The cell with the fewest seconds to goal; None where none was reached by all its seeds."""
        per_step = seconds or step_seconds(self.task)
        cells = [c for c in self.cells if c.final() and not self.seconds_of(c, per_step).censored]
        return min(cells, key=lambda c: self.seconds_of(c, per_step).rank, default=None)

    def exponent(self, cell: Cell) -> int:
        """k in learning rate = own x 2^k."""
        return round(math.log2(cell.learning_rate / self.own_learning_rate))

    def at(self, batch_size: int) -> dict[int, Cell]:
        """The cells of a batch size by exponent, ascending; those that the search has run."""
        cells = [c for c in self.cells if c.batch_size == batch_size and c.of(SEEDS)]
        return {self.exponent(c): c for c in sorted(cells, key=lambda c: c.learning_rate)}

    def cell(self, batch_size: int, exponent: int) -> Cell:
        """The cell, empty where nothing of it was run."""
        rate = self.own_learning_rate * 2.0**exponent
        found = (c for c in self.cells if (c.batch_size, c.learning_rate) == (batch_size, rate))
        return next(found, Cell(batch_size, rate))

    def with_runs(self, runs: Iterable[tuple[int, float, Run]]) -> Oracle:
        """With these (batch size, learning rate, run); a run takes the place of one with the same seed."""
        table = {(c.batch_size, c.learning_rate): {r.seed: r for r in c.runs} for c in self.cells}
        for batch_size, rate, run in runs:
            table.setdefault((batch_size, rate), {})[run.seed] = run
        cells = (Cell(b, lr, tuple(by_seed[s] for s in sorted(by_seed))) for (b, lr), by_seed in table.items())
        return dataclasses.replace(self, cells=tuple(sorted(cells, key=lambda c: (c.batch_size, c.learning_rate))))

    def without_early_caps(self, seconds: Seconds) -> Oracle:
        """Without the runs that a cap ended before it was clear, at these step times, that they cannot be near."""
        best = self.best(seconds)
        if best is None:
            return self
        limit = TOO_EARLY * self.seconds_of(best, seconds).value

        def settled(cell: Cell, run: Run) -> bool:
            return run.ended_by != "cap" or run.least / cell.batch_size * seconds[cell.batch_size] >= limit

        cells = [dataclasses.replace(c, runs=tuple(r for r in c.runs if settled(c, r))) for c in self.cells]
        return dataclasses.replace(self, cells=tuple(c for c in cells if c.runs))


def read(task: str, folder: Path = OUT) -> Oracle:
    """The table of a task as it is on disk."""
    plain = json.loads((folder / f"{task}.json").read_text())
    for cell in plain["cells"]:
        columns = cell.pop("runs")
        cell["runs"] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return from_plain(Oracle, plain)


def write(oracle: Oracle, seconds: Seconds, folder: Path = OUT) -> Path:
    """The table as JSON, a cell a line and its runs in columns; replaced in one move."""
    plain = json_safe(to_plain(oracle))
    cells, best = [], oracle.best(seconds)
    for cell, line in zip(oracle.cells, plain.pop("cells"), strict=True):
        line["runs"] = {f.name: [run[f.name] for run in line["runs"]] for f in dataclasses.fields(Run)}
        cells.append(json.dumps(line | {"seconds": to_plain(oracle.seconds_of(cell, seconds))}))
    if best is not None:
        plain["best"] = {"batch_size": best.batch_size, "learning_rate": best.learning_rate}
        plain["best"] |= to_plain(oracle.seconds_of(best, seconds))
    head = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items()]
    text = ",\n".join([*head, ' "cells": [\n  ' + ",\n  ".join(cells) + "\n ]"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{oracle.task}.json"
    path.with_suffix(".new").write_text(f"{{\n{text}\n}}\n")
    return path.with_suffix(".new").replace(path)


# --- which trials come next: pure functions of the table ---


@dataclass(frozen=True, order=True)
class Wanted:
    """A trial that the table lacks."""

    batch_size: int
    exponent: int
    seed: int
    capped: bool = True


def next_trials(oracle: Oracle, seconds: Seconds) -> list[Wanted]:
    """The next round; empty when the table is complete. Next to the own batch size first: it gives the cap."""
    sizes = [b for b in BATCH_SIZES if b <= oracle.train_size]
    first = min(sizes, key=lambda b: abs(math.log2(b / oracle.own_batch_size)))
    if oracle.best(seconds) is None and (wanted := walk(oracle, first)):
        return wanted
    wanted = [w for b in sizes for w in walk(oracle, b)]
    return wanted or [w for b in refined(oracle, seconds) for w in walk(oracle, b)] or fresh(oracle, seconds)


def centre_of(oracle: Oracle, batch_size: int) -> int:
    """The exponent of the square-root rule."""
    return round(0.5 * math.log2(batch_size / oracle.own_batch_size))


def walk(oracle: Oracle, batch_size: int) -> list[Wanted]:
    """One batch size's next trials: three learning rates, then outwards from the best, then the other seeds near it.

    Near are the neighbours of the best, and what reached the goal with at most 25 % more examples. Where even the best
    did not reach it, that one alone gets the other seeds: the figure is a bound anyhow.
    """
    tried, centre = oracle.at(batch_size), centre_of(oracle, batch_size)
    if not tried:
        return [Wanted(batch_size, centre + step, SEEDS[0]) for step in (-1, 0, 1)]
    best = min(tried, key=lambda k: tried[k].score())
    sides = [k for k in (best - 1, best + 1) if k not in tried and abs(k - centre) <= FARTHEST]
    if sides:
        return [Wanted(batch_size, k, SEEDS[0]) for k in sides]
    censored, least, _ = tried[best].score()
    near = {best}
    if not censored:
        limit = least + math.log(NEAR)
        near |= {k for k in tried if abs(k - best) == 1 or tried[k].score()[:2] <= (False, limit)}
    return [Wanted(batch_size, k, seed) for k in sorted(near) for seed in tried[k].missing(SEEDS)]


def refined(oracle: Oracle, seconds: Seconds) -> list[int]:
    """The two fastest batch sizes, the powers of two on both sides of them as far as they are timed, and whatever was
    begun: a walk is finished even where its batch size is no neighbour any more."""
    fastest: dict[int, float] = {}
    for cell in oracle.cells:
        figure = oracle.seconds_of(cell, seconds) if cell.final() else None
        if figure is not None and not figure.censored:
            fastest[cell.batch_size] = min(figure.value, fastest.get(cell.batch_size, math.inf))
    two = sorted(fastest, key=lambda b: fastest[b])[:2]
    largest = min(LARGEST, oracle.train_size)
    beside = {n for b in two for n in (b // 2, b, 2 * b) if SMALLEST <= n <= largest}
    return sorted(beside | {cell.batch_size for cell in oracle.cells})


def fresh(oracle: Oracle, seconds: Seconds) -> list[Wanted]:
    """Cells within 25 % of the fastest: the search's other seeds first, then the fresh ones, to their end."""
    best = oracle.best(seconds)
    if best is None:
        return []
    limit = NEAR * oracle.seconds_of(best, seconds).value
    near = [c for c in oracle.cells if c.final() and oracle.seconds_of(c, seconds).value <= limit]
    wanted = [Wanted(c.batch_size, oracle.exponent(c), s) for c in near for s in c.missing(SEEDS)]
    return wanted or [Wanted(c.batch_size, oracle.exponent(c), s, False) for c in near for s in c.missing(FRESH)]


def cap_of(oracle: Oracle, batch_size: int, seconds: Seconds) -> int | None:
    """Examples at which a trial takes twice the fastest cell's seconds, and the evaluations that confirm a crossing.

    The caps of a batch size only grow, so that the lowest losses of its learning rates compare. None: no cap below
    the budget.
    """
    best = oracle.best(seconds)
    if best is None:
        return None
    allowed = HOPELESS * oracle.seconds_of(best, seconds).value / seconds[batch_size] * batch_size
    wanted = math.ceil(allowed) + HOLDS_FOR * max(oracle.cadence_examples, batch_size)
    before = [r.cap for c in oracle.at(batch_size).values() for r in c.runs if r.cap is not None]
    cap = max([wanted, *before])
    return cap if cap < oracle.budget_examples else None


def spec_of(oracle: Oracle, wanted: Wanted, seconds: Seconds) -> TrialSpec:
    """The trial itself."""
    rate = oracle.cell(wanted.batch_size, wanted.exponent).learning_rate
    cap = cap_of(oracle, wanted.batch_size, seconds) if wanted.capped else None
    arm = Arm(wanted.batch_size, rate, precision=oracle.conditions.precision)
    budget, cadence = oracle.budget_examples, oracle.cadence_examples
    return TrialSpec(arm, wanted.seed, StopRule(budget, cadence, PATIENCE_EPOCHS, oracle.goal, cap))


def run_of(record: TrialRecord, goal: Goal) -> Run:
    """What the table keeps of a trial."""
    result, stop = record.result, record.spec.stop
    found = crossing(result.trace, goal)
    losses = [e.validation["loss"] for e in result.trace if math.isfinite(e.validation["loss"])]
    lowest = min(losses, default=None)
    if found is not None:
        return Run(record.spec.seed, found.examples, found.steps, None, result.ended_by, stop.cap_examples, lowest)
    bound = float(stop.cap_examples if result.ended_by == "cap" and stop.cap_examples else stop.budget_examples)
    return Run(record.spec.seed, None, None, bound, result.ended_by, stop.cap_examples, lowest)


# --- step times ---


def step_times(folder: Path = OUT) -> dict[str, Any]:
    """The whole table: task -> rough or not, conditions, environment, drift, and a measured value per batch size."""
    path = folder / "step_times.json"
    return json.loads(path.read_text()) if path.exists() else {}


def step_seconds(task: str, folder: Path = OUT) -> dict[int, float]:
    """Median seconds per step by batch size."""
    return {int(b): m["estimate"] for b, m in step_times(folder)[task]["seconds_per_step"].items()}
