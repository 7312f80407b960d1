"""In which order does a study run its trials, and what does its budget leave out?

    reference   the task's own point until it crosses the goal: the unit of every budget
    held        every batch size and seed at the task's own learning rate, together with the search's first round
    tuning      the search, round by round
    tuned       every batch size at its chosen learning rate, with seeds that did not choose

Decisions are taken when a phase has ended, from the records alone, so that a resumed study takes the same ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from batchscope.analysis.target import crossing
from batchscope.records import StopRule, TrialRecord, TrialSpec
from batchscope.store.base import Store
from batchscope.sweep.plan import LearningRateSearch, arms_of
from batchscope.sweep.runner import Runner

Wanted = Mapping[str, Sequence[TrialSpec]]


class Phases:
    """The trials of one study, phase by phase, inside its budget."""

    def __init__(
        self,
        store: Store,
        study_id: str,
        runner: Runner,
        budget: float | None = None,
        already: Sequence[TrialSpec] = (),
    ) -> None:
        """`budget` is in reference runs; `already` are trials that had to be run before the study could be stored."""
        self.store, self.id, self.runner, self.budget = store, study_id, runner, budget
        self.settings = s = store.study(study_id)
        self.stop = StopRule(s.budget_examples, s.cadence_examples, s.patience_epochs)
        self.limit = math.inf  # examples
        self.already = list(already)
        self.spent: dict[TrialSpec, int] = {}
        self.notes: list[str] = []

    def run(self) -> tuple[str, ...]:
        """Run everything that the budget admits; returns what it left out, in sentences."""
        s = self.settings
        self._price()
        held = self._arms(s.batch_sizes, s.own_learning_rate) if "held" in s.policies else []
        if "tuned" not in s.policies:
            self._run({"held": held})
            return tuple(self.notes)
        search = self._search({"held": held} if held else {})
        if search.results:
            choices = [search.choice(b) for b in s.batch_sizes]
            self.store.set_choices(self.id, choices)
            self._run({"tuned": self._arms(s.batch_sizes, {c.batch_size: c.learning_rate for c in choices})})
        return tuple(self.notes)

    def _arms(self, batch_sizes: Sequence[int], rate: float | Mapping[int, float]) -> list[TrialSpec]:
        where = self.settings.conditions
        return arms_of(batch_sizes, rate, where.precision, self.stop, self.settings.seeds, where.world_size)

    def _price(self) -> None:
        """The reference run."""
        s = self.settings
        stop = dataclasses.replace(self.stop, goal=s.goal)
        where = s.conditions
        spec = arms_of([s.own_batch_size], s.own_learning_rate, where.precision, stop, s.seeds[:1], where.world_size)
        record = self._ran({"reference": [*spec, *self.already]})["reference"][0]
        found = crossing(record.result.trace, s.goal)
        examples = float(s.budget_examples) if found is None else found.examples
        self.store.set_reference(self.id, examples, found is not None)
        if self.budget is not None:
            self.limit = self.budget * examples

    def _search(self, beside: Wanted) -> LearningRateSearch:
        """The search, until every optimum lies inside its grid or a whole round does not fit into the budget."""
        s = self.settings
        search = LearningRateSearch(
            s.batch_sizes,
            s.own_batch_size,
            s.own_learning_rate,
            self.stop,
            s.goal,
            s.conditions.precision,
            s.tuning_seeds,
            s.conditions.world_size,
        )
        cells = search.next_round()
        while cells:
            done = self._run({**beside, "tuning": list(cells)})["tuning"]
            if not done:
                break
            for record in done:
                search.add(cells[record.spec], record)
            beside, cells = {}, search.next_round()
        return search

    def _run(self, wanted: Wanted) -> dict[str, list[TrialRecord]]:
        """Run what the budget admits, until nothing more is: trials usually cost less than was set aside for them."""
        left = {role: list(specs) for role, specs in wanted.items()}
        done: dict[str, list[TrialRecord]] = {role: [] for role in wanted}
        while admitted := self._admitted(left):
            for role, records in self._ran(admitted).items():
                done[role] += records
                left[role] = left[role][len(records) :]
        for role, specs in left.items():
            if specs:
                self.notes.append(
                    f"{len(specs)} {role} trials were left out: they might not have fitted into the budget of "
                    f"{self.budget:g} reference runs."
                )
        return done

    def _ran(self, wanted: Wanted) -> dict[str, list[TrialRecord]]:
        done = self.runner.run(wanted)
        self.spent |= {record.spec: record.result.examples for records in done.values() for record in records}
        return done

    def _admitted(self, left: Mapping[str, Sequence[TrialSpec]]) -> dict[str, list[TrialSpec]]:
        """The first trials of every role whose dearest outcome fits; a round of the search whole or not at all."""
        room = self.limit - sum(self.spent.values())
        admitted: dict[str, list[TrialSpec]] = {}
        for role, specs in left.items():
            chosen = list(_that_fit(specs, room))
            if chosen and (role != "tuning" or len(chosen) == len(specs)):
                admitted[role] = chosen
                room -= sum(map(dearest, chosen))
        return admitted


def dearest(spec: TrialSpec) -> int:
    """The most examples that a trial can cost: it ends at the first step boundary at or past its cap or budget."""
    return (spec.stop.cap_examples or spec.stop.budget_examples) + spec.arm.batch_size - 1


def _that_fit(specs: Iterable[TrialSpec], room: float) -> Iterable[TrialSpec]:
    for spec in specs:
        room -= dearest(spec)
        if room < 0:
            return
        yield spec
