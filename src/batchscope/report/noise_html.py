"""What does a noise run's page show? The noise scale along the run, beside B_crit, and the principle behind it."""

from __future__ import annotations

import os
from pathlib import Path

from batchscope.records import NoiseResult
from batchscope.references import cite
from batchscope.report import noise_facts, words
from batchscope.report import noise_words as said
from batchscope.report.noise_charts import examples_panel, loss_panel, parts_panel, principle_panels
from batchscope.report.page import DASH, Figure, render, write_page

BARS = "Bars are 95 % intervals, cut where they leave the axis; an upward triangle is a lower bound."


def write_noise(result: NoiseResult, path: str | os.PathLike[str]) -> Path:
    """Write the noise run's page to `path`, whole or not at all; returns the path.

    Raises CannotAnswer where the extra `report` is not installed or the file cannot be written.
    """
    return write_page(page_of(result), path)


def page_of(result: NoiseResult) -> str:
    """The page's text."""
    return render(
        "noise.html.j2",
        list_figures(result),
        [],
        result=result,
        data=result.data,
        conditions=result.data.conditions,
        found=said.answer_sentences(result, DASH),
        facts=noise_facts.facts_of(result),
        methods=noise_facts.methods_of(result),
        notes=noise_facts.notes_of(result),
        references=cite(result).splitlines(),
        shares={name: said.share_of(s, result.layers.values()) for name, s in result.layers.items()},
        cell=lambda m: said.cell(m, DASH),
        dash=DASH,
        said=said,
        goal=words.goal_of(result.data.goal) if result.data.goal is not None else "",
    )


def list_figures(result: NoiseResult) -> list[Figure]:
    """The figures in reading order, those without anything to draw left out."""
    drawn = (
        ("Noise scale against examples seen", examples_caption(result), (examples_panel(result),)),
        ("Noise scale against training loss", loss_caption(result), (loss_panel(result),)),
        ("What it is made of: tr(Σ) and |G|²", parts_caption(), (parts_panel(result),)),
        ("How far a batch's gradient is from the full one", principle_caption(result), principle_panels(result)),
    )
    figures = [Figure(title, caption, tuple(p for p in panels if p is not None)) for title, caption, panels in drawn]
    return [f for f in figures if f.panels]


def examples_caption(result: NoiseResult) -> str:
    """What the first figure shows."""
    average = (
        "The run average is averaged tr(Σ) over averaged |G|², drawn as far as it is averaged; a dashed "
        "line is a lower bound."
    )
    return " ".join(filter(None, (BARS, said.unresolved_sentence(result), average, crit_caption(result))))


def crit_caption(result: NoiseResult) -> str:
    """Where the line of B_crit comes from."""
    against = result.against_sweep
    if against is None:
        return ""
    return f"B_crit is what the runs of study {words.plain(against.study)} took at re-tuned learning rates."


def loss_caption(result: NoiseResult) -> str:
    """What the second figure shows."""
    missing = sum(p.loss is None for p in result.points)
    none = f"Windows without an evaluation on both sides have no loss and no mark: {missing} of {len(result.points)}."
    loss = "Training loss on a fixed subset in eval mode, at the middle of each window; training runs to the right."
    return " ".join((loss, *([none] if missing else []), BARS))


def parts_caption() -> str:
    """What the third figure shows."""
    return (
        "The distance between the two on this logarithmic axis is B_simple. |G|² is an unbiased difference and may "
        "come out below 0: such a window is a downward triangle at the upper end of its interval (on the lower edge "
        "where that is below 0 too). Bars are 95 % intervals; one that includes 0 runs to the lower edge."
    )


def principle_caption(result: NoiseResult) -> str:
    """What the last figure shows; panels have headings of their own, a single one is named here."""
    where = ""
    if len(result.principles) == 1:
        (one,) = result.principles
        around = f"{said.cell(one.scale.b_simple, DASH)} {words.plain(result.unit)}"
        where = f"At {said.heading_of(one.step, one.examples, one.loss)}, where B_simple is {around}. "
    return (
        f"{where}g_B is the gradient of B random training examples, drawn without replacement, G that of all N. The "
        "curve is (B_simple / B) (N − B) / (N − 1), with B_simple from batches drawn apart at the same weights, its "
        "band the 95 % interval; where B_simple is only a lower bound the curve is one too, and dashed. The points, "
        "with 95 % intervals over draws, had no part in it. At B = N the value is 0, which a logarithmic axis cannot "
        "show, so it is left out. On the dotted level, 1, a batch's noise is as large as the gradient."
    )
