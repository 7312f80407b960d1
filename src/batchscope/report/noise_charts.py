"""How are a noise run's numbers drawn? The noise scale along the run, what it is made of, and the principle.

Numbers first: `..._rows` and `levels_of` make plain rows from the records, each `..._panel` draws them. Values that are
known elsewhere (the run average, B_crit, the own batch size) are named in the legend with their intervals, a line each,
so that no label can cover another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from batchscope.records import Measured, NoiseResult, NoiseRun, Principle, PrinciplePoint
from batchscope.report.charts import Panel
from batchscope.report.noise_marks import DASH, Axis, Frame, bar_of, log_domain, mark_layers, mark_of, place_of
from batchscope.report.noise_words import ABSENT, cell, data_size_of, given, heading_of, known
from batchscope.report.page import DASH as UNBROKEN
from batchscope.report.style import needed, short
from batchscope.report.words import count, endless, number, plain

# Okabe & Ito 2008: told apart by colour-blind readers; B_crit has the colour of the tuned policy that measures it
WINDOW, AVERAGE, CRITICAL, OWN, CROSSED = "#0072b2", "#009e73", "#d55e00", "#333333", "#999999"
TRACE, GRADIENT = "#b97900", "#0072b2"  # the orange made darker: thin bars must show on white
MEASURED, PREDICTED = "#d55e00", "#0072b2"
DASHES = {AVERAGE: [1, 0], CRITICAL: [1, 0], OWN: [2, 3]}
LOG_LOSS_FROM = 2.0  # largest over smallest training loss at which its axis turns logarithmic (a guess)
CURVE_POINTS = 161
TALL = 330  # pixels of the panels that carry up to five lines of legend


# --- the noise scale along the run ---


class Level(NamedTuple):
    """A value that is drawn across the panel: a line, its interval a band; `until` None: over the whole width."""

    name: str
    colour: str
    value: Measured
    until: float | None = None


def levels_of(result: NoiseResult) -> list[Level]:
    """The run average, B_crit and the run's own batch size, as far as they are known and count the same."""
    average, against, data = result.run_average.b_simple, result.against_sweep, result.data
    levels = []
    if given(result.run_average):
        levels.append(Level(f"run average {cell(average, DASH)}", AVERAGE, average, data.crossed_at))
    if result.unit != "examples":
        return levels
    crit = against.critical_batch_size if against is not None else None
    if crit is not None and known(crit) and not endless(crit):
        levels.append(Level(f"B_crit measured {cell(crit, DASH)}", CRITICAL, crit))
    own = Measured(float(data.batch_size), None, None, 1)
    return [*levels, Level(f"own batch size {count(data.batch_size)}", OWN, own)]


def scale_axis(result: NoiseResult) -> Axis:
    """The vertical axis of both panels of the noise scale."""
    values = [p.scale.b_simple for p in result.points if given(p.scale)] + [level.value for level in levels_of(result)]
    title = f"B_simple ({plain(result.unit)})"
    return Axis(title, log_domain(map(place_of, values), [e for m in values for e in (m.low, m.high)]))


def run_length(result: NoiseResult) -> float:
    """Examples from the start of the run to the last thing that is drawn."""
    data = result.data
    ends = [p.examples for p in result.points] + [float(m.examples) for m in data.measurements[-1:]]
    return max([*ends, data.crossed_at or 0.0, 1.0])


def examples_axis(result: NoiseResult) -> Axis:
    """Examples seen, from 0: windows hold as many steps each, so they stand evenly."""
    return Axis("examples seen", {"type": "linear", "domain": [0, short(1.02 * run_length(result))], "nice": False})


def examples_panel(result: NoiseResult) -> Panel | None:
    """The noise scale against examples seen; the run average as far as it is averaged; None without a value."""
    y, x = scale_axis(result), examples_axis(result)
    rows = window_rows(result, y, "examples")
    levels = levels_of(result)
    if not rows and not given(result.run_average):
        return None
    frame = Frame(needed("altair"), x, y, series_of(rows, levels) | crossing_of(result.data), {})
    layers = [*crossing_layers(frame, result.data), *(layer for v in levels for layer in level_layers(frame, v))]
    layers += mark_layers(frame, rows, WINDOW_TIPS)
    label = f"{y.title} against examples seen: {spoken(rows, levels)}"
    return Panel("Noise scale against examples seen", label, frame.drawn(layers, TALL))


