"""What did a noise run find, on a screen of text?

The answer's sentences first, then narrow tables: the windows, the principle at each checkpoint, the layers with most of
the trace, the proxies. Every text is a rich Text, never markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from batchscope.records import NoiseResult, NoiseScale, Principle
from batchscope.report.noise_facts import facts_of, methods_of, notes_of
from batchscope.report.noise_words import (
    ABSENT,
    answer_sentences,
    cell,
    data_size_of,
    heading_of,
    measures,
    name_of,
    percent,
    predicted_cell,
    proxy_sentences,
    share_of,
)
from batchscope.report.terminal import Content, plain_console, print_answer, print_measured
from batchscope.report.words import count, number, plain

LAYERS_SHOWN = 12  # on a screen, those with the largest share of the trace; the page has all


def print_noise(result: NoiseResult, console: Console) -> None:
    """Print the noise run's answer to `console`: sentences, tables, how it was measured, page."""
    out = console if console.is_terminal else plain_console(console)
    heading = f"{plain(result.task)}: the gradient noise scale along a run"
    print_answer(out, heading, answer_sentences(result), contents_of(result))
    for text in proxy_sentences(result):
        out.print(Text(text))
    print_measured(out, facts_of(result), methods_of(result), notes_of(result), result.report)


def contents_of(result: NoiseResult) -> list[Content]:
    """The tables, those without rows left out."""
    tables = [
        windows_table(result),
        *(principle_table(p, data_size_of(p, result.data)) for p in result.principles),
        layers_table(result),
        proxies_table(result),
    ]
    return [t for t in tables if t.cells]


def scale_cells(scale: NoiseScale) -> list[str]:
    """B_simple, tr(Sigma) and |G|^2."""
    return [cell(m) for m in measures(scale)]


def windows_table(result: NoiseResult) -> Content:
    """The noise scale along the run; the run average in the last row."""
    headings = ("steps", "examples", "loss", f"B_simple ({plain(result.unit)})", "tr(Σ)", "|G|²", "|G|² below 0")
    cells = [
        [
            f"{count(p.first_step)}-{count(p.last_step)}",
            count(p.examples),
            ABSENT if p.loss is None else number(p.loss),
            *scale_cells(p.scale),
            percent(p.scale.negative_share),
        ]
        for p in result.points
    ]
    average = result.run_average
    if cells:
        cells.append(["average", "", "", *scale_cells(average), percent(average.negative_share)])
    return Content("Windows of the run (95 % intervals; > a lower bound)", headings, cells, ("steps",))


def principle_table(principle: Principle, data_size: int) -> Content:
    """Measured deviations beside the predicted ones, at one checkpoint."""
    where = heading_of(principle.step, principle.examples, principle.loss)
    cells = [[count(p.batch_size), cell(p.deviation), predicted_cell(p, data_size)] for p in principle.points]
    return Content(f"E|g_B − G|² / |G|² at {where}", ("batch size", "measured", "predicted"), cells)


def layers_table(result: NoiseResult) -> Content:
    """The layers that hold most of the trace, largest first."""
    shares = {name: share_of(s, result.layers.values()) for name, s in result.layers.items()}
    chosen = sorted(result.layers, key=lambda name: -(shares[name] or 0.0))[:LAYERS_SHOWN]
    cells = [
        [plain(n), *scale_cells(result.layers[n]), ABSENT if (share := shares[n]) is None else percent(share)]
        for n in chosen
    ]
    hidden = len(result.layers) - len(chosen)
    less = f"; {hidden} more are on the page" if hidden else ""
    return Content(
        f"Layers, by their share of the summed tr(Σ){less}",
        ("layer", "B_simple", "tr(Σ)", "|G|²", "share"),
        cells,
        ("layer",),
    )


def proxies_table(result: NoiseResult) -> Content:
    """The proxies for other optimisers."""
    cells = [[name_of(k), *scale_cells(s)] for k, s in result.proxies.items()]
    return Content(
        "Proxies for other optimisers",
        ("proxy", "noise scale", "in place of tr(Σ)", "in place of |G|²"),
        cells,
        ("proxy",),
    )
