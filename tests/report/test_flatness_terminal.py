"""Does the terminal show every number of `sharpness` whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up import HOSTILE
from made_up_flatness import ALL, files, held, hostile, whole
from rich.console import Console

from batchscope.records import SharpnessResult
from batchscope.report import flatness_tables as tables
from batchscope.report.flatness_terminal import print_flatness
from batchscope.report.flatness_words import sentences_of
from batchscope.report.noise_words import cell


def printed(result: SharpnessResult, **options: Any) -> str:
    """What `print_flatness` writes."""
    file = io.StringIO()
    print_flatness(result, Console(file=file, **options))
    return file.getvalue()


def numbers_of(result: SharpnessResult) -> set[str]:
    """Every measured number of the rows, the claims and the distances as it is written, word by word."""
    values = [m for r in result.rows for m in r.measures.values()]
    values += [c.effect.ratio for c in result.claims] + [d.distance for d in result.distances]
    values += [g.slope for g in result.growth]
    values += [m for r in result.causes for m in (*r.measures.values(), *r.ratios.values())]
    return {word for m in values for word in cell(m).split()}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], SharpnessResult]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    assert "\x1b" not in text
    assert "…" not in text
    assert "nan" not in text.split()
    assert "None" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_number_whole(width: int) -> None:
    text = printed(whole(), force_terminal=True, width=width, color_system=None)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert numbers_of(whole()) <= set(text.split())


def test_the_answer_comes_first_and_claims_before_the_tables() -> None:
    lines = [line.rstrip() for line in printed(whole(), width=2000).splitlines()]
    assert lines[0] == "made-up: how flat its minima are"
    assert lines[2 : 2 + len(sentences_of(whole()))] == sentences_of(whole())
    titles = [k for k, line in enumerate(lines) if line.startswith(("(10) ", "(6) "))]
    assert len(titles) == 2
    assert lines[titles[0]].startswith("(10) larger batches end in sharper minima")
    assert titles[1] < next(k for k, line in enumerate(lines) if line.startswith("How much the loss rises in a box"))


def test_every_judgement_has_its_row() -> None:
    rows = [row for n in (10, 6) for row in tables.claims_table(whole(), n).cells]
    assert len(rows) == len(whole().claims)
    for row, claim in zip(rows, whole().claims, strict=True):
        assert row[:3] == [claim.effect.what, claim.policy, claim.verdict]


def test_columns_of_boxes_are_named_by_space_and_epsilon() -> None:
    table = tables.measure_tables(whole())[0]
    assert table.headings[4:] == [
        f"{space}, eps {eps}" for space in ("full space", "random subspace") for eps in (0.001, 0.0005)
    ]
    assert [row[0] for row in tables.measure_tables(files())[0].cells] == ["small.pt", "large.pt"]


def test_the_search_carried_on_stands_beside_the_short_one() -> None:
    cells = tables.convergence_table(held()).cells
    assert len(cells) == 4
    assert [row[3:5] for row in cells[:2]] == [["10", "no"], ["80", "yes"]]


def test_parameters_that_begin_at_zero_have_no_relative_distance() -> None:
    table = tables.layers_table(held())
    assert [row[0] for row in table.cells] == ["features.0.weight", "classifier.weight"]
    assert table.headings == ["parameter", "8 held", "64 held"]


def test_causal_runs_have_a_row_for_each_kind_and_a_side_for_each_ratio() -> None:
    ended, against = tables.cause_tables(whole())
    assert len(ended.cells) == len(whole().causes) == 9
    assert [row[:5] for row in ended.cells[3:5]] == [
        ["from 64 after 100 %", "8", "8.50", "0.500", "2"],
        ["uninterrupted", "64", "–", "–", "2"],
    ]
    assert ended.headings[5:8] == ["box sharpness, eps 0.001 (%)", "largest eigenvalue", "lowest validation loss"]
    assert [row[:2] for row in against.cells[-2:]] == [["from 8 after 100 %", "64"], ["noise of 8", "64"]]
    assert [text.split("] ")[1] for text in against.cells[-1][2:]] == ["lower", "lower", "within 5 %"]


def test_hostile_names_are_shown_as_they_are() -> None:
    text = printed(hostile(), width=4000)
    assert text.startswith(f"{HOSTILE}: how flat its minima are")
    assert f"Report: /tmp/{HOSTILE}.html" in text
    escaped = dataclasses.replace(held(), task="[red]\x1b[31m")
    assert printed(escaped).startswith("[red]\N{REPLACEMENT CHARACTER}[31m: how flat its minima are")
