"""`match`: the largest batch that still trains as well as the small one, and by which remedy.

    1. check the task and the remedies; what cannot be applied is refused before anything is trained
    2. tune the own batch size and run it with fresh seeds: the baseline
    3. race the remedies at the large batch, the plain tuned one among them, each with as many learning rates
    4. run the best of them with the fresh seeds, and the large batch untuned: the gap that there is to close
    5. go up by doubling while something matches, or down by halving until something does
    6. time the steps with each remedy, alone; analyse, put into words, draw

Every trial is stored, so the same command resumes a match, and repeating it trains nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.analysis.matching import analyse_match
from batchscope.errors import CannotAnswer
from batchscope.records import (
    NO_REMEDY,
    Arm,
    Conditions,
    Goal,
    MatchData,
    MatchResult,
    RemedyTiming,
    TimingPass,
    TrialRecord,
    from_plain,
    to_plain,
)
from batchscope.remedies.base import by_name
from batchscope.report.match_html import write_match
from batchscope.report.match_words import worded
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.match_trials import MatchTrials, makes_more_steps
from batchscope.sweep.runner import Listener, Runner
from batchscope.task import Task
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import call, executor_for, kept_choice, machine, reference_in
from batchscope.verbs.match_price import most_at, most_of_baseline
from batchscope.verbs.match_question import TRIED_ON, Matching, ask_match, can_train
from batchscope.verbs.own_goal import goal_within
from batchscope.verbs.report import default_path, drawn


def match(
    task: Task | str,
    *,
    batch_size: int | Sequence[int] | None = None,
    speedup: float | None = None,
    remedies: Sequence[str] | None = None,
    seeds: int = 5,
    confirm: int | None = 4,
    ladder: bool = True,
    epochs: float | None = None,
    devices: Sequence[int] = (1,),
    seed: int = 0,
    budget: float | None = None,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    checkpoint_seconds: float = 10.0,
    listen: Listener | None = None,
) -> MatchResult:
    """Find the remedy that lets a large batch train as well as the task's own batch size, at equal examples.

    Args:
        task: as in `study`; its own `batch_size` is the baseline's, its `lr` where the baseline's search begins.
        batch_size: the large one, or several; global, in examples.
        speedup: instead: how many times larger than the task's own. Neither: 16 times, at most a quarter of the data.
        remedies: names, as in `batchscope.remedies`, joined by " + " where they compose; default: all that are known
            but "train longer", which costs as many times as much. The plain large batch, tuned, is always among them.
        seeds: that confirm, paired with the baseline's; other seeds choose.
        confirm: how many remedies with the large batch throughout are run with the fresh seeds at each batch size, the
            plain one besides, and the best growing batch and what trains longer, which make more steps; None: all.
        ladder: also look for the largest batch size that matches, by doubling (twice at most) or halving.
        epochs: of every run; default: the task's budget.
        devices: counts that seconds to goal are wanted for; more than 1 needs a stored `scale` of the task.
        seed: which block of seeds, as in `study`.
        budget: most that may be spent, in reference runs, the baseline's share at least; what might not fit is left
            out, and said to be.
        store, report, draw, listen: as in `study`. checkpoint_seconds: how often a running trial is saved.

    Returns: the verdicts, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    started = time.monotonic()
    with drawing_from(0), executor_for(task) as executor:  # a notebook keeps its random numbers
        asked = ask_match(
            task,
            batch_size=batch_size,
            speedup=speedup,
            remedies=remedies,
            seeds=seeds,
            confirm=confirm,
            ladder=ladder,
            epochs=epochs,
            devices=devices,
            seed=seed,
            budget=budget,
        )
        if asked.reference is not None:
            executor.serve(TaskReference.here(asked.reference, asked.fingerprint))
        with open_store(store) as opened:
            opened.remember_task(asked.task.name, asked.fingerprint, asked.components)
            data = _measured(opened, asked, executor, Path(store), checkpoint_seconds, hear, started)
            match_id = opened.save_match(data)
    result = worded(analyse_match(data))
    if draw:
        path = report or default_path(store, f"{data.task}-match", match_id)
        result = drawn(result, path, write_match, hear)
    return result


