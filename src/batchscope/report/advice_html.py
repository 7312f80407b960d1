"""What does an advice's page show? The decision first, one figure of why, and controls that move it; all in one file.

The controls compute in the browser from the draws inside the page: seconds to goal of every batch size on any number of
devices (as a pass over several measured them, or communication free: a lower bound), its cost, and which one is best
how surely. No server, no network.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from batchscope.analysis.decision import BAND, DOUBT
from batchscope.analysis.scaling import Predictor
from batchscope.analysis.target import effective_batch_size
from batchscope.records import Advice, Measured
from batchscope.references import REFERENCES, keys
from batchscope.report import advice_facts as facts
from batchscope.report import advice_points as points
from batchscope.report import advice_words as said
from batchscope.report import words
from batchscope.report.advice_charts import stacked_panels
from batchscope.report.advice_numbers import by_loss, chance, goal_in, rate
from batchscope.report.advice_rates import pareto_panel, rate_panel, rate_summary
from batchscope.report.advice_ratios import has_draws
from batchscope.report.noise_words import cell, known
from batchscope.report.page import DASH, Figure, json_for_page, render, write_page
from batchscope.report.style import needed

MOST_DRAWS = 400  # that the page carries: a share of them is known within 2.5 %
MOST_DEVICES = 1024


class Placed(NamedTuple):
    """A figure in its place: its number, and that of its first panel."""

    figure: Figure
    number: int
    first: int


class Big(NamedTuple):
    """One part of the decision, large: what it is, its value, and what is said below it."""

    name: str
    value: str
    below: str = ""


def write_advice(advice: Advice, path: str | os.PathLike[str]) -> Path:
    """Write the advice's page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(advice), path)


def page_of(advice: Advice) -> str:
    """The page's text."""
    told = advice if advice.sentences else said.worded(advice)
    placed = place(list_figures(advice))
    safe, controls = needed("markupsafe").Markup, controls_of(advice)
    return render(
        "advice.html.j2",
        [p.figure for p in placed.values()],
        [],
        advice=told,
        data=advice.data,
        conditions=advice.data.conditions,
        goal=goal_in(advice),
        big=big_line(advice),
        placed=placed,
        tables=[t for t in (facts.decision_table(advice, DASH), facts.detail_table(advice, DASH)) if t.rows],
        trials=facts.trials_table(advice, DASH),
        pareto=facts.pareto_table(advice),
        marked=marked_rows(advice),
        controls=None if controls is None else safe(json_for_page(controls)),
        devices=device_counts(advice),
        objectives=("time", "cost", "examples"),
        money="cost" if advice.question.price is not None else "device hours",
        facts=facts.facts_of(advice, DASH),
        methods=facts.methods_of(advice),
        notes=facts.notes_of(advice),
        references=[str(REFERENCES[key]) for key in keys(advice)],
    )


# --- the decision ---


def big_line(advice: Advice) -> list[Big]:
    """Batch size, learning rate, accumulation, devices; time and P(best); empty without an answer."""
    chosen = advice.chosen
    if chosen is None:
        return []
    parts = chosen.accumulation
    passes = "in one pass" if parts == 1 else f"micro-batches of {words.count(chosen.micro_batch_size)}"
    line = [
        Big("batch size", words.count(chosen.batch_size), f"today {words.count(advice.data.own_batch_size)}"),
        Big("learning rate", rate(chosen.learning_rate), f"today {rate(advice.data.own_learning_rate)}"),
        Big("accumulation", words.count(parts), passes),
        Big("devices", words.count(chosen.devices)),
        *([b] if (b := price_of(advice)) is not None else []),
    ]
    verified = "verified by a fresh seed" if advice.verified else "not verified"
    return [
        *line,
        Big("P(best)", chance(chosen.p_best).replace("more than ", "> ").replace("less than ", "< "), verified),
    ]


def price_of(advice: Advice) -> Big | None:
    """What it costs: the loss, the time, or a ratio to the task's own point."""
    chosen = advice.chosen
    if chosen is None:
        return None
    if by_loss(advice):
        return Big("validation loss", *split_value(cell(chosen.lowest_loss, DASH))) if chosen.lowest_loss else None
    if known(chosen.seconds_to_goal):
        return Big("seconds to goal", *split_value(cell(chosen.seconds_to_goal, DASH)))
    return Big("over own point", *split_value(cell(chosen.over_own, DASH))) if known(chosen.over_own) else None


def split_value(text: str) -> tuple[str, str]:
    """`25.0 [18.7-39.1]` as the value and its interval."""
    value, _, interval = text.partition(" [")
    return value, f"[{interval}" if interval else ""


def marked_rows(advice: Advice) -> dict[str, str]:
    """Batch size as it is written -> what it is marked as in the tables."""
    marks = {words.count(b): "may be as good" for b in advice.good_batch_sizes}
    if advice.better is not None:
        marks[words.count(advice.better.candidate.batch_size)] = "predicted better"
    if advice.chosen is not None:
        marks[words.count(advice.chosen.batch_size)] = "recommended"
    return marks


# --- the figures ---


def list_figures(advice: Advice) -> dict[str, Figure]:
    """The figures by their place on the page, those without anything to draw left out."""
    rates, pareto = rate_panel(advice), pareto_panel(advice)
    figures = {
        "why": Figure(why_title(advice), why_caption(advice), stacked_panels(advice), stacked=True),
        "pareto": Figure("Time against cost", pareto_caption(advice), (pareto,) if pareto is not None else ()),
        "rates": Figure("The best learning rate", rates_caption(advice), (rates,) if rates is not None else ()),
    }
    return {name: f for name, f in figures.items() if f.panels}


