"""What does one `match` answer? A verdict for each remedy at each batch size, and the largest batch that matches.

`analyse_match` reads what was measured and returns the `MatchResult` that the terminal, the page and `--json` show. It
runs nothing; `report.match_words` puts in the sentences. Rows come from seeds that did not choose. How excesses and
verdicts are made is in `match_verdicts`, seconds in `match_seconds`, costs, curves and notes in `match_course`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from batchscope.analysis.match_course import curves_of, length_of, notes_of, race_costs, spent_of
from batchscope.analysis.match_seconds import MatchSeconds
from batchscope.analysis.match_verdicts import (
    MOST_ROOM,
    NO_SPREAD,
    Losses,
    excess_of,
    gap_of,
    verdict_of,
    without_lost,
)
from batchscope.analysis.step_time import inverse
from batchscope.analysis.target import Value, effective_batch_size, steps_per_epoch
from batchscope.analysis.uncertainty import LEVEL, pooled, product
from batchscope.records import (
    NO_REMEDY,
    Gap,
    Largest,
    MatchData,
    MatchResult,
    MatchRow,
    MatchRun,
    Measured,
    Racer,
    json_safe,
    to_plain,
)

Arm = tuple[str, int, str, float]  # role, batch size, remedy, learning rate
REPORTED = ("baseline", "untuned", "confirmed")  # roles whose seeds did not choose


def analyse_match(data: MatchData) -> MatchResult:
    """Everything that a match's runs and timings say. Pure: equal data give an equal result.

    Raises ValueError where no run of the baseline is among them.
    """
    table = _Table(data)
    baseline = next((table.row(arm) for arm in table.arms if arm[0] == "baseline"), None)
    if baseline is None:
        raise ValueError("expected runs of the baseline among the data, got none: run it first")
    untuned = tuple(table.row(arm) for arm in sorted(table.arms) if arm[0] == "untuned")
    rows = [table.row(arm) for arm in table.arms if arm[0] == "confirmed"]
    rows += [table.dropped(size, racer) for size, racer in _left_behind(data, rows)]
    rows.sort(key=_best_first)
    gaps = tuple(table.gaps.values())
    return MatchResult(
        task=data.task,
        fingerprint=data.fingerprint,
        goal=data.goal,
        question=data.question,
        conditions=data.conditions,
        baseline=baseline,
        untuned=untuned,
        rows=tuple(rows),
        gaps=gaps,
        rounds=data.rounds,
        races=race_costs(data),
        cannot_apply=data.cannot_apply,
        largest=_largest(table, baseline, rows),
        curves=curves_of(data),
        spent=spent_of(data),
        notes=notes_of(data, baseline, rows, gaps),
        measured_at=data.measured_at,
    )


def match_to_json(result: MatchResult) -> dict[str, Any]:
    """The answer as plain JSON data; curves are the page's, runs are `export`'s."""
    plain = to_plain(result)
    del plain["curves"]
    for plain_cost, cost in zip(plain["races"], result.races, strict=True):
        plain_cost["share"] = cost.share
    return json_safe(plain)


def _best_first(row: MatchRow) -> tuple[int, bool, float, float]:
    """By batch size; confirmed rows by excess, then dropped ones by their score in the race."""
    excess, loss = row.excess.estimate, row.min_validation_loss.estimate
    far = math.inf
    return row.batch_size, row.role == "race", far if excess is None else excess, far if loss is None else loss


def _left_behind(data: MatchData, rows: Sequence[MatchRow]) -> list[tuple[int, Racer]]:
    """(batch size, racer) of every remedy that was raced and not confirmed, at its best rate."""
    confirmed = {(r.batch_size, r.remedy) for r in rows}
    best: dict[tuple[int, str], tuple[int, float, Racer]] = {}
    for round_ in data.rounds:
        if round_.batch_size == data.question.own_batch_size:
            continue
        for racer, score in zip(round_.raced, round_.scores, strict=True):
            place, found = (round_.batch_size, racer.remedy), (-round_.examples, score, racer)
            if place not in confirmed and (place not in best or found[:2] < best[place][:2]):
                best[place] = found
    return [(size, racer) for (size, _), (_, _, racer) in best.items()]


class _Table:
    """The reported runs by arm, with what is pooled over all of them."""

    def __init__(self, data: MatchData) -> None:
        self.data, self.seconds = data, MatchSeconds(data)
        self.arms: dict[Arm, list[MatchRun]] = {}
        for run in data.runs:
            if run.role in REPORTED:
                self.arms.setdefault((run.role, run.batch_size, run.remedy, run.learning_rate), []).append(run)
        self.own = next((arm for arm in self.arms if arm[0] == "baseline"), None)
        own = self.arms[self.own] if self.own is not None else []
        self.baseline = _losses(own)
        self.untuned = {arm[1]: _losses(runs) for arm, runs in self.arms.items() if arm[0] == "untuned"}
        self.gaps: dict[int, Gap] = {b: gap_of(b, self.untuned[b], self.baseline) for b in sorted(self.untuned)}
        self.examples = {arm: self._to_goal(arm, runs, "examples_to_goal") for arm, runs in self.arms.items()}
        self.steps = {arm: self._to_goal(arm, runs, "steps_to_goal") for arm, runs in self.arms.items()}
        self.examples_measured, self.steps_measured = _pooled(self.examples), _pooled(self.steps)
        known = any(run.steps_to_loss is not None for run in own)  # else a goal is all that can be compared by
        self.there = ("steps_to_loss", "examples_to_loss") if known else ("steps_to_goal", "examples_to_goal")
        self.steps_there, self.examples_there = (
            {arm: self._to_goal(arm, runs, name) for arm, runs in self.arms.items()} for name in self.there
        )
        self.steps_there_measured = _pooled(self.steps_there)
        self.lowest = self._metric(lambda run: run.lowest_loss, loss=True)
        names = sorted({name for runs in self.arms.values() for run in runs for name in run.validation} - {"loss"})
        self.validation = {name: self._metric(lambda run, name=name: run.validation.get(name)) for name in names}
        tested = sorted({name for runs in self.arms.values() for run in runs for name in run.test or ()})
        self.test = {name: self._metric(lambda run, name=name: (run.test or {}).get(name)) for name in tested}

    def row(self, arm: Arm) -> MatchRow:
        """One arm over its seeds."""
        role, size, remedy, rate = arm
        runs, data = self.arms[arm], self.data
        losses, gap = _losses(runs), self.gaps.get(size)
        excess = excess_of(losses, self.baseline)
        room, said = (gap.room if gap is not None else MOST_ROOM), None
        if role == "confirmed":
            said = verdict_of(excess, room, losses, self.untuned.get(size, {}))
        longest = max(runs, key=lambda run: run.examples)
        fewer = fewer_steps(self, self.own, arm) if role == "confirmed" and self.own is not None else None
        return MatchRow(
            batch_size=size,
            remedy=remedy,
            role=role,
            learning_rate=rate,
            seeds=len(runs),
            reached=sum(run.steps_to_goal is not None for run in runs),
            diverged=sum(run.lost for run in runs),
            min_validation_loss=self.lowest[arm],
            excess=_exactly_zero(len(runs)) if role == "baseline" else excess.measured,
            bound=None if role == "baseline" else excess.upper,
            room=room if role == "confirmed" else None,
            verdict="" if said is None else said.verdict,
            resolved=True if said is None else said.resolved,
            why="",
            validation={name: of[arm] for name, of in self.validation.items()},
            test={name: of[arm] for name, of in self.test.items()} or None,
            steps_to_goal=self.steps_measured[arm],
            examples_to_goal=self.examples_measured[arm],
            fewer_steps=fewer,
            saves_steps=fewer is not None and saves_steps(fewer, self.arms[arm], self.arms[self.own or arm]),
            steps=longest.steps,
            examples=longest.examples,
            seconds_per_step=self.per_step(arm, 1),
            seconds_to_goal={n: m for n in data.question.devices if (m := self.to_goal(arm, n)) is not None},
            seeds_wanted=None if said is None else said.seeds_wanted,
            changes=data.titles.get(remedy, ""),
            cost=data.costs.get(remedy, ""),
            sources=data.sources.get(remedy, ()),
        )

    def dropped(self, batch_size: int, racer: Racer) -> MatchRow:
        """A remedy that the race left behind: its score there is all that is known of it."""
        scores = [
            (r.examples, score)
            for r in self.data.rounds
            for other, score in zip(r.raced, r.scores, strict=True)
            if r.batch_size == batch_size and other == racer
        ]
        examples, score = max(scores)
        of_race = (r for r in self.data.runs if r.role == "race" and r.batch_size == batch_size)
        runs = [r for r in of_race if Racer(r.remedy, r.learning_rate) == racer]
        loss = score if math.isfinite(score) else None
        why = f"none: from the race, after {examples} examples, on seeds that choose"
        data = self.data
        return MatchRow(
            batch_size=batch_size,
            remedy=racer.remedy,
            role="race",
            learning_rate=racer.learning_rate,
            seeds=0,
            reached=0,
            diverged=sum(run.lost for run in runs),
            min_validation_loss=Measured(loss, None, None, max(1, len(runs)), 0, why),
            excess=Measured(None, None, None, 0, 0, "none: not run with the seeds that confirm"),
            bound=None,
            room=self.gaps[batch_size].room if batch_size in self.gaps else MOST_ROOM,
            verdict="dropped",
            resolved=False,
            why="",
            steps=max((run.steps for run in runs), default=0),
            examples=max((run.examples for run in runs), default=examples),
            seconds_per_step=self.seconds.per_step(racer.remedy, batch_size),
            changes=data.titles.get(racer.remedy, ""),
            cost=data.costs.get(racer.remedy, ""),
            sources=data.sources.get(racer.remedy, ()),
        )

    # --- seconds ---

    def grows(self, arm: Arm) -> bool:
        """Whether its batch is not the same throughout: its steps are not those that its examples take at that size."""
        return any(abs(r.steps - steps_of(r.examples, self.data.train_size, arm[1])) > 1 for r in self.arms[arm])

    def per_step(self, arm: Arm, devices: int) -> Measured | None:
        """Seconds per step, the mean over the run where the batch grows."""
        if not self.grows(arm):
            return self.seconds.per_step(arm[2], arm[1], devices)
        examples, steps = (sum(getattr(run, name) for run in self.arms[arm]) for name in ("examples", "steps"))
        return self.seconds.growing_step(examples / steps, arm[1], devices) if steps else None

    def to_goal(self, arm: Arm, devices: int) -> Measured | None:
        """Seconds to goal."""
        if self.grows(arm):
            return self.seconds.growing_to_goal(self.steps[arm], self.examples[arm], arm[1], devices)
        per_step = self.seconds.per_step(arm[2], arm[1], devices)
        return None if per_step is None else product(self.steps_measured[arm], per_step)

    def to_loss(self, arm: Arm, devices: int) -> Measured | None:
        """Seconds to the baseline's loss."""
        if self.grows(arm):
            there = self.steps_there[arm], self.examples_there[arm]
            return self.seconds.growing_to_goal(*there, arm[1], devices)
        per_step = self.seconds.per_step(arm[2], arm[1], devices)
        return None if per_step is None else product(self.steps_there_measured[arm], per_step)

    # --- what is pooled ---

    def _to_goal(self, arm: Arm, runs: Sequence[MatchRun], name: str) -> list[Value]:
        """Of each seed; one that did not reach needs more than a whole run, whatever ended it."""
        _, size, remedy, _ = arm
        bound = float(length_of(self.data, remedy, size))
        if name.startswith("steps"):
            longest = max(runs, key=lambda run: run.examples)
            per_step = longest.examples / longest.steps if longest.steps else 0.0
            bound /= per_step or effective_batch_size(self.data.train_size, size)
        values = [getattr(run, name) for run in runs]
        return [Value(bound, True) if v is None else Value(max(float(v), 1.0)) for v in values]

    def _metric(self, of: Callable[[MatchRun], float | None], loss: bool = False) -> dict[Arm, Measured]:
        """One figure of the runs that ended, their spread pooled over the rows; of lost seeds no mean is taken."""
        values = {arm: [math.inf if run.lost else of(run) for run in runs] for arm, runs in self.arms.items()}
        known = {arm: [v for v in vs if v is not None and not math.isnan(v)] for arm, vs in values.items()}
        whole = {arm: [Value(v) for v in vs] for arm, vs in known.items() if all(map(math.isfinite, vs))}
        log = loss and all(v.value > 0 for vs in whole.values() for v in vs)
        found = _pooled(whole, log)
        return {arm: found[arm] if arm in found else _lost(vs, loss) for arm, vs in known.items()}


