"""`batchscope list`, `show` and `export`: what the store holds, studies, profiles, noise runs and advices alike."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchscope.cli import options
from batchscope.records import (
    AdviceData,
    Conditions,
    GradientNorms,
    NoiseRun,
    ProfileData,
    StudyData,
    Tried,
    json_safe,
    to_plain,
)

if TYPE_CHECKING:
    from batchscope.store import NoiseSummary

EVALUATION_COLUMNS = (
    "role",
    "batch_size",
    "learning_rate",
    "seed",
    "outcome",
    "ended_by",
    "step",
    "examples",
    "part",
    "metric",
    "value",
)
WINDOW_COLUMNS = ("kind", "batch_size", "micro_batch_size", "phase", "round", "seconds")
MEASUREMENT_COLUMNS = tuple(f.name for f in dataclasses.fields(GradientNorms))
TRIED_COLUMNS = tuple(f.name for f in dataclasses.fields(Tried))
NOISE_ENDINGS = {"not_reached": "goal not crossed", "diverged": "diverged", "failed": "failed"}
AIMS = {
    "time": "the least time",
    "cost": "the least cost",
    "examples": "the fewest examples",
    "energy": "the least energy",
}
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The id of a study, a profile, a noise run or an advice, or the beginning of one."
    ),
]


def list_studies(
    store: options.Store = "batchscope.db", as_json: options.Json = False, debug: options.Debug = False
) -> None:
    """The studies, the profiles, the noise runs and the advices of a store, each oldest first."""
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        studies, profiles, noise_runs = opened.studies(), opened.profiles()[::-1], opened.noise_summaries()
        advices = opened.advices()[::-1]
    if as_json:
        listed = {
            "studies": [dataclasses.asdict(s) for s in studies],
            "profiles": [_profile_facts(profile_id, profile) for profile_id, profile in profiles],
            "noise_runs": [_noise_facts(summary) for summary in noise_runs],
            "advices": [_advice_facts(advice_id, data) for advice_id, data in advices],
        }
        options.print_json(json_safe(listed))
        return
    for s in studies:
        state = "finished" if s.finished_at else "unfinished"
        print(f"{s.id[:12]}  {s.task}  {s.finished_trials} of {s.trials} trials  {state}  {s.created_at}")
    for profile_id, profile in profiles:
        print(f"{profile_id}  {profile.task}  {_profile_in_words(profile)}  {profile.measured_at}")
    for summary in noise_runs:
        print(f"{summary.id}  {summary.run.task}  {_noise_in_words(summary)}  {summary.run.measured_at}")
    for advice_id, data in advices:
        print(f"{advice_id}  {data.task}  {_advice_in_words(data)}  {data.measured_at}")
    if not (studies or profiles or noise_runs or advices):
        print("no studies, profiles, noise runs or advices yet")


def show(
    stored: Id,
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The answer of a stored study, profile, noise run or advice, without running anything."""
    data = _stored(store, stored)
    if isinstance(data, ProfileData):
        _show_profile(data, as_json)
    elif isinstance(data, NoiseRun):
        _show_noise(store, data, as_json)
    elif isinstance(data, AdviceData):
        _show_advice(data, as_json)
    else:
        _show_study(data, as_json)


def _stored(store: str, beginning: str) -> StudyData | ProfileData | NoiseRun | AdviceData:
    """All that was measured for the study, profile, noise run or advice whose id begins like this."""
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        kind, full_id = opened.resolve_any(beginning)
        read = {
            "study": opened.study_data,
            "profile": opened.profile,
            "noise run": opened.noise_run,
            "advice": opened.advice,
        }
        return read[kind](full_id)


