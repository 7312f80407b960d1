"""`batchscope list`: a line for each study, profile, noise run, advice, scaling, sharpness and match in the store."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from batchscope.cli import options
from batchscope.records import (
    AdviceData,
    Conditions,
    MatchData,
    ProfileData,
    ScalingData,
    SharpnessData,
    json_safe,
    to_plain,
)

if TYPE_CHECKING:
    from batchscope.store import NoiseSummary

NOISE_ENDINGS = {"not_reached": "goal not crossed", "diverged": "diverged", "failed": "failed"}
AIMS = {
    "time": "the least time",
    "cost": "the least cost",
    "examples": "the fewest examples",
    "energy": "the least energy",
}


def list_studies(
    store: options.Store = "batchscope.db", as_json: options.Json = False, debug: options.Debug = False
) -> None:
    """The studies, profiles, noise runs, advices, scalings, sharpnesses and matches of a store, each oldest first."""
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        studies, profiles, noise_runs = opened.studies(), opened.profiles()[::-1], opened.noise_summaries()
        advices, scalings = opened.advices()[::-1], opened.scalings()[::-1]
        sharpnesses, matches = opened.sharpnesses()[::-1], opened.matches()[::-1]
    if as_json:
        listed = {
            "studies": [dataclasses.asdict(s) for s in studies],
            "profiles": [_profile_facts(profile_id, profile) for profile_id, profile in profiles],
            "noise_runs": [_noise_facts(summary) for summary in noise_runs],
            "advices": [_advice_facts(advice_id, advice) for advice_id, advice in advices],
            "scalings": [_scaling_facts(scaling_id, scaling) for scaling_id, scaling in scalings],
            "sharpnesses": [_sharpness_facts(sharpness_id, data) for sharpness_id, data in sharpnesses],
            "matches": [_match_facts(match_id, data) for match_id, data in matches],
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
    for advice_id, advice in advices:
        print(f"{advice_id}  {advice.task}  {_advice_in_words(advice)}  {advice.measured_at}")
    for scaling_id, scaling in scalings:
        print(f"{scaling_id}  {scaling.task}  {_scaling_in_words(scaling)}  {scaling.measured_at}")
    for sharpness_id, data in sharpnesses:
        print(f"{sharpness_id}  {data.task}  {_sharpness_in_words(data)}  {data.measured_at}")
    for match_id, match in matches:
        print(f"{match_id}  {match.task}  {_match_in_words(match)}  {match.measured_at}")
    if not (studies or profiles or noise_runs or advices or scalings or sharpnesses or matches):
        print("no studies, profiles, noise runs, advices, scalings, sharpnesses or matches yet")


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


def _scaling_facts(scaling_id: str, data: ScalingData) -> dict[str, Any]:
    """One scaling of `list --json`: what was asked, and on how many devices it could be measured."""
    return {
        "id": scaling_id,
        "task": data.task,
        "fingerprint": data.fingerprint,
        "measured_at": data.measured_at,
        **_where(data.conditions),
        **to_plain(data.question),
        "measured": _device_counts(data),
        "study_id": data.study_id,
        "examples": data.examples,
    }


def _scaling_in_words(data: ScalingData) -> str:
    """One scaling of `list`."""
    counts, device = _device_counts(data), data.conditions.device
    sizes = sorted({timing.batch_size for one in data.timing.passes for timing in one.timings})
    if not sizes:
        return f"scaling without timings ({device})"
    devices = "1 device" if counts == [1] else f"{', '.join(map(str, counts))} devices"
    return f"scaling of batch sizes {', '.join(map(str, sizes))} on {devices} ({device})"


def _device_counts(data: ScalingData) -> list[int]:
    """Those that were measured: more may have been asked for."""
    return [one.conditions.world_size for one in data.timing.passes]


def _sharpness_facts(sharpness_id: str, data: SharpnessData) -> dict[str, Any]:
    """One sharpness of `list --json`: what was asked, and at which weights it could be measured."""
    return {
        "id": sharpness_id,
        "task": data.task,
        "fingerprint": data.fingerprint,
        "measured_at": data.measured_at,
        **_where(data.conditions),
        **to_plain(data.question),
        "measured": [point.label for point in data.points],
        "study_id": data.study_id,
        "parameters": data.parameters,
        "examples": data.examples,
    }


def _sharpness_in_words(data: SharpnessData) -> str:
    """One sharpness of `list`."""
    count, sizes = len(data.points), sorted({p.batch_size for p in data.points if p.batch_size is not None})
    words = f"sharpness at {count} point{'' if count == 1 else 's'}"
    if sizes:
        words += f" of batch size{'' if len(sizes) == 1 else 's'} {', '.join(map(str, sizes))}"
    return f"{words}; {data.examples:,} examples"


def _match_facts(match_id: str, data: MatchData) -> dict[str, Any]:
    """One match of `list --json`: what was asked, and what was run for it. The verdicts take an analysis: `show`."""
    return {
        "id": match_id,
        "task": data.task,
        "fingerprint": data.fingerprint,
        "measured_at": data.measured_at,
        **_where(data.conditions),
        **to_plain(data.question),
        "baseline_learning_rate": data.baseline_learning_rate,
        "runs": len(data.runs),
        "examples": sum(run.examples for run in data.runs),
    }


def _match_in_words(data: MatchData) -> str:
    """One match of `list`."""
    question, remedies, runs = data.question, len(data.question.remedies), len(data.runs)
    sizes = f"batch size{'' if len(question.batch_sizes) == 1 else 's'} {', '.join(map(str, question.batch_sizes))}"
    tried = f"{remedies} {'remedy' if remedies == 1 else 'remedies'}, {runs} run{'' if runs == 1 else 's'}"
    return f"match of {sizes} against {question.own_batch_size}; {tried}"


def _where(conditions: Conditions) -> dict[str, Any]:
    """The conditions that tell one line of `list --json` from another."""
    return {
        "device": conditions.device,
        "device_name": conditions.device_name,
        "precision": conditions.precision,
        "threads": conditions.threads,
    }
