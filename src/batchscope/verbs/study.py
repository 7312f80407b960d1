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
from collections.abc import Callable, Sequence
from pathlib import Path

from batchscope.analysis.table import analyse
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.coupling import replica_norms
from batchscope.records import (
    Conditions,
    Goal,
    StudyResult,
    StudySettings,
    TimingPass,
    TrialSpec,
)
from batchscope.report.html import write_report
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.keeping import Keeping, weights_folder
from batchscope.sweep.messages import TaskReference
from batchscope.sweep.phases import Phases
from batchscope.sweep.plan import arms_of
from batchscope.sweep.runner import Listener, Runner
from batchscope.task import Task
from batchscope.training.fingerprint import changed
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import check_devices, choose, chosen, executor_for, machine
from batchscope.verbs.own_goal import goal_within
from batchscope.verbs.report import default_path, drawn
from batchscope.verbs.request import Request, prepare
from batchscope.verbs.timing import stored_timing, timing_pass

FAR_SMALLER = 16  # a last batch of so small a share of the others is spoken of (a guess)
DEFAULT_STORE = "batchscope.db"


def study(
    task: Task | str,
    *,
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int = 3,
    patience: float = 5.0,
    seed: int = 0,
    budget: float | None = None,
    devices: int = 1,
    on: str | None = None,
    store: str | Path = DEFAULT_STORE,
    report: str | Path | None = None,
    draw: bool = True,
    keep_weights: bool = False,
    checkpoint_seconds: float = 10.0,
    timing: TimingPass | None = None,
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
        devices: how many train a trial together, each a part of every batch; processes of this machine, which load
            the task by its reference. Batch sizes are global all the same.
        on: a Ray cluster to run trials on: "ray" (RAY_ADDRESS's, or one of this machine's own) or "ray://HOST:PORT".
        store: the SQLite file; an existing one is continued.
        report: where to write the HTML page; default: beside the store. `draw=False` writes none.
        keep_weights: keep the weights of every reported trial in the folder `<store>.weights` (initial, at the lowest
            validation loss, at the end), for `sharpness`. A trial that was stored without them is trained again, which
            no budget counts. Not on a cluster.
        checkpoint_seconds: how often a running trial is saved.
        timing: seconds per step in a loop of your own at these batch sizes (`StepMeter.report()`); default: the
            seconds of Batchscope's own loop, from a stored `profile` of the task or measured now.
        listen: called with (kind, details) as work goes on.

    Returns: the rows, claims and fitted law, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    asked = {"policy": policy, "seeds": seeds, "patience": patience, "seed": seed, "budget": budget}
    check_devices(task, devices, on)
    _check_kept(keep_weights, on)
    with drawing_from(0), executor_for(task, devices, on) as executor:  # a notebook keeps its random numbers
        request = prepare(task, batch_sizes=batch_sizes, devices=devices, keep_weights=keep_weights, **asked)
        _check_timing(timing, request)
        if (reference := _found_again(request)) is not None:
            executor.serve(reference)
        with open_store(store) as opened:
            notes = _remember(opened, request)
            for note in notes:
                hear("note", {"text": note})
            study_id, left_out = _measure(opened, request, executor, Path(store), checkpoint_seconds, timing, hear)
            data = opened.study_data(study_id)
            result = analyse(data)
            opened.finish_study(study_id)
    result = dataclasses.replace(result, notes=(*result.notes, *notes, *left_out))
    if draw:
        path = report or default_path(store, request.task.name, study_id)
        result = drawn(result, path, lambda answer, where: write_report(answer, data, where), hear)
    return result


def _check_kept(keep_weights: bool, on: str | None) -> None:
    """Weights are written where trials run; raises UsageError where that is on other machines."""
    if keep_weights and on is not None:
        raise UsageError(
            f"expected the trials whose weights are kept on this machine, got --on {on}, whose nodes would write the "
            "files: leave out --on or --keep-weights"
        )


def _found_again(request: Request) -> TaskReference | None:
    """How workers find the task; None for one in memory."""
    if request.reference is None:
        return None
    return TaskReference.here(request.reference, request.checked.fingerprint)


def _check_timing(timing: TimingPass | None, request: Request) -> None:
    """A timing from elsewhere covers every batch size; raises UsageError."""
    if timing is not None:
        missing = sorted(set(request.batch_sizes) - {t.batch_size for t in timing.timings})
        if missing:
            raise UsageError(
                f"expected a timing of every batch size, got none of {', '.join(map(str, missing))}: let the meter see "
                "steps at them, or leave them out of batch_sizes"
            )


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
    notes += short_last_batches(request.task.train_size, request.batch_sizes)
    if request.reference is None:
        notes.append(
            "The task came as an object: its trials ran in this process, one at a time; a file uses all cores."
        )
    if request.devices > 1 and (norms := replica_norms(request.task)):
        notes.append(
            f"Batch norm ({len(norms)} layer{'s' * (len(norms) > 1)}) sees a device's own part of a batch, one of "
            f'{request.devices}: that is not the training of one device. bs.Task(batch_norm="synchronised") would be.'
        )
    return notes


def short_last_batches(train_size: int, batch_sizes: Sequence[int]) -> list[str]:
    """A sentence for each batch size whose epochs end with a far smaller batch: it moves the weights as the others do.

    (With batch norm and Adam, two examples after ten batches of 4,915 kept a network's training loss at 0.25, where
    4,916 went on falling.)
    """
    rests = {size: train_size % size for size in batch_sizes if size < train_size}
    return [
        f"At batch size {size:,} the last batch of every epoch has {rest:,} example{'s' * (rest > 1)}, whose step is "
        f"as long as the others' and far noisier: {math.ceil(train_size / (train_size // size)):,} would leave none so "
        "small."
        for size, rest in rests.items()
        if 0 < rest <= size // FAR_SMALLER
    ]


def _measure(
    store: Store,
    request: Request,
    executor: Executor,
    path: Path,
    checkpoint_seconds: float,
    timing: TimingPass | None,
    hear: Listener,
) -> tuple[str, tuple[str, ...]]:
    """Run everything that the study still lacks; returns its id and what was left out."""
    checkpoints = path.resolve().parent / f"{path.name}.checkpoints"
    fingerprint = request.checked.fingerprint
    keeping = Keeping(weights_folder(path), _found_again(request)) if request.keep_weights else None

    def runner(study_id: str | None, goal: Goal | None, conditions: Conditions) -> Runner:
        where, seconds = checkpoints, checkpoint_seconds
        return Runner(store, study_id, fingerprint, conditions, goal, executor, where, seconds, hear, keeping)

    def own_goal(conditions: Conditions) -> tuple[Goal, list[TrialSpec]]:
        return _own_goal(runner(None, None, conditions), request, hear)

    settings, already = _settled(store, request, executor, own_goal, hear)
    study_id = store.save_study(settings)
    run = runner(study_id, settings.goal, settings.conditions)
    left_out = Phases(store, study_id, run, request.budget, already).run()
    for note in left_out:
        hear("note", {"text": note})
    if timing is not None:
        store.set_timing(study_id, timing)
    _time(store, study_id, request, executor, settings.conditions, hear)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return study_id, (*left_out, *run.notes)


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
    with machine(store, hear):
        fingerprint, devices = request.checked.fingerprint, request.devices
        choice = chosen(store, fingerprint, devices) or choose(
            executor, request.task, request.batch_sizes, hear, devices
        )
        if request.task.goal is not None:
            settings = _settings(request, request.task.goal, *choice)
            store.save_study(settings)
            executor.open_slots(*choice)
            return settings, []
    while True:
        executor.open_slots(*choice)
        goal, already = own_goal(choice[1])
        with machine(store, hear):
            others = chosen(store, fingerprint, devices)
            if others is None or others == choice:
                settings = _settings(request, goal, *choice)
                store.save_study(settings)
                return settings, already
        choice = others


def _time(
    store: Store, study_id: str, request: Request, executor: Executor, conditions: Conditions, hear: Listener
) -> None:
    """The seconds of every batch size: a stored profile's where there is one, else a timing pass of their own."""
    if store.timing(study_id) is not None:
        return
    with machine(store, hear, alone=True) as beat:
        if store.timing(study_id) is None:
            sizes = request.batch_sizes
            found = stored_timing(store, request.checked.fingerprint, conditions, sizes)
            if found is None:
                hear("phase", {"roles": {"timing": len(sizes)}, "trials": 0})
                found = timing_pass(executor, sizes, conditions, beat)
            store.set_timing(study_id, found)


def _own_goal(runner: Runner, request: Request, hear: Listener) -> tuple[Goal, list[TrialSpec]]:
    """For goal=None: what the task's own point reaches in one run of the whole budget, with a little slack."""
    task = request.task
    own = [task.batch_size], float(task.lr), task.precision
    spec = arms_of(*own, request.stop, request.seeds[:1], request.devices)
    reported = task.batch_size in request.batch_sizes and "held" in request.policies
    (record,) = runner.run({"reference": spec}, keep=["reference"] if reported else [])["reference"]
    if record.result.outcome == "failed":
        raise CannotAnswer(
            f"task {task.name!r}: expected its own point (lr={task.lr}, batch_size={task.batch_size}) to train, as no "
            f"goal was given, and it failed ({record.result.reason}): give a goal, or mend it"
        )
    goal = goal_within([record.result.trace])
    if goal is None:
        raise CannotAnswer(
            f"task {task.name!r}: expected its own point (lr={task.lr}, batch_size={task.batch_size}) to lower the "
            "validation loss, it did not: give a goal, or a learning rate that trains"
        )
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
