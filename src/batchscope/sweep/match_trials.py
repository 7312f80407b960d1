"""Which trials does a match run, and in which order? Races, and what they have chosen again with fresh seeds.

    baseline    the own batch size, its learning rate tuned by whole runs; then every fresh seed
    untuned     the large batch at the baseline's learning rate: the gap that there is to close
    race        all remedies at the large batch, each at the same number of learning rates, one seed that never reports
    confirmed   the best of them, and the plain large batch, with the fresh seeds

All runs may use as many examples and are evaluated after as many; schedules follow the whole of them, also where a race
stops a run early. Decisions are taken when a round has ended, from the records alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchscope.analysis.match_verdicts import MOST_ROOM
from batchscope.analysis.race import Race
from batchscope.analysis.target import crossing, first_crossing
from batchscope.errors import CannotAnswer
from batchscope.records import (
    NO_REMEDY,
    Arm,
    CannotApply,
    Goal,
    MatchQuestion,
    MatchRun,
    Racer,
    RaceRound,
    StopRule,
    TrialRecord,
    TrialSpec,
)
from batchscope.remedies.base import Case, Remedy, by_name
from batchscope.sweep.runner import Runner
from batchscope.task import Task


@dataclass
class Ran:
    """What has been run so far."""

    runs: list[MatchRun] = field(default_factory=list)
    rounds: list[RaceRound] = field(default_factory=list)
    refused: list[CannotApply] = field(default_factory=list)
    chosen: list[tuple[int, Racer]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: dict[str, TrialRecord] = field(default_factory=dict)  # by trial key: of those that confirm
    spent: dict[tuple[str, float, int, int], int] = field(default_factory=dict)  # a run's examples, counted once

    @property
    def examples(self) -> int:
        """All that was used."""
        return sum(self.spent.values())


class MatchTrials:
    """The runs of one match, on a runner; `ran` is what they gave."""

    def __init__(self, task: Task, question: MatchQuestion, runner: Runner, precision: str) -> None:
        self.task, self.question, self.runner, self.precision = task, question, runner, precision
        self.ran = Ran()
        self.rate = float(task.lr)  # of the baseline, once it is tuned
        self.limit = math.inf  # examples of all runs

    # --- the phases ---

    def baseline(self) -> list[TrialRecord]:
        """Tune the own batch size, run it with every fresh seed. Raises CannotAnswer where it cannot be trained."""
        q = self.question
        race = self._race(q.own_batch_size, {NO_REMEDY: self.rate}, "baseline race", whole=True)
        best = race.ranking()[0]
        if not math.isfinite(race.score(best)):
            raise CannotAnswer(
                f"task {self.task.name!r}: expected its own batch size {q.own_batch_size} to train at some learning "
                f"rate about {self.rate:g}, all {len(race.states)} diverged or failed: give a learning rate that trains"
            )
        self.rate = best.learning_rate
        records = self._confirm("baseline", q.own_batch_size, [best])
        if all(run.lost for run in self.ran.runs if run.role == "baseline"):
            raise CannotAnswer(
                f"task {self.task.name!r}: expected its own batch size {q.own_batch_size} to train, it diverged or "
                f"failed with every seed at the learning rate {self.rate:g}, the best of its race: give a smaller one, "
                "or a task that trains more steadily"
            )
        return records

    def untuned(self, size: int) -> None:
        """The large batch at the baseline's learning rate."""
        self._confirm("untuned", size, [Racer(NO_REMEDY, self.rate)])

    def refusals(self, size: int, names: Sequence[str]) -> list[CannotApply]:
        """The remedies that cannot be applied, and why."""
        case = self._case(size)
        reasons = {name: by_name(name).why_not(self.task, case) for name in names}
        return [CannotApply(size, name, why) for name, why in reasons.items() if why is not None]

    def remedies_at(self, size: int, names: Sequence[str]) -> dict[str, Remedy]:
        """Those that can be applied; the others are noted."""
        refused = self.refusals(size, names)
        self.ran.refused += refused
        return {name: by_name(name) for name in names if name not in {r.remedy for r in refused}}

    def race(self, size: int, remedies: Mapping[str, Remedy]) -> list[Racer]:
        """Each remedy at its best learning rate: those with the large batch throughout, then the others; best first.

        Races apart: a run that begins with small batches makes more steps with as many examples, and would always look
        better early; one that trains longer would take what the others are to be raced with.
        """
        ranking: list[Racer] = []
        for length, some in groups_of(remedies, self._case(size)):
            first = {name: self._first_rate(remedy, size) for name, remedy in some.items()}
            ranking += self._race(size, first, "race", dict.fromkeys(some, length)).ranking()
        return ranking

    def confirm(self, size: int, ranking: Sequence[Racer], most: int | None) -> None:
        """With the fresh seeds: the best of those with the large batch throughout, and the plain one; of the others the
        best of each kind. `most`: of the first; None: all of both.
        """
        kept: list[Racer] = []
        kinds: dict[str, int] = {}
        raced = [run for run in self.ran.runs if run.role == "race" and run.batch_size == size]
        lost = {Racer(run.remedy, run.learning_rate) for run in raced if run.lost}
        for racer in ranking:
            if racer in lost and racer.remedy != NO_REMEDY:
                continue  # it diverged or failed in its race, at its best rate
            remedy = by_name(racer.remedy)
            kind = remedy.title if makes_more_steps(remedy) else "throughout"
            room = most if kind == "throughout" else 1
            if most is None or racer.remedy == NO_REMEDY or kinds.get(kind, 0) < (room or 0):
                kept.append(racer)
                kinds[kind] = kinds.get(kind, 0) + (racer.remedy != NO_REMEDY)
        self.ran.chosen += [(size, racer) for racer in kept]
        self._confirm("confirmed", size, kept)

    @property
    def lengths(self) -> tuple[tuple[int, str, float], ...]:
        """(batch size, remedy, times) of those that were run and train longer."""
        seen = dict.fromkeys((run.batch_size, run.remedy) for run in self.ran.runs if run.remedy != NO_REMEDY)
        found = ((size, name, by_name(name).length(self._case(size))) for size, name in seen)
        return tuple(one for one in found if one[2] != 1)

    def fits(self, examples: int) -> bool:
        """Whether so many fit into what is left of the budget."""
        return self.ran.examples + examples <= self.limit

    # --- how they are run ---

    def _race(
        self,
        size: int,
        first: Mapping[str, float],
        role: str,
        lengths: Mapping[str, float] | None = None,
        whole: bool = False,
    ) -> Race:
        q = self.question
        race = Race(first, q.budget_examples, size, q.cadence_examples, lengths, len(q.race_seeds), whole)
        specs: set[TrialSpec] = set()
        last: dict[tuple[Racer, int], MatchRun] = {}
        while wanted := race.next_round():
            asked = {
                self._spec(size, racer, seed, cap): (racer, seed)
                for racer, cap in wanted.items()
                for seed in q.race_seeds
            }
            done = self.runner.run({role: list(asked)}, keep=[], at_cap=True)[role]
            specs |= set(asked)
            for record in done:
                racer, seed = asked[record.spec]
                last[racer, seed] = self._note(record, role)
                race.add(racer, last[racer, seed].losses, "diverged" if last[racer, seed].lost else "", seed)
        self.runner.drop_checkpoints(list(specs))
        self.ran.runs += last.values()
        self.ran.rounds += race.rounds
        if race.note:
            self.ran.notes.append(race.note)
        return race

    def _confirm(self, role: str, size: int, racers: Sequence[Racer]) -> list[TrialRecord]:
        specs = [self._spec(size, racer, seed, None) for seed in self.question.seeds for racer in racers]
        records = self.runner.run({role: specs}, keep=[])[role]
        for record in records:
            self.ran.records[record.spec.key()] = record
            self.ran.runs.append(self._note(record, role))
        return records

    def _spec(self, size: int, racer: Racer, seed: int, cap: int | None) -> TrialSpec:
        q, plain = self.question, racer.remedy == NO_REMEDY
        length = 1.0 if plain else by_name(racer.remedy).length(self._case(size))
        budget = round(length * q.budget_examples)
        arm = Arm(
            size,
            racer.learning_rate,
            precision=self.precision,
            remedy=racer.remedy,
            own_batch_size=None if plain else q.own_batch_size,
            own_learning_rate=None if plain else self.rate,
        )
        capped = cap if cap is not None and cap < budget else None
        return TrialSpec(arm, seed, StopRule(budget, q.cadence_examples, cap_examples=capped))

    def _note(self, record: TrialRecord, role: str) -> MatchRun:
        run = run_of(record, role, None)
        self.ran.spent[run.remedy, run.learning_rate, run.batch_size, run.seed] = run.examples
        return run

    def _case(self, size: int) -> Case:
        return Case(size, self.question.own_batch_size, self.rate, self.task.train_size)

    def _first_rate(self, remedy: Remedy, size: int) -> float:
        """Where the search of a remedy's learning rate begins.

        As the remedy says; for one that says nothing, the baseline's by the square-root rule, as a study's search does:
        between the linear rule and none.
        """
        case = self._case(size)
        applied = remedy.apply(self.task, case)
        if {"learning rate", "optimiser", "batch size"} & set(remedy.sets):
            return float(applied.lr)
        return self.rate * 2.0 ** round(0.5 * math.log2(case.times))

    def with_goal(self, goal: Goal) -> tuple[MatchRun, ...]:
        """All runs; those that confirm with where they crossed the goal, and came to the baseline's loss."""
        lowest = {run.seed: run.lowest_loss for run in self.ran.runs if run.role == "baseline"}
        known = self.ran.records
        return tuple(
            run_of(known[run.trial_key], run.role, goal, lowest.get(run.seed)) if run.trial_key in known else run
            for run in self.ran.runs
        )


