"""`match --dry-run`: which remedies would be raced, which cannot be, and what would it cost? Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchscope.analysis.race import MOST_COST, MOST_WHOLE, RATES, Race
from batchscope.measure.throughput import StepClock
from batchscope.records import NO_REMEDY, MatchQuestion
from batchscope.remedies.base import Case, Remedy, by_name
from batchscope.report import words
from batchscope.store.sqlite import open_store
from batchscope.sweep.match_trials import groups_of, makes_more_steps
from batchscope.task import Task
from batchscope.training.device import cores, pick_device
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import reference_in
from batchscope.verbs.match_question import MOST_DOUBLINGS, TRIED_ON, Matching, ask_match
from batchscope.verbs.price import EVALUATION_BYTES, WINDOW_SECONDS


def price_match(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `match(task, **asked)` as plain data.

    A race is counted as all that it may cost, a third of its candidates' whole runs, or all of them where none can be
    dropped; a ladder as the dearer of its two directions.
    """
    with drawing_from(0):
        request = ask_match(task, **asked)
        q, raced, refused = request.question, {}, []
        for size in q.batch_sizes:
            case = Case(size, q.own_batch_size, q.own_learning_rate, request.task.train_size)
            reasons = {name: by_name(name).why_not(request.task, case) for name in q.remedies}
            raced[size] = [name for name, why in reasons.items() if why is None]
            refused += [{"batch_size": size, "remedy": n, "reason": why} for n, why in reasons.items() if why]
        most = _most(request, raced)
        examples = total = sum(most.values())
        reference = None
        if Path(store).exists():
            with open_store(store, read_only=True) as opened:
                reference = reference_in(opened, request.fingerprint)
        if reference is not None and q.budget is not None:
            examples = int(min(examples, q.budget * reference))
        seconds = _seconds(request, most) * examples / total
        runs = {size: used / q.budget_examples for size, used in most.items()}
    plan: dict[str, Any] = {
        "task": request.task.name,
        "batch_sizes": list(q.batch_sizes),
        "own_batch_size": q.own_batch_size,
        "seeds": list(q.seeds),
        "raced": {str(size): names for size, names in raced.items()},
        "cannot_apply": refused,
        "runs": {str(size): round(count, 1) for size, count in runs.items()},
        "budget_examples_per_run": q.budget_examples,
        "at_most": {
            "examples": examples,
            "reference_runs": None if reference is None else examples / reference,
            "seconds": seconds,
            "bytes": round(
                examples / q.budget_examples * EVALUATION_BYTES * (q.budget_examples // q.cadence_examples + 1)
            ),
        },
    }
    plan["sentences"] = _sentences(plan, request)
    return plan


# --- the most that it may cost, which the budget of the command goes by too ---


def most_of_baseline(question: MatchQuestion) -> int:
    """Examples of the baseline, tuned and run with every fresh seed, at most."""
    q = question
    whole = MOST_WHOLE * len(q.race_seeds) * (q.budget_examples + q.own_batch_size - 1)
    return whole + _runs(q, q.own_batch_size, [1.0])


def most_at(
    question: MatchQuestion, size: int, remedies: Mapping[str, Remedy], confirm: int | None, train_size: int
) -> int:
    """Examples of everything at one large batch size, at most: its races, and the runs with fresh seeds.

    `remedies`: those that are raced, by name. A run of E examples may pass them by less than a batch.
    """
    case = Case(size, question.own_batch_size, question.own_learning_rate, train_size)
    throughout = {name: 1.0 for name, remedy in remedies.items() if not makes_more_steps(remedy)}
    more = {name: r.length(case) for name, r in remedies.items() if makes_more_steps(r)}
    longest: dict[str, float] = {}  # of each kind, whose best one is confirmed
    for name, length in more.items():
        title = remedies[name].title
        longest[title] = max(length, longest.get(title, 0.0))
    chosen = [1.0] * (len(throughout) if confirm is None else min(confirm + 1, len(throughout)))
    chosen += more.values() if confirm is None else longest.values()
    races = [dict.fromkeys(some, length) for length, some in groups_of(remedies, case)]
    return sum(_race(question, size, some) for some in races) + _runs(question, size, [1.0, *chosen])


def _race(q: MatchQuestion, size: int, lengths: dict[str, float]) -> int:
    """Examples of a race of these, at most."""
    race = Race(dict.fromkeys(lengths, 1.0), q.budget_examples, size, q.cadence_examples, lengths, len(q.race_seeds))
    candidates = RATES * len(q.race_seeds)
    if race.note:  # nobody can be dropped
        return candidates * sum(budget + size - 1 for budget in race.budgets.values())
    return candidates * sum(race.budgets.values()) // MOST_COST


def _runs(q: MatchQuestion, size: int, lengths: list[float]) -> int:
    """Examples of runs with every fresh seed, at most."""
    return len(q.seeds) * sum(round(length * q.budget_examples) + size - 1 for length in lengths)


def _most(request: Matching, raced: dict[int, list[str]]) -> dict[int, int]:
    """Examples at each batch size, at most; the ladder's where it may come to."""
    q, train_size = request.question, request.task.train_size
    most = {q.own_batch_size: most_of_baseline(q)}
    for size, names in raced.items():
        most[size] = most_at(q, size, {n: by_name(n) for n in names}, q.confirm, train_size)
    if q.ladder:
        largest = max(raced)
        up = [largest << k for k in range(1, MOST_DOUBLINGS + 1) if largest << k <= request.largest]
        down = [largest >> k for k in range(1, largest.bit_length()) if largest >> k >= 2 * q.own_batch_size]
        ladders = [{size: _on_the_ladder(request, size) for size in some if size not in raced} for some in (up, down)]
        most |= max(ladders, key=lambda some: sum(some.values()))
    return most


def _on_the_ladder(request: Matching, size: int) -> int:
    """Of the remedies that the ladder may take there, the dearest."""
    q, train_size = request.question, request.task.train_size
    remedies = {name: by_name(name) for name in q.remedies if name != NO_REMEDY}
    throughout = [name for name, remedy in remedies.items() if not makes_more_steps(remedy)][:TRIED_ON]
    others = [[name] for name, remedy in remedies.items() if makes_more_steps(remedy)] or [[]]
    some = [{n: by_name(n) for n in (NO_REMEDY, *throughout, *other)} for other in others]
    return max(most_at(q, size, these, None, train_size) for these in some)


def _seconds(request: Matching, most: dict[int, int]) -> float:
    """At plain step times measured now, shared by one worker a core; remedies that take longer steps come on top."""
    device = pick_device()
    clock = StepClock(request.task, device, request.task.precision)
    once = {size: clock.window(size, clock.steps_for(size, WINDOW_SECONDS)) / size for size in most}
    workers = cores() if request.reference is not None and device.type == "cpu" else 1
    return sum(once[size] * examples for size, examples in most.items()) / workers


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
