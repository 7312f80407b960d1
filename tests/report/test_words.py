"""Is every measured value written the same, short way?"""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import study

from batchscope.records import LawFit, Measured
from batchscope.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1240.0, "1,240"),
        (12345.0, "12,300"),
        (999.6, "1,000"),
        (5, "5.00"),
        (0.012345, "0.0123"),
        (0.0, "0"),
        (-0.0123, "-0.0123"),
        (1.5e-5, "1.50e-05"),
        (12_345_678, "12.3M"),
        (2.5e9, "2.50e+09"),
        (None, "n/a"),
        (math.nan, "n/a"),
        (math.inf, "n/a"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert words.number(value) == text


@given(st.floats(1e-9, 1e12))
def test_number_is_within_half_a_unit_of_the_third_digit(value: float) -> None:
    text = words.number(value).replace(",", "")
    back = float(text[:-1]) * 1e6 if text.endswith("M") else float(text)
    assert abs(back - value) <= 0.00501 * value


@pytest.mark.parametrize(
    ("m", "text"),
    [
        (Measured(1240, 1100, 1400, 3), "1,240 [1,100-1,400]"),
        (Measured(None, 40000, None, 3, 3), "> 40,000"),
        (Measured(1240, 1100, None, 3, 1), "1,240 [> 1,100]"),
        (Measured(1240, 1100, math.inf, 3, 1), "1,240 [> 1,100]"),
        (Measured(0.01, -0.02, 0.04, 3), "0.0100 [-0.0200 to 0.0400]"),
        (Measured(7, None, None, 1), "7.00"),
        (Measured(None, None, None, 0), "n/a"),
        (None, "n/a"),
    ],
)
def test_measured(m: Measured | None, text: str) -> None:
    assert words.measured(m) == text


def test_unit_stands_behind_the_estimate_and_the_bound() -> None:
    assert words.measured(Measured(2, 1, 3, 3), "s") == "2.00 s [1.00-3.00]"
    assert words.measured(Measured(None, 9, None, 3, 3), "s") == "> 9.00 s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.2e-4, "420 µs"), (0.0123, "12.3 ms"), (3.21, "3.21 s"), (270, "4.50 min"), (9000, "2.50 h"), (None, "n/a")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


def test_plain_makes_what_a_terminal_obeys_visible() -> None:
    assert words.plain("a\x1b[31m\nb\u202e") == "a\ufffd[31m\ufffdb\ufffd"
    assert words.plain("naïve [bold] <b>") == "naïve [bold] <b>"


def test_without_a_fit_the_law_says_why() -> None:
    nothing = Measured(None, None, None, 0)
    law = LawFit(nothing, nothing, None, (), (), (), "the tuned policy was not run")
    assert words.law_sentences(law) == ["The tuned policy was not run."]


def test_fastest_names_the_least_and_the_intervals_that_overlap_it() -> None:
    result, _ = study(with_censored=False)
    best = min((r for r in result.rows), key=lambda r: r.seconds_to_goal.estimate or math.inf)
    text = words.fastest_sentence(result)
    assert f"soonest at batch size {best.batch_size:,} ({best.policy}" in text
    assert words.measured(best.seconds_to_goal, "s") in text


def test_nothing_reached_is_an_answer() -> None:
    result, _ = study()
    bound = Measured(None, 1000.0, None, 3, 3, "bound")
    rows = tuple(dataclasses.replace(r, seconds_to_goal=bound, reached=0) for r in result.rows)
    assert "No batch size reached the goal" in words.fastest_sentence(dataclasses.replace(result, rows=rows))


def test_a_critical_batch_size_that_nothing_bounds_is_not_resolved() -> None:
    result, _ = study(with_censored=False)
    nowhere = dataclasses.replace(result.law.critical_batch_size, low=0.0, high=None)
    (said, *_) = words.law_sentences(dataclasses.replace(result.law, critical_batch_size=nowhere))
    assert "not resolved" in said
    assert "[" not in said
    above = dataclasses.replace(nowhere, low=20.0)
    assert "[> 20" in words.law_sentences(dataclasses.replace(result.law, critical_batch_size=above))[0]
