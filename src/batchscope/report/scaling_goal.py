"""How is the way to the goal drawn? Seconds to goal against devices, and the steps that are predicted.

What was measured is filled, what is predicted hollow; beside each mark stands the batch size that is best there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchscope.analysis.step_time import scaled
from batchscope.records import DeviceChoice, Measured, ScalingResult
from batchscope.report.advice_numbers import unit_of
from batchscope.report.charts import Panel
from batchscope.report.noise_marks import Axis, Frame, log_domain, mark_of, place_of
from batchscope.report.scaling_charts import COLOURS, GREY, MS, TALL, Rows, dodged, shape_of, sizes_axis, spoken
from batchscope.report.scaling_tables import spread
from batchscope.report.scaling_words import devices_of
from batchscope.report.style import colours, needed, short
from batchscope.report.words import count

MEASURED, PREDICTED, LINEAR = "measured", "predicted (hollow)", "linear speed-up, for comparison"
SIZES_DRAWN = 4  # batch sizes of the predictions; the table has all
TALLER = 380


# --- seconds to goal ---


def goal_panel(result: ScalingResult) -> Panel | None:
    """Seconds to goal against devices at each count's best batch size; None without a known one."""
    known = [c for c in result.choices if place_of(c.seconds_to_goal)]
    if not known:
        return None
    scale, unit = unit_of(max(c.seconds_to_goal.estimate or 0.0 for c in known))
    values = {c.devices: scaled(c.seconds_to_goal, 1 / scale) for c in known}
    y = goal_axis(list(values.values()), unit)
    x = sizes_axis(values, "devices")
    rows = goal_rows(known, values, y)
    frame = Frame(needed("altair"), x, y, goal_series(result, rows), {})
    layers = [*linear_layers(frame, values), *useful_layers(frame, result), *goal_layers(frame, rows)]
    label = spoken(f"{y.title} against devices, best batch size in brackets", [named(r) for r in rows])
    return Panel("Seconds to goal", label, frame.drawn(layers, TALLER))


def goal_axis(values: Sequence[Measured], unit: str) -> Axis:
    """Holds every mark."""
    ends = [e for m in values for e in (m.low, m.high)]
    return Axis(f"to the goal ({unit})", log_domain([place_of(m) for m in values], ends))


def goal_rows(choices: Sequence[DeviceChoice], values: dict[int, Measured], y: Axis) -> Rows:
    """A row for every device count."""
    drawn = [
        mark_of(
            values[c.devices],
            c.devices,
            y,
            series=MEASURED if c.measured else PREDICTED,
            size=devices_of(c.devices),
            batch=count(c.batch_size),
            steps="extrapolated" if c.extrapolated else "as trained",
        )
        for c in choices
    ]
    return [r for r in drawn if r is not None]


