"""What do all drawings of flatness have in common? Axes that fit values of any sign, series by batch size, marks.

Batch sizes have the report's colours along viridis, policies their own; a drawing by batch size has a panel for each
policy. Weights that came as files are told apart by colours of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from batchscope.records import Measured, PointSharpness, SharpnessResult
from batchscope.report.noise_marks import DASH, Axis, Frame
from batchscope.report.noise_words import cell
from batchscope.report.style import POLICY_COLOURS, colours, short
from batchscope.report.words import count, plain

# Okabe & Ito 2008, the yellow left out and the orange made darker: thin lines must show on white
LIST = ("#0072b2", "#d55e00", "#009e73", "#b97900", "#cc79a7", "#56b4e9", "#555555")
GREY = "#555555"
LOG_FROM = 10.0  # largest over smallest from which an axis of positive values is logarithmic: a decade
ROOM = 0.05  # free part of an axis at either end
TALL = 320  # pixels, legend included

Rows = list[dict[str, Any]]


def axis_of(title: str, values: Iterable[float | None], log_from: float = LOG_FROM) -> Axis:
    """An axis that holds every finite value, logarithmic where all are positive and span `log_from`."""
    known = [v for v in values if v is not None and math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0 and high / low >= log_from:
        grow = max((high / low) ** ROOM, 1.02)
        return Axis(title, {"type": "log", "domain": [short(low / grow), short(high * grow)], "nice": False})
    room = ROOM * ((high - low) or abs(high) or 1.0)
    return Axis(title, {"type": "linear", "domain": [short(low - room), short(high + room)], "nice": False})


def sizes_axis(sizes: Iterable[float], title: str = "batch size (examples)") -> Axis:
    """Batch sizes on log2, with some room on both sides."""
    known = list(sizes) or [1.0]
    return Axis(title, {"type": "log", "base": 2, "domain": [min(known) / 1.4, max(known) * 1.4], "nice": False})


def size_name(size: int) -> str:
    """A batch size as legends name it."""
    return f"batch size {count(size)}"


def size_series(sizes: Iterable[int]) -> dict[str, str]:
    """The colour of every batch size, by its name in the legend."""
    ordered = sorted(set(sizes))
    return {size_name(b): colour for b, colour in colours(ordered).items()} if ordered else {}


def policy_name(policy: str) -> str:
    """A policy as legends name it."""
    return f"{plain(policy)} learning rate" if policy in ("held", "tuned") else plain(policy) or "weights"


def policy_series(policies: Iterable[str]) -> dict[str, str]:
    """The colour of every policy, by its name in the legend."""
    return {policy_name(p): POLICY_COLOURS.get(p, POLICY_COLOURS["both"]) for p in dict.fromkeys(policies)}


def points_by_label(result: SharpnessResult) -> dict[str, PointSharpness]:
    """The measured points by their labels, the first of equals."""
    return {p.label: p for p in reversed(result.data.points)}


def series_for(points: Sequence[PointSharpness]) -> dict[str, str]:
    """The series of a panel whose lines are points: batch sizes, or labels where they came as files."""
    labels = list(dict.fromkeys(plain(p.label) for p in points if p.batch_size is None))
    files = {name: LIST[k % len(LIST)] for k, name in enumerate(labels)}
    return size_series(p.batch_size for p in points if p.batch_size is not None) | files


def series_name(point: PointSharpness) -> str:
    """Which series of `series_for` a point belongs to."""
    return plain(point.label) if point.batch_size is None else size_name(point.batch_size)


def panel_title(what: str, policy: str, policies: Sequence[str]) -> str:
    """A panel's heading: the policy where there are several, else what it shows."""
    return f"{what}, {policy_name(policy)}" if len(policies) > 1 and policy else what


# --- marks ---


def mark_of(m: Measured | None, x: float, y: Axis, **more: Any) -> dict[str, Any] | None:
    """A value as a row, its bar cut to the axis; None without an estimate, or where a log axis has no place for it."""
    if m is None or m.estimate is None or (m.estimate <= 0 and y.scale["type"] == "log"):
        return None
    bottom, top = y.ends
    ends = [m.estimate if v is None else min(max(v, bottom), top) for v in (m.low, m.high)]
    row = {"x": short(x), "y": short(m.estimate), "low": short(ends[0]), "high": short(ends[1]), "kind": "estimate"}
    return {**row, "text": cell(m, DASH), **more}


def line_layer(frame: Frame, rows: Rows, *, dash: Sequence[int] = (1, 0), detail: str = "", width: float = 1.5) -> Any:
    """A line for each series (and each value of `detail`), cut at the panel's edge."""
    line = frame.chart(rows).mark_line(strokeWidth=width, strokeDash=list(dash), clip=True)
    encoded = line.encode(x=frame.at(), y=frame.height(), color=frame.colour(), order=frame.alt.Order("x:Q"))
    return encoded.encode(detail=f"{detail}:N") if detail else encoded


def pale_layer(frame: Frame, rows: Rows, shape: str = "circle") -> list[Any]:
    """Seeds, pale behind the marks."""
    if not rows:
        return []
    marks = frame.chart(rows).mark_point(filled=True, size=24, opacity=0.4, strokeWidth=0, clip=True, shape=shape)
    return [marks.encode(x=frame.at(), y=frame.height(), color=frame.colour())]


def dot_colour(frame: Frame) -> Any:
    """The series' colour where nothing but filled marks is drawn, which leave the legend of lines empty."""
    legend = frame.alt.Legend(columns=1, labelLimit=0, symbolType="circle", symbolOpacity=1)
    scale = frame.alt.Scale(domain=list(frame.series), range=list(frame.series.values()))
    return frame.alt.Color("series:N", scale=scale, legend=legend)


def level_layer(frame: Frame, value: float, series: str) -> Any:
    """A dashed line across the panel, named in the legend."""
    rows = [{"y": short(value), "series": series}]
    return (
        frame.chart(rows).mark_rule(strokeDash=[4, 3], strokeWidth=1.4).encode(y=frame.height(), color=frame.colour())
    )


def upright_layers(frame: Frame, places: Sequence[tuple[float, str]]) -> list[Any]:
    """Dotted upright lines with a few words at their top."""
    layers = []
    for k, (x, text) in enumerate(places):
        one = frame.chart([{"x": x, "text": text}]).encode(x=frame.at())
        side = {"align": "right", "dx": -4} if k == 0 else {"align": "left", "dx": 4}
        layers.append(one.mark_rule(strokeDash=[2, 3], strokeWidth=1.2, color=GREY))
        words = one.mark_text(fontSize=11, color="#333333", baseline="top", **side)
        layers.append(words.encode(text="text:N", y=frame.alt.value(2)))
    return layers
