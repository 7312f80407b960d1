"""How was it found what matches, in words? Baseline, runs, seeds, cost and methods, for both reports."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import MatchResult, Measured
from batchscope.report.match_tables import relative_step
from batchscope.report.match_words import NAMED, finite, loss_words, seeds_words
from batchscope.report.noise_facts import methods_among
from batchscope.report.noise_words import known
from batchscope.report.profile_facts import conditions_of, engine_of, versions_of
from batchscope.report.words import count, goal_of, list_of, number, plain, seconds

VERDICT_RULES = (
    "The excess of a remedy is how much higher its lowest validation loss is than the baseline's, as a share of the "
    "baseline's, paired by seed: both begin with the same weights and see the examples in the same order.",
    "It matches where the one-sided 95 % upper bound of its excess is below what is allowed: a quarter of the untuned "
    "gap or 1 %, whichever is less (1 % alone where no gap is seen). It narrows the gap where it ends significantly "
    "below the untuned large batch (one-sided 95 %). A remedy that diverges with any seed does not match. A verdict is "
    "open where the one-sided 95 % lower bound is below what is allowed: more seeds may turn it into a match.",
    "Verdicts rest on fresh seeds alone, which chose nothing. The 5 % holds for each remedy by itself: the more are "
    "tested, the likelier that one which just misses is said to match.",
)


def facts_of(result: MatchResult) -> list[tuple[str, str]]:
    """Every fact with its name, in reading order."""
    c = result.conditions
    facts = [
        ("Baseline", baseline_of(result)),
        ("Goal", goal_of(result.goal)),
        ("Each run", run_of(result)),
        ("Seeds", seeds_of(result)),
        ("Race", race_of(result)),
        ("Seconds", seconds_of(result)),
        ("Conditions", conditions_of(c)),
        ("Engine", engine_of(c.engine)),
        ("Versions", versions_of(c)),
    ]
    facts += [("Spent", spent_of(result))] if result.spent is not None else []
    return [*facts, *([("Measured at", f"{plain(result.measured_at[:19])} (UTC)")] if result.measured_at else [])]


def baseline_of(result: MatchResult) -> str:
    """The small batch, and how its learning rate was found."""
    b, own = result.baseline, result.question.own_learning_rate
    raced = next((r for r in result.rounds if r.batch_size == b.batch_size), None)
    how = f", the best of {count(len(raced.raced))} about the task's own {own:.6g}" if raced is not None else ""
    loss = loss_words(b.min_validation_loss, NAMED)
    return f"batch size {count(b.batch_size)}, learning rate {b.learning_rate:.6g}{how}; lowest validation loss {loss}"


def run_of(result: MatchResult) -> str:
    """What every run may use, and when it is evaluated."""
    q = result.question
    return (
        f"at most {count(q.budget_examples)} examples, which its schedule follows also where a race stops it; "
        f"evaluated after every {count(q.cadence_examples)}, as often at every batch size"
    )


def seeds_of(result: MatchResult) -> str:
    """Which seeds choose, and which report."""
    q = result.question
    fresh, racing = (list_of(map(str, s)) for s in (q.seeds, q.race_seeds))
    which = f"seed{'' if len(q.race_seeds) == 1 else 's'} {racing}"
    chose = f"; races ran with {which}, not reported" if q.race_seeds else ""
    return f"{seeds_words(len(q.seeds))} report ({fresh}), paired between remedies and with the baseline{chose}"


def race_of(result: MatchResult) -> str:
    """What was raced, and who was confirmed."""
    q = result.question
    confirmed = "all that are left" if q.confirm is None else f"the best {count(q.confirm)} and the plain large batch"
    return (
        "every remedy has the same number of learning rates; all run as far, and the worse half ends there, but for "
        f"the best learning rate of each remedy; {confirmed} were run to the end with the fresh seeds"
    )


def seconds_of(result: MatchResult) -> str:
    """Where seconds come from."""
    rows = (result.baseline, *result.untuned, *result.rows)
    if not any(r.seconds_per_step for r in rows):
        return "not measured"
    counts = sorted({n for r in rows for n in r.seconds_to_goal})
    more = [n for n in counts if n > 1]
    on = (
        f"; on {list_of(map(count, more))} devices, as the newest scaling of this task gives for plain steps, times "
        "what the remedy takes more on one"
        if more
        else ""
    )
    return f"whole steps timed alone and interleaved, times steps to the goal{on}"


def spent_of(result: MatchResult) -> str:
    """What all of it cost."""
    s = result.spent
    if s is None:
        return "not known"
    runs = f"{number(s.reference_runs)} reference runs" if finite(s.reference_runs) else "reference runs not known"
    return (
        f"{count(s.trials)} runs, {count(s.examples)} examples, {count(s.steps)} steps = {runs}; {seconds(s.seconds)} "
        "in all (a clock reading, not a timing)"
    )


def notes_of(result: MatchResult) -> list[str]:
    """The notes of the answer, each once."""
    return list(dict.fromkeys(result.notes))


def methods_of(result: MatchResult) -> dict[str, list[str]]:
    """How each quantity's intervals were made: method -> the quantities that used it."""
    rows = (result.baseline, *result.untuned, *result.rows)
    largest = result.largest
    quantities: dict[str, Iterable[Measured | None]] = {
        "lowest validation loss": [r.min_validation_loss for r in rows],
        "excess": [r.excess for r in rows if r.role != "baseline"],
        "metrics": [m for r in rows for m in (*r.validation.values(), *(r.test or {}).values())],
        "steps to goal": [r.steps_to_goal for r in rows],
        "examples to goal": [r.examples_to_goal for r in rows],
        "seconds per step": [r.seconds_per_step for r in rows],
        "step over plain step": [relative_step(r, result) for r in rows],
        "seconds to goal": [m for r in rows for m in r.seconds_to_goal.values()],
        "fewer steps": [largest.fewer_steps] if largest is not None else [],
        "times as fast": largest.faster.values() if largest is not None else [],
    }
    return methods_among(
        {name: [m for m in values if m is not None and known(m)] for name, values in quantities.items()}
    )