def named(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is spoken."""
    return {**row, "size": f"{row['size']} [batch size {row['batch']}]"}


def goal_series(result: ScalingResult, rows: Rows) -> dict[str, str]:
    """What the legend names."""
    kinds = {MEASURED: COLOURS[0], PREDICTED: COLOURS[1]}
    series = {k: v for k, v in kinds.items() if any(r["series"] == k for r in rows)} | {LINEAR: "#888888"}
    return series | ({useful_name(result): COLOURS[2]} if result.most_useful is not None else {})


def useful_name(result: ScalingResult) -> str:
    """The most useful device count, as the legend names it."""
    return f"most useful: {devices_of(result.most_useful or 1)}"


def linear_layers(frame: Frame, values: dict[int, Measured]) -> list[Any]:
    """Seconds of the fewest devices over the number of times as many."""
    first = min(values)
    start = values[first].estimate
    if start is None:
        return []
    ends = sorted(values)
    rows = [{"x": short(n), "y": short(start * first / n), "series": LINEAR} for n in ends]
    line = frame.chart(rows).mark_line(strokeWidth=1, strokeDash=[2, 2], clip=True)
    return [line.encode(x=frame.at(), y=frame.height(), color=frame.colour())]


def useful_layers(frame: Frame, result: ScalingResult) -> list[Any]:
    """The most useful device count as an upright line."""
    if result.most_useful is None:
        return []
    one = frame.chart([{"x": result.most_useful, "series": useful_name(result)}])
    return [one.mark_rule(strokeDash=[6, 3], strokeWidth=1.5).encode(x=frame.at(), color=frame.colour())]


def goal_layers(frame: Frame, rows: Rows) -> list[Any]:
    """A thin line through the marks, bars, marks (hollow where predicted), and the batch sizes aslant beside them."""
    alt = frame.alt
    tips = (("size", "devices"), ("batch", "best batch size"), ("text", frame.y.title), ("series", "seconds per step"))
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in (*tips, ("steps", "steps to goal"))]
    solid = [r for r in rows if r["kind"] == "estimate"]
    layers = [
        frame.chart(solid).mark_line(color=GREY, strokeWidth=1, opacity=0.5).encode(x=frame.at(), y=frame.height())
    ]
    for name in (MEASURED, PREDICTED):
        own = [r for r in solid if r["series"] == name]
        if not own:
            continue
        base = frame.chart(own).encode(x=frame.at(), color=frame.colour(), tooltip=tooltip)
        look = {"filled": True} if name == MEASURED else {"filled": False, "fill": "white", "strokeWidth": 1.8}
        layers.append(base.mark_rule(strokeWidth=1.7, clip=True).encode(y=frame.height("low"), y2="high:Q"))
        layers.append(base.mark_point(size=70, opacity=1, **look).encode(y=frame.height()))
    beside = frame.chart(rows).mark_text(angle=315, align="left", baseline="middle", dx=8, fontSize=10, color="#333333")
    return [*layers, beside.encode(x=frame.at(), y=frame.height(), text="batch:N")]


# --- seconds per step, predicted ---


def predictions_panel(result: ScalingResult) -> Panel | None:
    """Predicted seconds per step against devices, a line for each of some batch sizes; None where none is predicted."""
    sizes = spread(sorted({p.batch_size for p in result.predictions}), SIZES_DRAWN)
    if not sizes:
        return None
    guessed = [(p.devices, p.batch_size, scaled(p.seconds_per_step, MS)) for p in result.predictions]
    timed = [(r.devices, r.batch_size, scaled(r.seconds_per_step, MS)) for r in result.rows]
    kept = [(n, b, m, solid) for group, solid in ((timed, True), (guessed, False)) for n, b, m in group if b in sizes]
    y = Axis("seconds per step (ms)", log_domain([place_of(m) for *_, m, _ in kept], ends_of(kept)))
    series = {f"batch size {count(b)}": colour for b, colour in colours(sizes).items()}
    names = list(series)
    frame = Frame(needed("altair"), sizes_axis((n for n, *_ in kept), "devices"), y, series, {})
    rows = [
        {**row, "solid": solid, "devices": n}
        for n, b, m, solid in sorted(kept, key=lambda k: (k[1], k[0]))
        if (name := f"batch size {count(b)}")
        if (row := mark_of(m, dodged(n, name, names), y, series=name, size=devices_of(n), how=how_of(solid)))
        is not None
    ]
    label = spoken("Seconds per step (ms)", rows)
    return Panel("Seconds per step, predicted", label, frame.drawn(step_layers(frame, rows), TALL))


def ends_of(kept: Sequence[tuple[int, int, Measured, bool]]) -> list[float | None]:
    """The ends of all intervals."""
    return [e for *_, m, _ in kept for e in (m.low, m.high)]


def how_of(solid: bool) -> str:
    """As a tooltip says it."""
    return "measured" if solid else "predicted"


def step_layers(frame: Frame, rows: Rows) -> list[Any]:
    """A line for each batch size through its marks, filled where measured, dashed and hollow where predicted."""
    alt, own = frame.alt, [r for r in rows if r["kind"] == "estimate"]
    tips = (("size", "devices"), ("series", "global batch size"), ("text", frame.y.title), ("how", "how"))
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in tips]
    shapes = {name: shape_of(colour) for name, colour in zip(frame.series, COLOURS, strict=False)}
    bars = frame.chart(own).mark_rule(strokeWidth=1.4, clip=True)
    layers = [bars.encode(x=frame.at(), y=frame.height("low"), y2="high:Q", color=frame.colour())]
    for solid in (True, False):
        part = [r for r in own if r["solid"] == solid]
        if not part:
            continue
        line = frame.chart(part if solid else joined(own)).mark_line(
            strokeWidth=1.3, strokeDash=[1, 0] if solid else [4, 2]
        )
        layers.append(line.encode(x=frame.at(), y=frame.height(), color=frame.colour()))
        look = {"filled": True} if solid else {"filled": False, "fill": "white", "strokeWidth": 1.6}
        marks = frame.chart([{**r, "shape": shapes[r["series"]]} for r in part]).mark_point(size=52, opacity=1, **look)
        shape = alt.Shape("shape:N", scale=None)
        layers.append(marks.encode(x=frame.at(), y=frame.height(), color=frame.colour(), shape=shape, tooltip=tooltip))
    return layers


def joined(rows: Rows) -> Rows:
    """What is predicted of each batch size, begun at its last measured device count where that comes before."""
    found = []
    for name in dict.fromkeys(r["series"] for r in rows):
        own = [r for r in rows if r["series"] == name]
        predicted = [r for r in own if not r["solid"]]
        before = [r for r in own if r["solid"] and predicted and r["devices"] < predicted[0]["devices"]]
        found += [*before[-1:], *predicted]
    return found