def steps_of(examples: int, train_size: int, batch_size: int) -> int:
    """Steps that so many examples take: ceil(N / B) in a whole epoch, the last short batch included."""
    epochs, rest = divmod(examples, train_size)
    return epochs * steps_per_epoch(train_size, batch_size) + -(-rest // batch_size)


def _losses(runs: Sequence[MatchRun]) -> Losses:
    return {run.seed: run.lowest_loss for run in runs}


def _lost(values: Sequence[float], loss: bool) -> Measured:
    """Of an arm with seeds that diverged; only a loss is known to be worse for them."""
    m = without_lost(values)
    return m if loss else dataclasses.replace(m, low=None, interval=m.interval.replace("bound", "none"))


def _pooled(values: Mapping[Arm, Sequence[Value]], log: bool = True) -> dict[Arm, Measured]:
    found = pooled(values, log)
    words = {"over 1 batch sizes": "over 1 row", "batch sizes": "rows", "one seed per batch size": "one seed"}
    for old, new in words.items():
        found = {arm: dataclasses.replace(m, interval=m.interval.replace(old, new)) for arm, m in found.items()}
    return found


def _exactly_zero(seeds: int) -> Measured:
    return Measured(0.0, 0.0, 0.0, seeds, 0, "exact: this is the baseline")


# --- the largest batch size that matches ---


def _largest(table: _Table, baseline: MatchRow, rows: Sequence[MatchRow]) -> Largest | None:
    """The matching row with the fewest steps to the baseline's loss, fewer than its own, at the largest batch size."""
    matching = [row for row in rows if row.verdict == "matches" and row.saves_steps]
    if not matching:
        return None
    size = max(row.batch_size for row in matching)

    def steps(row: MatchRow) -> tuple[float, float]:
        fewer = row.fewer_steps.estimate if row.fewer_steps is not None else None
        return -fewer if fewer is not None else 0.0, row.excess.estimate or 0.0

    row = min((row for row in matching if row.batch_size == size), key=steps)
    arm, own = _arm_of(row), _arm_of(baseline)
    fewer = row.fewer_steps or fewer_steps(table, own, arm)
    faster = {n: m for n in table.data.question.devices if (m := _faster(table, own, arm, fewer, n)) is not None}
    beyond = [r.batch_size for r in rows if r.role == "confirmed" and r.batch_size > size]
    return Largest(size, row.remedy, row.learning_rate, fewer, faster, min(beyond, default=None))


def saves_steps(fewer: Measured, runs: Sequence[MatchRun], own: Sequence[MatchRun]) -> bool:
    """Whether an arm is known to take fewer steps than the baseline: to its loss; where that is not reached, in all."""
    if fewer.estimate is None:
        return max(run.steps for run in runs) < min(run.steps for run in own)
    least = fewer.estimate if fewer.n < 2 else fewer.low
    return least is not None and least > 1


def _arm_of(row: MatchRow) -> Arm:
    return row.role, row.batch_size, row.remedy, row.learning_rate


def fewer_steps(table: _Table, own: Arm, arm: Arm) -> Measured:
    """The baseline's steps to within 1 % of its lowest loss, over an arm's steps to there.

    The geometric mean of the seeds' ratios where all got there. Otherwise the ratio of the two measured values, which
    does not pair; a bound where one arm has only a bound.
    """
    first, second = ({run.seed: getattr(run, table.there[0]) for run in table.arms[a]} for a in (own, arm))
    pairs = [(first[s], second[s]) for s in sorted(set(first) & set(second))]
    logs = [math.log(max(a, 1.0) / max(b, 1.0)) for a, b in pairs if a is not None and b is not None]
    if pairs and len(logs) == len(pairs):
        n, mean = len(logs), float(np.mean(logs))
        if n < 2:
            return Measured(math.exp(mean), None, None, n, 0, NO_SPREAD)
        half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(logs, ddof=1)) / math.sqrt(n)
        text = f"t on logs of ratios paired by seed, {n - 1} df"
        return Measured(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n, 0, text)
    a, b = table.steps_there_measured[own], table.steps_there_measured[arm]
    if a.estimate is not None and b.estimate is not None:
        return product(a, inverse(b, 1.0))
    low = a.low / (b.high or b.estimate) if a.estimate is None and a.low and b.estimate else None
    high = (a.high or a.estimate) / b.low if b.estimate is None and b.low and a.estimate else None
    return Measured(None, low, high, min(a.n, b.n), a.censored + b.censored, "bound: no seed reached on one side")


def _faster(table: _Table, own: Arm, arm: Arm, fewer: Measured, devices: int) -> Measured | None:
    """The baseline's seconds to its loss over an arm's."""
    if table.grows(arm):
        first, second = table.to_loss(own, devices), table.to_loss(arm, devices)
        return None if first is None or second is None else product(first, inverse(second, 1.0))
    if devices == 1:
        ratio = table.seconds.ratio((NO_REMEDY, own[1]), (arm[2], arm[1]))
        return None if ratio is None else product(fewer, ratio)
    first, second = table.per_step(own, devices), table.per_step(arm, devices)
    return None if first is None or second is None else product(product(fewer, first), inverse(second, 1.0))