def _measured(
    store: Store,
    asked: Matching,
    executor: Executor,
    path: Path,
    checkpoint_seconds: float,
    hear: Listener,
    started: float,
) -> MatchData:
    """Run what the store lacks, and time the steps."""
    question, task = asked.question, asked.task
    sizes = [question.own_batch_size, *question.batch_sizes]
    with machine(store, hear):
        workers, conditions = kept_choice(store, task, asked.fingerprint, executor, sorted(sizes), hear)
    executor.open_slots(workers, conditions)
    checkpoints = path.resolve().parent / f"{path.name}.checkpoints"
    where = (executor, checkpoints, checkpoint_seconds, hear)
    runner = Runner(store, None, asked.fingerprint, conditions, task.goal, *where)
    trials = MatchTrials(task, question, runner, conditions.precision)
    reference = reference_in(store, asked.fingerprint) or 0.0
    search = _Search(trials, asked, conditions, hear, reference)
    if question.budget is not None:
        trials.limit = question.budget * (reference or question.budget_examples)
    search.run()
    timings = _timed(store, executor, trials, conditions, hear)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    remedies = {row.remedy: None for row in trials.ran.runs} | {c.remedy: None for c in trials.ran.refused}
    return search.data(
        timings=timings,
        scaling=next((data for _, data in store.scalings(asked.fingerprint)), None),
        seconds=time.monotonic() - started,
        measured_at=datetime.now(UTC).isoformat(),
        **asked.told_of(list(remedies)),
    )


