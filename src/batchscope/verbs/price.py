"""`study --dry-run`: what would run, and what would it cost? The plan, its price, and estimates of time and disk.

The price is an upper bound: every trial to its budget, every search trial too. Trials usually end well before, by
patience, at the goal, or where they can no longer win. Seconds come from a few steps timed now, on this machine as
busy as it is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from batchscope.measure.throughput import StepClock
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.plan import SPREAD
from batchscope.task import Task
from batchscope.training.device import cores, pick_device
from batchscope.verbs.study import Request, prepare

EVALUATION_BYTES = 600  # of one evaluation in the store, two metrics (measured on digits: 540)


def price(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `study(task, **asked)` as plain data; nothing is trained and nothing stored."""
    request = prepare(task, **asked)
    stop, sizes, seeds = request.stop, request.batch_sizes, len(request.seeds)
    trials = {
        "held": len(sizes) * seeds if "held" in request.policies else 0,
        "tuning": len(sizes) * len(SPREAD) * len(request.tuning_seeds) if "tuned" in request.policies else 0,
        "tuned": len(sizes) * seeds if "tuned" in request.policies else 0,
    }
    total = sum(trials.values())
    reference = _stored_reference(request, store)
    seconds = _seconds(request, total)
    evaluations = math.ceil(stop.budget_examples / stop.cadence_examples) + 1
    plan: dict[str, Any] = {
        "task": request.task.name,
        "batch_sizes": list(sizes),
        "policies": list(request.policies),
        "seeds": list(request.seeds),
        "trials": trials,
        "budget_examples_per_trial": stop.budget_examples,
        "cadence_examples": stop.cadence_examples,
        "at_most": {
            "examples": total * stop.budget_examples,
            "reference_runs": None if reference is None else total * stop.budget_examples / reference,
            "seconds": seconds,
            "bytes": total * evaluations * EVALUATION_BYTES,
        },
    }
    plan["sentences"] = _sentences(plan, request)
    return plan


def _stored_reference(request: Request, store: str | Path) -> float | None:
    """Examples of the reference run, where a study of this task has measured it."""
    if not Path(store).exists():
        return None
    with open_store(store, read_only=True) as opened:
        return _reference_in(opened, request.checked.fingerprint)


def _reference_in(opened: Store, fingerprint: str) -> float | None:
    for summary in opened.studies():
        known = opened.reference(summary.id) if summary.fingerprint == fingerprint else None
        if known is not None:
            return known[0]
    return None


def _seconds(request: Request, total: int) -> float:
    """Upper estimate: every trial's steps at a step time measured now, shared by one worker a core."""
    clock = StepClock(request.task, pick_device(), request.task.precision)
    per_trial = [
        clock.window(size, clock.steps_for(size, 0.02)) * math.ceil(request.stop.budget_examples / size)
        for size in request.batch_sizes
    ]
    workers = cores() if request.reference is not None else 1
    return sum(per_trial) / len(per_trial) * total / workers


def _sentences(plan: dict[str, Any], request: Request) -> list[str]:
    """The plan in words."""
    most, trials = plan["at_most"], plan["trials"]
    runs = most["reference_runs"]
    in_runs = (
        "the reference run is not measured yet, so no price in reference runs"
        if runs is None
        else f"{runs:,.0f} reference runs"
    )
    return [
        f"{plan['task']}: batch sizes {', '.join(map(str, plan['batch_sizes']))}; {len(plan['seeds'])} seeds; {' and '.join(plan['policies'])}.",
        f"{trials['held']} held trials, a search of at least {trials['tuning']} trials, {trials['tuned']} tuned trials; each at most "
        f"{plan['budget_examples_per_trial']:,} examples ({plan['budget_examples_per_trial'] / request.task.train_size:.1f} epochs).",
        f"At most {most['examples']:,} examples ({in_runs}), about {most['seconds'] / 60:.1f} minutes and {most['bytes'] / 1e6:.1f} MB; "
        "usually well under half, since trials end at patience or where they cannot win.",
    ]
