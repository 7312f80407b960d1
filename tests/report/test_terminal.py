"""Does the terminal show every number whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from made_up import hostile, study
from rich.console import Console

from batchscope.records import StudyResult
from batchscope.report import words
from batchscope.report.terminal import print_study


def printed(result: StudyResult, **options: Any) -> str:
    """What `print_study` writes."""
    file = io.StringIO()
    print_study(result, Console(file=file, **options))
    return file.getvalue()


def test_plain_output_is_plain_and_fits_120_columns() -> None:
    result, _ = study(n_batch=8)
    text = printed(result)
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120


QUANTITIES = ("steps_to_goal", "examples_to_goal", "seconds_to_goal", "epochs_to_converge", "seconds_to_converge")
REST = ("seconds_per_epoch", "min_validation_loss", "train_loss", "generalization_gap", "distance_from_init")


def test_every_measured_value_is_there_with_its_interval() -> None:
    result, _ = study(n_batch=8)
    text = printed(result)
    for row in result.rows:
        for quantity in (*QUANTITIES, *REST):
            assert words.measured(getattr(row, quantity)) in text
        assert f"{row.reached}/{row.seeds}" in text
    for claim in result.claims:
        assert claim.verdict in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_narrow_terminal_wraps_between_numbers_and_cuts_none(width: int) -> None:
    result, _ = study(n_batch=8)
    text = printed(result, force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    tokens = set(text.split())
    for row in result.rows:
        for quantity in (*QUANTITIES, *REST):
            assert set(words.measured(getattr(row, quantity)).split()) <= tokens


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", "a\x1b[31mb", ":smile: [link=x]"])
def test_names_are_never_markup(name: str) -> None:
    result, _ = study(n_batch=3)
    result = dataclasses.replace(result, task=name, report=f"/tmp/{name}", notes=(f"on {name}",))
    for options in ({}, {"force_terminal": True, "width": 200, "color_system": None}):
        text = printed(result, **options)
        assert text.count(words.plain(name)) == 3
        assert "\x1b[31m" not in text


def test_a_hostile_study_prints() -> None:
    result, _ = hostile()
    assert "<script>alert(1)</script>" in printed(result)


def test_a_study_without_claims_law_or_seconds_prints() -> None:
    result, _ = study(policies=("held",), with_timing=False, n_batch=2, seeds=1)
    assert "n/a" in printed(dataclasses.replace(result, claims=(), notes=()))
