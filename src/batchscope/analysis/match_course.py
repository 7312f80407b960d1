"""How did a match go? What its races and all its runs cost, the curves to be drawn, and what a reader must know.

Pure: everything is counted from the runs; a run that was continued, or that serves in two roles, counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from batchscope.analysis.quantities import DRIFT_LIMIT
from batchscope.analysis.target import coarse_note
from batchscope.records import (
    NO_REMEDY,
    Gap,
    MatchCurve,
    MatchData,
    MatchRow,
    MatchRun,
    RaceCost,
    Racer,
    RaceRound,
    Spent,
)

MOST_POINTS = 60  # of a curve on the page
RACES = ("baseline race", "race")  # the roles whose runs choose
UNEVEN = 0.1  # share by which the number of evaluations may differ before it is said


def distinct(runs: Iterable[MatchRun]) -> list[MatchRun]:
    """Each run once, as far as it got."""
    found: dict[tuple[int, str, float, int], MatchRun] = {}
    for run in runs:
        key = (run.batch_size, run.remedy, run.learning_rate, run.seed)
        if key not in found or run.examples > found[key].examples:
            found[key] = run
    return list(found.values())


# --- costs ---


def length_of(data: MatchData, remedy: str, batch_size: int) -> int:
    """Examples of one of its runs to the end: the budget, or what the longest of its runs there used if that is more.

    A run passes its budget by less than a batch: that is no longer run.
    """
    times = next((times for b, name, times in data.lengths if (b, name) == (batch_size, remedy)), 1.0)
    budget = round(times * data.question.budget_examples)
    longest = max((r.examples for r in data.runs if (r.remedy, r.batch_size) == (remedy, batch_size)), default=0)
    return longest if longest >= budget + batch_size else budget


def race_costs(data: MatchData) -> tuple[RaceCost, ...]:
    """What each race used beside running all its candidates to the end, by batch size."""
    found = []
    for size in dict.fromkeys(r.batch_size for r in data.runs if r.role in RACES):
        runs = distinct(r for r in data.runs if r.role in RACES and r.batch_size == size)
        candidates = {(r.remedy, r.learning_rate) for r in runs}
        whole = sum(length_of(data, r.remedy, size) for r in runs)
        found.append(RaceCost(size, len(candidates), sum(r.examples for r in runs), whole))
    return tuple(sorted(found, key=lambda cost: cost.batch_size))


def spent_of(data: MatchData) -> Spent:
    """All work, each run once."""
    runs = distinct(data.runs)
    examples = sum(r.examples for r in runs)
    unit = data.reference_examples or data.question.budget_examples
    return Spent(examples, sum(r.steps for r in runs), data.seconds, len(runs), examples / unit)


# --- curves ---


def curves_of(data: MatchData) -> tuple[MatchCurve, ...]:
    """The lowest loss so far of every run, at most MOST_POINTS of its evaluations, the first and the last among them.

    Only finite losses count; a run without any has no curve.
    """
    found = []
    for run in data.runs:
        points: list[tuple[int, float]] = []
        for examples, loss in run.losses:
            if math.isfinite(loss):
                points.append((examples, min(loss, points[-1][1]) if points else loss))
        if points:
            curve = thinned(points)
            found.append(MatchCurve(run.batch_size, run.remedy, run.role, run.learning_rate, run.seed, curve))
    return tuple(found)


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> tuple[tuple[int, float], ...]:
    """At most so many of the points, evenly spaced in their order, both ends kept."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(k * (len(points) - 1) / (most - 1))] for k in range(most))


# --- notes ---


def notes_of(data: MatchData, baseline: MatchRow, rows: Sequence[MatchRow], gaps: Sequence[Gap]) -> tuple[str, ...]:
    """What a reader must know before trusting the verdicts, one sentence each; the match's own notes come first."""
    own = [r for r in data.runs if r.role == "baseline"]
    return (
        *data.notes,
        *_judged(rows),
        *_about_seeds(data, own, gaps, rows),
        *_about_rates(data),
        *_about_looks(data, baseline),
        *_about_seconds(data),
    )


