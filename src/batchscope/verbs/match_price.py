"""`match --dry-run`: which remedies would be raced, which cannot be, and what would it cost? Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchscope.analysis.race import MOST_COST, MOST_RATES_ALONE, RATES
from batchscope.measure.throughput import StepClock
from batchscope.records import NO_REMEDY
from batchscope.remedies.base import Case, by_name
from batchscope.report import words
from batchscope.store.sqlite import open_store
from batchscope.task import Task
from batchscope.training.device import cores, pick_device
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import reference_in
from batchscope.verbs.match_question import ALWAYS_CONFIRMED, MOST_DOUBLINGS, TRIED_ON, Matching, ask_match
from batchscope.verbs.price import EVALUATION_BYTES, WINDOW_SECONDS


def price_match(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `match(task, **asked)` as plain data.

    A race is counted as all that it may cost, a third of its candidates' whole runs; a ladder as its longest.
    """
    with drawing_from(0):
        request = ask_match(task, **asked)
        q, raced, refused = request.question, {}, []
        for size in q.batch_sizes:
            case = Case(size, q.own_batch_size, q.own_learning_rate, request.task.train_size)
            reasons = {name: by_name(name).why_not(request.task, case) for name in q.remedies}
            raced[size] = [name for name, why in reasons.items() if why is None]
            refused += [{"batch_size": size, "remedy": n, "reason": why} for n, why in reasons.items() if why]
        runs = _runs(request, {size: len(names) for size, names in raced.items()})
        examples = sum(runs.values()) * q.budget_examples
        reference = None
        if Path(store).exists():
            with open_store(store, read_only=True) as opened:
                reference = reference_in(opened, request.fingerprint)
        if reference is not None and q.budget is not None:
            examples = min(examples, int(q.budget * reference))
        seconds = _seconds(request, runs) * examples / (sum(runs.values()) * q.budget_examples)
    plan: dict[str, Any] = {
        "task": request.task.name,
        "batch_sizes": list(q.batch_sizes),
        "own_batch_size": q.own_batch_size,
        "seeds": list(q.seeds),
        "raced": {str(size): names for size, names in raced.items()},
        "cannot_apply": refused,
        "runs": {str(size): count for size, count in runs.items()},
        "budget_examples_per_run": q.budget_examples,
        "at_most": {
            "examples": examples,
            "reference_runs": None if reference is None else examples / reference,
            "seconds": seconds,
            "bytes": round(sum(runs.values()) * EVALUATION_BYTES * (q.budget_examples // q.cadence_examples + 1)),
        },
    }
    plan["sentences"] = _sentences(plan, request)
    return plan


def _runs(request: Matching, raced: dict[int, int]) -> dict[int, float]:
    """Whole runs at each batch size, at most; the ladder's at the batch sizes that it may come to."""
    q = request.question
    seeds = len(q.seeds)
    runs: dict[int, float] = {q.own_batch_size: MOST_RATES_ALONE / MOST_COST + seeds}
    for size, count in raced.items():
        confirmed = count if q.confirm is None else min(count, q.confirm + ALWAYS_CONFIRMED)
        runs[size] = count * RATES / MOST_COST + (confirmed + 1) * seeds
    few = TRIED_ON + 2
    each = few * RATES / MOST_COST + (few + 1) * seeds
    if q.ladder:
        up = [max(raced) << k for k in range(1, MOST_DOUBLINGS + 1) if max(raced) << k <= request.largest]
        down, size = [], min(raced) // 2
        while size >= 2 * q.own_batch_size:
            down.append(size)
            size //= 2
        for size in max(up, down, key=len):
            runs.setdefault(size, each)
    return runs


def _seconds(request: Matching, runs: dict[int, float]) -> float:
    """At plain step times measured now, shared by one worker a core; remedies that take longer steps come on top."""
    device, q = pick_device(), request.question
    clock = StepClock(request.task, device, request.task.precision)
    once = {size: clock.window(size, clock.steps_for(size, WINDOW_SECONDS)) / size for size in runs}
    workers = cores() if request.reference is not None and device.type == "cpu" else 1
    return sum(once[size] * count for size, count in runs.items()) * q.budget_examples / workers


def _sentences(plan: dict[str, Any], request: Matching) -> list[str]:
    q, most = request.question, plan["at_most"]
    epochs = q.budget_examples / request.task.train_size
    runs = most["reference_runs"]
    price = "" if runs is None else f" ({runs:,.0f} reference runs)"
    raced = [
        f"At batch size {size}: {', '.join('the plain large batch' if n == NO_REMEDY else n for n in names)}."
        for size, names in plan["raced"].items()
    ]
    return [
        f"{plan['task']}: batch size {', '.join(map(str, q.batch_sizes))} against {q.own_batch_size}; {len(q.seeds)} "
        f"fresh seeds; every run at most {q.budget_examples:,} examples ({epochs:.1f} epochs).",
        *raced,
        *(f"At batch size {c['batch_size']} not {c['remedy']}: {c['reason']}." for c in plan["cannot_apply"]),
        f"At most {most['examples']:,.0f} examples{price}, about {words.seconds(most['seconds'])} of plain steps "
        f"and {most['bytes'] / 1e6:.1f} MB" + (", the ladder's batch sizes included." if q.ladder else "."),
    ]
