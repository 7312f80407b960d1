"""How is an advice drawn? Steps, seconds per step and their product on one axis of batch sizes, with the three limits.

The panels are drawn apart and laid below each other: the same horizontal domain, and the same room for the vertical
axes, keep one batch size on one upright line. What the colours mean stands in the first panel's legend, a line each, so
that no label can cover another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from batchscope.records import Advice
from batchscope.report import advice_points as points
from batchscope.report.advice_numbers import allowance, by_loss
from batchscope.report.advice_points import AT_BEST, BESIDE, DASH, DASHES, Ends, Limit
from batchscope.report.charts import Panel
from batchscope.report.noise_marks import SHAPES, Axis, log_domain, round_numbers
from batchscope.report.style import finished, needed, short
from batchscope.report.words import count, number

CURVE = "#0072b2"
RUN_COLOURS = {AT_BEST: "#111111", BESIDE: "#8a8a8a"}
AXIS_ROOM = 50  # pixels for ticks and labels of every vertical axis, so that stacked panels line up
HEIGHT, LOW = 235, 200
RUN_TIPS = (("x", "batch size"), ("text", "value"), ("rate", "learning rate"), ("role", "run"))


class Frame(NamedTuple):
    """What the layers of one panel share: altair, both axes, the legend (empty: none), their data."""

    alt: Any
    x: Axis
    y: Axis
    series: dict[str, str]  # name in the legend -> colour
    legend: bool
    datasets: dict[str, list[dict[str, Any]]]  # kept beside the chart: altair copies what is inside at every step

    def chart(self, values: list[dict[str, Any]]) -> Any:
        """A chart of `values`, which join the panel's data sets under a name of their own."""
        name = f"values{len(self.datasets)}"
        self.datasets[name] = values
        return self.alt.Chart(self.alt.NamedData(name))

    def at(self, field: str = "x") -> Any:
        """The x channel."""
        return self.alt.X(
            field,
            type="quantitative",
            title=self.x.title,
            scale=self.alt.Scale(**self.x.scale),
            axis=self.ruler(self.x),
        )

    def height(self, field: str = "y") -> Any:
        """The y channel, in the room that all stacked panels give it."""
        ruler = self.ruler(self.y, minExtent=AXIS_ROOM, maxExtent=AXIS_ROOM)
        return self.alt.Y(
            field, type="quantitative", title=self.y.title, scale=self.alt.Scale(**self.y.scale), axis=ruler
        )

    def ruler(self, a: Axis, **room: int) -> Any:
        """Powers of two for batch sizes, else round numbers; long ones with a prefix: 20k."""
        low, high = a.ends
        if a.scale.get("base") == 2:
            powers = [2**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
            return self.alt.Axis(values=powers, format=",d", labelOverlap="greedy", grid=False)
        form = "~s" if high >= 1e4 else ",~g"
        return self.alt.Axis(values=round_numbers(low, high), format=form, labelOverlap="greedy", **room)

    def colour(self) -> Any:
        """The series' colour; the legend names them."""
        legend = self.alt.Legend(columns=1, labelLimit=0, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
        return self.alt.Color("series:N", scale=self.colours(), legend=legend if self.legend else None)

    def colours(self) -> Any:
        """The scale behind `colour`."""
        return self.alt.Scale(domain=list(self.series), range=list(self.series.values()))

    def tips(self, *fields: tuple[str, str]) -> list[Any]:
        """What whoever points at a mark reads: (field, title)."""
        return [self.alt.Tooltip(f"{f}:{'Q' if f == 'x' else 'N'}", title=t) for f, t in fields]

    def drawn(self, layers: Sequence[Any], height: int) -> dict[str, Any]:
        """The panel's specification."""
        return {**finished(self.alt.layer(*layers)), "height": height, "datasets": self.datasets}


def sizes_axis(advice: Advice) -> Axis:
    """Batch size on log2."""
    low, high = points.sizes_domain(advice)
    scale = {"type": "log", "base": 2, "domain": [short(low), short(high)], "nice": False}
    return Axis("batch size (examples)", scale)


# --- the one figure ---


class Content(NamedTuple):
    """What one of the stacked panels holds."""

    title: str
    axis: str
    curve: list[Ends]
    runs: list[dict[str, Any]]
    timed: list[dict[str, Any]]
    height: int = HEIGHT


def stacked_panels(advice: Advice) -> tuple[Panel, ...]:
    """Steps to the goal, seconds per step and seconds to the goal; or the lowest loss; those with nothing left out."""
    held = [c for c in contents_of(advice) if c.curve or c.runs or c.timed]
    return tuple(content_panel(advice, c, first=k == 0) for k, c in enumerate(held))


def contents_of(advice: Advice) -> list[Content]:
    """The stacked panels' contents."""
    curve, timed = points.step_curve(advice), points.timed_rows(advice)
    step = Content("Seconds per step", "seconds per step", curve, [], timed, LOW)
    if by_loss(advice):
        title = f"Lowest validation loss in {allowance(advice)}"
        return [Content(title, "validation loss", points.loss_curve(advice), points.run_rows(advice, "loss"), []), step]
    over, ratio = "", ""
    if points.is_relative(advice):
        over, ratio = f", over those at {count(points.reference_size(advice))}", " (ratio)"
    steps = Content(
        f"Steps to goal{over}",
        f"steps to goal{ratio}",
        points.steps_curve(advice),
        points.run_rows(advice, "steps"),
        [],
    )
    runs = points.run_rows(advice, "seconds")
    product = f"Seconds to goal, the product{over}"
    return [steps, step, Content(product, f"seconds to goal{ratio}", points.seconds_curve(advice), runs, [])]


def content_panel(advice: Advice, content: Content, first: bool) -> Panel:
    """One panel: limits behind, the curve in its band, runs and timings in front."""
    marks = [*(e.middle for e in content.curve), *(r["y"] for r in (*content.runs, *content.timed))]
    ends = [v for e in content.curve for v in (e.low, e.high)] + [r[k] for r in content.timed for k in ("low", "high")]
    y = Axis(content.axis, log_domain(marks, ends))
    limits = points.limits_of(advice)
    series = {v.name: v.colour for v in limits}
    series |= {name: c for name, c in RUN_COLOURS.items() if any(r["series"] == name for r in content.runs)}
    frame = Frame(needed("altair"), sizes_axis(advice), y, series, first, {})
    layers = [
        *limit_layers(frame, limits),
        *curve_layers(frame, content.curve),
        *timed_layers(frame, content.timed),
        *run_layers(frame, content.runs),
    ]
    return Panel(content.title, spoken(content, limits), frame.drawn(layers, content.height))


def limit_layers(frame: Frame, limits: Sequence[Limit]) -> list[Any]:
    """Upright lines and bands over their intervals; a limit beyond the axis is only named in the legend."""
    left, right = frame.x.ends
    bands, lines = [], []
    for limit in limits:
        low, high = (limit.low or left, limit.high or right) if limit.low or limit.high else (right, left)
        low, high = max(low, left), min(high, right)
        bands += [{"x": short(low), "x2": short(high), "series": limit.name}] if low < high else []
        lines += (
            [{"x": short(limit.x), "series": limit.name, "dash": DASHES[limit.colour]}]
            if left <= limit.x <= right
            else []
        )
    if not limits:
        return []
    dash = frame.alt.StrokeDash("dash:N", scale=None)
    band = frame.chart(bands).mark_rect(opacity=0.1)
    line = frame.chart(lines).mark_rule(strokeWidth=1.8)
    return [
        band.encode(x=frame.at(), x2="x2:Q", color=frame.colour()),
        line.encode(x=frame.at(), color=frame.colour(), strokeDash=dash),
    ]


def curve_layers(frame: Frame, curve: Sequence[Ends]) -> list[Any]:
    """A line in its band, both cut to the panel; a single point is a bar."""
    if not curve:
        return []
    base = frame.chart([e.row() for e in curve]).encode(x=frame.at())
    if len(curve) == 1:
        return [base.mark_rule(color=CURVE, strokeWidth=3, clip=True).encode(y=frame.height("low"), y2="high:Q")]
    return [
        base.mark_area(color=CURVE, opacity=0.16, clip=True).encode(y=frame.height("low"), y2="high:Q"),
        base.mark_line(color=CURVE, strokeWidth=1.8, clip=True).encode(y=frame.height()),
    ]


def timed_layers(frame: Frame, rows: list[dict[str, Any]]) -> list[Any]:
    """Seconds per step with bars: filled where timed, hollow where predicted."""
    layers = []
    for measured in (True, False):
        chosen = [r for r in rows if r["measured"] is measured]
        if not chosen:
            continue
        base = frame.chart(chosen).encode(
            x=frame.at(), tooltip=frame.tips(("x", "batch size"), ("text", "a step takes"))
        )
        layers.append(base.mark_rule(color="#111111", clip=True).encode(y=frame.height("low"), y2="high:Q"))
        look = {"filled": True} if measured else {"filled": False, "fill": "white"}
        mark = base.mark_point(color="#111111", size=42, opacity=1, **look)
        layers.append(mark.encode(y=frame.height()))
    return layers


def run_layers(frame: Frame, rows: list[dict[str, Any]]) -> list[Any]:
    """Runs as points, an upward triangle where the goal was not reached and the value is a lower bound."""
    layers = []
    for kind in ("estimate", "at_least"):
        chosen = [r for r in rows if r["kind"] == kind]
        if chosen:
            mark = frame.chart(chosen).mark_point(
                shape=SHAPES[kind], filled=kind == "estimate", size=52, opacity=0.9, strokeWidth=1.7, clip=True
            )
            layers.append(
                mark.encode(x=frame.at(), y=frame.height(), color=frame.colour(), tooltip=frame.tips(*RUN_TIPS))
            )
    return layers


def spoken(content: Content, limits: Sequence[Limit]) -> str:
    """The panel in words, for readers who cannot see it."""
    fine = content.curve if len(content.curve) <= 24 else content.curve[:: len(content.curve) // 8]
    told = [f"{number(e.x)}: {number(e.middle)} [{number(e.low)}{DASH}{number(e.high)}]" for e in fine]
    told += [f"run at {count(r['x'])}: {r['text']}" for r in content.runs]
    told += [f"timed at {count(r['x'])}: {r['text']}" for r in content.timed]
    return f"{content.title} against batch size, {', '.join(v.name for v in limits) or 'no limit known'}; " + "; ".join(
        told
    )