def _judged(rows: Sequence[MatchRow]) -> Iterable[str]:
    by_size: dict[int, int] = {}
    for row in rows:
        if row.role == "confirmed":
            by_size[row.batch_size] = by_size.get(row.batch_size, 0) + 1
    if by_size and max(by_size.values()) > 1:
        counts = ", ".join(f"{n} at batch size {size}" for size, n in sorted(by_size.items()))
        yield (
            f"Remedies were judged on seeds that did not choose ({counts}); the one-sided 5 % chance of a false match "
            "is each one's own: of several that just fail to match, one may be said to."
        )


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _about_seeds(
    data: MatchData, own: Sequence[MatchRun], gaps: Sequence[Gap], rows: Sequence[MatchRow]
) -> Iterable[str]:
    kept = [r.lowest_loss for r in own if not r.lost]
    if len(data.question.seeds) < 2:
        yield "With one seed no excess has an interval, so that nothing can be said to match: ask for 5 seeds."
    if lost := len(own) - len(kept):
        yield (
            f"The baseline diverged or failed with {_counted(lost, 'seed')} of {len(own)}: "
            f"excesses are over the other {len(kept)} only."
        )
    if kept and sum(kept) <= 0:
        yield "The baseline's mean loss is not above 0: excesses are shares of its absolute value."
    for size in sorted({r.batch_size for r in rows if r.role == "confirmed"} - {g.batch_size for g in gaps}):
        yield f"The large batch was not run untuned at batch size {size}: the room is 1 % of the baseline's loss."
    failed: dict[tuple[str, int, str], list[MatchRun]] = {}
    for run in distinct(data.runs):
        if run.outcome == "failed" or run.ended_by == "failure":
            reason = run.reason.rstrip(".") or "no reason was recorded"
            failed.setdefault((run.remedy, run.batch_size, reason), []).append(run)
    for (remedy, size, reason), runs in failed.items():
        first = f"learning rate {runs[0].learning_rate:.3g}, seed {runs[0].seed}"
        which = f"The run of {remedy!r}" if len(runs) == 1 else f"{len(runs)} runs of {remedy!r}"
        yield f"{which} at batch size {size} ({'first ' * (len(runs) > 1)}{first}) failed: {reason}."


def _about_rates(data: MatchData) -> Iterable[str]:
    """Remedies that were confirmed at the smallest or largest rate of their race."""
    own = data.question.own_batch_size, Racer(NO_REMEDY, data.baseline_learning_rate)
    for size, racer in (own, *data.chosen):
        remedy, rate = racer.remedy, racer.learning_rate
        rates = raced_rates(data.rounds, size, remedy)
        if len(rates) > 1 and rate in (rates[0], rates[-1]):
            yield (
                f"At batch size {size} the best learning rate of {remedy!r}, {rate:.3g}, is on the edge of those "
                "tried: a better one may lie beyond."
            )


def raced_rates(rounds: Sequence[RaceRound], batch_size: int, remedy: str) -> list[float]:
    """The learning rates of a remedy in a race, ascending."""
    return sorted(
        {c.learning_rate for r in rounds if r.batch_size == batch_size for c in r.raced if c.remedy == remedy}
    )


def _about_looks(data: MatchData, baseline: MatchRow) -> Iterable[str]:
    """The lowest of more evaluations is lower; and crossings between evaluations far apart are coarse."""
    own = max((len(r.losses) for r in data.runs if r.role == "baseline"), default=0)
    for remedy in dict.fromkeys(r.remedy for r in data.runs if r.role == "confirmed"):
        runs = [r for r in data.runs if r.role == "confirmed" and r.remedy == remedy and not r.lost]
        most = max((len(r.losses) for r in runs), default=own)
        if own and abs(most / own - 1) > UNEVEN:
            yield (
                f"Runs of {remedy!r} were evaluated {most} times, those of the baseline {own} times: "
                "the lowest of more evaluations is lower by chance."
            )
    reached = baseline.examples_to_goal.estimate if baseline.examples_to_goal is not None else None
    yield from coarse_note(data.question.cadence_examples, reached, "baseline's examples")


def _about_seconds(data: MatchData) -> Iterable[str]:
    if not data.timings:
        yield "Steps were not timed: no seconds are given."
        return
    drift = max(t.timing.drift for t in data.timings)
    if drift > DRIFT_LIMIT:
        yield (
            f"The reference step drifted by {100 * drift:.0f} % while steps were timed: "
            "seconds are corrected by it, and their interval may be too narrow."
        )
    if any(n > 1 for n in data.question.devices) and data.scaling is None:
        yield "No `scale` of this task is stored: seconds are given for one device only."
