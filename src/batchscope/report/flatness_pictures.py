"""How is the loss around minima drawn? Lines between two, slices through one, and the spectrum of the Hessian.

Training is drawn solid, validation dashed. A spectrum is each start's nodes under a Gaussian kernel, weighted and
averaged over the starts (Ubaru et al. 2017), on a logarithmic axis, in a band of two standard errors over the starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchscope.records import Density, Line, PointSharpness, SharpnessResult, Slice
from batchscope.report.charts import Panel
from batchscope.report.flatness_marks import (
    LIST,
    LOG_FROM,
    TALL,
    Rows,
    axis_of,
    line_layer,
    panel_title,
    points_by_label,
    series_for,
    series_name,
    upright_layers,
)
from batchscope.report.noise_marks import Axis, Frame
from batchscope.report.style import finished, needed, short
from batchscope.report.words import number, plain

TRAIN, VALID = "training", "validation"
VALID_DASH = (5, 3)
KERNEL = 0.01  # width of the Gaussian kernel over the spectrum's range (a choice of what can be seen)
GRID = 401  # places at which a spectrum is drawn
FLOOR = 1e-6  # of the highest density: what lies below is cut
BAND = 2.0  # standard errors over the starts
HEAT = 300  # pixels
OVERLAP = 0.05  # of a cell over the next one, so that no seam shows


# --- between two minima ---


def between_panels(result: SharpnessResult) -> list[Panel]:
    """The straight and the curved line between two minima, a panel for each metric."""
    lines = [line for line in result.data.lines if line.kind in ("straight", "curved")]
    metrics = list(dict.fromkeys(m for line in lines for m in (*line.train, *line.validation)))
    return [
        between_panel(result, line, m) for line in lines for m in metrics if m in line.train or m in line.validation
    ]


def between_panel(result: SharpnessResult, line: Line, metric: str) -> Panel:
    """One line and metric; the minima stand at 0 and at 1."""
    parts = {TRAIN: line.train.get(metric, ()), VALID: line.validation.get(metric, ())}
    rows: dict[str, Rows] = {
        part: [
            {"x": short(a), "y": short(v), "series": part}
            for a, v in zip(line.places, values, strict=False)
            if math.isfinite(v)
        ]
        for part, values in parts.items()
    }
    known = [v for values in parts.values() for v in values]
    y = axis_of(plain(metric), known, log_from=LOG_FROM if metric == "loss" else math.inf)
    x = Axis("place between the two (0 and 1)", linear(line.places))
    shown = {TRAIN: LIST[0], VALID: LIST[1]}
    frame = Frame(needed("altair"), x, y, {k: c for k, c in shown.items() if rows[k]}, {})
    layers = upright_layers(frame, list(zip((0.0, 1.0), (short_name(result, n) for n in line.labels), strict=False)))
    layers += [line_layer(frame, rows[TRAIN])] if rows[TRAIN] else []
    layers += [line_layer(frame, rows[VALID], dash=VALID_DASH)] if rows[VALID] else []
    title = f"{line.kind.capitalize()} line, {plain(metric)}: {' to '.join(full_name(result, n) for n in line.labels)}"
    said = "; ".join(f"{part} {at_ends(part_rows)}" for part, part_rows in rows.items() if part_rows)
    return Panel(title, f"{title}: {said}", frame.drawn(layers, TALL))


def at_ends(rows: Rows) -> str:
    """The values next to 0, 1/2 and 1."""
    near = (min(rows, key=lambda r: abs(r["x"] - place)) for place in (0.0, 0.5, 1.0))
    return ", ".join(f"{number(r['y'])} at {number(r['x'], 2)}" for r in near)


def linear(places: Sequence[float]) -> dict[str, Any]:
    """A linear scale that just holds the places."""
    return {"type": "linear", "domain": [min(places), max(places)], "nice": False}


def short_name(result: SharpnessResult, label: str) -> str:
    """A minimum in a drawing: its batch size, or its label."""
    point = points_by_label(result).get(label)
    return plain(label) if point is None else series_name(point)


def full_name(result: SharpnessResult, label: str) -> str:
    """A minimum in a heading: batch size, policy and seed, or its label."""
    point = points_by_label(result).get(label)
    if point is None or point.batch_size is None:
        return plain(label)
    seed = "" if point.seed is None else f" seed {point.seed}"
    return f"{point.batch_size:,} {plain(point.policy)}{seed}".strip()


# --- around one ---


def slice_panels(result: SharpnessResult) -> list[Panel]:
    """Filter-normalised one-dimensional slices of the loss, overlaid; a panel for each policy."""
    known = points_by_label(result)
    lines = [line for line in result.data.lines if line.kind == "slice" and line.labels and line.labels[0] in known]
    policies = list(dict.fromkeys(known[line.labels[0]].policy for line in lines))
    values = [v for line in lines for part in (line.train, line.validation) for v in part.get("loss", ())]
    panels = []
    for policy in policies:
        own = [(known[line.labels[0]], line) for line in lines if known[line.labels[0]].policy == policy]
        x = Axis("distance along a filter-normalised direction", linear([a for _, line in own for a in line.places]))
        frame = Frame(needed("altair"), x, axis_of("loss", values), series_for([p for p, _ in own]), {})
        layers = []
        for part, dash in ((TRAIN, (1, 0)), (VALID, VALID_DASH)):
            rows = [row for p, line in own for row in slice_rows(p, line, part)]
            layers += [line_layer(frame, rows, dash=dash, detail="label")] if rows else []
        said = "; ".join(f"{plain(p.label)}: {at_zero(line)}" for p, line in own)
        title = panel_title("Slices", policy, policies)
        panels.append(Panel(title, f"Loss along a random direction: {said}", frame.drawn(layers, TALL)))
    return panels


def slice_rows(point: PointSharpness, line: Line, part: str) -> Rows:
    """One slice."""
    values = (line.train if part == TRAIN else line.validation).get("loss", ())
    return [
        {"x": short(a), "y": short(v), "series": series_name(point), "label": plain(point.label)}
        for a, v in zip(line.places, values, strict=False)
        if math.isfinite(v)
    ]


def at_zero(line: Line) -> str:
    """The training loss in the middle and at both ends."""
    values = [*zip(line.places, line.train.get("loss", ()), strict=False)]
    near = [min(values, key=lambda pair: abs(pair[0] - place)) for place in (line.places[0], 0.0, line.places[-1])]
    return ", ".join(f"{number(v)} at {number(a, 2)}" for a, v in near)


def heat_panels(result: SharpnessResult) -> list[Panel]:
    """Two-dimensional slices of the training loss, side by side, with one scale of colours."""
    slices = result.data.slices
    values = [v for s in slices for row in s.losses for v in row if math.isfinite(v)]
    if not values:
        return []
    scale = axis_of("training loss", values).scale
    return [heat_panel(result, s, scale) for s in slices]


def heat_panel(result: SharpnessResult, s: Slice, scale: dict[str, Any]) -> Panel:
    """One grid as coloured cells."""
    alt = needed("altair")
    edges = cell_edges(s.places)
    over = [min(e + OVERLAP * (edges[1] - edges[0]), edges[-1]) for e in edges]
    rows = [
        {"x": edges[i], "x2": over[i + 1], "y": edges[j], "y2": over[j + 1], "loss": short(v), "text": number(v)}
        for i, row in enumerate(s.losses)
        for j, v in enumerate(row)
    ]
    title = full_name(result, s.label)
    domain = {"domain": [edges[0], edges[-1]], "nice": False}
    ticks = alt.Axis(tickCount=5, grid=False)
    legend = alt.Legend(title="training loss", orient="top", gradientLength=180, tickCount=4, titleLimit=0, format="~g")
    colour = alt.Scale(type=scale["type"], domain=scale["domain"], scheme="viridis", reverse=True, clamp=True)
    drawn = (
        alt.Chart(alt.NamedData("values0"))
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X("x:Q", title="first direction", scale=alt.Scale(**domain), axis=ticks),
            x2="x2:Q",
            y=alt.Y("y:Q", title="second direction", scale=alt.Scale(**domain), axis=ticks),
            y2="y2:Q",
            color=alt.Color("loss:Q", scale=colour, legend=legend),
            tooltip=[alt.Tooltip("text:N", title="training loss")],
        )
    )
    known = [v for row in s.losses for v in row if math.isfinite(v)]
    label = (
        f"Training loss around {title}: from {number(min(known, default=None))} to {number(max(known, default=None))}"
    )
    return Panel(title, label, {**finished(alt.layer(drawn)), "height": HEAT, "datasets": {"values0": rows}})


def cell_edges(places: Sequence[float]) -> list[float]:
    """The borders of cells around ascending places: half way to the next."""
    if len(places) < 2:
        return [places[0] - 0.5, places[0] + 0.5]
    half = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    return [round(e, 6) for e in (2 * places[0] - half[0], *half, 2 * places[-1] - half[-1])]


# --- spectrum ---


def density_of(density: Density, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """(density, its standard error over the starts) at `grid`: sum_i w_i N(x; node_i, width^2), mean over the starts.

    The error is 0 with a single start, which has none.
    """
    starts = []
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        z = (grid[:, None] - np.array(nodes)) / width
        starts.append(np.exp(-0.5 * z**2) @ np.array(weights) / (width * math.sqrt(2 * math.pi)))
    values = np.array(starts)
    n = len(values)
    error = values.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(len(grid))
    return values.mean(0), error


def density_panels(result: SharpnessResult) -> list[Panel]:
    """The spectra that were measured, overlaid; a panel for each policy."""
    firsts: dict[tuple[str, str], PointSharpness] = {}
    for p in result.data.points:
        if p.density is not None and p.density.nodes:
            firsts.setdefault((p.policy, series_name(p)), p)
    policies = list(dict.fromkeys(policy for policy, _ in firsts))
    nodes = [v for p in firsts.values() if p.density for start in p.density.nodes for v in start]
    if not nodes or max(nodes) <= min(nodes):
        return []
    width = KERNEL * (max(nodes) - min(nodes))
    grid = np.linspace(min(nodes) - 4 * width, max(nodes) + 4 * width, GRID)
    return [
        density_panel([p for (own, _), p in firsts.items() if own == policy], policy, policies, grid, width)
        for policy in policies
    ]


def density_panel(
    points: Sequence[PointSharpness], policy: str, policies: Sequence[str], grid: np.ndarray, width: float
) -> Panel:
    """One policy's spectra with their bands."""
    rows: Rows = []
    found = [(p, *density_of(p.density, grid, width)) for p in points if p.density is not None]
    top = max(float(values.max()) for _, values, _ in found)
    floor = FLOOR * top
    y = Axis("spectral density", {"type": "log", "domain": [short(floor), short(3 * top)], "nice": False})
    x = Axis("eigenvalue of the Hessian", {"type": "linear", "domain": [grid[0], grid[-1]], "nice": False})
    for p, values, error in found:
        for at, v, e in zip(grid.tolist(), values.tolist(), error.tolist(), strict=True):
            ends = [min(max(v + side * BAND * e, floor), 3 * top) for side in (-1, 1)]
            drawn = (at, v if v >= floor else None, *ends)
            rows.append(
                dict(zip(("x", "y", "low", "high"), map(short, drawn), strict=True)) | {"series": series_name(p)}
            )
    frame = Frame(needed("altair"), x, y, series_for(points), {})
    band = frame.chart(rows).mark_area(opacity=0.18, clip=True)
    layers = [
        band.encode(x=frame.at(), y=frame.height("low"), y2="high:Q", color=frame.colour()),
        line_layer(frame, rows, width=1.3),
    ]
    said = "; ".join(f"{series_name(p)}: {range_of(p)}" for p, *_ in found)
    title = panel_title("Spectrum", policy, policies)
    return Panel(title, f"Spectral density of the Hessian, eigenvalues: {said}", frame.drawn(layers, TALL))


def range_of(point: PointSharpness) -> str:
    """From the smallest to the largest node."""
    nodes = [v for start in point.density.nodes for v in start] if point.density is not None else []
    return f"{number(min(nodes, default=None))} to {number(max(nodes, default=None))}"
