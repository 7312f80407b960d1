"""`--dry-run`: what would run, and what would it cost? The plan, its price, and estimates of time and disk.

The price is an upper bound: every trial to its budget, and the search extended as far as it may be. Trials usually end
well before, by patience, at the goal, or where they can no longer win. Seconds come from a few steps timed now, on this
machine as busy as it is, and leave out evaluations and the start of the workers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from batchscope.measure.throughput import WINDOW_SECONDS as STEP_WINDOW_SECONDS
from batchscope.measure.throughput import StepClock
from batchscope.report import words
from batchscope.store.sqlite import open_store
from batchscope.sweep.plan import FIRST_RATES, MOST_RATES
from batchscope.task import Task
from batchscope.training.device import cores, pick_device
from batchscope.training.seeding import drawing_from
from batchscope.training.weights import bytes_kept
from batchscope.verbs.ceiling import MOST_PROBES
from batchscope.verbs.machine import check_devices, reference_in
from batchscope.verbs.profile import MOST_SECONDS, ROUNDS, ask, grid
from batchscope.verbs.request import Request, prepare

EVALUATION_BYTES = 600  # of one evaluation in the store, two metrics (measured on digits: 540)
PROBE_SECONDS = 5.0  # to start a process and load torch and the task (measured on two cores: 3 to 4)
PROBE_STEPS = 5  # of training in a probe, its evaluation counted as one or two (a guess)
PROFILE_BYTES = 50_000  # of a profile in the store (measured: 10,000 to 40,000)
PARTS = 5  # windows of a batch size in a round of `profile`: reference, whole, and three parts
WINDOW_SECONDS = 0.02  # of steps timed at each batch size: quick, an estimate is all that is needed (a guess)


def price(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `study(task, **asked)` as plain data; nothing is trained and nothing stored."""
    check_devices(task, asked.get("devices", 1))
    with drawing_from(0):  # a notebook keeps its random numbers
        request = prepare(task, **asked)
        reference = _stored_reference(request, store)
        per_size, most = _trials(request, FIRST_RATES), _trials(request, MOST_RATES)
        stop = request.stop
        plan: dict[str, Any] = {
            "task": request.task.name,
            "batch_sizes": list(request.batch_sizes),
            "devices": request.devices,
            "policies": list(request.policies),
            "seeds": list(request.seeds),
            "trials": {role: n * len(request.batch_sizes) for role, n in per_size.items()},
            "budget_examples_per_trial": stop.budget_examples,
            "cadence_examples": stop.cadence_examples,
            "at_most": _at_most(request, sum(most.values()), reference),
            "weights_bytes": 0,
        }
        if request.keep_weights:
            reported = plan["trials"]["held"] + plan["trials"]["tuned"]
            plan["weights_bytes"] = reported * bytes_kept(request.task)
    plan["sentences"] = _sentences(plan, request)
    return plan


def _trials(request: Request, rates: int) -> dict[str, int]:
    """Trials of each batch size, by role, where the search tries so many learning rates."""
    held, tuned = "held" in request.policies, "tuned" in request.policies
    return {
        "held": len(request.seeds) * held,
        "tuning": rates * len(request.tuning_seeds) * tuned,
        "tuned": len(request.seeds) * tuned,
    }


def _at_most(request: Request, trials: int, reference: float | None) -> dict[str, Any]:
    """The dearest outcome: so many trials of each batch size, the reference run, and one more for an open goal."""
    own, singles = request.task.batch_size, 1 + (request.task.goal is None)
    dearest = {size: request.stop.budget_examples + size - 1 for size in (*request.batch_sizes, own)}
    examples = trials * sum(dearest[size] for size in request.batch_sizes) + singles * dearest[own]
    share = 1.0  # of the examples, that the budget admits
    if reference is not None and request.budget is not None:
        share = min(1.0, request.budget * reference / examples)
    evaluations = math.ceil(request.stop.budget_examples / request.stop.cadence_examples) + 1
    count = trials * len(request.batch_sizes) + singles
    runs = request.budget if share < 1 else None if reference is None else examples / reference
    return {
        "examples": math.floor(share * examples),
        "reference_runs": runs,
        "seconds": share * _seconds(request, trials),
        "bytes": math.ceil(share * count * evaluations * EVALUATION_BYTES),
    }


