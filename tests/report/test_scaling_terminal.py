"""Does the terminal show every number of `scale` whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up import HOSTILE
from made_up_scaling import ALL, alone, described, hostile, joined, unstudied
from rich.console import Console

from batchscope.analysis.step_time import scaled
from batchscope.records import Measured, ScalingResult
from batchscope.report import scaling_tables as tables
from batchscope.report.noise_words import cell
from batchscope.report.scaling_terminal import print_scaling
from batchscope.report.scaling_words import sentences_of


def printed(result: ScalingResult, **options: Any) -> str:
    """What `print_scaling` writes."""
    file = io.StringIO()
    print_scaling(result, Console(file=file, **options))
    return file.getvalue()


def numbers_of(result: ScalingResult) -> set[str]:
    """Every measured number of the rows and of the way to the goal as it is written, word by word."""
    several = [r for r in result.rows if r.devices > 1]
    values: list[Measured | None] = [scaled(r.seconds_per_step, 1e3) for r in result.rows]
    values += [r.examples_per_second for r in result.rows]
    values += [m for r in several for m in (scaled(r.exposed, 1e3), r.strong_speedup)]
    values += [m for c in result.choices for m in (c.steps_to_goal, c.seconds_to_goal, c.speedup, c.device_seconds)]
    values += [scaled(r.weak_efficiency, 100.0) for r in several if r.weak_efficiency is not None]
    return {word for m in values for word in cell(m).split()}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], ScalingResult]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    assert "\x1b" not in text
    assert "…" not in text
    assert "nan" not in text.split()
    assert "None" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_number_whole(width: int) -> None:
    text = printed(joined(), force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert numbers_of(joined()) <= set(text.split())


def test_the_answer_comes_first_and_claims_after_the_tables() -> None:
    lines = [line.rstrip() for line in printed(joined(), width=2000).splitlines()]
    assert lines[0] == "a task: what more devices buy"
    assert lines[2 : 2 + len(sentences_of(joined()))] == sentences_of(joined())
    claims = [k for k, line in enumerate(lines) if line.startswith(("(8) ", "(9) "))]
    assert len(claims) == 2
    assert claims[0] > max(k for k, line in enumerate(lines) if line.startswith("The network and the model"))
    assert f"    {joined().claims[0].verdict}; {joined().claims[0].effect.what}: ratio" in lines[claims[0] + 1]


def test_predicted_rows_are_marked() -> None:
    rows = tables.goal_table(joined()).cells
    for row, choice in zip(rows, joined().choices, strict=True):
        assert row[-1].startswith("measured" if choice.measured else "predicted")
        assert row[-1].endswith("steps extrapolated") == choice.extrapolated
    assert "16 are the most useful" in tables.goal_table(dataclasses.replace(joined(), most_useful=16)).title
    assert all(row[-1].startswith("predicted") for row in tables.goal_table(described()).cells[1:])


def test_the_screen_shows_some_predictions_and_says_so() -> None:
    few, whole = (tables.predictions_table(joined(), few=f) for f in (True, False))
    assert "3 more batch sizes are on the page" in few.title
    assert "more batch sizes" not in whole.title
    assert few.headings == ["devices", "batch size 8", "batch size 32", "batch size 256"]
    assert len(whole.headings) == 7
    assert len(few.cells) == len(whole.cells) == 6


def test_one_device_averages_nothing() -> None:
    assert all(row[3:5] == ["–", "–"] for row in tables.steps_table(alone()).cells)
    assert tables.speedup_table(alone()).cells == []
    assert tables.fit_table(alone()).cells == []


def test_the_fitted_ring_stands_beside_what_was_timed() -> None:
    for _, _, median, ring in tables.reduces_table(joined()).cells:
        assert float(ring) == pytest.approx(float(median), rel=0.05)
    assert len(tables.misses_table(joined()).cells) == 12


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [([1, 2], [1, 2]), ([8, 16, 32, 64, 128], [8, 32, 128]), ([], [])],
)
def test_spread(sizes: list[int], shown: list[int]) -> None:
    assert tables.spread(sizes, 3) == shown


def test_without_a_study_there_is_no_way_to_the_goal() -> None:
    text = printed(unstudied())
    assert "To the goal by device count" not in text
    assert "run `batchscope study`" in text


def test_hostile_names_are_shown_as_they_are() -> None:
    text = printed(hostile(), width=4000)
    assert text.startswith(f"{HOSTILE}: what more devices buy")
    assert f"Report: /tmp/{HOSTILE}.html" in text
    escaped = dataclasses.replace(joined(), task="[red]\x1b[31m")
    assert printed(escaped).startswith("[red]\N{REPLACEMENT CHARACTER}[31m: what more devices buy")
