"""Which trainings does one `recommend` run, one after the other? From the reference run to the last check.

Decisions are taken at barriers, from the records alone, so that the same command takes the same ones again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from batchscope.analysis.advice import by_loss, is_weak, look, options_in, run_length, setting_of
from batchscope.analysis.search import DRAWS, Point, Setting, View, expected, proposals, reserve
from batchscope.analysis.target import crossed
from batchscope.analysis.tried import level_of, tried
from batchscope.errors import CannotAnswer
from batchscope.measure.coupling import batch_norms
from batchscope.records import (
    AdviceData,
    AdviceQuestion,
    Arm,
    Conditions,
    Goal,
    ProfileData,
    ScalingPass,
    StopRule,
    TrialRecord,
    TrialSpec,
)
from batchscope.store.base import Store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.jobs import TaskReference
from batchscope.sweep.plan import TUNING_SEEDS, default_batch_sizes, default_cadence, seeds_of, tuning_seeds_of
from batchscope.sweep.runner import Listener, Runner
from batchscope.task import Task
from batchscope.training.seeding import seed_everything
from batchscope.verbs.machine import choose, chosen, executor_for, machine
from batchscope.verbs.profile import Asked

AT_ONCE = 2  # runs between two decisions, whatever the machine: so that the same ones are taken everywhere
VERIFICATIONS = 6  # most runs with seeds that did not choose
WIDE = 1.4  # high over low of the seconds at the verified point beyond which it gets another seed (a guess)
EVALUATIONS = 60  # of a run of a given length
STORED_AS = {"reference": "reference", "search": "tuning", "verification": "tuned"}  # the store's words for the roles
PATIENCE_EPOCHS = 5.0  # without a lower validation loss, as in a study


class Decision:
    """One `recommend` while it runs."""

    def __init__(
        self,
        store: Store,
        asked: Asked,
        question: AdviceQuestion,
        profile: ProfileData,
        path: Path,
        checkpoint_seconds: float,
        hear: Listener,
        on: str | None = None,
        scaling: ScalingPass | None = None,
    ) -> None:
        self.on = on
        self.store, self.asked, self.task, self.hear = store, asked, asked.task, hear
        self.path, self.checkpoint_seconds = path, checkpoint_seconds
        self.started = time.monotonic()
        self.records: list[tuple[str, TrialRecord]] = []  # (role, trial)
        self.notes: list[str] = []
        task = self.task
        self.data = AdviceData(
            task=task.name,
            fingerprint=asked.checked.fingerprint,
            train_size=task.train_size,
            goal=task.goal,
            own_batch_size=task.batch_size,
            own_learning_rate=float(task.lr),
            unit=task.unit,
            conditions=profile.conditions,
            question=question,
            profile=profile,
            trials=(),
            reference_examples=float(task.budget_examples),
            reference_reached=False,
            budget_examples=task.budget_examples,
            cadence_examples=default_cadence(task.train_size, task.budget_examples),
            coupled=_coupled(task),
            scaling=scaling,
        )
        self.options = options_in(self.data)

    def run(self) -> AdviceData:
        """Everything, in order."""
        setting_of(self.data, self.options)  # raises here, before any training, where the objective was not measured
        with executor_for(self.asked.reference or self.task, on=self.on) as executor:
            if self.asked.reference is not None:
                executor.serve(TaskReference.here(self.asked.reference, self.asked.checked.fingerprint))
            workers, conditions = self._chosen(executor)
            self.data = dataclasses.replace(self.data, conditions=conditions, workers=workers)
            self._reference(executor)
            if not is_weak(self.data):
                ended = self._search(executor)
                self.data = dataclasses.replace(self.data, ended=ended)
                self._verify(executor)
        if self.data.provisional_goal is not None:  # the answer names the level that the own point reached
            self._read(level_of(self.records[0][1], self.data.goal))
        return dataclasses.replace(
            self.data,
            notes=tuple(self.notes),
            seconds=time.monotonic() - self.started,
            measured_at=datetime.now(UTC).isoformat(),
        )

    def _chosen(self, executor: Executor) -> tuple[int, Conditions]:
        """Workers and conditions as the store knows them for this task, or chosen now."""
        sizes = default_batch_sizes(self.task.train_size)
        with machine(self.store, self.hear):
            workers, conditions = chosen(self.store, self.data.fingerprint) or choose(
                executor, self.task, sizes, self.hear
            )
        executor.open_slots(workers, conditions)
        return workers, conditions

    # --- the runs ---

    def _reference(self, executor: Executor) -> None:
        """The task's own point: the unit of the budget, and the first thing known of the surface."""
        data = self.data
        cap = self._share() if data.question.budget < 1 else None
        stop = self._stop(data.own_batch_size, cap)
        spec = TrialSpec(self._arm((data.own_batch_size, data.own_learning_rate)), self._seeds(1)[0], stop)
        self._run(executor, "reference", [spec], watch=True)
        (tried,) = self.data.trials
        reached = tried.reached is not None
        record = self.records[0][1]
        if record.result.outcome == "failed":
            raise CannotAnswer(
                f"task {self.task.name!r}: expected its own point (lr={self.task.lr}, "
                f"batch_size={self.task.batch_size}) to train, it failed: {record.result.reason}"
            )
        reached = reached or by_loss(data)
        self.data = dataclasses.replace(
            self.data,
            reference_examples=self._unit(reached),
            reference_reached=reached,
            noise=record.result.noise_scale,
        )
        if data.goal is None and not reached:
            self._open_goal(record)

    def _share(self) -> int:
        """Examples after which the own run is cut off, where the budget does not hold a whole one."""
        data = self.data
        least = data.cadence_examples + data.own_batch_size
        cap = math.floor(data.question.budget * data.budget_examples) - data.own_batch_size
        if cap < data.cadence_examples:
            raise CannotAnswer(
                f"task {self.task.name!r}: expected a budget that holds a run to its first evaluation, "
                f"{least / data.budget_examples:.2g} or more, got {data.question.budget:g}: raise --budget"
            )
        return cap

    def _unit(self, reached: bool) -> float:
        """Examples of a reference run: all that the own run used, to the end of the evaluations that confirmed it.

        The task's whole budget where it did not reach, and below one reference run, whose price is not known before.
        """
        whole = self.data.question.budget < 1 or not reached
        return float(self.data.budget_examples if whole else self.data.trials[0].examples)

    def _open_goal(self, record: TrialRecord) -> None:
        """A goal that was left open becomes what the own point reached."""
        level = level_of(record, None)
        if level is None:
            raise CannotAnswer(
                f"task {self.task.name!r}: expected its own point (lr={self.task.lr}, "
                f"batch_size={self.task.batch_size}) to lower the validation loss, it did not: give a goal, or a "
                "learning rate that trains"
            )
        self.data = dataclasses.replace(self.data, goal=level)
        self.hear("note", {"text": f"the goal was left open: {level}, which the task's own point reaches"})
        self._reread()
        if self.data.trials[0].reached is not None:
            self.data = dataclasses.replace(self.data, reference_examples=self._unit(True), reference_reached=True)

    def _search(self, executor: Executor) -> str:
        """Run what is worth it, AT_ONCE at a time; returns why it ended."""
        while True:
            options, view = look(self.data, DRAWS, known=self.options)
            setting = setting_of(self.data, options)
            wanted = proposals(setting, view, self.data.examples, AT_ONCE)
            specs: list[TrialSpec] = []
            for p in wanted:
                specs.append(self._next((p.batch_size, p.learning_rate), p.cap_examples, specs))
            if not wanted and (point := self._unreached(setting, view)) is not None:
                specs = [self._next(point, None)]
            if not specs:
                room = setting.limit_examples - self.data.examples - reserve(setting, view)
                return "firm" if room > self.data.reference_examples else "budget"
            self._run(executor, "search", specs)

    def _next(self, point: Point, cap: int | None, beside: Sequence[TrialSpec] = ()) -> TrialSpec:
        """A run of the search at this point, with a seed that no run has had.

        Runs that share a seed share its luck at every point: their mean would be no surer than one of them.
        """
        made = [(t.seed, (t.batch_size, t.learning_rate)) for t in self.data.trials]
        made += [(s.seed, (s.arm.batch_size, s.arm.learning_rate)) for s in beside]
        seeds = tuning_seeds_of(self.data.question.seed, TUNING_SEEDS)
        unused = [seed for seed in seeds if all(seed != used for used, _ in made)]
        here = [seed for seed in seeds if (seed, point) not in made]
        return TrialSpec(self._arm(point), (unused or here)[0], self._stop(point[0], cap))

    def _unreached(self, setting: Setting, view: View) -> Point | None:
        """While nothing has reached the goal: the best point that was not given a whole run, if there is room for one.

        A search that is firm about the provisional goal has cut its runs off there; the goal itself may be in reach.
        """
        if by_loss(self.data) or any(t.reached is not None for t in self.data.trials):
            return None
        arms = [record.spec.arm for _, record in self.records if record.spec.stop.cap_examples is None]
        whole = {(arm.batch_size, arm.learning_rate) for arm in arms}
        room = setting.limit_examples - self.data.examples - setting.budget_examples
        fits = [k for k, point in enumerate(view.points) if point not in whole and point[0] <= room]
        return view.points[min(fits, key=lambda k: view.means[k])] if fits else None

    def _verify(self, executor: Executor) -> None:
        """Run the best point once more, with a seed that did not choose; more where it is not sure enough.

        A best point that no run has taken to the goal yet is tried first, where that leaves enough for the best that
        one has (in simulated studies this halved the median regret). Where the best does not fit, the best that does.
        """
        for seed in self._seeds(VERIFICATIONS + 1)[1:]:
            _, view = look(self.data, DRAWS, known=self.options)
            setting = setting_of(self.data, self.options)
            room = setting.limit_examples - self.data.examples
            reached = self._reached(view)
            affordable = [k for k in reached if expected(setting, view, k) <= room]
            index, aside = self._to_verify(view, affordable), 0.0
            if view.best not in reached:
                aside = expected(setting, view, affordable[0]) if affordable and not self._verified() else 0.0
                untried = affordable and expected(setting, view, view.best) + aside <= room
                index, aside = (view.best, aside) if untried else (index, 0.0)
            if index is None:
                return
            size = view.points[index][0]
            cap = math.floor(room - aside) - size
            stop = self._stop(size, cap if cap < setting.budget_examples else None)
            self._run(executor, "verification", [TrialSpec(self._arm(view.points[index]), seed, stop)])

    def _verified(self) -> set[Point]:
        """The points that a verification has taken to the goal."""
        loss, trials = by_loss(self.data), [t for t in self.data.trials if t.role == "verification"]
        reached = [t for t in trials if t.reached is not None or (loss and t.lowest_loss is not None)]
        return {(t.batch_size, t.learning_rate) for t in reached}

    def _reached(self, view: View) -> list[int]:
        """The points at which a run reached the goal, the best first."""
        loss = by_loss(self.data)
        known = {
            (t.batch_size, t.learning_rate)
            for t in self.data.trials
            if t.reached is not None or (loss and t.lowest_loss is not None)
        }
        return sorted((k for k, p in enumerate(view.points) if p in known), key=lambda k: view.means[k])

    def _to_verify(self, view: View, affordable: Sequence[int]) -> int | None:
        """The best of these, unless it was verified already and is known well enough."""
        if not affordable:
            return None
        best = affordable[0]
        done = {(t.batch_size, t.learning_rate) for t in self.data.trials if t.role == "verification"}
        if view.points[best] not in done:
            return best
        low, high = np.quantile(view.examples[:, best], (0.05, 0.95))
        return best if high - low > math.log(WIDE) and not by_loss(self.data) else None

    def _run(self, executor: Executor, role: str, specs: Sequence[TrialSpec], watch: bool = False) -> None:
        """Run trials (the store's where it has them) and take them in.

        A watched one leaves no checkpoint: resumed, it would measure the gradients of its second part alone, and the
        decisions would follow from where it was stopped.
        """
        checkpoints = self.path.resolve().parent / f"{self.path.name}.checkpoints"
        runner = Runner(
            self.store,
            None,
            self.data.fingerprint,
            self.data.conditions,
            self.data.goal,
            executor,
            checkpoints,
            math.inf if watch else self.checkpoint_seconds,
            self.hear,
        )
        stored_as = STORED_AS[role]
        done = runner.run({stored_as: specs}, watch=watch)[stored_as]
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()
        self.records += [(role, record) for record in done]
        self._reread()

    # --- what they say ---

    def _reread(self) -> None:
        """The trials as the analysis reads them; again when the goal that they are compared at has moved."""
        self._read(self._held())

    def _read(self, provisional: Goal | None) -> None:
        trials = tuple(tried(role, record, self.data.goal, provisional) for role, record in self.records)
        self.data = dataclasses.replace(
            self.data,
            provisional_goal=provisional,
            trials=trials,
            examples=sum(t.examples for t in trials),
            steps=sum(t.steps for t in trials),
        )

    def _held(self) -> Goal | None:
        """The best level that a run has held, until one reaches the goal: what runs are compared at, and cut off by.

        The own point's level would not do: it may be so easy that the runs to it tell nothing of the goal.
        """
        goal = self.data.goal
        if goal is None or by_loss(self.data) or any(crossed(r.result.trace, goal) for _, r in self.records):
            return self.data.provisional_goal
        levels = [level for _, record in self.records if (level := level_of(record, goal)) is not None]
        return (min if goal.falls else max)(levels, key=lambda level: level.value, default=None)

    def _seeds(self, count: int) -> tuple[int, ...]:
        return seeds_of(self.data.question.seed, count)

    def _stop(self, batch_size: int, cap: int | None = None) -> StopRule:
        """A run to the goal, cut off at `cap`; or of a given length, where the lowest loss in it is asked for.

        A run ends at an evaluation: the cap is the last multiple of the cadence in `cap`, so that it is passed by less
        than a step.
        """
        data = self.data
        if by_loss(data):
            length = run_length(data, self.options[batch_size])
            return StopRule(length, max(1, math.ceil(length / EVALUATIONS)))
        if cap is not None:
            cap = max(cap - cap % data.cadence_examples, data.cadence_examples)
        return StopRule(data.budget_examples, data.cadence_examples, PATIENCE_EPOCHS, data.goal, cap)

    def _arm(self, point: Point) -> Arm:
        """On one device; in micro-batches where the profile says so: they fit, and with batch norm are part of it."""
        option = self.options[point[0]]
        split = option.here or option.split
        micro = split.micro_batch_size if split.accumulation > 1 else None
        return Arm(point[0], point[1], micro_batch_size=micro, precision=self.data.conditions.precision)


def _coupled(task: Task) -> bool:
    """Whether the model mixes the examples of a batch."""
    seed_everything(0)
    return bool(batch_norms(task.model().train()))
