"""How are a profile's numbers drawn? Throughput above memory on one axis of micro-batch sizes, and a step's parts.

Numbers first: each `..._values` function makes plain rows from the records, each `..._panel` draws them. The two
panels of the axis are drawn apart, so that a page can lay them out at any width; the same horizontal domain and the
same room for both vertical axes keep one micro-batch size on one upright line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from batchscope.analysis.quantities import typical_reference
from batchscope.analysis.step_time import KNEE_SHARE, whole_steps
from batchscope.records import MemoryProfile, ProfileResult, StepTimeFit, ThroughputRow
from batchscope.report import words
from batchscope.report.charts import Panel
from batchscope.report.profile_words import BYTE_UNITS, OUTCOMES, data_share, highest, size_interval, size_of
from batchscope.report.style import CROSS, finished, needed, short

# Okabe & Ito 2008: told apart by colour-blind readers; every kind of probe has a shape of its own too
SPEED, CEILING, GREY = "#0072b2", "#d55e00", "#555555"
OUTCOME_MARKS = {
    "fits": ("#009e73", "circle"),
    "fits_with_retries": ("#56b4e9", "square"),
    "out_of_memory": (CEILING, CROSS),
    "crashed": ("#000000", "triangle-down"),
    "timed_out": ("#cc79a7", "diamond"),
}
PHASES = {"wait for data": "#e69f00", "copy": "#f0e442", "compute": SPEED, "optimiser": "#009e73"}
AXIS_ROOM = 46  # pixels for ticks and labels of every vertical axis, so that stacked panels line up
SPEED_HEIGHT, BYTES_HEIGHT, PHASES_HEIGHT = 250, 210, 230
LOG_BYTES_FROM = 20.0  # largest over smallest peak at which bytes turn logarithmic (a guess at what reads best)
LEGEND_COLUMNS = 2  # what a phone holds side by side
CURVE_POINTS = 81
HEADROOM = 1.2  # of the highest throughput: room for the words beside the upright lines
DASH = "–"


class Frame(NamedTuple):
    """What the layers of one panel share: altair, the axis of sizes, the vertical scale and title, their data."""

    alt: Any
    sizes: tuple[float, float]  # the horizontal domain
    y: dict[str, Any]
    title: str
    datasets: dict[str, list[dict[str, Any]]]  # kept beside the chart: altair copies what is inside at every step

    def chart(self, values: list[dict[str, Any]]) -> Any:
        """A chart of `values`, which join the panel's data sets under a name of their own."""
        name = f"values{len(self.datasets)}"
        self.datasets[name] = values
        return self.alt.Chart(self.alt.NamedData(name))

    def at(self, field: str = "x") -> Any:
        """The x channel: micro-batch size on log2, a tick at every power of two."""
        low, high = self.sizes
        powers = [2**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        ticks = self.alt.Axis(values=powers, format=",d", labelOverlap="greedy", grid=False)
        scale = self.alt.Scale(type="log", base=2, domain=[short(low), short(high)], nice=False)
        return self.alt.X(field, type="quantitative", title="micro-batch size (examples)", scale=scale, axis=ticks)

    def height(self, field: str = "y") -> Any:
        """The y channel, in the room that all stacked panels give it."""
        top = max(self.y["domain"])
        ticks = {"format": "~s" if top >= 1e4 else ",~f", "tickCount": 5, "labelOverlap": "greedy"}
        ruler = self.alt.Axis(minExtent=AXIS_ROOM, maxExtent=AXIS_ROOM, **ticks)
        return self.alt.Y(
            field, type="quantitative", title=self.title, scale=self.alt.Scale(**self.y, nice=False), axis=ruler
        )

    def drawn(self, layers: Iterable[Any], height: int) -> dict[str, Any]:
        """The panel's specification."""
        return {**finished(self.alt.layer(*layers)), "height": height, "datasets": self.datasets}


def axis_panels(result: ProfileResult) -> tuple[Panel, ...]:
    """Throughput, and below it memory with its ceiling, on one axis; what was not measured is left out."""
    sizes = sizes_domain(result)
    panels = [throughput_panel(result, sizes)] if any_throughput(result.rows) else []
    if result.memory is not None and result.memory.probes:
        panels.append(memory_panel(result.memory, sizes))
    return tuple(panels)


def any_throughput(rows: Sequence[ThroughputRow]) -> bool:
    """Whether there is a throughput to draw."""
    return any(r.units_per_second.estimate is not None for r in rows)


def sizes_domain(result: ProfileResult) -> tuple[float, float]:
    """Every size that was timed or probed, and some room on both sides."""
    probes = result.memory.probes if result.memory is not None else ()
    sizes = [*(r.micro_batch_size for r in result.rows), *(p.micro_batch_size for p in probes)] or [1]
    return min(sizes) / 1.3, max(sizes) * 1.3


# --- throughput ---


def throughput_values(rows: Sequence[ThroughputRow]) -> list[dict[str, Any]]:
    """One row per size: the estimate, its bar (of no length where there is no interval), and both in words."""
    return [
        {
            "x": r.micro_batch_size,
            "y": short(m.estimate),
            "low": short(m.estimate if m.low is None else m.low),
            "high": short(m.estimate if m.high is None else m.high),
            "text": words.measured(m, dash=DASH),
            "step": words.seconds(r.seconds_per_step.estimate),
        }
        for r in rows
        if (m := r.units_per_second).estimate is not None
    ]


def window_values(result: ProfileResult) -> list[dict[str, Any]]:
    """Each timed window as throughput: batch size x units per example / its seconds per step, corrected for drift."""
    timing, per_example = result.data.timing, result.data.units_per_example
    if timing is None:
        return []
    typical = typical_reference(timing)
    return [
        {"x": t.batch_size, "y": short(t.batch_size * per_example / s)}
        for t in timing.timings
        for s in whole_steps(t, typical).tolist()
        if s > 0
    ]


def curve_values(fit: StepTimeFit | None, per_example: float) -> list[dict[str, Any]]:
    """The fitted step time as throughput: b u / t(b), t(b) = a + c (b^4 + s^4)^(1/4), over the fitted sizes."""
    if fit is None or len(fit.batch_sizes) < 2:
        return []
    a, c, s = (m.estimate for m in (fit.overhead_seconds, fit.seconds_per_example, fit.saturation_batch_size))
    if a is None or c is None:
        return []
    b = np.geomspace(min(fit.batch_sizes), max(fit.batch_sizes), CURVE_POINTS)
    time = a + c * (b**4 + (s or 0.0) ** 4) ** 0.25
    return [{"x": short(x), "y": short(y)} for x, y in zip(b, b * per_example / time, strict=True)]


def throughput_panel(result: ProfileResult, sizes: tuple[float, float]) -> Panel:
    """Windows, estimates with bars, the fitted curve, 95 % of the highest, the knee, the largest that ran."""
    alt, unit = needed("altair"), words.plain(result.unit)
    title = f"{unit} per second"
    points, windows = throughput_values(result.rows), window_values(result)
    curve = curve_values(result.step_time, result.data.units_per_example)
    top = max(v for p in [*points, *windows, *curve] for v in (p["y"], p.get("high")) if v is not None)
    frame = Frame(alt, sizes, {"type": "linear", "domain": [0, short(HEADROOM * top)]}, title, {})
    layers = [*level_layers(frame, result), *knee_layers(frame, result), *largest_layers(frame, result.memory, row=1)]
    if windows:
        pale = frame.chart(windows).mark_point(filled=True, size=22, color=SPEED, opacity=0.3, strokeWidth=0)
        layers.append(pale.encode(x=frame.at(), y=frame.height()))
    if curve:
        layers.append(
            frame.chart(curve)
            .mark_line(color=SPEED, strokeWidth=1.4, opacity=0.75)
            .encode(x=frame.at(), y=frame.height())
        )
    tips = [("x:Q", "micro-batch size"), ("text:N", title), ("step:N", "a step takes")]
    base = frame.chart(points).encode(x=frame.at(), tooltip=[alt.Tooltip(f, title=t) for f, t in tips])
    layers.append(base.mark_rule(color=SPEED, strokeWidth=1.8).encode(y=frame.height("low"), y2="high:Q"))
    layers.append(base.mark_point(filled=True, size=58, color=SPEED, opacity=1).encode(y=frame.height()))
    label = f"{title} against micro-batch size: " + "; ".join(f"{p['x']:,}: {p['text']}" for p in points)
    return Panel(title.capitalize(), label, frame.drawn(layers, SPEED_HEIGHT))


def level_layers(frame: Frame, result: ProfileResult) -> list[Any]:
    """The throughput that the knee has to reach, as a level with its words at the left; none without a knee."""
    best = highest(result)
    if best is None or best.units_per_second.estimate is None or result.knee.estimate is None:
        return []
    level = KNEE_SHARE * best.units_per_second.estimate
    return level_at(frame, level, f"{100 * KNEE_SHARE:.0f} % of the highest", GREY, dash=(1, 3))


def level_at(frame: Frame, y: float, text: str, colour: str, dash: Sequence[int] = (1, 0)) -> list[Any]:
    """A line across the panel at `y`, its words above its left end."""
    one = frame.chart([{"y": short(y), "text": text}]).encode(y=frame.height())
    above = {"align": "left", "baseline": "bottom", "dx": 4, "dy": -3}
    return [
        one.mark_rule(color=colour, strokeWidth=1.4, strokeDash=list(dash), clip=True),
        one.mark_text(color=colour, fontSize=11, **above).encode(text="text:N", x=frame.alt.value(0)),
    ]


def knee_layers(frame: Frame, result: ProfileResult) -> list[Any]:
    """The knee as an upright line, its interval as a band that is cut at the edges."""
    knee, (left, right) = result.knee, frame.sizes
    if knee.estimate is None:
        return []
    start = left if knee.low is None else max(knee.low, left)
    end = right if knee.high is None else min(knee.high, right)
    layers = []
    if start < end and not (knee.low is None and knee.high is None):
        band = frame.chart([{"x": short(start), "x2": short(end)}])
        layers.append(band.mark_rect(color="#777777", opacity=0.14).encode(x=frame.at(), x2="x2:Q"))
    return [*layers, *upright(frame, knee.estimate, f"knee {size_interval(knee, DASH)}", GREY, row=0)]


def largest_layers(frame: Frame, memory: MemoryProfile | None, row: int) -> list[Any]:
    """The largest micro-batch that ran, as an upright line."""
    largest = memory.largest_micro_batch_size if memory is not None else None
    return [] if largest is None else upright(frame, largest, f"largest that ran {largest:,}", CEILING, row, [5, 3])


def upright(frame: Frame, x: float, text: str, colour: str, row: int, dash: Sequence[int] = (2, 2)) -> list[Any]:
    """A line over the panel's whole height, and its words beside it at the top, on the side with more room."""
    left, right = frame.sizes
    early = math.log(x / left) < 0.5 * math.log(right / left)
    side = {"align": "left", "dx": 5} if early else {"align": "right", "dx": -5}
    one = frame.chart([{"x": short(x), "text": text}]).encode(x=frame.at())
    words_of = one.mark_text(fontSize=11, color=colour, baseline="top", **side)
    return [
        one.mark_rule(color=colour, strokeDash=list(dash), strokeWidth=1.3),
        words_of.encode(text="text:N", y=frame.alt.value(3 + 15 * row)),
    ]


# --- memory ---


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit that an axis up to `largest` bytes is written in: (bytes, name)."""
    power = 3 if largest >= 2**30 else 2 if largest >= 2**20 else 1
    return 1024.0**power, BYTE_UNITS[power]


def probe_values(memory: MemoryProfile, unit: float, edge: float) -> list[dict[str, Any]]:
    """One row per probe; a probe that ended before any peak was seen stands at `edge`, the panel's upper end."""
    return [
        {
            "x": p.micro_batch_size,
            "y": short(p.peak_bytes / unit if p.peak_bytes is not None else edge),
            "outcome": OUTCOMES.get(p.outcome, words.plain(p.outcome)),
            "text": size_of(p.peak_bytes) if p.peak_bytes is not None else "not seen",
        }
        for p in memory.probes
    ]


def fit_values(memory: MemoryProfile, sizes: tuple[float, float], unit: float) -> list[dict[str, Any]]:
    """The affine fit on a fine grid; `part` tells the fitted range from what lies outside it."""
    fit = memory.fit
    if fit is None or fit.fixed_bytes.estimate is None or fit.bytes_per_example.estimate is None:
        return []
    fixed, slope = fit.fixed_bytes.estimate / unit, fit.bytes_per_example.estimate / unit
    inside = (min(fit.micro_batch_sizes), max(fit.micro_batch_sizes))
    parts = (("below", sizes[0], inside[0]), ("fitted", *inside), ("above", inside[1], sizes[1]))
    return [
        {
            "x": short(b),
            "y": short(fixed + slope * b),
            "part": part,
        }
        for part, low, high in parts
        if low < high
        for b in np.geomspace(low, high, CURVE_POINTS)
    ]


def memory_panel(memory: MemoryProfile, sizes: tuple[float, float]) -> Panel:
    """Peaks by outcome, the affine fit, the limit as a level, the largest that ran as the same upright line."""
    alt = needed("altair")
    seen = [p.peak_bytes for p in memory.probes if p.peak_bytes]
    unit, name = byte_unit(max([*seen, memory.limit_bytes]))
    scale = bytes_scale(seen, memory.limit_bytes, unit)
    frame = Frame(alt, sizes, scale, f"peak memory ({name})", {})
    points, line = probe_values(memory, unit, scale["domain"][1]), fit_values(memory, sizes, unit)
    layers = [
        *largest_layers(frame, memory, row=0),
        *level_at(frame, memory.limit_bytes / unit, f"limit {size_of(memory.limit_bytes)}", CEILING),
    ]
    for part, dash in (("below", [2, 3]), ("fitted", [1, 0]), ("above", [2, 3])):
        if rows := [v for v in line if v["part"] == part]:
            mark = frame.chart(rows).mark_line(color=GREY, strokeWidth=1.3, strokeDash=dash, clip=True)
            layers.append(mark.encode(x=frame.at(), y=frame.height()))
    layers.append(probe_layer(frame, points, memory))
    label = f"Peak memory against micro-batch size, limit {size_of(memory.limit_bytes)}: " + "; ".join(
        f"{p['x']:,}: {p['text']}, {p['outcome']}" for p in points
    )
    return Panel("Peak memory of a training process", label, frame.drawn(layers, BYTES_HEIGHT))


def bytes_scale(seen: Sequence[float], limit: float, unit: float) -> dict[str, Any]:
    """From zero to past the limit and every peak; logarithmic where peaks span LOG_BYTES_FROM."""
    top = 1.12 * max([*seen, limit]) / unit
    low = min([*seen, limit]) / unit
    if top / low >= LOG_BYTES_FROM:
        return {"type": "log", "domain": [short(low / 1.3), short(top * 1.2)]}
    return {"type": "linear", "domain": [0, short(top)]}


def probe_layer(frame: Frame, points: list[dict[str, Any]], memory: MemoryProfile) -> Any:
    """The probes, in a colour and shape for each outcome, named in a legend above the panel."""
    alt = frame.alt
    met = [o for o in OUTCOME_MARKS if any(p.outcome == o for p in memory.probes)]
    domain = [OUTCOMES[o] for o in met]
    colour = alt.Scale(domain=domain, range=[OUTCOME_MARKS[o][0] for o in met])
    shape = alt.Scale(domain=domain, range=[OUTCOME_MARKS[o][1] for o in met])
    tips = [("x:Q", "micro-batch size"), ("outcome:N", "outcome"), ("text:N", "peak")]
    legend = alt.Legend(columns=LEGEND_COLUMNS)
    return (
        frame.chart(points)
        .mark_point(filled=True, size=72, opacity=1, strokeWidth=0)
        .encode(
            x=frame.at(),
            y=frame.height(),
            color=alt.Color("outcome:N", scale=colour, legend=legend),
            shape=alt.Shape("outcome:N", scale=shape, legend=legend),
            tooltip=[alt.Tooltip(f, title=t) for f, t in tips],
        )
    )


# --- where a step's time goes ---


def phase_seconds(row: ThroughputRow) -> dict[str, float] | None:
    """Seconds of a step's parts, each at least 0; None where phases were not measured.

    The copy is part of the wait for data, as far as computing does not hide it: of a wait w and a copy c measured
    alone, min(c, w) is drawn as copying and the rest of w as waiting.
    """
    if row.compute is None or row.compute.estimate is None:
        return None
    wait, copy, compute, optimizer = (
        max(0.0, m.estimate or 0.0) if m is not None else 0.0
        for m in (row.data_wait, row.copy, row.compute, row.optimizer)
    )
    shown = min(copy, wait)
    return dict(zip(PHASES, (wait - shown, shown, compute, optimizer), strict=True))


def phase_values(rows: Sequence[ThroughputRow]) -> list[dict[str, Any]]:
    """One row per size and part: its share of the parts' sum."""
    values = []
    for row in rows:
        parts = phase_seconds(row)
        if parts is None or not (whole := sum(parts.values())):
            continue
        for order, (phase, took) in enumerate(parts.items()):
            share = 100 * took / whole
            values.append(
                {
                    "size": f"{row.micro_batch_size:,}",
                    "phase": phase,
                    "order": order,
                    "y": short(share),
                    "text": f"{words.number(share)} % ({words.seconds(took)})",
                }
            )
    return values


def phase_panel(rows: Sequence[ThroughputRow]) -> Panel | None:
    """Stacked shares of a step, a bar per size; None where no phase was measured."""
    values = phase_values(rows)
    if not values:
        return None
    alt = needed("altair")
    sizes = list(dict.fromkeys(v["size"] for v in values))
    kinds = [k for k in PHASES if any(v["phase"] == k and v["y"] for v in values)]
    frame = Frame(alt, (1, 1), {"type": "linear", "domain": [0, 100]}, "share of a step (%)", {})
    colour = alt.Scale(domain=kinds, range=[PHASES[k] for k in kinds])
    legend = alt.Legend(columns=LEGEND_COLUMNS)
    ticks = alt.Axis(labelAngle=0, labelOverlap="greedy")
    bars = (
        frame.chart([v for v in values if v["phase"] in kinds])
        .mark_bar(stroke="white", strokeWidth=0.6)
        .encode(
            x=alt.X("size:N", sort=sizes, title="micro-batch size (examples)", axis=ticks),
            y=frame.height(),
            color=alt.Color("phase:N", scale=colour, legend=legend),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip(f, title=t)
                for f, t in (("size:N", "micro-batch size"), ("phase:N", "part"), ("text:N", "share"))
            ],
        )
    )
    waits = [(r.micro_batch_size, s) for r in rows if (s := data_share(r)) is not None]
    label = "Share of a step by part; wait for data: " + "; ".join(f"{b:,}: {100 * s:.0f} %" for b, s in waits)
    return Panel("Where a step's time goes", label, frame.drawn([bars], PHASES_HEIGHT))
