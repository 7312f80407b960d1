"""`study`: what does batch size do to this training? Held and tuned, several seeds, with error bars.

    1. check the task before compute is spent; choose workers and threads by a short measurement, once
    2. run every batch size at the task's own learning rate (held), and the first round of the search (tuned)
    3. search the learning rate of every batch size, round by round, then run the chosen ones with fresh seeds
    4. time the steps, alone and interleaved
    5. analyse what the store holds, and draw the report

Every step asks the store first, so the same command resumes a study, and repeating it spends nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchscope.analysis.table import analyse
from batchscope.analysis.target import crossing
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import (
    Conditions,
    Goal,
    StopRule,
    StudyResult,
    StudySettings,
    TimingPass,
    TrialRecord,
    TrialSpec,
    from_plain,
)
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Died, Done, Executor, Refused
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference
from batchscope.sweep.plan import (
    LearningRateSearch,
    arms_of,
    default_batch_sizes,
    default_cadence,
    seeds_of,
    tuning_seeds_of,
)
from batchscope.sweep.runner import Listener, Runner, as_error
from batchscope.task import Task, load_task
from batchscope.training.checks import CheckedTask, check_batch_sizes, check_task
from batchscope.training.fingerprint import changed
from batchscope.verbs.report import default_path

DEFAULT_STORE = "batchscope.db"
OWN_GOAL_SLACK = (
    0.02  # goal=None: the own point's lowest loss plus 2 % of its fall, so that most seeds reach it (a guess)
)


@dataclass(frozen=True)
class Request:
    """A study as asked for, checked against the task; nothing has been run."""

    task: Task
    reference: str | None  # None: a Task object, which runs in this process
    checked: CheckedTask
    batch_sizes: tuple[int, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    patience_epochs: float
    budget: float | None  # reference runs

    @property
    def stop(self) -> StopRule:
        """When a reported trial ends."""
        budget = self.task.budget_examples
        return StopRule(budget, default_cadence(self.task.train_size, budget), self.patience_epochs)


def prepare(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int = 3,
    patience: float = 5.0,
    seed: int = 0,
    budget: float | None = None,
) -> Request:
    """Check a task and what is asked of it, before any training. See `study` for the arguments."""
    policies = {"held": ("held",), "tuned": ("tuned",), "both": ("held", "tuned")}.get(policy)
    if policies is None:
        raise UsageError(f'expected policy "held", "tuned" or "both", got {policy!r}')
    if not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"expected at least one seed, got {seeds!r}: write --seeds 3")
    if seeds > 800:
        raise UsageError(f"expected at most 800 seeds, got {seeds}: the seeds of different studies would meet")
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    if not patience > 0:
        raise UsageError(f"expected patience in epochs above 0, got {patience!r}: write --patience 5")
    if budget is not None and not budget > 0:
        raise UsageError(
            f"expected a budget in reference runs above 0, got {budget!r}: write --budget 50, or leave it out"
        )
    reference = task if isinstance(task, str) else None
    loaded = load_task(task) if isinstance(task, str) else task
    if not isinstance(loaded, Task):
        raise UsageError(f"expected a task reference or a bs.Task, got {type(loaded).__name__}: write study('digits')")
    checked = check_task(loaded)
    sizes = check_batch_sizes(
        loaded, batch_sizes if batch_sizes is not None else default_batch_sizes(loaded.train_size)
    )
    own_seeds, own_tuning = seeds_of(seed, seeds), tuning_seeds_of(seed)
    return Request(loaded, reference, checked, sizes, policies, own_seeds, own_tuning, float(patience), budget)


def study(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int = 3,
    patience: float = 5.0,
    seed: int = 0,
    budget: float | None = None,
    store: str | Path = DEFAULT_STORE,
    report: str | Path | None = None,
    draw: bool = True,
    checkpoint_seconds: float = 10.0,
    listen: Listener | None = None,
) -> StudyResult:
    """Measure what batch size does to a task's training, and judge the classic claims.

    Args:
        task: a reference (`path.py`, `path.py:function`, `package.module:function`, built-in name), run by worker
            processes; or a `Task` object, run in this process, one trial at a time.
        batch_sizes: global, in examples; default: up to eight powers of two from 8 to a quarter of the data.
        policy: "held" (the task's own learning rate at every batch size), "tuned" (searched at every batch size), "both".
        seeds: how many seeds are reported for every batch size and policy.
        patience: epochs without a lower validation loss after which a trial counts as converged (minimum improvement 0).
        seed: which block of seeds; studies with different seeds share no randomness.
        budget: most that may be spent, in reference runs; trials that do not fit in are left out, and said to be.
        store: the SQLite file; an existing one is continued.
        report: where to write the HTML page; default: beside the store. `draw=False` writes none.
        checkpoint_seconds: how often a running trial is saved.
        listen: called with (kind, details) as work goes on.

    Returns: the rows, claims and fitted law, as in `--json`. Raises BatchscopeError with one sentence.
    """
    request = prepare(
        task, batch_sizes=batch_sizes, policy=policy, seeds=seeds, patience=patience, seed=seed, budget=budget
    )
    hear: Listener = listen or (lambda kind, details: None)
    with open_store(store) as opened:
        _remember(opened, request, hear)
        with _executor(request) as executor:
            study_id = _measure(opened, request, executor, Path(store), checkpoint_seconds, hear)
        data = opened.study_data(study_id)
        result = analyse(data)
        opened.finish_study(study_id)
    if draw:
        result = _draw(result, data, report or default_path(store, request.task.name, study_id), hear)
    return result


def _draw(result: StudyResult, data: Any, path: str | Path, hear: Listener) -> StudyResult:
    """Write the page; without the `report` extra the answer stands, and says what is missing."""
    from batchscope.report.html import write_report

    try:
        written = write_report(dataclasses.replace(result, report=str(path)), data, Path(path))
    except CannotAnswer as error:
        hear("note", {"text": str(error)})
        return dataclasses.replace(result, notes=(*result.notes, str(error)))
    return dataclasses.replace(result, report=str(written))


def _executor(request: Request) -> Executor:
    """Worker processes for a task that they can find; this process for one that they cannot."""
    if request.reference is None:
        return InlineExecutor(request.task)
    return LocalExecutor(TaskReference.here(request.reference, request.checked.fingerprint), 1)


def _remember(store: Store, request: Request, hear: Listener) -> None:
    """Note the task, and say so where another one of the same name has trials here: they are not used."""
    name, checked = request.task.name, request.checked
    for seen in store.other_fingerprints(name, checked.fingerprint)[:1]:
        if seen.trials:
            what = " and ".join(changed(seen.components, checked.components)) or "something"
            text = (
                f"task {name!r} has changed since its {seen.trials} stored trials ({what} differs): they are not used"
            )
            hear("note", {"text": text})
    store.remember_task(name, checked.fingerprint, checked.components)
    if request.reference is None:
        hear(
            "note",
            {"text": "a Task object runs in this process, one trial at a time; give a file or a name to use all cores"},
        )


def call(executor: Executor, job: Job) -> Any:
    """Do one job that is not a trial, by itself; a worker that dies under it is replaced once."""
    for _ in range(2):
        executor.start(job)
        while True:
            for event in executor.events(1.0):
                if isinstance(event, Done):
                    return event.result
                if isinstance(event, Refused):
                    raise as_error(event)
                if isinstance(event, Died):
                    reason = event.reason
                    break
            else:
                continue
            break
    raise CannotAnswer(f"expected a worker to measure the task's {job.kind}, it died twice: {reason}")


def _measure(
    store: Store, request: Request, executor: Executor, path: Path, checkpoint_seconds: float, hear: Listener
) -> str:
    """Run everything that the study still lacks; returns its id."""
    workers, conditions = _workers(store, request, executor, hear)
    if isinstance(executor, LocalExecutor):
        executor.slots = workers
    checkpoints = path.resolve().parent / f"{path.name}.checkpoints"

    def runner(study_id: str | None, goal: Goal | None) -> Runner:
        return Runner(
            store,
            study_id,
            request.checked.fingerprint,
            conditions,
            goal,
            executor,
            checkpoints,
            checkpoint_seconds,
            hear,
        )

    goal = request.task.goal or _own_goal(runner(None, None), request, hear)
    settings = _settings(request, goal, workers, conditions)
    study_id = store.save_study(settings)
    _Trials(store, request, settings, study_id, runner(study_id, goal), hear).run()
    if store.timing(study_id) is None:
        hear("phase", {"roles": {"timing": len(request.batch_sizes)}, "trials": 0})
        job = Job("timing", "timing", {"batch_sizes": list(request.batch_sizes), "threads": conditions.threads})
        store.set_timing(study_id, from_plain(TimingPass, call(executor, job)))
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return study_id


def _workers(store: Store, request: Request, executor: Executor, hear: Listener) -> tuple[int, Conditions]:
    """How many workers, under which conditions: as an earlier study of this task chose, else measured now."""
    for summary in store.studies():
        if summary.fingerprint == request.checked.fingerprint:
            settings = store.study(summary.id)
            return settings.workers, settings.conditions
    sizes = sorted({request.task.batch_size, request.batch_sizes[-1]})
    hear("phase", {"roles": {"choosing workers and threads": 1}, "trials": 0})
    found = call(executor, Job("threads", "threads", {"batch_sizes": sizes}))
    workers = 1 if request.reference is None else found["workers"]
    return workers, from_plain(Conditions, found["conditions"])


def _own_goal(runner: Runner, request: Request, hear: Listener) -> Goal:
    """For goal=None: what the task's own point reaches in one run of the whole budget, with a little slack."""
    task = request.task
    spec = arms_of([task.batch_size], float(task.lr), task.precision, request.stop, request.seeds[:1])
    trace = runner.run({"reference": spec})["reference"][0].result.trace
    losses = [e.validation["loss"] for e in trace if math.isfinite(e.validation["loss"])]
    if len(losses) < 2 or min(losses) >= losses[0]:
        raise CannotAnswer(
            f"task {task.name!r}: expected its own point (lr={task.lr}, batch_size={task.batch_size}) to lower the validation "
            "loss, it did not: give a goal, or a learning rate that trains"
        )
    value = float(f"{min(losses) + OWN_GOAL_SLACK * (losses[0] - min(losses)):.4g}")
    goal = Goal("loss", at_most=value)
    hear("note", {"text": f"the goal was left open: {goal}, which the task's own point reaches"})
    return goal


def _settings(request: Request, goal: Goal, workers: int, conditions: Conditions) -> StudySettings:
    task, stop = request.task, request.stop
    return StudySettings(
        task=task.name,
        fingerprint=request.checked.fingerprint,
        train_size=task.train_size,
        goal=goal,
        own_batch_size=task.batch_size,
        own_learning_rate=float(task.lr),
        batch_sizes=request.batch_sizes,
        policies=request.policies,
        seeds=request.seeds,
        tuning_seeds=request.tuning_seeds if "tuned" in request.policies else (),
        budget_examples=stop.budget_examples,
        cadence_examples=stop.cadence_examples,
        patience_epochs=request.patience_epochs,
        workers=workers,
        conditions=conditions,
        unit=task.unit,
        metrics=request.checked.metrics,
        targets=tuple(float(t) for t in task.targets),
    )


class _Trials:
    """The trials of one study, phase by phase, inside its budget."""

    def __init__(
        self, store: Store, request: Request, settings: StudySettings, study_id: str, runner: Runner, hear: Listener
    ) -> None:
        self.store, self.request, self.settings, self.id = store, request, settings, study_id
        self.runner, self.hear, self.goal = runner, hear, settings.goal
        self.limit = math.inf  # examples
        self.spent = 0

    def run(self) -> None:
        """Held trials and the search's first round together; then the search; then the chosen learning rates."""
        request, task, stop = self.request, self.request.task, self.request.stop
        self._price()
        first: dict[str, list[TrialSpec]] = {}
        if "held" in request.policies:
            first["held"] = arms_of(request.batch_sizes, float(task.lr), task.precision, stop, request.seeds)
        if "tuned" not in request.policies:
            self._run(first)
            return
        search = LearningRateSearch(
            request.batch_sizes, task.batch_size, float(task.lr), stop, self.goal, task.precision, request.tuning_seeds
        )
        cells = search.next_round()
        while cells:
            done = self._run(first | {"tuning": list(cells)}, whole="tuning")
            for record in done["tuning"]:
                search.add(cells[record.spec], record)
            if len(done["tuning"]) < len(cells):
                break
            first, cells = {}, search.next_round()
        if not search.results:
            return
        choices = [search.choice(b) for b in request.batch_sizes]
        self.store.set_choices(self.id, choices)
        rates = {c.batch_size: c.learning_rate for c in choices}
        self._run({"tuned": arms_of(request.batch_sizes, rates, task.precision, stop, request.seeds)})

    def _price(self) -> None:
        """The reference run: the unit of every budget."""
        known = self.store.reference(self.id)
        if known is None:
            task, stop = self.request.task, dataclasses.replace(self.request.stop, goal=self.goal)
            spec = arms_of([task.batch_size], float(task.lr), task.precision, stop, self.request.seeds[:1])
            result = self.runner.run({"reference": spec})["reference"][0].result
            found = crossing(result.trace, self.goal)
            known = (found.examples, True) if found is not None else (float(stop.budget_examples), False)
            self.store.set_reference(self.id, *known)
        if self.request.budget is not None:
            self.limit = self.request.budget * known[0]

    def _run(self, wanted: dict[str, list[TrialSpec]], whole: str = "") -> dict[str, list[TrialRecord]]:
        """Run what the budget admits, in order; a role named `whole` runs entirely or not at all."""
        admitted: dict[str, list[TrialSpec]] = {}
        committed = float(self.spent)
        for role, specs in wanted.items():
            admitted[role] = []
            for spec in specs:
                committed += spec.stop.cap_examples or spec.stop.budget_examples
                if committed > self.limit:
                    break
                admitted[role].append(spec)
            if role == whole and len(admitted[role]) < len(specs):
                admitted[role] = []
            if len(admitted[role]) < len(specs):
                left = len(specs) - len(admitted[role])
                text = f"{left} {role} trials were left out: they might not have fitted into the budget of {self.request.budget:g} reference runs"
                self.store.add_note(self.id, text)
                self.hear("note", {"text": text})
        done = self.runner.run(admitted)
        self.spent += sum(record.result.examples for records in done.values() for record in records)
        return done
