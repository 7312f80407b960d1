"""How is what was measured on several devices drawn? Steps, throughput, averaging, and all-reduces by themselves.

Numbers first: `..._rows` make plain rows from the records, each `..._panel` draws them. Device counts differ in colour
and in shape. The way to the goal is in `scaling_goal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from batchscope.analysis.network import ring_seconds
from batchscope.analysis.scaling import rounds_of
from batchscope.analysis.step_time import scaled
from batchscope.analysis.uncertainty import of_rounds
from batchscope.records import Measured, ScalingResult, ScalingRow
from batchscope.report.charts import Panel
from batchscope.report.noise_marks import Axis, Frame, log_domain, mark_layers, mark_of, place_of
from batchscope.report.profile_words import size_of
from batchscope.report.scaling_tables import link_of
from batchscope.report.scaling_words import devices_of, share_of
from batchscope.report.style import needed, short
from batchscope.report.words import count, number

# Okabe & Ito 2008, the yellow left out and the orange made darker: thin lines must show on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b97900", "#cc79a7", "#56b4e9", "#555555")
SHAPES = ("circle", "square", "diamond", "triangle-right", "cross", "triangle-left", "wedge")
GREY = "#555555"
DODGE = 2.0**0.05  # device counts stand this factor apart, so that their bars do not cover each other
MS, KIB, PERCENT = 1e3, 1024.0, 100.0
CURVE_POINTS = 81
TALL = 320  # pixels, legend included

Rows = list[dict[str, Any]]
Layout = Callable[[ScalingRow], tuple[float, Measured]]  # where a row stands, and its value


def series_of(result: ScalingResult, several: bool = False) -> dict[str, str]:
    """Device counts that were timed, by name, with their colours; `several`: without the single device."""
    counts = sorted({r.devices for r in result.rows})
    return {devices_of(n): COLOURS[k % len(COLOURS)] for k, n in enumerate(counts) if n > 1 or not several}


def shape_of(colour: str) -> str:
    """The shape that goes with a device count's colour."""
    return SHAPES[COLOURS.index(colour)]


def sizes_axis(values: Iterable[float], title: str) -> Axis:
    """Batch sizes, messages or devices on log2, with some room on both sides."""
    known = list(values) or [1.0]
    low, high = min(known) / 1.3, max(known) * 1.3
    return Axis(title, {"type": "log", "base": 2, "domain": [short(low), short(high)], "nice": False})


def dodged(x: float, series: str, all_series: Sequence[str]) -> float:
    """Where on the axis the mark of a series stands."""
    return x * DODGE ** (all_series.index(series) - (len(all_series) - 1) / 2)


# --- by batch size ---


def rows_by_count(rows: Sequence[ScalingRow], names: Sequence[str], y: Axis, place: Layout) -> Rows:
    """One drawn row for every row that has a value, in its device count's series."""
    drawn = []
    for r in rows:
        name, (x, value) = devices_of(r.devices), place(r)
        size = count(x) if x == round(x) else number(x)
        mark = mark_of(value, dodged(x, name, names), y, series=name, size=size, batch=count(r.batch_size))
        drawn += [mark] if mark is not None else []
    return drawn


def lines_and_marks(frame: Frame, rows: Rows, tips: Sequence[tuple[str, str]]) -> list[Any]:
    """A thin line for each series and its marks, each with a shape of its own."""
    layers = []
    for name, colour in frame.series.items():
        own = [r for r in rows if r["series"] == name]
        joined = [r for r in own if r["kind"] == "estimate"]
        if len(joined) > 1:
            line = frame.chart(joined).mark_line(strokeWidth=1.3, opacity=0.75)
            layers.append(line.encode(x=frame.at(), y=frame.height(), color=frame.colour()))
        layers += mark_layers(frame, own, tips, shape_of(colour))
    return layers


def pale_layer(frame: Frame, rows: Rows) -> list[Any]:
    """Timed windows, pale behind the marks."""
    if not rows:
        return []
    marks = frame.chart(rows).mark_point(filled=True, size=14, opacity=0.3, strokeWidth=0, clip=True)
    return [marks.encode(x=frame.at(), y=frame.height(), color=frame.colour())]


def window_rows(result: ScalingResult, place: Callable[[int, int, float], tuple[float, float]]) -> Rows:
    """Every window that was timed, corrected for drift: `place` of (devices, batch size, seconds per step)."""
    names, rows = list(series_of(result)), []
    for (n, b), seconds in rounds_of(result.data.timing).items():
        for s in seconds.tolist():
            x, y = place(n, b, s)
            rows.append({"x": short(dodged(x, devices_of(n), names)), "y": short(y), "series": devices_of(n)})
    return rows


def spoken(title: str, rows: Rows) -> str:
    """The values in words, for readers who cannot see the chart."""
    return f"{title}: " + "; ".join(f"{r['series']}, {r['size']}: {r['text']}" for r in rows)


def panel_of(title: str, result: ScalingResult, axes: tuple[str, str], place: Layout, windows: Rows) -> Panel | None:
    """A panel of lines by device count over logarithmic axes; None without a value."""
    values, series = [place(r) for r in result.rows], series_of(result)
    if not any(place_of(m) for _, m in values):
        return None
    ends = [*(e for _, m in values for e in (m.low, m.high)), *(w["y"] for w in windows)]
    y = Axis(axes[1], log_domain([place_of(m) for _, m in values], ends))
    x = sizes_axis((x for x, _ in values), axes[0])
    drawn = rows_by_count(result.rows, list(series), y, place)
    frame = Frame(needed("altair"), x, y, series, {})
    tips = (("series", "devices"), ("batch", "global batch size"), ("text", y.title))
    spec = frame.drawn([*pale_layer(frame, windows), *lines_and_marks(frame, drawn, tips)], TALL)
    return Panel(title, spoken(f"{y.title} against {x.title}", drawn), spec)