def _stored_reference(request: Request, store: str | Path) -> float | None:
    """Examples of the reference run, where a study of this task has measured it."""
    if not Path(store).exists():
        return None
    with open_store(store, read_only=True) as opened:
        return reference_in(opened, request.checked.fingerprint)


def _seconds(request: Request, trials: int) -> float:
    """So many trials of each batch size, at step times measured now, shared by one worker a core.

    On several devices, one trial at a time, and a step takes what one device's part of it does: averaging comes on top.
    """
    device = pick_device()
    clock = StepClock(request.task, device, request.task.precision)
    steps = {size: math.ceil(request.stop.budget_examples / size) for size in request.batch_sizes}
    parts = {size: math.ceil(size / request.devices) for size in steps}
    once = sum(clock.window(part, clock.steps_for(part, WINDOW_SECONDS)) * steps[size] for size, part in parts.items())
    spread = request.reference is not None and request.devices == 1 and device.type == "cpu"
    workers = cores() if spread else 1
    return once * trials / workers


def _sentences(plan: dict[str, Any], request: Request) -> list[str]:
    """The plan in words."""
    most, trials, budget = plan["at_most"], plan["trials"], plan["budget_examples_per_trial"]
    runs = most["reference_runs"]
    in_runs = (
        "the reference run is not measured yet, so no price in reference runs"
        if runs is None
        else f"{runs:,.0f} reference runs"
    )
    sizes = ", ".join(map(str, plan["batch_sizes"]))
    epochs = budget / request.task.train_size
    on = f" on {request.devices} devices" * (request.devices > 1)
    time, disk = words.seconds(most["seconds"]), f"{most['bytes'] / 1e6:.1f} MB"
    kept = plan["weights_bytes"]
    weights = [
        f"The weights of {trials['held'] + trials['tuned']} trials are kept, as they begin, at their best and as they "
        f"end: {kept / 1e6:,.1f} MB."
    ]
    return [
        f"{plan['task']}: batch sizes {sizes}; {len(plan['seeds'])} seeds; {' and '.join(plan['policies'])}{on}.",
        f"{trials['held']} held trials, a search of at least {trials['tuning']} trials, {trials['tuned']} tuned "
        f"trials; each at most {budget:,} examples ({epochs:.1f} epochs).",
        f"At most {most['examples']:,} examples ({in_runs}), about {time} and {disk}; "
        "usually well under half, since trials end at patience or where they cannot win.",
        *(weights if kept else []),
    ]


def seconds_per_example(task: Task) -> float:
    """Of the task's own point, at a few steps timed now."""
    clock = StepClock(task, pick_device(), task.precision)
    return clock.window(task.batch_size, clock.steps_for(task.batch_size, WINDOW_SECONDS)) / task.batch_size


def price_profile(task: Task | str, **asked: Any) -> dict[str, Any]:
    """The plan of `profile(task, **asked)` as plain data; only a few steps at the task's own batch size are timed.

    Where memory ends the grid is not known before it is measured: the plan is for a grid up to the data set's size.
    """
    with drawing_from(0):
        request = ask(task, **asked)
        own = request.task
        sizes = request.batch_sizes or grid(own, None)
        per_example = seconds_per_example(own)
    probes = MOST_PROBES if request.reference is not None else 0
    probing = probes * (PROBE_SECONDS + PROBE_STEPS * per_example * sizes[-1])
    rounds = ROUNDS * PARTS * sum(max(STEP_WINDOW_SECONDS, per_example * size) for size in sizes)
    seconds = probing + 2 * min(rounds, MOST_SECONDS) + PROBE_SECONDS
    return {
        "task": own.name,
        "batch_sizes": list(sizes),
        "memory_limit": request.memory_limit,
        "probes": probes,
        "rounds": ROUNDS,
        "at_most": {"seconds": seconds, "bytes": PROFILE_BYTES},
        "sentences": [
            f"{own.name}: memory by up to {probes} training processes, one after the other; then {len(sizes)} "
            f"micro-batch sizes ({sizes[0]} to {sizes[-1]}, as far as they fit), {ROUNDS} rounds, and accumulation.",
            f"About {words.seconds(seconds)} at most, alone on the machine, and {PROFILE_BYTES / 1e6:.1f} MB. "
            "Nothing is trained to a goal, so there is no price in reference runs.",
        ],
    }
