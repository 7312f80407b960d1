"""What does the page of `match` show? The answer, a line for each remedy, the gap and the races, and what to paste."""

from __future__ import annotations

import os
from pathlib import Path

from batchscope.records import MatchResult
from batchscope.references import cite
from batchscope.report import match_facts as facts
from batchscope.report import match_tables as tables
from batchscope.report.charts import Panel
from batchscope.report.flatness_marks import Rows
from batchscope.report.match_charts import gap_panel, race_panels, steps_panels, used_keys
from batchscope.report.match_snippet import settings_of
from batchscope.report.match_words import sentences_of, worded
from batchscope.report.noise_words import ABSENT
from batchscope.report.page import DASH, Figure, render, write_page
from batchscope.report.words import count

BADGES = {"matches": "yes", "does not": "no", "narrows": "open", "dropped": "open"}
BADGES |= {verdict + tables.OPEN: "open" for verdict in ("narrows", "does not")}
GREEN = "Shaded: what counts as a match."
SCALE = "The axis is linear up to 1 % and logarithmic from there; 0 is the baseline."


def write_match(result: MatchResult, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result), path)


def page_of(result: MatchResult) -> str:
    """The page's text."""
    told = result if result.answer else worded(result)
    return render(
        "match.html.j2",
        list_figures(told),
        [],
        result=told,
        conditions=told.conditions,
        sentences=sentences_of(told),
        settings=settings_of(told),
        headings=tables.rows_headings(told),
        groups=groups_of(told),
        badges=BADGES,
        sections=sections_of(told),
        rules=facts.VERDICT_RULES,
        facts=facts.facts_of(told),
        methods=facts.methods_of(told),
        notes=facts.notes_of(told),
        references=cite(told).splitlines(),
    )


def groups_of(result: MatchResult) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The rows by batch size: its name and what is allowed there, and (verdict, cells) of each row."""
    groups = []
    for b, rows in tables.groups_of(result):
        room = tables.room_of(rows)
        allowed = "" if room == ABSENT else f": a match where the bound of the excess is below {room} %"
        cells = [(r.verdict, tables.row_cells(r, result, DASH)) for r in rows]
        groups.append((f"batch size {count(b)}{allowed}", cells))
    return groups


def sections_of(result: MatchResult) -> list[tuple[str, str, list[tables.Content], str]]:
    """The tables by section: its name in links, its heading, its tables, and what is said where there is none."""
    sections = (
        ("remedies", "What each remedy changes", [tables.remedies_table(result)], "No remedy was raced."),
        ("reasons", "Every verdict and its reason", [tables.reasons_table(result)], "There is no verdict."),
        ("refused", "What cannot be applied", [tables.refused_table(result)], "Every remedy asked for can be applied."),
        (
            "races",
            "What the races cost",
            [tables.races_table(result), tables.rounds_table(result)],
            "No race was run.",
        ),
    )
    return [(name, title, [t for t in found if t.cells], otherwise) for name, title, found, otherwise in sections]


def list_figures(result: MatchResult) -> list[Figure]:
    """The figures in reading order, those without anything to draw left out."""
    gap = gap_panel(result)
    drawn: list[tuple[str, str, list[tuple[Panel, Rows]]]] = [
        ("The gap against batch size, and what each remedy leaves of it", gap_caption(), [gap] if gap else []),
        ("The races: lowest validation loss so far", races_caption(), race_panels(result)),
        ("What is left of the gap, against steps to the goal", steps_caption(), steps_panels(result)),
    ]
    return [
        Figure(title, caption, tuple(panel for panel, _ in found), keys=used_keys(result, (rows for _, rows in found)))
        for title, caption, found in drawn
        if found
    ]


def gap_caption() -> str:
    """What the first figure shows."""
    return (
        "How much higher the lowest validation loss is than the small batch's, paired by seed, with 95 % intervals; "
        f"the short stroke is the one-sided 95 % bound, which has to lie in the shaded band. {SCALE} A triangle is a "
        "lower bound where some seeds diverged, a diagonal cross on the upper edge one where all did. Marks at one "
        "batch size stand side by side."
    )


def races_caption() -> str:
    """What the second figure shows."""
    return (
        "One line for each candidate, a remedy at a learning rate; thick ones ran to the end, the others end where "
        "they were dropped. These runs chose and are not reported elsewhere."
    )


def steps_caption() -> str:
    """What the third figure shows."""
    return (
        f"Further left is fewer steps to the goal, further down is better. {GREEN} {SCALE} Bars are 95 % intervals; "
        "one that runs to the right edge is of steps that no seed finished. The black cross is the baseline."
    )
