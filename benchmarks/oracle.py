"""What is the truth that `recommend` is judged against? Seconds to goal over batch size and learning rate, by search.

    walk     at every batch size: learning rates of the own one times powers of two, from the square-root rule's centre
             outwards until the best (fewest mean log examples to goal) has a worse one on both sides
    refine   the same at the powers of two on both sides of the two fastest batch sizes
    fresh    ten seeds that chose nothing, for every cell within 25 % of the fastest; refine and fresh until nothing
             changes. The final figure of such a cell is their geometric mean.

    seconds to goal = steps to goal x seconds per step, the latter from `step_times.json`

A trial of the walk that takes more than twice the fastest cell's seconds ends as censored; that the cap did it is in
the data. Everything is resumable: a round's trials are asked of the store, and which trials come next follows from the
table alone. The first table of step times is rough, measured beside other work; `--time` measures it again, alone.

    python benchmarks/oracle.py [task ...]             search; about 75 minutes for all tasks on two cores
    python benchmarks/oracle.py [task ...] --time      step times, alone on the machine, about 5 minutes
    python benchmarks/oracle.py [task ...] --finish    what these step times leave missing; refuses rough ones
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchscope.analysis.step_time import rows_of
from batchscope.analysis.target import HOLDS_FOR, crossing
from batchscope.measure.throughput import StepClock
from batchscope.records import (
    Arm,
    Conditions,
    Goal,
    Measured,
    StopRule,
    TrialRecord,
    TrialSpec,
    from_plain,
    json_safe,
    to_plain,
)
from batchscope.store import open_store
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import TaskReference
from batchscope.sweep.plan import default_cadence
from batchscope.sweep.runner import Runner
from batchscope.task import Task, load_task
from batchscope.training.checks import check_task
from batchscope.training.device import cores, pick_device, set_up
from batchscope.verbs.timing import timing_pass
from environment import environment

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
ROUNDS, ROUGH_ROUNDS = 10, 5
CHECKPOINT_SECONDS = 30.0
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


def measured_alone(name: str, fingerprint: str, sizes: Sequence[int], conditions: Conditions) -> dict[str, Any]:
    """Every size in one interleaved pass, by the same code as a study's and a profile's seconds."""
    with LocalExecutor(TaskReference.here(name, fingerprint), 1) as executor:
        timing = timing_pass(executor, sizes, conditions, rounds=ROUNDS)
    rows = {str(row.micro_batch_size): row.seconds_per_step.to_json() for row in rows_of(timing)}
    return {"rough": False, "drift": timing.drift, "seconds_per_step": rows}


def measured_roughly(task: Task, sizes: Sequence[int], conditions: Conditions) -> dict[str, Any]:
    """Beside other work, in this process: on a CPU what it computed, not what it waited for (one thread)."""
    device = pick_device()
    clock = StepClock(task, device, conditions.precision, conditions.engine)
    stamp = time.process_time if device.type == "cpu" else time.perf_counter
    rows = {}
    for size in sizes:
        steps, spent = clock.steps_for(size), []
        for _ in range(ROUGH_ROUNDS):
            start = stamp()
            clock.window(size, steps)
            spent.append((stamp() - start) / steps)
        kind = "least and most, CPU seconds beside other work"
        rows[str(size)] = Measured(statistics.median(spent), min(spent), max(spent), len(spent), 0, kind).to_json()
    return {"rough": True, "drift": None, "seconds_per_step": rows}


def measure_step_times(name: str, rough: bool, folder: Path = OUT) -> None:
    """Time every power of two of a task, and put it into the table."""
    task = load_task(name)
    sizes = [2**k for k in range(2, 13) if SMALLEST <= 2**k <= min(LARGEST, task.train_size)]
    conditions, where = set_up(1, pick_device(), task.precision), environment()
    if rough:
        found = measured_roughly(task, sizes, conditions)
    else:
        found = measured_alone(name, check_task(task).fingerprint, sizes, conditions)
    table = step_times(folder) | {name: {"environment": where, "conditions": to_plain(conditions), **found}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step_times.json").write_text(json.dumps(json_safe(table), indent=1) + "\n")
    shown = ", ".join(f"{b}: {1e3 * s:.3g}" for b, s in step_seconds(name, folder).items())
    print(f"{name}: milliseconds per step{' (rough)' if rough else ''} {shown}; drift {found['drift']}", flush=True)


# --- the search ---


def begun(name: str, task: Task, fingerprint: str, folder: Path) -> Oracle:
    """The table so far; an empty one where there is none, or it is of another task or other conditions."""
    if task.goal is None:
        raise ValueError(f"expected task {name!r} to have a goal, got None: the oracle is of seconds to a goal")
    budget = task.budget_examples
    empty = Oracle(
        task=name,
        fingerprint=fingerprint,
        conditions=set_up(1, pick_device(), task.precision),
        goal=task.goal,
        train_size=task.train_size,
        budget_examples=budget,
        cadence_examples=default_cadence(task.train_size, budget),
        own_batch_size=task.batch_size,
        own_learning_rate=float(task.lr),
    )
    if (folder / f"{name}.json").exists():
        before = read(name, folder)
        if dataclasses.replace(before, cells=()) == empty:
            return before
        print(f"{name}: the table on disk is of another task or machine, and is begun anew", flush=True)
    return empty


def search(name: str, store: Path, folder: Path = OUT) -> Oracle:
    """Round by round until nothing is missing; the table is written after every round."""
    task, seconds = load_task(name), step_seconds(name, folder)
    fingerprint = check_task(task).fingerprint
    oracle, started = begun(name, task, fingerprint, folder), time.monotonic()
    with LocalExecutor(TaskReference.here(name, fingerprint), cores()) as executor, open_store(store) as opened:
        checkpoints = store.with_name(f"{store.name}.checkpoints")
        runner = Runner(
            opened,
            None,
            fingerprint,
            oracle.conditions,
            oracle.goal,
            executor,
            checkpoints,
            CHECKPOINT_SECONDS,
            lambda kind, details: None,
        )
        while wanted := next_trials(oracle := oracle.without_early_caps(seconds), seconds):
            records = runner.run({"tuning": [spec_of(oracle, w, seconds) for w in wanted]})["tuning"]
            arms = ((r.spec.arm.batch_size, r.spec.arm.learning_rate, run_of(r, oracle.goal)) for r in records)
            oracle = oracle.with_runs(arms)
            write(oracle, seconds, folder)
            print(round_line(oracle, wanted, seconds, time.monotonic() - started), flush=True)
    write(oracle, seconds, folder)
    return oracle


def round_line(oracle: Oracle, wanted: Sequence[Wanted], seconds: Seconds, elapsed: float) -> str:
    """What a round ran and what is best now."""
    best = oracle.best(seconds)
    where = "none reached" if best is None else f"best {best.batch_size} at {best.learning_rate:g}"
    value = "" if best is None else f": {oracle.seconds_of(best, seconds).value:.3g} s"
    sizes = ", ".join(map(str, sorted({w.batch_size for w in wanted})))
    return f"{oracle.task} {elapsed / 60:5.1f} min: {len(wanted)} trials at {sizes}; {where}{value}"


def table_of(oracle: Oracle, seconds: Seconds) -> str:
    """A line per cell: what it takes to goal, of which seeds, and what it is beside the best."""
    best = oracle.best(seconds)
    least = math.nan if best is None else oracle.seconds_of(best, seconds).value
    lines = [f"{oracle.task}: {oracle.goal}, own point {oracle.own_batch_size} at {oracle.own_learning_rate:g}"]
    lines.append(f"{'batch':>6}{'rate':>12}{'seeds':>7}{'reached':>9}{'examples':>12}{'seconds':>10}{'/ best':>8}")
    for cell in oracle.cells:
        figure, runs = oracle.seconds_of(cell, seconds), cell.final()
        examples, more = statistics.geometric_mean(run.least for run in runs), ">" if figure.censored else ""
        lines.append(
            f"{cell.batch_size:6d}{cell.learning_rate:12.4g}{figure.n:7d}{figure.n - figure.censored:9d}"
            f"{more + f'{examples:,.0f}':>12}{more + f'{figure.value:.3g}':>10}{figure.value / least:8.2f}"
            f"{' fresh' if figure.fresh else ''}{'  <- best' if cell is best else ''}"
        )
    return "\n".join(lines)


def main() -> None:
    """Time or search, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], metavar="task")
    parser.add_argument("--time", action="store_true", help="measure the step times, alone on the machine")
    parser.add_argument("--finish", action="store_true", help="run what the final step times leave missing")
    parser.add_argument("--out", type=Path, default=OUT, help="where the tables are")
    parser.add_argument("--store", type=Path, default=HERE / ".work" / "oracle.db")
    arguments = parser.parse_args()
    names = arguments.tasks or TASKS
    if arguments.time:
        for name in names:
            measure_step_times(name, rough=False, folder=arguments.out)
        return
    os.nice(10)
    arguments.store.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        known = step_times(arguments.out).get(name)
        if arguments.finish and (known is None or known["rough"]):
            sys.exit(f"expected step times of {name} measured alone, got rough ones or none: run --time first")
        if known is None:
            measure_step_times(name, rough=True, folder=arguments.out)
        oracle = search(name, arguments.store, arguments.out)
        print(table_of(oracle, step_seconds(name, arguments.out)), flush=True)


if __name__ == "__main__":
    main()
