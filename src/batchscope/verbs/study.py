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
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from batchscope.analysis.table import analyse
from batchscope.analysis.target import HOLDS_FOR
from batchscope.errors import CannotAnswer
from batchscope.records import (
    Conditions,
    Goal,
    StudyResult,
    StudySettings,
    TimingPass,
    TrialSpec,
    from_plain,
)
from batchscope.store.base import Store
from batchscope.store.owner import Owner
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Done, Executor, Line, Refused
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job, TaskReference
from batchscope.sweep.phases import Phases
from batchscope.sweep.plan import arms_of
from batchscope.sweep.runner import Listener, Runner, as_error
from batchscope.task import Task
from batchscope.training.device import pick_device, set_up
from batchscope.training.fingerprint import changed
from batchscope.training.seeding import drawing_from
from batchscope.verbs.report import default_path
from batchscope.verbs.request import Request, prepare

DEFAULT_STORE = "batchscope.db"
OWN_GOAL_SLACK = (
    0.02  # goal=None: the lowest loss that held plus 2 % of its fall, so that most seeds reach it (a guess)
)
CLAIM_SECONDS = 600.0  # longer than a timing pass; a process that is gone loses its claim at once
POLL_SECONDS = 0.5


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
        policy: "held" (the task's own learning rate at every batch size), "tuned" (searched at each) or "both".
        seeds: how many seeds are reported for every batch size and policy.
        patience: epochs without a lower validation loss after which a trial has converged (minimum improvement 0).
        seed: which block of seeds; studies with different seeds share no randomness.
        budget: most that may be spent, in reference runs, the reference run included; trials that might not fit are
            left out, and said to be.
        store: the SQLite file; an existing one is continued.
        report: where to write the HTML page; default: beside the store. `draw=False` writes none.
        checkpoint_seconds: how often a running trial is saved.
        listen: called with (kind, details) as work goes on.

    Returns: the rows, claims and fitted law, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    with drawing_from(0), _executor(task) as executor:  # drawing_from: a notebook keeps its random numbers
        request = prepare(
            task, batch_sizes=batch_sizes, policy=policy, seeds=seeds, patience=patience, seed=seed, budget=budget
        )
        if isinstance(executor, LocalExecutor) and request.reference is not None:
            executor.serve(TaskReference.here(request.reference, request.checked.fingerprint))
        with open_store(store) as opened:
            notes = _remember(opened, request)
            for note in notes:
                hear("note", {"text": note})
            study_id, left_out = _measure(opened, request, executor, Path(store), checkpoint_seconds, hear)
            data = opened.study_data(study_id)
            result = analyse(data)
            opened.finish_study(study_id)
    result = dataclasses.replace(result, notes=(*result.notes, *notes, *left_out))
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


def _executor(task: Task | str) -> Executor:
    """Worker processes for a task that they can find; this process for one that they cannot."""
    return LocalExecutor(None, 1) if isinstance(task, str) else InlineExecutor(task)


def _remember(store: Store, request: Request) -> list[str]:
    """Note the task; what to say of its past: another one of the same name has trials here, which are not used."""
    name, checked, notes = request.task.name, request.checked, []
    before = [seen for seen in store.other_fingerprints(name, checked.fingerprint) if seen.trials]
    for seen in before[:1]:
        what = changed(seen.components, checked.components)
        notes.append(
            f"Task {name!r} is not the one of {seen.trials} trials stored under that name, which are not used: "
            f"{' and '.join(what) or 'something'} differ{'s' * (len(what) < 2)}."
        )
    store.remember_task(name, checked.fingerprint, checked.components)
    if request.reference is None:
        notes.append(
            "The task came as an object: its trials ran in this process, one at a time; a file uses all cores."
        )
    return notes


def _measure(
    store: Store, request: Request, executor: Executor, path: Path, checkpoint_seconds: float, hear: Listener
) -> tuple[str, tuple[str, ...]]:
    """Run everything that the study still lacks; returns its id and what was left out."""
    checkpoints = path.resolve().parent / f"{path.name}.checkpoints"
    fingerprint = request.checked.fingerprint

    def runner(study_id: str | None, goal: Goal | None, conditions: Conditions) -> Runner:
        return Runner(store, study_id, fingerprint, conditions, goal, executor, checkpoints, checkpoint_seconds, hear)

    def own_goal(conditions: Conditions) -> tuple[Goal, list[TrialSpec]]:
        return _own_goal(runner(None, None, conditions), request, hear)

    settings, already = _settled(store, request, executor, own_goal, hear)
    study_id = store.save_study(settings)
    run = runner(study_id, settings.goal, settings.conditions)
    left_out = Phases(store, study_id, run, request.budget, already).run()
    for note in left_out:
        hear("note", {"text": note})
    _time(store, study_id, request, executor, settings.conditions, hear)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return study_id, left_out


def _settled(
    store: Store,
    request: Request,
    executor: Executor,
    own_goal: Callable[[Conditions], tuple[Goal, list[TrialSpec]]],
    hear: Listener,
) -> tuple[StudySettings, list[TrialSpec]]:
    """What is chosen once and stored: workers, conditions, goal; and the trials that the goal took.

    Two commands that start together must choose alike, or their trials are not the same. So the choice is made, and
    stored with the study, while the machine is claimed. An open goal takes a training run in between: whoever then
    finds that another command has chosen otherwise follows it.
    """
    with _machine(store, hear):
        chosen = _chosen(store, request) or _choose(request, executor, hear)
        if request.task.goal is not None:
            settings = _settings(request, request.task.goal, *chosen)
            store.save_study(settings)
            _open_slots(executor, settings.workers)
            return settings, []
    while True:
        _open_slots(executor, chosen[0])
        goal, already = own_goal(chosen[1])
        with _machine(store, hear):
            others = _chosen(store, request)
            if others is None or others == chosen:
                settings = _settings(request, goal, *chosen)
                store.save_study(settings)
                return settings, already
        chosen = others


def _open_slots(executor: Executor, workers: int) -> None:
    """As many worker processes as were chosen; in this process there is one slot whatever was chosen."""
    if isinstance(executor, LocalExecutor):
        executor.slots = workers


@contextmanager
def _machine(store: Store, hear: Listener, alone: bool = False) -> Generator[Callable[[], None]]:
    """Claim the machine; with `alone`, wait for the trials of others to end. Gives the heartbeat of the claim."""
    owner, told = Owner.here(), False

    def beat() -> None:
        store.claim_machine(owner, CLAIM_SECONDS)

    try:
        while (state := store.claim_machine(owner, CLAIM_SECONDS)) == "busy" or (alone and state == "shared"):
            if not told:
                hear("note", {"text": "waiting for another command on this store, so as to measure alone"})
                told = True
            time.sleep(POLL_SECONDS)
        yield beat
    finally:
        store.free_machine(owner)


def _chosen(store: Store, request: Request) -> tuple[int, Conditions] | None:
    """Workers and conditions as an earlier study of this task chose them on a machine like this one."""
    for summary in store.studies():
        if summary.fingerprint == request.checked.fingerprint:
            settings = store.study(summary.id)
            if _is_here(settings.conditions):
                return settings.workers, settings.conditions
    return None


def _is_here(conditions: Conditions) -> bool:
    """Whether work done here, set up alike, is done under these conditions."""
    threads = torch.get_num_threads()
    try:
        return set_up(conditions.threads, pick_device(), conditions.precision) == conditions
    finally:
        torch.set_num_threads(threads)


def _choose(request: Request, executor: Executor, hear: Listener) -> tuple[int, Conditions]:
    """A short measurement of the task's own and the largest batch size."""
    sizes = sorted({request.task.batch_size, request.batch_sizes[-1]})
    hear("phase", {"roles": {"choosing workers and threads": 1}, "trials": 0})
    found = call(executor, Job("threads", "threads", {"batch_sizes": sizes}))
    return found["workers"], from_plain(Conditions, found["conditions"])


def _time(
    store: Store, study_id: str, request: Request, executor: Executor, conditions: Conditions, hear: Listener
) -> None:
    """The timing pass, once, alone on the machine as far as commands on this store go."""
    if store.timing(study_id) is not None:
        return
    with _machine(store, hear, alone=True) as beat:
        if store.timing(study_id) is None:
            hear("phase", {"roles": {"timing": len(request.batch_sizes)}, "trials": 0})
            job = Job("timing", "timing", {"batch_sizes": list(request.batch_sizes), "threads": conditions.threads})
            store.set_timing(study_id, from_plain(TimingPass, call(executor, job, beat)))


def call(executor: Executor, job: Job, beat: Callable[[], None] = lambda: None) -> Any:
    """Do one job that is not a trial, by itself; a worker that dies under it is replaced once."""
    reason = ""
    for _ in range(2):
        executor.start(job)
        while (end := next((e for e in executor.events(1.0) if not isinstance(e, Line)), None)) is None:
            beat()
        if isinstance(end, Done):
            return end.result
        if isinstance(end, Refused):
            raise as_error(end)
        reason = end.reason
    raise CannotAnswer(f"expected a worker to do the task's {job.kind} job, it died twice: {reason}")


def _own_goal(runner: Runner, request: Request, hear: Listener) -> tuple[Goal, list[TrialSpec]]:
    """For goal=None: what the task's own point reaches in one run of the whole budget, with a little slack.

    To reach a loss is to hold it at three evaluations running: the least that it did so is
    min over k of max(y_k, y_(k+1), y_(k+2)), with y the validation losses after the initial one.
    """
    task = request.task
    spec = arms_of([task.batch_size], float(task.lr), task.precision, request.stop, request.seeds[:1])
    (record,) = runner.run({"reference": spec})["reference"]
    if record.result.outcome == "failed":
        raise CannotAnswer(
            f"task {task.name!r}: expected its own point (lr={task.lr}, batch_size={task.batch_size}) to train, as no "
            f"goal was given, and it failed ({record.result.reason}): give a goal, or mend it"
        )
    start, *losses = [e.validation["loss"] for e in record.result.trace]
    runs = [losses[k : k + HOLDS_FOR] for k in range(len(losses) - HOLDS_FOR + 1)]
    lowest = min((max(run) for run in runs if all(map(math.isfinite, run))), default=math.inf)
    if not lowest < start:
        raise CannotAnswer(
            f"task {task.name!r}: expected its own point (lr={task.lr}, batch_size={task.batch_size}) to lower the "
            "validation loss, it did not: give a goal, or a learning rate that trains"
        )
    value = lowest + OWN_GOAL_SLACK * (start - lowest)
    rounded = float(f"{value:.4g}")
    goal = Goal("loss", at_most=rounded if rounded >= lowest else value)
    hear("note", {"text": f"the goal was left open: {goal}, which the task's own point reaches"})
    return goal, spec


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
