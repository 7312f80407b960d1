"""`report`: the page of whatever has an id in the store, drawn again. Needs no torch and runs nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from batchscope.analysis.advice import analyse_advice
from batchscope.analysis.flatness import analyse_sharpness
from batchscope.analysis.matching import analyse_match
from batchscope.analysis.noise import analyse_noise
from batchscope.analysis.profile import analyse_profile
from batchscope.analysis.scaling_answer import analyse_scaling
from batchscope.analysis.table import analyse
from batchscope.errors import CannotAnswer
from batchscope.records import (
    Advice,
    AdviceData,
    MatchData,
    MatchResult,
    NoiseResult,
    NoiseRun,
    ProfileResult,
    ScalingData,
    ScalingResult,
    SharpnessData,
    SharpnessResult,
    StudyResult,
)
from batchscope.report import flatness_words, html, match_words, scaling_words
from batchscope.report.advice_html import write_advice
from batchscope.report.advice_words import worded
from batchscope.report.flatness_html import write_flatness
from batchscope.report.match_html import write_match
from batchscope.report.noise_html import write_noise
from batchscope.report.profile_html import write_profile
from batchscope.report.scaling_html import write_scaling
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store

R = TypeVar("R", StudyResult, ProfileResult, NoiseResult, Advice, ScalingResult, SharpnessResult, MatchResult)


def write_report(study: str, *, store: str | Path = "batchscope.db", path: str | Path | None = None) -> Path:
    """Write the page of `study`, an id or its beginning, of whatever the store keeps. Returns its path."""
    with open_store(store, read_only=True) as opened:
        kind, found = opened.resolve_any(study)

        def where(name: str) -> Path:
            return Path(path) if path is not None else default_path(store, name, found)

        if kind == "profile":
            profile = opened.profile(found)
            page = where(f"{profile.task}-profile")
            return write_profile(dataclasses.replace(analyse_profile(profile), report=str(page)), page)
        if kind == "noise run":
            run = opened.noise_run(found)
            page = where(f"{run.task}-noise")
            return write_noise(dataclasses.replace(noise_answer(opened, run), report=str(page)), page)
        if kind == "advice":
            advice = opened.advice(found)
            page = where(f"{advice.task}-advice")
            return write_advice(dataclasses.replace(advice_answer(advice), report=str(page)), page)
        if kind == "scaling":
            scaling = opened.scaling(found)
            page = where(f"{scaling.task}-scaling")
            return write_scaling(dataclasses.replace(scaling_answer(opened, scaling), report=str(page)), page)
        if kind == "sharpness":
            sharpness = opened.sharpness(found)
            page = where(f"{sharpness.task}-sharpness")
            return write_flatness(dataclasses.replace(sharpness_answer(opened, sharpness), report=str(page)), page)
        if kind == "match":
            match = opened.match(found)
            page = where(f"{match.task}-match")
            return write_match(dataclasses.replace(match_answer(match), report=str(page)), page)
        data = opened.study_data(found)
    page = where(data.settings.task)
    return html.write_report(dataclasses.replace(analyse(data), report=str(page)), data, page)


def noise_answer(store: Store, run: NoiseRun) -> NoiseResult:
    """The answer of a noise run, beside the newest tuned study of the same task where the store has one."""
    study_id = store.newest_tuned_study(run.fingerprint)
    study = None if study_id is None else store.study_data(study_id)
    return analyse_noise(run, study, study_id or "")


def advice_answer(data: AdviceData) -> Advice:
    """The answer that an advice's data give, its sentences and its snippet included."""
    return worded(analyse_advice(data))


def scaling_answer(store: Store, data: ScalingData) -> ScalingResult:
    """The answer that a scaling's windows give, joined with the study that it names, or else the newest of its task."""
    named = next((summary.id for summary in store.studies() if summary.id == data.study_id), None)
    study_id = named or study_beside(store, data.fingerprint)
    study = None if study_id is None else store.study_data(study_id)
    return scaling_words.worded(analyse_scaling(dataclasses.replace(data, study_id=study_id), study))


def sharpness_answer(store: Store, data: SharpnessData) -> SharpnessResult:
    """The answer that a sharpness's points give, joined with the study that it names where the store has it."""
    study_id = next((summary.id for summary in store.studies() if summary.id == data.study_id), None)
    study = None if study_id is None else store.study_data(study_id)
    return flatness_words.worded(analyse_sharpness(data, study))


def match_answer(data: MatchData) -> MatchResult:
    """The answer that a match's runs and timings give, its sentences and what can be pasted included.

    Raises CannotAnswer where it was stored without a run of the baseline.
    """
    if not any(run.role == "baseline" for run in data.runs):
        raise CannotAnswer(
            "expected a match with runs of its baseline, got none: it ended before its first verdict; run "
            "`batchscope match` again, which goes on from the trials in the store"
        )
    return match_words.worded(analyse_match(data))


def study_beside(store: Store, fingerprint: str) -> str | None:
    """The id of the study whose steps a scaling is joined with: the newest tuned one, else the newest finished one."""
    tuned = store.newest_tuned_study(fingerprint)
    finished = [(s.finished_at, s.id) for s in store.studies() if s.fingerprint == fingerprint and s.finished_at]
    return tuned or max(finished, default=("", None))[1]


def drawn(result: R, path: str | Path, write: Callable[[R, Path], Path], hear: Callable[[str, dict], None]) -> R:
    """Write an answer's page; without the `report` extra the answer stands, and says what is missing."""
    try:
        written = write(dataclasses.replace(result, report=str(path)), Path(path))
    except CannotAnswer as error:
        hear("note", {"text": str(error)})
        return dataclasses.replace(result, notes=(*result.notes, str(error)))
    return dataclasses.replace(result, report=str(written))


def default_path(store: str | Path, name: str, study_id: str) -> Path:
    """Beside the store, named for the task and the study."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:40].strip("-") or "task"
    return Path(store).resolve().parent / f"batchscope-{plain}-{study_id[:8]}.html"
