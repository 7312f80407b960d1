"""Does the terminal show every number of `match` whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up import HOSTILE
from made_up_match import ALL, OWN, around, hostile, matched, plain_matches, row_of, unconfirmed
from rich.console import Console

from batchscope.records import NO_REMEDY, MatchResult, Measured
from batchscope.report import match_tables as tables
from batchscope.report.match_terminal import print_match
from batchscope.report.match_words import sentences_of, worded


def printed(result: MatchResult, **options: Any) -> str:
    """What `print_match` writes."""
    file = io.StringIO()
    print_match(result, Console(file=file, **options))
    return file.getvalue()


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], MatchResult]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    snippet = worded(make()).configuration
    lines = [line for line in text.splitlines() if line not in snippet.splitlines()]
    assert "\x1b" not in text
    assert "…" not in text
    assert not {"nan", "None", "inf"} & set(text.split())
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_number_whole(width: int) -> None:
    text = printed(matched(), force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for row in matched().rows:
        cells = tables.quality_cells(row, "-")[2:]
        assert {word for cell in cells for word in cell.split()} <= words


def test_the_answer_comes_first_and_what_to_paste_after_the_tables() -> None:
    result = worded(matched())
    text = printed(matched(), width=2000)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "a task: which large batch trains as well as the small one"
    assert lines[2 : 2 + len(sentences_of(result))] == sentences_of(result)
    assert result.configuration in text
    assert text.index("Batch size 1,024: seconds to the goal") < text.index(result.configuration)
    assert text.index(result.configuration) < text.index("Baseline: batch size 32")


def test_a_screen_shows_what_the_best_take_and_says_so() -> None:
    groups = tables.groups_of(matched())
    assert [(b, len(rows)) for b, rows in groups] == [(OWN, 1), (128, 13), (512, 13), (1024, 13)]
    assert [r.role for r in groups[3][1]] == ["untuned", *["confirmed"] * 11, "race"]
    effort = tables.effort_table(groups[1][1], 128, matched())
    assert "the best 5; all are on the page" in effort.title
    assert [row[0] for row in effort.cells][-2:] == ["label smoothing", "baseline"]
    assert tables.seconds_table(groups[1][1], 128, matched()).headings == [
        "remedy",
        "1 device",
        "2 devices",
        "4 devices",
    ]
    few = tables.effort_table([row_of("LARS", 128, 0.1, 0.1)], 128, matched())
    assert "best" not in few.title


def test_what_was_not_timed_has_no_seconds() -> None:
    result = plain_matches()
    assert tables.seconds_headings(result) == []
    assert tables.seconds_table(tables.groups_of(result)[1][1], 512, result).cells == []
    assert tables.relative_step(result.rows[0], result) is None
    assert "seconds were not measured" in printed(result, width=2000)
    assert "Seconds: not measured" in printed(result)


def test_a_step_is_held_against_a_plain_one_of_the_same_batch() -> None:
    """For independent normal logarithms the relative errors add in quadrature."""
    result = matched()
    sam = next(r for r in result.rows if (r.remedy, r.batch_size) == ("SAM", 512))
    ratio = tables.relative_step(sam, result)
    assert ratio is not None
    assert ratio.estimate == pytest.approx(1.9)
    assert ratio.high == pytest.approx(1.9 * 1.01 * 1.0, rel=6e-3)
    assert ratio.low == pytest.approx(1.9 * (1 - 0.01 * 2**0.5), rel=1e-3)
    own = next(r for r in result.rows if (r.remedy, r.batch_size) == (NO_REMEDY, 512))
    assert tables.relative_step(own, result) == Measured(1.0, None, None, 5, 0, "none: by definition")
    assert tables.relative_step(result.baseline, dataclasses.replace(result, untuned=(), rows=())) is None


def test_losses_have_four_digits() -> None:
    assert tables.loss_cell(around(0.12043, 0.00071), "-") == "0.1204 [0.1197-0.1211]"
    assert tables.loss_cell(Measured(0.3, None, None, 1), "-") == "0.3000"
    assert tables.loss_cell(Measured(None, 0.3, None, 1), "-") == "> 0.300"
    assert tables.loss_cell(None, "-") == "–"


def test_the_rounds_name_the_best_so_far() -> None:
    cells = tables.rounds_table(unconfirmed()).cells
    assert [row[:4] for row in cells] == [
        ["512", "222,222", "12", "6"],
        ["512", "666,666", "6", "6"],
        ["512", "2,000,000", "6", "4"],
    ]
    assert cells[0][4:] == ["0.2000", "linear scaling, 0.0500"]
    assert tables.rounds_table(dataclasses.replace(matched(), rounds=matched().rounds[:1])).cells[0][4:] == ["n/a", "–"]


def test_refused_remedies_stand_once_with_their_batch_sizes() -> None:
    assert tables.refused_table(matched()).cells == [
        ["Adam scaled", "128, 512, 1,024", "Expected Adam, the task has SGD."]
    ]


def test_papers_are_named_shortly() -> None:
    assert tables.papers_of(("goyal2017", "chang2020", "vonneumann1941", "of a newer version")) == (
        "Goyal et al. 2017, Chang et al. 2020 and von Neumann 1941"
    )


def test_hostile_names_are_shown_as_they_are() -> None:
    text = printed(hostile(), width=4000)
    assert text.startswith(f"{HOSTILE}: which large batch")
    assert f"Report: /tmp/{HOSTILE}.html" in text
    escaped = dataclasses.replace(matched(), task="[red]\x1b[31m")
    assert printed(escaped).startswith("[red]\N{REPLACEMENT CHARACTER}[31m: which large batch")
