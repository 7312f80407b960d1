"""What does the page of `sharpness` show? The answer, the claims by every measure, pictures of minima, and tables."""

from __future__ import annotations

import os
from pathlib import Path

from batchscope.records import Claim, SharpnessResult
from batchscope.references import cite
from batchscope.report import flatness_facts as facts
from batchscope.report import flatness_tables as tables
from batchscope.report.flatness_figures import drawings_of, figures_among, missing_among
from batchscope.report.flatness_words import worded
from batchscope.report.page import DASH, render, write_page


def write_flatness(result: SharpnessResult, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result), path)


def page_of(result: SharpnessResult) -> str:
    """The page's text."""
    told = result if result.sentences else worded(result)
    drawings = drawings_of(result)
    return render(
        "flatness.html.j2",
        figures_among(drawings),
        [],
        result=told,
        data=result.data,
        conditions=result.data.conditions,
        claims=by_number(result),
        sections=sections_of(result),
        missing=missing_among(drawings),
        facts=facts.facts_of(result),
        methods=facts.methods_of(result),
        notes=facts.notes_of(result),
        references=cite(result).splitlines(),
    )


def by_number(result: SharpnessResult) -> dict[int, list[tuple[list[str], Claim]]]:
    """The claims by their number, 10 first: the cells of each judgement, and the judgement."""
    numbers = sorted({c.number for c in result.claims}, reverse=True)
    return {
        n: [(tables.claim_cells(c, DASH), c) for c in sorted(result.claims, key=lambda c: c.policy) if c.number == n]
        for n in numbers
    }


def sections_of(result: SharpnessResult) -> list[tuple[str, str, list[tables.Content], str]]:
    """The tables by section: its name in links, its heading, its tables, and what is said where there is none."""
    sections = (
        ("flatness", "Flatness", tables.measure_tables(result, DASH), "No set of weights was measured."),
        (
            "distance",
            "Distance from the initial weights",
            [tables.distances_table(result, DASH), tables.growth_table(result, DASH), tables.layers_table(result)],
            "Neither the initial weights nor the traces of a study are known.",
        ),
        (
            "causes",
            "Training that went on otherwise",
            tables.cause_tables(result, DASH),
            "No causal runs were measured: whether the batch size makes minima sharp is judged by comparison only.",
        ),
        (
            "points",
            "Every set of weights",
            [
                tables.points_table(result, DASH),
                tables.convergence_table(result),
                tables.traces_table(result, DASH),
                tables.sample_table(result, DASH),
            ],
            "No set of weights was measured.",
        ),
    )
    return [(name, title, [t for t in found if t.cells], otherwise) for name, title, found, otherwise in sections]