def loss_panel(result: NoiseResult) -> Panel | None:
    """The noise scale against training loss, which falls to the right, as training runs; None without losses."""
    y = scale_axis(result)
    rows = window_rows(result, y, "loss")
    if not rows:
        return None
    levels = [v._replace(until=None) for v in levels_of(result)]
    x = Axis("training loss (falls to the right)", loss_scale([r["x"] for r in rows]))
    frame = Frame(needed("altair"), x, y, series_of(rows, levels), {})
    layers = [*(layer for v in levels for layer in level_layers(frame, v)), *mark_layers(frame, rows, WINDOW_TIPS)]
    label = f"{y.title} against training loss: {spoken(rows, levels)}"
    return Panel("Noise scale against training loss", label, frame.drawn(layers, TALL))


WINDOWS = "windows of the run"
WINDOW_TIPS = (("steps", "steps"), ("examples", "examples seen"), ("loss", "training loss"), ("text", "B_simple"))


def loss_scale(losses: Sequence[float]) -> dict[str, Any]:
    """A reversed scale that just holds the losses: logarithmic where they are positive and fall by LOG_LOSS_FROM."""
    low, high = min(losses), max(losses)
    if low > 0 and high / low >= LOG_LOSS_FROM:
        grow = (high / low) ** 0.04
        return {"type": "log", "domain": [short(low / grow), short(high * grow)], "nice": False, "reverse": True}
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return {"type": "linear", "domain": [short(low - room), short(high + room)], "nice": False, "reverse": True}


def window_rows(result: NoiseResult, y: Axis, against: str) -> list[dict[str, Any]]:
    """A row per window that has a value or a bound; `against` "examples" or "loss"."""
    rows = []
    for p in result.points:
        x = p.examples if against == "examples" else p.loss
        if x is None or not math.isfinite(x) or not given(p.scale):
            continue
        more = {
            "series": WINDOWS,
            "steps": f"{count(p.first_step)}{DASH}{count(p.last_step)}",
            "examples": count(p.examples),
            "loss": ABSENT if p.loss is None else number(p.loss),
        }
        if (row := mark_of(p.scale.b_simple, x, y, **more)) is not None:
            rows.append(row)
    return rows


def series_of(rows: Sequence[dict[str, Any]], levels: Sequence[Level]) -> dict[str, str]:
    """The legend: the windows, then every level with its value."""
    return {**({WINDOWS: WINDOW} if rows else {}), **{v.name: v.colour for v in levels}}


def level_layers(frame: Frame, level: Level) -> list[Any]:
    """A line at the value (dashed at a bound) and a band over its interval, from the left edge to `until`."""
    (left, right), m = frame.x.ends, level.value
    span = {
        "x": short(left),
        "x2": short(right if level.until is None else min(level.until, right)),
        "series": level.name,
    }
    layers = []
    if m.estimate is not None and (m.low is not None or m.high is not None):
        low, high = bar_of(m, frame.y)
        band = frame.chart([{**span, "y": short(low), "y2": short(high)}]).mark_rect(opacity=0.16, clip=True)
        layers.append(band.encode(x=frame.at(), x2="x2:Q", y=frame.height(), y2="y2:Q", color=frame.colour()))
    place = place_of(m)
    if place is not None:
        dash = DASHES[level.colour] if m.estimate is not None else [6, 4]
        line = frame.chart([{**span, "y": short(place)}]).mark_rule(strokeWidth=1.7, strokeDash=dash, clip=True)
        layers.append(line.encode(x=frame.at(), x2="x2:Q", y=frame.height(), color=frame.colour()))
    return layers


def crossing_of(data: NoiseRun) -> dict[str, str]:
    """The legend's entry of the crossing, where there was one."""
    return {} if data.crossed_at is None else {f"goal crossed at {number(data.crossed_at)} examples": CROSSED}


