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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchscope.analysis.step_time import rows_of
from batchscope.measure.throughput import StepClock
from batchscope.records import (
    Conditions,
    Measured,
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
from oracle_table import (
    HERE,
    LARGEST,
    OUT,
    SMALLEST,
    TASKS,
    Oracle,
    Seconds,
    Wanted,
    next_trials,
    read,
    run_of,
    spec_of,
    step_seconds,
    step_times,
    write,
)

ROUNDS, ROUGH_ROUNDS = 10, 5
CHECKPOINT_SECONDS = 30.0

# --- step times ---


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
