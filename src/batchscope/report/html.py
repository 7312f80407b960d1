"""What does a study's page show? Its answer, its claims, its table and its figures; page.py makes the file of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from batchscope.analysis.profile import analyse_profile
from batchscope.records import Row, StudyData, StudyResult
from batchscope.references import cite
from batchscope.report import words
from batchscope.report.charts import compare, draw, line_values
from batchscope.report.figures import Figures, figures_of
from batchscope.report.page import DASH, Figure, render, write_page
from batchscope.report.profile_html import against_size
from batchscope.report.style import colours

MARKS = (
    "Pale marks are seeds, bars 95 % intervals; a triangle is a bound (the true value is larger), a cross a trial that "
    "diverged."
)


class Column(NamedTuple):
    """A measured column of the table: heading, unit, field of `Row`."""

    title: str
    unit: str
    field: str


COLUMNS = (
    Column("epochs to converge", "", "epochs_to_converge"),
    Column("steps to goal", "", "steps_to_goal"),
    Column("examples to goal", "", "examples_to_goal"),
    Column("seconds per epoch", "", "seconds_per_epoch"),
    Column("seconds to converge", "", "seconds_to_converge"),
    Column("seconds to goal", "", "seconds_to_goal"),
    Column("lowest validation loss", "", "min_validation_loss"),
    Column("train loss", "", "train_loss"),
    Column("generalisation gap", "", "generalization_gap"),
    Column("error gap", "", "error_gap"),
    Column("distance from initial weights", "", "distance_from_init"),
)


def write_report(result: StudyResult, data: StudyData, path: str | os.PathLike[str]) -> Path:
    """Write the study's page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result, data), path)


def page_of(result: StudyResult, data: StudyData) -> str:
    """The page's text."""
    numbers = figures_of(result, data)
    return render(
        "study.html.j2",
        [*list_figures(numbers, result), *profile_figures(data)],
        line_values(numbers.lines),
        result=result,
        settings=result.settings,
        conditions=result.settings.conditions,
        data=data,
        columns=columns_of(result.rows),
        groups=by_policy(result.rows),
        claims=by_number(result),
        found=found_sentences(result),
        methods=interval_methods(result.rows),
        references=references_of(result),
        test_names=test_names(result.rows),
        palette=colours(data.settings.batch_sizes),
        goal=words.goal_of(result.goal),
        law=[*words.law_sentences(result.law, dash=DASH), *words.target_sentences(result, DASH)],
    )


def list_figures(numbers: Figures, result: StudyResult) -> list[Figure]:
    """The figures in reading order, those without anything to draw left out."""
    sizes = result.settings.batch_sizes
    traces = "One line per trial (seed), coloured by batch size; pick a batch size to follow it through all figures."
    loop = words.loop_of(result.timing.loop) if result.timing is not None else words.loop_of()
    timed = f"Seconds are epochs times the seconds per epoch of {loop}, measured alone on the machine."
    law = (
        f"The line is the fitted law S(B) = S_min (1 + B_crit / B), tuned policy, over the range that was run. {MARKS}"
    )

    def traced(title: str, caption: str, x: str, y: str, words_x: str, words_y: str) -> Figure:
        return Figure(title, caption, draw(numbers.lines, sizes, x, y, (words_x, words_y)), by_colour=True)

    def compared(title: str, caption: str, *panels: tuple[str, str, str]) -> Figure:
        drawn = [compare(getattr(numbers, q), axis, unit) for q, axis, unit in panels if getattr(numbers, q).estimates]
        return Figure(title, caption, tuple(drawn))

    figures = [
        traced("Training loss by epoch", traces, "epoch", "train_loss", "epoch", "training loss"),
        traced("Training loss by second", f"{traces} {timed}", "seconds", "train_loss", "seconds", "training loss"),
        traced("Validation loss by epoch", traces, "epoch", "validation_loss", "epoch", "validation loss"),
        compared("Lowest validation loss", MARKS, ("min_validation_loss", "lowest validation loss", "")),
        compared(
            "Seconds per epoch",
            f"Seconds of {loop}, measured alone after warm-up. Pale marks are rounds, bars 95 % intervals.",
            ("seconds_per_epoch", "seconds per epoch", "seconds"),
        ),
        compared(
            "Steps and examples to the goal",
            law,
            ("steps_to_goal", "steps to goal", "steps"),
            ("examples_to_goal", "examples to goal", "examples"),
        ),
        compared(
            "Total time",
            f"Epochs times seconds per epoch. {MARKS}",
            ("seconds_to_converge", "seconds to converge", "seconds"),
            ("seconds_to_goal", "seconds to goal", "seconds"),
        ),
    ]
    return [f for f in figures if f.panels]


def profile_figures(data: StudyData) -> list[Figure]:
    """Throughput and memory against micro-batch size, where the study's hardware was profiled."""
    return [against_size(analyse_profile(data.profile))] if data.profile is not None else []


def columns_of(rows: tuple[Row, ...]) -> list[Column]:
    """The table's measured columns; the error gap only where the task has an accuracy."""
    return [c for c in COLUMNS if c.field != "error_gap" or any(r.error_gap is not None for r in rows)]


def by_policy(rows: tuple[Row, ...]) -> dict[str, list[Row]]:
    """The rows of each policy, by batch size."""
    ordered = sorted(rows, key=lambda r: r.batch_size)
    return {p: [r for r in ordered if r.policy == p] for p in dict.fromkeys(r.policy for r in rows)}


def by_number(result: StudyResult) -> dict[int, list[Any]]:
    """The claims by their number: one judgement per policy."""
    return {n: [c for c in result.claims if c.number == n] for n in sorted({c.number for c in result.claims})}


def test_names(rows: tuple[Row, ...]) -> list[str]:
    """The names of the test-set figures, where the task has a test set."""
    return list(dict.fromkeys(name for r in rows for name in (r.test or {})))


def found_sentences(result: StudyResult) -> list[str]:
    """The answer in two or three sentences: the law, the fastest, the claims."""
    law = words.law_sentences(result.law, dash=DASH)
    return [*law[:1], words.fastest_sentence(result, DASH), words.verdict_sentence(result)]


def interval_methods(rows: tuple[Row, ...]) -> dict[str, list[str]]:
    """How each column's intervals were made: method -> the columns that used it, in the table's order."""
    methods: dict[str, list[str]] = {}
    for column in COLUMNS:
        title = f"{column.title} ({column.unit})" if column.unit else column.title
        for row in rows:
            m = getattr(row, column.field)
            if m is not None and m.interval and title not in methods.setdefault(m.interval, []):
                methods[m.interval].append(title)
    return methods


def references_of(result: StudyResult) -> list[str]:
    """What the page's numbers rest on, one paper each."""
    return cite(result).splitlines()