def crossing_layers(frame: Frame, data: NoiseRun) -> list[Any]:
    """Where the goal was crossed, as an upright line."""
    for name in crossing_of(data):
        one = frame.chart([{"x": short(data.crossed_at), "series": name}]).encode(x=frame.at(), color=frame.colour())
        return [one.mark_rule(strokeDash=[4, 3], strokeWidth=1.4, clip=True)]
    return []


def spoken(rows: Sequence[dict[str, Any]], levels: Sequence[Level]) -> str:
    """The panel in words, for readers who cannot see it."""
    windows = [f"steps {r['steps']}: {r['text']}" for r in rows]
    return "; ".join([*windows, *(v.name for v in levels)])


# --- what it is made of ---

TRACE_NAME, GRADIENT_NAME = "tr(Σ), of one example's gradient", "|G|², of the full gradient"


def parts_panel(result: NoiseResult) -> Panel | None:
    """tr(Sigma) and |G|^2 against examples on one logarithmic axis: the distance between them is B_simple."""
    points = [p for p in result.points if known(p.scale.trace) or known(p.scale.squared_gradient)]
    values = [m for p in points for m in (p.scale.trace, p.scale.squared_gradient)]
    places = [v for m in values if (v := place_of(m)) is not None]
    if not places:
        return None
    title = "squared gradient norm"
    y = Axis(title, log_domain(places, [e for m in values for e in (m.low, m.high)]))
    named = {TRACE_NAME: TRACE, GRADIENT_NAME: GRADIENT} | crossing_of(result.data)
    frame = Frame(needed("altair"), examples_axis(result), y, named, {})
    layers, told = crossing_layers(frame, result.data), []
    for name, field, shape in ((TRACE_NAME, "trace", "circle"), (GRADIENT_NAME, "squared_gradient", "square")):
        rows = [
            row
            for p in points
            if (row := mark_of(getattr(p.scale, field), p.examples, y, series=name, examples=count(p.examples)))
        ]
        layers += mark_layers(
            frame, rows, (("series", "quantity"), ("examples", "examples seen"), ("text", "value")), shape
        )
        told += [f"{name.split(',')[0]} at {r['examples']}: {r['text']}" for r in rows]
    return Panel("tr(Σ) and |G|²", f"{title} against examples seen: " + "; ".join(told), frame.drawn(layers, TALL))


# --- the principle ---

MEASURED_NAME, PREDICTED_NAME = "measured", "predicted from other batches"


def shrink(batch_size: np.ndarray, data_size: int) -> np.ndarray:
    """(1 / B) (N - B) / (N - 1): what B_simple is multiplied by when B of N are drawn without replacement."""
    return (data_size - batch_size) / (batch_size * max(1, data_size - 1))


def curve_rows(principle: Principle, data_size: int, y: Axis) -> list[dict[str, Any]]:
    """The prediction from B = 1 to just below N: its value (a bound's lower end), its band cut to the axis."""
    m, (bottom, top) = principle.scale.b_simple, y.ends
    place = place_of(m)
    if place is None or data_size < 2:
        return []
    half = np.geomspace(1, 0.5 * data_size, CURVE_POINTS)
    sizes = np.union1d(half, data_size - half)  # dense at both ends: the curve falls off a cliff towards N
    low, high = (place, place) if m.low is None and m.high is None else (m.low or 0.0, m.high or math.inf)
    rows = []
    for b, f in zip(sizes.tolist(), shrink(sizes, data_size).tolist(), strict=True):
        band = {"low": short(max(low * f, bottom)), "high": short(min(high * f, top))}
        if place * f >= 0.5 * bottom and low * f <= top:
            rows.append({"x": short(b), "y": short(place * f), **band, "series": PREDICTED_NAME})
    return rows


def drawn_points(principle: Principle, data_size: int) -> list[PrinciplePoint]:
    """The points below B = N, where the deviation is 0 (but for rounding) and has no logarithm."""
    return [p for p in principle.points if p.batch_size < data_size]


