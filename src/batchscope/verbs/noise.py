"""`noise`: how noisy are the gradients along a run, and which batch size does that predict?

    1. check the task before compute is spent
    2. follow its reference run, the task's own point until it crosses the goal, and measure gradients on the way
    3. at a few checkpoints, compare batches' gradients with the full one
    4. analyse, beside the critical batch size of a tuned study of the same task where the store has one; draw the page

The store keeps every run. The same question is answered from it, unless `again` asks for a new one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.follow import PASSES, Followed, checkpoint_cost, steps_for, watched
from batchscope.records import (
    Conditions,
    Engine,
    Goal,
    NoiseResult,
    NoiseRun,
    StopRule,
    TrialSpec,
    from_plain,
    to_plain,
)
from batchscope.report.noise_html import write_noise
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.plan import arms_of, default_batch_sizes, default_cadence, seeds_of
from batchscope.sweep.runner import Listener
from batchscope.task import Task, load_task
from batchscope.training.checks import CheckedTask, check_task
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import call, check_cluster, choose, chosen, executor_for, machine, reference_in
from batchscope.verbs.report import default_path, drawn, noise_answer

MOST_MEASUREMENTS = 2000  # of a run of its whole budget; more would only fill the store
CHECKPOINTS = 3
PATIENCE_EPOCHS = 5.0  # as a study's reference run has by default


@dataclasses.dataclass(frozen=True)
class Asked:
    """A noise run as asked for, checked against the task; nothing has been run."""

    task: Task
    reference: str | None
    checked: CheckedTask
    seed: int
    budget: float | None
    checkpoints: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will run: the trial, its measurements, and what keeps it within the budget."""

    spec: TrialSpec
    goal: Goal | None
    every: int
    checkpoints: int
    reference_examples: float | None  # of the reference run, where a study has measured it
    notes: tuple[str, ...] = ()

    @property
    def most_examples(self) -> int:
        """The dearest outcome of the run, checkpoints apart: to its cap or budget."""
        return self.price(self.spec.stop.cap_examples or self.spec.stop.budget_examples)

    def price(self, examples: float) -> int:
        """Examples that the run takes up to there, its measurements included."""
        return watched(math.ceil(examples / self.spec.arm.batch_size), self.every) * self.spec.arm.batch_size


def noise(
    task: Task | str,
    *,
    seed: int = 0,
    budget: float | None = None,
    checkpoints: int = CHECKPOINTS,
    devices: int = 1,
    again: bool = False,
    on: str | None = None,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    listen: Listener | None = None,
) -> NoiseResult:
    """Measure the gradient noise scale along the task's reference run.

    Args:
        task: a reference, run by a worker process; or a `Task` object, run in this process.
        seed: which block of seeds, as in `study`: the run is that study's reference run.
        budget: most that may be spent, in reference runs; the run is cut short, or checkpoints are left out. (The whole
            run takes about two: measurements are made on examples drawn apart.)
        checkpoints: at how many points of the run batches' gradients are compared with the full one, the last at its
            end; each takes little more than an epoch. 0: none.
        devices: 1.
        again: measure anew where the store has the answer already.
        on, store, report, draw, listen: as in `study`.

    Returns: the noise scale over the run and along it, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    if on is not None:
        check_cluster(task, on)
    with drawing_from(0):  # a notebook keeps its random numbers
        asked = ask(task, seed=seed, budget=budget, checkpoints=checkpoints, devices=devices)
        with open_store(store) as opened:
            opened.remember_task(asked.task.name, asked.checked.fingerprint, asked.checked.components)
            run, run_id = _stored(opened, asked) if not again else (None, "")
            if run is None:
                run = _measured(opened, asked, hear, on)
                run_id = opened.save_noise_run(run)
            result = noise_answer(opened, run)
    if draw:
        path = report or default_path(store, f"{asked.task.name}-noise", run_id)
        result = drawn(result, path, write_noise, hear)
    return result


def ask(
    task: Task | str,
    *,
    seed: int = 0,
    budget: float | None = None,
    checkpoints: int = CHECKPOINTS,
    devices: int = 1,
) -> Asked:
    """Everything that can be refused before anything is run."""
    if devices != 1:
        raise CannotAnswer(
            f"expected 1 device, got {devices!r}: a run's gradient noise is measured on one device, and is the same "
            "for any number that trains it (batch norm apart): leave --devices out"
        )
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    if budget is not None and not budget > 0:
        raise UsageError(f"expected a budget in reference runs above 0, got {budget!r}: write --budget 1")
    if not isinstance(checkpoints, int) or checkpoints < 0:
        raise UsageError(f"expected a number of checkpoints from 0 up, got {checkpoints!r}: write --checkpoints 3")
    loaded = load_task(task) if isinstance(task, str) else task
    if not isinstance(loaded, Task):
        raise UsageError(f"expected a task reference or a bs.Task, got {type(loaded).__name__}: write noise('digits')")
    checked = check_task(loaded)
    return Asked(loaded, task if isinstance(task, str) else None, checked, seed, budget, checkpoints)


def plan_of(asked: Asked, reference_examples: float | None, goal: Goal | None, precision: str) -> Plan:
    """The task's own point until it crosses its goal; within the budget, where there is one."""
    task, notes = asked.task, []
    budget_examples = task.budget_examples
    every = max(PASSES, math.ceil(budget_examples / task.batch_size / MOST_MEASUREMENTS))
    cap, checkpoints = None, asked.checkpoints
    if asked.budget is not None:
        known = reference_examples is not None
        limit = asked.budget * (reference_examples if reference_examples is not None else budget_examples)
        longest = max(1, steps_for(limit / task.batch_size, every)) * task.batch_size
        cap = longest if longest < budget_examples else None
        followed = watched(math.ceil((reference_examples or limit) / task.batch_size), every) * task.batch_size
        room = max(0.0, limit - followed)
        checkpoints = min(checkpoints, math.floor(room / checkpoint_cost(task.train_size, task.batch_size)))
        if not known:
            notes.append(
                "The reference run's price is not known here: the budget counts shares of the task's own budget."
            )
        if checkpoints < asked.checkpoints:
            notes.append(
                f"{asked.checkpoints - checkpoints} checkpoints were left out: the budget has no room for them."
            )
    cadence = default_cadence(task.train_size, budget_examples)
    stop = StopRule(budget_examples, cadence, PATIENCE_EPOCHS, goal=goal, cap_examples=cap)
    (spec,) = arms_of([task.batch_size], float(task.lr), precision, stop, seeds_of(asked.seed, 1))
    return Plan(spec, goal, every, checkpoints, reference_examples, tuple(notes))