def place(figures: dict[str, Figure]) -> dict[str, Placed]:
    """The figures numbered, and their panels."""
    placed, first = {}, 0
    for number, (name, figure) in enumerate(figures.items(), start=1):
        placed[name] = Placed(figure, number, first)
        first += len(figure.panels)
    return placed


def why_title(advice: Advice) -> str:
    """The first figure's heading."""
    return "Loss and seconds by batch size" if by_loss(advice) else "Steps, seconds per step and seconds to goal"


def why_caption(advice: Advice) -> str:
    """What the first figure shows."""
    shared = "Bands are 90 % intervals, upright lines the recommendation and the three limits (with their intervals)."
    step = "Seconds per step were timed alone on the machine; a hollow mark is predicted from a smaller micro-batch."
    if by_loss(advice):
        return f"The lowest validation loss of every batch size at its best learning rate. {step} {shared}"
    runs = (
        "Points are training runs, a triangle one that did not reach the goal (a lower bound); runs that diverged are "
    )
    runs += "in the figure of learning rates."
    if advice.chosen is None:
        return f"No run reached the goal, so no curve is drawn. {runs} {step} {shared}"
    if points.is_relative(advice):
        size = words.count(points.reference_size(advice))
        return (
            f"No run to the goal stands behind this: steps and seconds to the goal are ratios to batch size {size}, "
            f"from {words.plain(advice.evidence)}. {step} {shared}"
        )
    curve = (
        "The curve of steps is the fitted law at the best learning rate; seconds to goal are steps times seconds per "
    )
    curve += "step, with what the law does not explain included."
    off = "" if advice.law_holds else " The law does not hold here: measured points are believed over it."
    return f"{curve}{off} {runs} {step} {shared}"


def rates_caption(advice: Advice) -> str:
    """What the figure of learning rates shows."""
    ring = " The ring is the recommendation." if advice.chosen is not None else ""
    tried = "Points are the learning rates that were tried."
    return f"{tried} The band is a 90 % interval of the best one.{ring} {rate_summary(advice)}".strip()


def pareto_caption(advice: Advice) -> str:
    """What the figure of time and cost shows."""
    if advice.data.scaling is not None:
        counts = words.list_of(str(p.conditions.world_size) for p in advice.data.scaling.passes)
        return (
            "Nothing known is both faster and cheaper than a point on the line. Steps on "
            f"{counts} devices were timed; on other numbers they are predicted from those."
        )
    return (
        "Nothing known is both faster and cheaper than a point on the line. More devices were not measured: each takes "
        "its share of the batch and communication is taken to be free, so that their times are lower bounds."
    )


# --- the controls ---


def device_counts(advice: Advice) -> list[int]:
    """What the control offers: powers of two up to MOST_DEVICES, and the number that was asked for."""
    powers = (2**k for k in range(MOST_DEVICES.bit_length()))
    return sorted({*powers, advice.question.devices})


def steps_on_devices(advice: Advice) -> dict[str, dict[str, Any]] | None:
    """(median, standard deviation) of log seconds per step of every candidate, by device count; None without a pass.

    None for a batch size of which nothing can be said there.
    """
    if advice.data.scaling is None:
        return None
    predictor, found = Predictor(advice.data.scaling), {}
    for n in device_counts(advice):
        sizes = [c.batch_size for c in advice.candidates]
        if not any(predictor.can(n, b) for b in sizes):
            continue
        known = [predictor.seconds(n, b)[0] if predictor.can(n, b) else None for b in sizes]
        timed = n in predictor.counts
        found[str(n)] = {"timed": timed, "log": [None if m is None else log_normal(m) for m in known]}
    return found


def log_normal(m: Measured) -> list[float]:
    """(median, standard deviation) of the log of a positive value, as its 95 % interval says."""
    if not m.estimate or not m.low or not m.high:
        return [round(math.log(m.estimate or 1.0), 4), 0.0]
    return [round(math.log(m.estimate), 4), round(math.log(m.high / m.low) / (2 * 1.96), 4)]


def controls_of(advice: Advice) -> dict[str, Any] | None:
    """What the page computes with; None where there is nothing to move: no answer, a loss, or no draws."""
    curves, chosen = advice.curves, advice.chosen
    if chosen is None or curves is None or by_loss(advice) or not has_draws(advice):
        return None
    kept = slice(None, None, -(-len(curves.draws_log_examples) // MOST_DRAWS))
    seconds = slice(None, None, -(-len(curves.draws_log_seconds) // MOST_DRAWS))
    reference = points.reference_size(advice) if points.is_relative(advice) else None
    question, sizes = advice.question, [c.batch_size for c in advice.candidates]
    return {
        "devices": chosen.devices,
        "counts": device_counts(advice),
        "objective": question.objective,
        "price": question.price,
        "chosen": sizes.index(chosen.batch_size),
        "reference": None if reference is None else sizes.index(reference),
        "ceiling": advice.largest_micro_batch_size,
        "band": BAND,
        "doubt": DOUBT,
        "candidates": [
            {
                "size": c.batch_size,
                "effective": effective_batch_size(advice.data.train_size, c.batch_size),
                "rate": rate(c.learning_rate),
                "micro": c.micro_batch_size,
                "parts": c.accumulation,
                "devices": c.devices,
                "extrapolated": c.extrapolated,
            }
            for c in advice.candidates
        ],
        "timed": list(curves.sizes_timed),
        "steps": steps_on_devices(advice),
        "logExamples": [[round(v, 4) for v in row] for row in curves.draws_log_examples[kept]],
        "logCharge": [[round(v, 3) for v in row] for row in curves.draws_log_charge[kept]],
        "logSeconds": [[round(v, 4) for v in row] for row in curves.draws_log_seconds[seconds]],
    }