def steps_panel(result: ScalingResult) -> Panel | None:
    """Strong scaling: seconds per step against the global batch size."""
    windows = window_rows(result, lambda _, b, s: (b, MS * s))
    axes = ("global batch size (examples)", "seconds per step (ms)")
    return panel_of("Seconds per step", result, axes, lambda r: (r.batch_size, scaled(r.seconds_per_step, MS)), windows)


def throughput_panel(result: ScalingResult) -> Panel | None:
    """Weak scaling: throughput of each device against its own batch."""

    def place(r: ScalingRow) -> tuple[float, Measured]:
        return r.batch_size / r.devices, scaled(r.examples_per_second, 1 / r.devices)

    windows = window_rows(result, lambda n, b, s: (b / n, b / n / s))
    axes = ("batch per device (examples)", "examples per second and device")
    return panel_of("Throughput of each device", result, axes, place, windows)


def exposed_panel(result: ScalingResult) -> Panel | None:
    """The share of a step that is averaging which computing does not hide."""
    rows = [r for r in result.rows if r.devices > 1 and r.exposed.estimate is not None]
    if not rows:
        return None
    y = Axis("exposed averaging (% of a step)", {"type": "linear", "domain": [0, 100], "nice": False})
    x = sizes_axis((r.batch_size for r in rows), "global batch size (examples)")
    series = series_of(result, several=True)
    drawn = rows_by_count(rows, list(series), y, lambda r: (r.batch_size, share_of(r.exposed, r.seconds_per_step)))
    frame = Frame(needed("altair"), x, y, series, {})
    tips = (("series", "devices"), ("batch", "global batch size"), ("text", y.title))
    spec = frame.drawn(lines_and_marks(frame, drawn, tips), TALL)
    return Panel("Exposed averaging", spoken(f"{y.title} against {x.title}", drawn), spec)


# --- all-reduces by themselves ---


def reduces_panel(result: ScalingResult) -> Panel | None:
    """Seconds of bare all-reduces against their bytes, with the fitted ring; None where none was timed."""
    timings = [t for t in result.data.timing.all_reduces if t.seconds]
    if not timings:
        return None
    values = [(t.devices, t.bytes / KIB, scaled(of_rounds(np.array(t.seconds)), MS)) for t in timings]
    windows = [(t.devices, t.bytes / KIB, MS * s) for t in timings for s in t.seconds]
    own = result.data.timing.gradient_bytes
    y = Axis("all-reduce (ms)", log_domain([m.estimate for *_, m in values], [s for *_, s in windows]))
    x = sizes_axis([*(size for _, size, _ in values), own / KIB], "message (KiB)")
    colours = series_of(result, several=True)
    frame = Frame(needed("altair"), x, y, {**colours, gradient_name(result): GREY}, {})
    names = list(colours)
    drawn = [
        mark_of(m, dodged(size, devices_of(n), names), y, series=devices_of(n), size=size_of(size * KIB))
        for n, size, m in values
    ]
    marks = [r for r in drawn if r is not None]
    pale = [
        {"x": short(dodged(size, devices_of(n), names)), "y": short(s), "series": devices_of(n)}
        for n, size, s in windows
    ]
    layers = [gradient_layer(frame, result), *pale_layer(frame, pale), *ring_layers(frame, result)]
    tips = (("series", "devices"), ("size", "message"), ("text", "all-reduce (ms)"))
    for name, colour in colours.items():
        layers += mark_layers(frame, [r for r in marks if r["series"] == name], tips, shape_of(colour))
    label = spoken("Milliseconds of an all-reduce by message", marks)
    return Panel("All-reduces by themselves", label, frame.drawn(layers, TALL))


def gradient_name(result: ScalingResult) -> str:
    """The gradient's own size, as the legend names it."""
    return f"this task's gradient: {size_of(result.data.timing.gradient_bytes)}"


def gradient_layer(frame: Frame, result: ScalingResult) -> Any:
    """An upright line at the gradient's own size."""
    at = [{"x": short(result.data.timing.gradient_bytes / KIB), "series": gradient_name(result)}]
    return frame.chart(at).mark_rule(strokeDash=[2, 3], strokeWidth=1.4).encode(x=frame.at(), color=frame.colour())


def ring_layers(frame: Frame, result: ScalingResult) -> list[Any]:
    """The fitted ring of every device count, dashed."""
    link, sizes = link_of(result), sorted({size for _, size, _ in result.network.points})
    if link is None or len(sizes) < 2:
        return []
    rows = [
        {"x": short(size / KIB), "y": short(MS * ring_seconds(link, n, size)), "series": devices_of(n)}
        for n in sorted({n for n, *_ in result.network.points})
        for size in np.geomspace(sizes[0], sizes[-1], CURVE_POINTS).tolist()
    ]
    line = frame.chart(rows).mark_line(strokeWidth=1.3, strokeDash=[5, 3], clip=True)
    return [line.encode(x=frame.at(), y=frame.height(), color=frame.colour())]