def principle_axes(result: NoiseResult) -> tuple[Axis, Axis]:
    """The axes that all checkpoints share: B on log2 from 1 to N, and the deviation."""
    sizes_of_data = [data_size_of(c, result.data) for c in result.principles]
    points = [p for c, n in zip(result.principles, sizes_of_data, strict=True) for p in drawn_points(c, n)]
    values = [p.deviation for p in points] + [p.predicted for p in points]
    sizes = [p.batch_size for p in points] or [1]
    domain = [short(min(sizes) / 1.4), short(max(*sizes_of_data, *sizes, 2) * 1.4)]
    x = Axis("batch size B (examples)", {"type": "log", "base": 2, "domain": domain, "nice": False})
    y = log_domain(map(place_of, values), [e for m in values for e in (m.low, m.high)])
    return x, Axis("E|g_B − G|² / |G|²", y)


def principle_panels(result: NoiseResult) -> tuple[Panel, ...]:
    """A panel per checkpoint, on common axes; checkpoints with nothing to draw are left out."""
    if not result.principles:
        return ()
    x, y = principle_axes(result)
    panels = [principle_panel(c, data_size_of(c, result.data), x, y) for c in result.principles]
    return tuple(p for p in panels if p is not None)


def principle_panel(principle: Principle, data_size: int, x: Axis, y: Axis) -> Panel | None:
    """Measured deviations with bars, the predicted curve with its band, and the level where noise equals gradient."""
    rows, curve = deviation_rows(principle, data_size, y), curve_rows(principle, data_size, y)
    if not rows and not curve:
        return None
    series = {**({MEASURED_NAME: MEASURED} if rows else {}), **({PREDICTED_NAME: PREDICTED} if curve else {})}
    frame, m = Frame(needed("altair"), x, y, series, {}), principle.scale.b_simple
    layers = [*level_one(frame), *(curve_layers(frame, curve, m) if curve else [])]
    layers += mark_layers(frame, rows, DEVIATION_TIPS, size=30)
    told = "; ".join(f"{r['size']}: {r['text']}, predicted {r['predicted']}" for r in rows)
    where = heading_of(principle.step, principle.examples, principle.loss)
    title = f"Step {count(principle.step)}, loss {number(principle.loss)}: B_simple {cell(m, UNBROKEN)}"
    return Panel(title, f"{y.title} against batch size at {where}: {told}", frame.drawn(layers, TALL))


DEVIATION_TIPS = (("size", "batch size"), ("text", "measured"), ("predicted", "predicted"))


def deviation_rows(principle: Principle, data_size: int, y: Axis) -> list[dict[str, Any]]:
    """A row per batch size below N whose deviation is above 0."""
    rows = []
    for p in drawn_points(principle, data_size):
        more = {"series": MEASURED_NAME, "size": count(p.batch_size), "predicted": cell(p.predicted, DASH)}
        row = mark_of(p.deviation, p.batch_size, y, **more) if place_of(p.deviation) is not None else None
        rows += [row] if row is not None else []
    return rows


def curve_layers(frame: Frame, curve: list[dict[str, Any]], m: Measured) -> list[Any]:
    """The prediction and its band; dashed, without a band, where B_simple is a bound."""
    base = frame.chart(curve).encode(x=frame.at(), color=frame.colour())
    dash = [1, 0] if m.estimate is not None else [6, 4]
    line = base.mark_line(strokeWidth=1.7, strokeDash=dash, clip=True).encode(y=frame.height())
    if m.estimate is None or (m.low is None and m.high is None):
        return [line]
    return [base.mark_area(opacity=0.16, clip=True, line=False).encode(y=frame.height("low"), y2="high:Q"), line]


def level_one(frame: Frame) -> list[Any]:
    """The level 1, where a batch's noise is as large as the gradient itself."""
    bottom, top = frame.y.ends
    if not bottom < 1 < top:
        return []
    line = frame.chart([{"y": 1.0}]).mark_rule(color="#999999", strokeDash=[2, 3], strokeWidth=1.2)
    return [line.encode(y=frame.height())]
