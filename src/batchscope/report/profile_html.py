"""What does a profile's page show? What fits, the knee, where the time goes; page.py makes the file of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from batchscope.analysis.step_time import scaled
from batchscope.records import ProfileResult
from batchscope.report import profile_facts as facts
from batchscope.report import profile_words as said
from batchscope.report import words
from batchscope.report.page import DASH, Figure, render, write_page
from batchscope.report.profile_charts import axis_panels, phase_panel


class Column(NamedTuple):
    """A measured column of the table of sizes: heading, field of `ThroughputRow`, and the factor to its unit."""

    title: str
    field: str
    factor: float = 1.0


class Part(NamedTuple):
    """One line of what a peak is made of."""

    name: str
    bytes: int
    share: float


MS = 1e3  # milliseconds per second
STEP = Column("step (ms)", "seconds_per_step", MS)
PHASES = (
    Column("wait for data (ms)", "data_wait", MS),
    Column("copy (ms)", "copy", MS),
    Column("compute (ms)", "compute", MS),
    Column("optimiser (ms)", "optimizer", MS),
)
UTILIZATION = Column("FLOPs utilisation (%)", "flops_utilization", 100.0)
ENERGY = Column("mJ per example", "joules_per_example", 1e3)


def write_profile(result: ProfileResult, path: str | os.PathLike[str]) -> Path:
    """Write the profile's page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result), path)


def page_of(result: ProfileResult) -> str:
    """The page's text."""
    return render(
        "profile.html.j2",
        list_figures(result),
        [],
        result=result,
        data=result.data,
        memory=result.memory,
        conditions=result.conditions,
        found=said.answer_sentences(result, DASH),
        loop_words=words.loop_of(result.loop),
        columns=columns_of(result),
        parts=parts_of(result),
        parted=said.largest_parted(result.memory),
        fastest={b: said.fastest_split(result.splits, b) for b in {s.batch_size for s in result.splits}},
        said=said,
        scaled=scaled,
        facts=facts,
        dash=DASH,
    )


def list_figures(result: ProfileResult) -> list[Figure]:
    """The figures in reading order, those without anything to draw left out."""
    figures = [against_size(result)]
    phases = phase_panel(result.rows)
    if phases is not None:
        caption = (
            f"Parts of a training step in {words.loop_of(result.loop)}, as shares of their sum. The wait for data is "
            "what a loader that costs nothing would save; the copy to the device is shown as far as computing does "
            "not hide it; compute is forward and backward."
        )
        figures.append(Figure("Where a step's time goes", caption, (phases,)))
    return [f for f in figures if f.panels]


def against_size(result: ProfileResult) -> Figure:
    """Throughput, knee, memory and its ceiling on one axis of micro-batch sizes."""
    speed = (
        f"Seconds are those of {words.loop_of(result.loop)}, measured alone. Pale marks are timed windows (corrected "
        "for drift, if any), bars 95 % intervals, the curve the fitted step time as throughput; the shaded band is the "
        "knee's interval."
    )
    memory = (
        "Peaks: each mark is a process of its own that trained, evaluated and saved at that size; the line is the "
        "affine fit, dotted outside the sizes it was fitted to. A mark on the upper edge ended before a peak was seen."
    )
    parts = [
        speed if result.rows else "Seconds were not measured.",
        memory if result.memory is not None else "Memory was not measured.",
    ]
    return Figure("Throughput and memory by micro-batch size", " ".join(parts), axis_panels(result), stacked=True)


def columns_of(result: ProfileResult) -> list[Column]:
    """The table's measured columns; energy only where it was measured."""
    unit = Column(f"{said.plain(result.unit)} per second", "units_per_second")
    energy = [ENERGY] if any(r.joules_per_example is not None for r in result.rows) else []
    return [STEP, unit, *PHASES, UTILIZATION, *energy]


def parts_of(result: ProfileResult) -> list[Part]:
    """What the largest probe's training peak was made of, in bytes and as shares of their sum."""
    probe = said.largest_parted(result.memory)
    if probe is None or probe.parts is None:
        return []
    amounts = {name: getattr(probe.parts, field) for field, name in said.PARTS.items()}
    whole = sum(amounts.values()) or 1
    return [Part(name, amount, amount / whole) for name, amount in amounts.items()]