class _Search:
    """Batch size after batch size, as far as budget and ladder go."""

    def __init__(
        self, trials: MatchTrials, asked: Matching, conditions: Conditions, hear: Listener, reference: float
    ) -> None:
        self.trials, self.asked, self.question = trials, asked, asked.question
        self.conditions, self.hear = conditions, hear
        self.goal: Goal | None = asked.task.goal
        self.reference = reference
        self.done: set[int] = set()

    def run(self) -> None:
        """Everything; what does not fit into the budget is noted. Raises CannotAnswer where the baseline does not."""
        self._refuse()
        if not self.trials.fits(least := most_of_baseline(self.question)):
            unit = self.reference or self.question.budget_examples
            raise CannotAnswer(
                f"expected a budget that holds the baseline, its tuning included, got {self.question.budget:g} "
                f"reference runs: write --budget {math.ceil(least / unit)} or more, or fewer --epochs"
            )
        baseline = self.trials.baseline()
        self.goal = self.goal or self._own_goal(baseline)
        for size in self.question.batch_sizes:
            self._at(size, self.question.remedies, self.question.confirm)
        if self.question.ladder and self.done:
            self._climb()

    def data(self, **more: Any) -> MatchData:
        """What has been measured so far."""
        ran, asked = self.trials.ran, self.asked
        assert self.goal is not None
        return MatchData(
            task=asked.task.name,
            fingerprint=asked.fingerprint,
            question=self.question,
            conditions=self.conditions,
            goal=self.goal,
            train_size=asked.task.train_size,
            baseline_learning_rate=self.trials.rate,
            runs=self.trials.with_goal(self.goal),
            rounds=tuple(ran.rounds),
            cannot_apply=tuple(ran.refused),
            chosen=tuple(ran.chosen),
            lengths=self.trials.lengths,
            reference_examples=self.reference,
            metrics=asked.metrics,
            unit=asked.task.unit,
            notes=tuple(ran.notes),
            **more,
        )

    def _refuse(self) -> None:
        """Why remedies cannot be applied, before anything is trained: as far as it is known at the user's own rate."""
        for size in self.question.batch_sizes:
            for found in self.trials.refusals(size, self.question.remedies):
                self.hear("note", {"text": f"At batch size {size}, {found.remedy} is not raced: {found.reason}."})

    def _at(self, size: int, names: Sequence[str], confirm: int | None) -> bool:
        """One batch size: the gap, the race, the best again. Returns whether it was run."""
        remedies = self.trials.remedies_at(size, names)
        if not self.trials.fits(most_at(self.question, size, remedies, confirm, self.asked.task.train_size)):
            self._say(f"Batch size {size} was left out: it might not have fitted into the budget.")
            return False
        self.trials.untuned(size)
        ranking = self.trials.race(size, remedies)
        self.trials.confirm(size, ranking, confirm)
        self.done.add(size)
        return True

    def _climb(self) -> None:
        """Up by doubling while something matches; down by halving until something does."""
        best = max(self.done)
        up = self._matching(best)
        size, names = best, up
        if up:
            while names and 2 * size <= self.asked.largest:
                size *= 2
                if not self._at(size, self._few(names), None):
                    return
                names = self._matching(size)
            return
        matched = [size for size in self.done if self._matching(size)]
        least, closest = max(matched, default=2 * self.question.own_batch_size - 1), []
        while not self._matching(size) and size // 2 > least:
            closest = [row.remedy for row in self._rows(size)] or closest
            size //= 2
            if size in self.done or not can_train(self.asked.task, size):
                continue
            if not self._at(size, self._few(closest), None):
                return

    def _few(self, names: Sequence[str]) -> list[str]:
        """The first of these with the large batch throughout, the first of the others, and the plain one."""
        throughout = [name for name in names if name != NO_REMEDY and not makes_more_steps(by_name(name))]
        others = [name for name in names if makes_more_steps(by_name(name))]
        return [NO_REMEDY, *throughout[:TRIED_ON], *others[:1]]

    def _matching(self, size: int) -> list[str]:
        return [row.remedy for row in self._rows(size) if row.verdict == "matches" and row.saves_steps]

    def _rows(self, size: int) -> list[Any]:
        result = analyse_match(self.data())
        return [row for row in result.rows if row.batch_size == size and row.role == "confirmed"]

    def _own_goal(self, baseline: Sequence[TrialRecord]) -> Goal:
        """For goal=None: what every seed of the baseline reaches."""
        goal = goal_within([record.result.trace for record in baseline])
        if goal is None:
            raise CannotAnswer(
                f"task {self.asked.task.name!r}: expected the baseline to lower the validation loss, it did not: give "
                "a goal, or a learning rate that trains"
            )
        self._say(f"The goal was left open: {goal}, which every seed of the baseline reaches.")
        return goal

    def _say(self, text: str) -> None:
        self.trials.ran.notes.append(text)
        self.hear("note", {"text": text})


def _timed(
    store: Store, executor: Executor, trials: MatchTrials, conditions: Conditions, hear: Listener
) -> tuple[RemedyTiming, ...]:
    """Seconds per step of every remedy that was confirmed, at its batch sizes, and of the plain task at all of them."""
    own, rate = trials.question.own_batch_size, trials.rate
    sizes = sorted({own, *(size for size, _ in trials.ran.chosen)})
    arms: dict[str, list[Arm]] = {NO_REMEDY: [Arm(size, rate) for size in sizes]}
    for size, racer in trials.ran.chosen:
        if racer.remedy != NO_REMEDY:
            arm = Arm(size, racer.learning_rate, remedy=racer.remedy, own_batch_size=own, own_learning_rate=rate)
            arms.setdefault(racer.remedy, []).append(arm)
    with machine(store, hear, alone=True) as beat:
        hear("phase", {"roles": {"timing": sum(map(len, arms.values()))}, "trials": 0})
        job = Job("remedies", "remedies", {**place(conditions), "arms": to_plain(arms)})
        found = from_plain(dict[str, TimingPass], call(executor, job, beat))
    return tuple(RemedyTiming(name, timing) for name, timing in found.items())
