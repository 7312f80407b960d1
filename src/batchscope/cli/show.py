"""`batchscope show ID`: the answer of what is stored under this id, computed again from what was measured."""

from __future__ import annotations

from typing import Annotated

import typer

from batchscope.cli import options
from batchscope.records import AdviceData, MatchData, NoiseRun, ProfileData, ScalingData, SharpnessData, StudyData

Stored = StudyData | ProfileData | NoiseRun | AdviceData | ScalingData | SharpnessData | MatchData
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The id of a study, profile, noise run, advice, scaling, sharpness or match, or its beginning.",
    ),
]


def command(
    stored: Id,
    store: options.Store = "batchscope.db",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The answer of whatever has an id in the store, computed again without running anything."""
    data = read(store, stored)
    if isinstance(data, ProfileData):
        _show_profile(data, as_json)
    elif isinstance(data, NoiseRun):
        _show_noise(store, data, as_json)
    elif isinstance(data, AdviceData):
        _show_advice(data, as_json)
    elif isinstance(data, ScalingData):
        _show_scaling(store, data, as_json)
    elif isinstance(data, SharpnessData):
        _show_sharpness(store, data, as_json)
    elif isinstance(data, MatchData):
        _show_match(data, as_json)
    else:
        _show_study(data, as_json)


def read(store: str, beginning: str) -> Stored:
    """All that was measured for whatever has this id or beginning."""
    from batchscope.store.sqlite import open_store

    with open_store(store, read_only=True) as opened:
        kind, full_id = opened.resolve_any(beginning)
        reading = {
            "study": opened.study_data,
            "profile": opened.profile,
            "noise run": opened.noise_run,
            "advice": opened.advice,
            "scaling": opened.scaling,
            "sharpness": opened.sharpness,
            "match": opened.match,
        }
        return reading[kind](full_id)


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


def _show_scaling(store: str, data: ScalingData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.scaling_answer import scaling_to_json
    from batchscope.report.scaling_terminal import print_scaling
    from batchscope.store.sqlite import open_store
    from batchscope.verbs.report import scaling_answer

    with open_store(store, read_only=True) as opened:
        result = scaling_answer(opened, data)
    if as_json:
        options.print_json(scaling_to_json(result))
    else:
        print_scaling(result, Console())


def _show_sharpness(store: str, data: SharpnessData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.flatness import flatness_to_json
    from batchscope.report.flatness_terminal import print_flatness
    from batchscope.store.sqlite import open_store
    from batchscope.verbs.report import sharpness_answer

    with open_store(store, read_only=True) as opened:
        result = sharpness_answer(opened, data)
    if as_json:
        options.print_json(flatness_to_json(result))
    else:
        print_flatness(result, Console())


def _show_match(data: MatchData, as_json: bool) -> None:
    from rich.console import Console

    from batchscope.analysis.matching import match_to_json
    from batchscope.report.match_terminal import print_match
    from batchscope.verbs.report import match_answer

    result = match_answer(data)
    if as_json:
        options.print_json(match_to_json(result))
    else:
        print_match(result, Console())