def groups_of(remedies: Mapping[str, Remedy], case: Case) -> list[tuple[float, dict[str, Remedy]]]:
    """Those that race together, with the length of their runs: the large batch throughout, growing, longer ones."""
    groups: dict[tuple[bool, float], dict[str, Remedy]] = {}
    for name, remedy in remedies.items():
        groups.setdefault((makes_more_steps(remedy), remedy.length(case)), {})[name] = remedy
    return [(length, groups[more, length]) for more, length in sorted(groups)]


def makes_more_steps(remedy: Remedy) -> bool:
    """Whether it makes more steps than the large batch throughout would with the budget's examples."""
    return bool({"batch size", "training length"} & set(remedy.sets))


def run_of(record: TrialRecord, role: str, goal: Goal | None, lowest: float | None = None) -> MatchRun:
    """A trial in short. `lowest`: the baseline's lowest loss with its seed."""
    arm, result = record.spec.arm, record.result
    known = [e for e in result.trace if math.isfinite(e.validation["loss"])]
    best = min(known, key=lambda e: e.validation["loss"], default=None)
    found = crossing(result.trace, goal) if goal is not None and result.outcome != "failed" else None
    there = None
    if lowest is not None and math.isfinite(lowest) and result.outcome != "failed":
        there = first_crossing(result.trace, Goal("loss", at_most=lowest + MOST_ROOM * abs(lowest)))
    return MatchRun(
        role=role,
        batch_size=arm.batch_size,
        remedy=arm.remedy,
        learning_rate=arm.learning_rate,
        seed=record.spec.seed,
        outcome="reached" if found is not None else result.outcome,
        ended_by=result.ended_by,
        steps=result.steps,
        examples=result.examples,
        losses=tuple((e.examples, e.validation["loss"]) for e in result.trace),
        lowest_at=best.examples if best is not None else 0,
        validation=dict(best.validation) if best is not None else {},
        test=result.test,
        steps_to_goal=found.steps if found is not None else None,
        examples_to_goal=found.examples if found is not None else None,
        steps_to_loss=there.steps if there is not None else None,
        examples_to_loss=there.examples if there is not None else None,
        reason=result.reason,
        trial_key=record.spec.key() if role != "race" and role != "baseline race" else "",
    )