def _show_study(data: StudyData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.table import analyse, to_json
    from batchscope.report.terminal import print_study

    result = analyse(data)
    if as_json:
        options.print_json(to_json(result))
    else:
        print_study(result, Console())


def _show_profile(data: ProfileData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.profile import analyse_profile, profile_to_json
    from batchscope.report.profile_terminal import print_profile

    result = analyse_profile(data)
    if as_json:
        options.print_json(profile_to_json(result))
    else:
        print_profile(result, Console())


def _show_noise(store: str, run: NoiseRun, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.noise import noise_to_json
    from batchscope.report.noise_terminal import print_noise
    from batchscope.store.sqlite import open_store
    from batchscope.verbs.report import noise_answer

    with open_store(store, read_only=True) as opened:
        result = noise_answer(opened, run)
    if as_json:
        options.print_json(noise_to_json(result))
    else:
        print_noise(result, Console())


def _show_advice(data: AdviceData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.advice import advice_to_json
    from batchscope.report.advice_terminal import print_advice
    from batchscope.verbs.report import advice_answer

    result = advice_answer(data)
    if as_json:
        options.print_json(advice_to_json(result))
    else:
        print_advice(result, Console())


def export(
    stored: Id,
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Every evaluation of a study, timing window of a profile, measured step of a noise run or trial of an advice: as
    CSV, or with --json all as records."""
    data = _stored(store, stored)
    if as_json:
        options.print_json(json_safe(to_plain(data)))
        return
    lines = csv.writer(sys.stdout)
    if isinstance(data, ProfileData):
        lines.writerow(WINDOW_COLUMNS)
        lines.writerows(_windows(data))
    elif isinstance(data, NoiseRun):
        lines.writerow(MEASUREMENT_COLUMNS)
        lines.writerows([getattr(one, name) for name in MEASUREMENT_COLUMNS] for one in data.measurements)
    elif isinstance(data, AdviceData):
        lines.writerow(TRIED_COLUMNS)
        lines.writerows([getattr(one, name) for name in TRIED_COLUMNS] for one in data.trials)
    else:
        lines.writerow(EVALUATION_COLUMNS)
        lines.writerows(_evaluations(data))


def _evaluations(data: StudyData) -> Iterator[tuple[object, ...]]:
    """One value a line."""
    for role in ("reference", "held", "tuning", "tuned"):
        for trial in getattr(data, role):
            arm, result = trial.spec.arm, trial.result
            head = (role, arm.batch_size, arm.learning_rate, trial.spec.seed, result.outcome, result.ended_by)
            for e in result.trace:
                values = [("train", k, v) for k, v in e.train.items()] + [
                    ("validation", k, v) for k, v in e.validation.items()
                ]
                values += [("weights", "distance", e.distance), ("weights", "update_norm", e.update_norm)]
                yield from ((*head, e.step, e.examples, *value) for value in values)


def _windows(data: ProfileData) -> Iterator[tuple[object, ...]]:
    """One window a line: seconds per step of this part of it, in this round (from 0).

    The phase "whole" is the step itself; "reference" is a step of the reference size, timed just before it; the others
    are those of `records.StepTiming`. The kind "step" runs the batch in one pass, "split" in micro-batches.
    """
    for timing in data.timing.timings if data.timing else ():
        phases = {"whole": timing.seconds_per_step, "reference": timing.reference, **timing.phases}
        yield from _rounds(("step", timing.batch_size, timing.batch_size), phases)
    for split in data.splits:
        phases = {"whole": split.seconds_per_step, "reference": split.reference}
        yield from _rounds(("split", split.batch_size, split.micro_batch_size), phases)


def _rounds(head: tuple[object, ...], phases: dict[str, tuple[float, ...]]) -> Iterator[tuple[object, ...]]:
    for phase, seconds in phases.items():
        yield from ((*head, phase, number, one) for number, one in enumerate(seconds))


def _profile_facts(profile_id: str, profile: ProfileData) -> dict[str, Any]:
    """One profile of `list --json`."""
    memory = profile.memory
    return {
        "id": profile_id,
        "task": profile.task,
        "fingerprint": profile.fingerprint,
        "measured_at": profile.measured_at,
        **_where(profile.conditions),
        "batch_sizes": _timed(profile),
        "largest_micro_batch_size": memory.largest_micro_batch_size if memory else None,
        "limit_bytes": memory.limit_bytes if memory else None,
    }


def _profile_in_words(profile: ProfileData) -> str:
    """One profile of `list`."""
    timed = _timed(profile)
    words = f"profile of batch sizes {', '.join(map(str, timed))}" if timed else "profile without timings"
    if profile.memory:
        largest = profile.memory.largest_micro_batch_size
        words += f"; largest that fits {largest}" if largest else "; none fits"
    return words


def _timed(profile: ProfileData) -> list[int]:
    return [timing.batch_size for timing in profile.timing.timings] if profile.timing else []


def _noise_facts(summary: NoiseSummary) -> dict[str, Any]:
    """One noise run of `list --json`."""
    run = summary.run
    return {
        "id": summary.id,
        "task": run.task,
        "fingerprint": run.fingerprint,
        "measured_at": run.measured_at,
        **_where(run.conditions),
        "batch_size": run.batch_size,
        "learning_rate": run.learning_rate,
        "source": run.source,
        "every": run.every,
        "measurements": summary.measurements,
        "outcome": run.outcome,
        "crossed_at": run.crossed_at,
    }


def _noise_in_words(summary: NoiseSummary) -> str:
    """One noise run of `list`: how many steps were measured, and whether the run crossed its goal."""
    run, steps = summary.run, f"{summary.measurements:,} step{'' if summary.measurements == 1 else 's'}"
    if run.crossed_at is not None:
        ending = f"goal crossed at {run.crossed_at:,.0f} examples"
    elif run.goal is None and run.outcome == "not_reached":
        ending = "no goal"
    else:
        ending = NOISE_ENDINGS.get(run.outcome, run.outcome)
    return f"noise measured at {steps}; {ending}"


def _advice_facts(advice_id: str, data: AdviceData) -> dict[str, Any]:
    """One advice of `list --json`: what was asked, and what was spent on it."""
    return {
        "id": advice_id,
        "task": data.task,
        "fingerprint": data.fingerprint,
        "measured_at": data.measured_at,
        **_where(data.conditions),
        **to_plain(data.question),
        "trials": len(data.trials),
        "examples": data.examples,
        "ended": data.ended,
    }


def _advice_in_words(data: AdviceData) -> str:
    """One advice of `list`: what was asked, and what was spent on it. The answer itself takes an analysis: `show`."""
    question, trials = data.question, len(data.trials)
    if question.best_in_seconds is not None:
        aim = f"the lowest validation loss in {question.best_in_seconds:,.10g} s"
    elif question.best_in_examples is not None:
        aim = f"the lowest validation loss in {question.best_in_examples:,} examples"
    else:
        aim = AIMS.get(question.objective, question.objective)
    budget = f"{question.budget:,.10g} reference run{'' if question.budget == 1 else 's'}"
    spent = f"{trials} trial{'' if trials == 1 else 's'}, {data.examples:,} examples"
    return f"advice for {aim} within {budget}; {spent}"


def _where(conditions: Conditions) -> dict[str, Any]:
    """The conditions that tell one line of `list --json` from another."""
    return {
        "device": conditions.device,
        "device_name": conditions.device_name,
        "precision": conditions.precision,
        "threads": conditions.threads,
    }