def goal_of(store: Store, asked: Asked) -> Goal | None:
    """The task's goal; where it is open, the one that a stored study of the task took; else none."""
    if asked.task.goal is not None:
        return asked.task.goal
    same = [s.id for s in store.studies() if s.fingerprint == asked.checked.fingerprint]
    return store.study(same[-1]).goal if same else None


def _stored(store: Store, asked: Asked) -> tuple[NoiseRun | None, str]:
    """The newest run that answers the same question; gradients do not depend on the machine."""
    goal = goal_of(store, asked)
    for run_id, run in store.noise_runs(asked.checked.fingerprint):
        enough = run.checkpoints >= asked.checkpoints
        if (run.seed, run.budget, run.goal) == (asked.seed, asked.budget, goal) and enough:
            return run, run_id
    return None, ""


def _measured(store: Store, asked: Asked, hear: Listener, on: str | None) -> NoiseRun:
    """Follow the run in a worker (or here, for a task that came as an object)."""
    started, task = time.monotonic(), asked.task
    with executor_for(asked.reference or task, on=on) as executor:
        if asked.reference is not None:
            executor.serve(TaskReference.here(asked.reference, asked.checked.fingerprint))
        with machine(store, hear):
            choice = chosen(store, asked.checked.fingerprint)
            conditions = (choice or choose(executor, task, default_batch_sizes(task.train_size), hear))[1]
        conditions = dataclasses.replace(conditions, engine=Engine())  # hooks see no compiled and no replayed step
        reference = reference_in(store, asked.checked.fingerprint)
        plan = plan_of(asked, reference, goal_of(store, asked), conditions.precision)
        hear("phase", {"roles": {"following the reference run": 1}, "trials": 0})
        details = {
            **place(conditions),
            "spec": to_plain(plan.spec),
            "goal": to_plain(plan.goal),
            "every": plan.every,
            "checkpoints": plan.checkpoints,
        }
        found = call(executor, Job("noise", "noise", details), on_line=lambda line: hear("progress", line))
    return _run_of(asked, plan, conditions, from_plain(Followed, found), time.monotonic() - started)


def _run_of(asked: Asked, plan: Plan, conditions: Conditions, seen: Followed, seconds: float) -> NoiseRun:
    task, result = asked.task, seen.result
    return NoiseRun(
        task=task.name,
        fingerprint=asked.checked.fingerprint,
        train_size=task.train_size,
        goal=plan.goal,
        batch_size=task.batch_size,
        learning_rate=float(task.lr),
        conditions=conditions,
        seed=asked.seed,
        budget=asked.budget,
        source=seen.source,
        every=plan.every,
        measurements=seen.measurements,
        discarded=seen.discarded,
        layers=seen.layers,
        proxies=seen.proxies,
        trace=result.trace,
        outcome=result.outcome,
        crossed_at=seen.crossed_at,
        deviations=seen.deviations,
        examples=result.examples + seen.examples,
        steps=result.steps,
        seconds=seconds,
        notes=(*plan.notes, *seen.notes),
        checkpoints=asked.checkpoints,
        measured_at=datetime.now(UTC).isoformat(),
    )


def price_noise(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `noise(task, **asked)` as plain data; nothing is trained."""
    with drawing_from(0):
        request = ask(task, **asked)
        reference, goal = None, request.task.goal
        if Path(store).exists():
            with open_store(store, read_only=True) as opened:
                reference = reference_in(opened, request.checked.fingerprint)
                goal = goal_of(opened, request)
    plan = plan_of(request, reference, goal, request.task.precision)
    passes = plan.checkpoints * checkpoint_cost(request.task.train_size, request.task.batch_size)
    expected = min(plan.most_examples, plan.price(reference) if reference is not None else math.inf) + passes
    runs = None if reference is None else expected / reference
    price = (
        "at most " + f"{plan.most_examples + passes:,} examples" if runs is None else f"about {runs:.2g} reference runs"
    )
    return {
        "task": request.task.name,
        "batch_size": request.task.batch_size,
        "every": plan.every,
        "checkpoints": plan.checkpoints,
        "at_most": {"examples": plan.most_examples + passes, "reference_runs": runs},
        "sentences": [
            f"{request.task.name}: the reference run at batch size {request.task.batch_size}, "
            f"{f'until {goal}' if goal is not None else 'until it has converged'}; gradients measured every "
            f"{plan.every} step{'s' * (plan.every > 1)}; {plan.checkpoints} checkpoints.",
            f"It costs {price}, {passes:,} examples of them for the checkpoints.",
            *plan.notes,
        ],
    }
