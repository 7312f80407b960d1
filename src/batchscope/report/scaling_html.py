"""What does the page of `scale` show? What devices do to a step, what averaging costs, and the way to the goal."""

from __future__ import annotations

import os
from pathlib import Path

from batchscope.records import Claim, ScalingResult
from batchscope.references import cite
from batchscope.report import scaling_facts as facts
from batchscope.report import scaling_tables as tables
from batchscope.report.page import DASH, Figure, render, write_page
from batchscope.report.scaling_charts import exposed_panel, reduces_panel, steps_panel, throughput_panel
from batchscope.report.scaling_goal import goal_panel, predictions_panel
from batchscope.report.scaling_words import worded

BARS = "Bars are 95 % intervals, cut where they leave the axis."
WINDOWS = "Pale marks are timed windows, corrected for drift (if any)."


def write_scaling(result: ScalingResult, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result), path)


def page_of(result: ScalingResult) -> str:
    """The page's text."""
    told = result if result.sentences else worded(result)
    return render(
        "scaling.html.j2",
        list_figures(result),
        [],
        result=told,
        data=result.data,
        conditions=result.data.conditions,
        claims=by_number(result),
        sections=sections_of(result),
        facts=facts.facts_of(result),
        methods=facts.methods_of(result),
        notes=facts.notes_of(result),
        references=cite(result).splitlines(),
    )


def sections_of(result: ScalingResult) -> list[tuple[str, str, list[tables.Content], str]]:
    """The tables by section: its name in links, its heading, its tables, and what is said where there is none."""
    sections = (
        (
            "steps",
            "Steps on several devices",
            [tables.steps_table(result, DASH), tables.speedup_table(result, DASH)],
            "No step was timed.",
        ),
        (
            "goal",
            "To the goal",
            [tables.goal_table(result, DASH), tables.choices_table(result, DASH)],
            "Seconds to the goal are not known: see the sentences above.",
        ),
        (
            "averaging",
            "Averaging and predictions",
            [
                tables.fit_table(result, DASH),
                tables.reduces_table(result),
                tables.misses_table(result),
                tables.predictions_table(result, DASH),
            ],
            "Nothing was fitted, and nothing predicted.",
        ),
    )
    return [(name, title, [t for t in found if t.cells], otherwise) for name, title, found, otherwise in sections]


def by_number(result: ScalingResult) -> dict[int, list[Claim]]:
    """The claims by their number: one judgement per policy."""
    return {n: [c for c in result.claims if c.number == n] for n in sorted({c.number for c in result.claims})}


def list_figures(result: ScalingResult) -> list[Figure]:
    """The figures in reading order, those without anything to draw left out."""
    drawn = (
        (
            "Strong scaling: seconds per step, the global batch fixed",
            f"Every device computes its share of the batch. {WINDOWS} {BARS}",
            steps_panel(result),
        ),
        (
            "Weak scaling: throughput of each device, its own batch fixed",
            f"If devices cost each other nothing, all lines would lie on each other. {WINDOWS} {BARS}",
            throughput_panel(result),
        ),
        ("How much of a step is averaging", exposed_caption(), exposed_panel(result)),
        ("All-reduces by themselves", reduces_caption(result), reduces_panel(result)),
        ("To the goal on more devices", goal_caption(result), goal_panel(result)),
        ("Seconds per step on more devices", predictions_caption(result), predictions_panel(result)),
    )
    return [Figure(title, caption, (panel,)) for title, caption, panel in drawn if panel is not None]


def exposed_caption() -> str:
    """What the third figure shows."""
    return (
        "Exposed averaging is what a step takes more than the same step without averaging, as a share of the median. "
        "What hides behind computing is not in it. A downward triangle is an upper bound: nothing was seen above 0. "
        f"{BARS}"
    )


def reduces_caption(result: ScalingResult) -> str:
    """What the fourth figure shows."""
    ring = "Dashed is the fitted ring, 2 (n − 1) (latency + m / (n · bandwidth)) seconds for m bytes on n devices. "
    return (
        f"{ring if tables.link_of(result) is not None else ''}Pale marks are timed windows, filled ones medians. {BARS}"
    )


def goal_caption(result: ScalingResult) -> str:
    """What the fifth figure shows."""
    far = (
        " Steps beyond the batch sizes trained follow the study's law."
        if any(c.extrapolated for c in result.choices)
        else ""
    )
    return (
        "Steps to the goal times seconds per step, at the batch size that is best on so many devices: it is written "
        f"beside each mark. A hollow mark rests on predicted seconds per step.{far} {BARS}"
    )


def predictions_caption(result: ScalingResult) -> str:
    """What the sixth figure shows."""
    described = result.data.question.network
    link = f"the link described, {facts.described_words(described)}" if described else "the link measured here"
    return (
        f"Global batch sizes on more devices than were timed, over {link}; a hollow mark is predicted, a filled one "
        f"measured. An interval holds the spread of the rounds, what the model misses, both a ring and a tree of "
        f"all-reduces, and a guessed error for each doubling of the devices. {BARS}"
    )
