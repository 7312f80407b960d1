"""Does the terminal show every number of an advice whole, and every name as it is?"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
from made_up_advice import advice
from made_up_answers import ALL, best_in, hostile, memory_binds, not_answered, nothing_ran, priced
from made_up_profile import HOSTILE
from rich.console import Console

from batchscope.records import Advice
from batchscope.report import words
from batchscope.report.advice_facts import facts_of
from batchscope.report.advice_terminal import contents_of, print_advice
from batchscope.report.advice_words import sentences_of, worded
from batchscope.report.noise_words import ABSENT, cell


def printed(result: Advice, **options: Any) -> str:
    """What `print_advice` writes."""
    file = io.StringIO()
    print_advice(result, Console(file=file, **options))
    return file.getvalue()


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_output_is_plain_and_fits_120_columns(make: Callable[[], Advice]) -> None:
    text = printed(dataclasses.replace(make(), report=None))
    assert "\x1b" not in text
    assert "…" not in text
    assert "None" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", [advice, priced, not_answered])
def test_a_terminal_shows_every_number_whole(width: int, make: Callable[[], Advice]) -> None:
    result = make()
    text = printed(result, force_terminal=True, width=width, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    values = [m for c in result.candidates for m in (c.seconds_to_goal, c.steps_to_goal, c.examples_to_goal)]
    values += [c.cost for c in result.candidates if result.question.price is not None]
    assert {word for m in values for word in cell(m).split()} <= set(text.split())


def test_the_answer_comes_first_and_is_the_records_own() -> None:
    for result in (advice(), not_answered()):
        first = printed(result, force_terminal=True, width=1000, color_system=None).splitlines()[2]
        assert first == sentences_of(result)[0]
    told = dataclasses.replace(worded(advice()), sentences=("Said before.",))
    assert "Said before." in printed(told)


def test_tables_and_snippet() -> None:
    text = printed(memory_binds())
    for part in (
        "Batch sizes compared",
        "made of",
        "Time against cost",
        "Training runs",
        "To train with it",
        "x.split(",
    ):
        assert part in text
    assert [len(c.cells) for c in contents_of(memory_binds())] == [9, 9, 4, 8]
    assert contents_of(nothing_ran()) == []
    titles = [c.title for c in contents_of(best_in())]
    assert "Seconds per step" in titles
    assert "lowest loss" in contents_of(best_in())[0].headings
    assert "To train with it" not in printed(not_answered())


def test_the_chance_of_being_lost_is_shown_where_there_is_one() -> None:
    made = advice()
    assert "lost" not in " ".join((contents_of(made)[0].title, *contents_of(made)[0].headings))
    first, *others = made.candidates
    table = contents_of(dataclasses.replace(made, candidates=(dataclasses.replace(first, p_lost=0.25), *others)))[0]
    rows = [dict(zip(table.headings, row, strict=True)) for row in table.cells]
    assert [r["P(lost) (%)"] for r in rows] == ["25", *[ABSENT] * len(others)]
    assert "lost: diverges, or does not get there within the task's budget" in table.title


def test_a_run_that_did_not_reach_is_a_bound_and_one_that_diverged_has_no_examples() -> None:
    rows = [dict(zip(c.headings, r, strict=True)) for c in contents_of(advice())[-1:] for r in c.cells]
    assert [r["examples to goal"] for r in rows if r["outcome"] == "not reached"] == ["> 2.67M"]
    assert [r["examples to goal"] for r in rows if r["outcome"] == "diverged"] == ["–"]
    assert rows[-1]["role"] == "verification, fresh seed"


def test_how_it_was_measured_is_all_there() -> None:
    text = " ".join(printed(advice()).split())
    for name, fact in facts_of(advice()):
        assert f"{name}: {fact}" in text
    named = dict(facts_of(not_answered()))
    assert named["Law"] == "not fitted: no run reached a goal"
    assert "did not get to the goal within" in named["Own point"]
    assert "price 2.4 for a device for an hour" in dict(facts_of(priced()))["Asked for"]


def test_names_are_never_markup() -> None:
    name = "[bold red]x[/] a\x1b[31mb"
    text = printed(dataclasses.replace(advice(), task=name, notes=(f"on {name}",), report=f"/tmp/{name}"))
    assert text.count(words.plain(name)) == 3
    assert "\x1b[31m" not in text
    assert HOSTILE in printed(hostile())
