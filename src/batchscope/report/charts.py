"""How are the figures' numbers drawn?

Each panel is one Vega-Lite specification made with altair, as wide as its box. The traces are one data set named
"lines", which the page hands to the panels that draw it, so it is stored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from batchscope.records import Measured
from batchscope.report.figures import Against, Curve, Estimate, Line, Point
from batchscope.report.style import (
    CROSS,
    POLICY_COLOURS,
    POLICY_DASHES,
    POLICY_SHAPES,
    axis,
    colours,
    faded,
    finished,
    needed,
    scale_of,
    short,
)
from batchscope.report.words import endless, measured, number

DODGE = 2.0**0.12  # held points stand this factor left of their batch size; tuned ones on it, as the law is


class Panel(NamedTuple):
    """One drawing: its heading, what a reader who cannot see it is told, and its specification."""

    title: str
    label: str
    spec: dict[str, Any]


def line_values(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The traces as Vega data: one object per trial that holds arrays, unfolded in the browser."""
    return [
        {
            "policy": line.policy,
            "batch_size": line.batch_size,
            "learning_rate": number(line.learning_rate),
            "seed": line.seed,
            "outcome": line.outcome.replace("_", " "),
            "epoch": [short(v) for v in line.epoch],
            "seconds": [short(v) for v in line.seconds] if line.seconds is not None else [],
            "train_loss": [short(v) for v in line.train_loss],
            "validation_loss": [short(v) for v in line.validation_loss],
            "best_epoch": short(line.best_epoch),
            "best_validation_loss": short(line.best_validation_loss),
        }
        for line in lines
    ]


def draw(
    lines: Sequence[Line], batch_sizes: Sequence[int], x: str, y: str, titles: tuple[str, str]
) -> tuple[Panel, ...]:
    """Loss against training, a panel per policy on common axes: a thin line per seed, coloured by batch size.

    A logarithmic x axis has no place for epoch 0: such lines begin at their first evaluation after it.
    """
    shown = [line for line in lines if getattr(line, x) is not None]
    x_scale = scale_of((v for line in shown for v in getattr(line, x) if v > 0), pad=0.0)
    kept = (
        v
        for line in shown
        for at, v in zip(getattr(line, x), getattr(line, y), strict=True)
        if at > 0 or x_scale.get("type") != "log"
    )
    y_scale = scale_of(kept)
    policies = list(dict.fromkeys(line.policy for line in shown))
    return tuple(
        Panel(
            f"{policy} learning rate",
            f"{titles[1]} against {titles[0]}, {policy} policy: one line per trial, coloured by batch size",
            trace_spec(policy, batch_sizes, (x, x_scale, titles[0]), (y, y_scale, titles[1])),
        )
        for policy in policies
    )


def trace_spec(
    policy: str, batch_sizes: Sequence[int], x: tuple[str, dict[str, Any], str], y: tuple[str, dict[str, Any], str]
) -> dict[str, Any]:
    """The specification of one trace panel; x and y are (field, scale, axis title)."""
    alt = needed("altair")
    palette = colours(batch_sizes)
    tips = [("batch_size", "batch size"), ("learning_rate", "learning rate"), ("seed", "seed"), ("outcome", "outcome")]
    tips += [("best_validation_loss", "lowest validation loss"), ("best_epoch", "at epoch")]
    above = f"datum[{x[0]!r}] > 0" if x[1].get("type") == "log" else "true"
    base = (
        alt.Chart(alt.NamedData("lines"))
        .transform_filter(f"datum.policy == {policy!r}")
        .transform_flatten([x[0], y[0]])
        .transform_filter(above)
        .encode(
            x=alt.X(x[0], type="quantitative", title=x[2], scale=alt.Scale(**x[1]), axis=axis(x[1])),
            y=alt.Y(y[0], type="quantitative", title=y[2], scale=alt.Scale(**y[1]), axis=axis(y[1])),
            color=alt.Color(
                "batch_size:O", scale=alt.Scale(domain=list(palette), range=list(palette.values())), legend=None
            ),
            detail=["seed:O", "learning_rate:N"],
            opacity=faded(alt, 0.85),
            tooltip=[alt.Tooltip(field=f, type="nominal", title=t) for f, t in tips],
        )
    )
    thin = base.mark_line(strokeWidth=1.3, clip=True, interpolate="linear")
    died = (
        base.transform_filter("datum.outcome == 'diverged'")
        .transform_filter(f"isValid(datum[{y[0]!r}])")
        .transform_joinaggregate(last=f"max({x[0]})", groupby=["batch_size", "seed", "learning_rate"])
        .transform_filter(f"datum[{x[0]!r}] == datum.last")
        .mark_point(shape=CROSS, size=70, filled=True, strokeWidth=1.6)
    )
    return finished(alt.layer(thin, died))


def compare(figure: Against, title: str, unit: str = "") -> Panel:
    """A quantity against batch size: pale seeds, estimates with bars, bounds as triangles, the law as a line."""
    alt = needed("altair")
    ends = [v for e in figure.estimates for v in (e.value, e.low, e.high)] + [p.value for p in figure.points]
    curve = [v for c in (figure.law,) if c for part in (c.value, c.low or (), c.high or ()) for v in part]
    policies = tuple(dict.fromkeys(e.policy for e in figure.estimates))
    y_scale, x_scale = scale_of(ends + curve), sizes_scale(figure)
    frame = Frame(alt, x_scale, y_scale, figure.batch_sizes, title, policies, {})
    layers = [*critical_layers(frame, figure.critical), *law_layers(frame, figure.law)]
    hidden = {(e.policy, e.batch_size) for e in figure.estimates if e.kind == "bound"}  # one triangle says it
    points = [p for p in figure.points if p.kind != "bound" or (p.policy, p.batch_size) not in hidden]
    layers += [*seed_layers(frame, points), *estimate_layers(frame, figure.estimates, joined=figure.law)]
    label = f"{title} against batch size: " + "; ".join(spoken(e, unit) for e in figure.estimates)
    return Panel(title, label, {**finished(alt.layer(*layers)), "datasets": frame.datasets})


class Frame(NamedTuple):
    """What the layers of one panel share: altair, both scales, the batch sizes that ran, the y axis title."""

    alt: Any
    x: dict[str, Any]
    y: dict[str, Any]
    batch_sizes: tuple[int, ...]
    title: str
    policies: tuple[str, ...]
    datasets: dict[str, list[dict[str, Any]]]  # kept beside the chart: altair copies what is inside at every step

    def chart(self, values: list[dict[str, Any]]) -> Any:
        """A chart of `values`, which join the panel's data sets under a name of their own."""
        name = f"values{len(self.datasets)}"
        self.datasets[name] = values
        return self.alt.Chart(self.alt.NamedData(name))

    def at(self, field: str = "x") -> Any:
        """The x channel: batch size on log2, a tick at every size that ran."""
        ticks = self.alt.Axis(values=list(self.batch_sizes), format=",d", labelOverlap="greedy", grid=False)
        scale = self.alt.Scale(**self.x)
        return self.alt.X(field, type="quantitative", title="batch size (examples)", scale=scale, axis=ticks)

    def height(self, field: str) -> Any:
        """The y channel."""
        scale = self.alt.Scale(**self.y)
        return self.alt.Y(field, type="quantitative", title=self.title, scale=scale, axis=axis(self.y))

    def policy(self, channel: str, values: Sequence[Any]) -> Any:
        """Policy as `channel` ("Color", "Shape"), with one legend for all channels where there are two policies."""
        legend = self.alt.Legend(labelExpr="datum.label + ' learning rate'", symbolOpacity=1, symbolStrokeWidth=0)
        scale = self.alt.Scale(domain=list(self.policies), range=list(values))
        shown = legend if len(self.policies) > 1 else None
        return getattr(self.alt, channel)("policy:N", scale=scale, legend=shown)

    def colour(self) -> Any:
        """The policy's colour."""
        return self.policy("Color", [POLICY_COLOURS[p] for p in self.policies])


def sizes_scale(figure: Against) -> dict[str, Any]:
    """The log2 axis of batch sizes, stretched to B_crit where that lies at most a factor of 4 outside."""
    low, high = figure.batch_sizes[0] / 1.25, figure.batch_sizes[-1] * 1.25
    critical = figure.critical.estimate if figure.critical is not None else None
    if critical is not None and low / 4 <= critical <= high * 4:
        low, high = min(low, critical / 1.25), max(high, critical * 1.25)
    return {"type": "log", "base": 2, "domain": [short(low), short(high)], "nice": False}


def dodged(policy: str, batch_size: int) -> float:
    """Where on the axis a policy's point is drawn."""
    return batch_size / DODGE if policy == "held" else float(batch_size)


def critical_layers(frame: Frame, critical: Measured | None) -> list[Any]:
    """B_crit as an upright line with its interval as a band, both cut at the edges of the axis; none if unresolved."""
    if critical is None or critical.estimate is None or endless(critical):
        return []
    alt, (left, right) = frame.alt, frame.x["domain"]
    start, end = (
        v if v is not None and math.isfinite(v) else edge for v, edge in ((critical.low, left), (critical.high, right))
    )
    layers = []
    if start < right and end > left:
        band = frame.chart([{"x": short(max(start, left)), "x2": short(min(end, right))}])
        layers.append(band.mark_rect(color="#777777", opacity=0.14).encode(x=frame.at(), x2="x2:Q"))
    if not left <= critical.estimate <= right:
        return layers
    onset = math.log(critical.estimate / left) < 0.5 * math.log(right / left)
    text = f"B_crit {measured(critical, dash='–')}"
    one = frame.chart([{"x": short(critical.estimate), "text": text}]).encode(x=frame.at())
    layers.append(one.mark_rule(color="#555555", strokeDash=[2, 2]))
    side = {"align": "left", "dx": 5} if onset else {"align": "right", "dx": -5}
    layers.append(
        one.mark_text(fontSize=11, color="#333333", baseline="top", **side).encode(text="text:N", y=alt.value(4))
    )
    return layers


def law_layers(frame: Frame, law: Curve | None) -> list[Any]:
    """The fitted law as a line in the tuned policy's colour, its band behind it."""
    if law is None:
        return []
    columns = [law.batch_size, law.value, law.low or law.value, law.high or law.value]
    values = [dict(zip(("x", "y", "low", "high"), map(short, row), strict=True)) for row in zip(*columns, strict=True)]
    base = frame.chart(values).encode(x=frame.at())
    colour = POLICY_COLOURS["tuned"]
    band = base.mark_area(color=colour, opacity=0.16).encode(y=frame.height("low"), y2="high:Q")
    return [*([band] if law.low else []), base.mark_line(color=colour, strokeWidth=1.5).encode(y=frame.height("y"))]


SEED_SHAPES = {"seed": "circle", "bound": "triangle-up", "diverged": CROSS}


def seed_layers(frame: Frame, points: Sequence[Point]) -> list[Any]:
    """Each seed's own value, pale: a dot, a triangle for a bound, a cross for a trial that diverged."""
    alt = frame.alt
    fields = ("batch_size", "policy", "seed", "kind")
    tooltip = [alt.Tooltip(f"{f}:N", title=f.replace("_", " ")) for f in fields]
    tooltip.append(alt.Tooltip("y:Q", title=frame.title, format=".3~g"))
    layers = []
    for kind, shape in SEED_SHAPES.items():
        values = [seed_value(p) for p in points if p.kind == kind]
        marks = frame.chart(values).mark_point(
            filled=True, size=26 if kind == "seed" else 44, shape=shape, strokeWidth=0
        )
        encoded = marks.encode(x=frame.at(), y=frame.height("y"), color=frame.colour(), opacity=faded(alt, 0.4))
        layers += [encoded.encode(tooltip=tooltip)] if values else []
    return layers


def seed_value(p: Point) -> dict[str, Any]:
    """One seed as Vega data."""
    return {
        "x": short(dodged(p.policy, p.batch_size)),
        "y": short(p.value),
        "batch_size": p.batch_size,
        "policy": p.policy,
        "seed": p.seed,
        "kind": p.kind,
    }


def estimate_layers(frame: Frame, estimates: Sequence[Estimate], joined: Curve | None) -> list[Any]:
    """The arms: joined by a dashed (held) or plain (tuned) line unless the law already is that line; bars; marks."""
    alt, top = frame.alt, frame.y.get("domain", [0.0, 1.0])[1]
    values = [estimate_value(e, top) for e in estimates]
    solid = [v for v in values if v["kind"] == "estimate"]
    bounds = [v for v in values if v["kind"] == "bound"]
    shape = frame.policy("Shape", [POLICY_SHAPES[p] for p in frame.policies])
    tips = [("batch_size", "batch size"), ("policy", "policy"), ("text", frame.title), ("seeds", "seeds")]
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in tips]

    def layer(rows: list[dict[str, Any]], y: str = "y") -> Any:
        encoded = frame.chart(rows).encode(x=frame.at(), y=frame.height(y), color=frame.colour())
        return encoded.encode(tooltip=tooltip, opacity=faded(alt, 1.0))

    joins = [
        layer(rows).mark_line(strokeWidth=1.2, strokeDash=POLICY_DASHES[p]).encode(opacity=alt.value(0.7))
        for p in frame.policies
        if (rows := [v for v in solid if v["policy"] == p]) and not (joined is not None and p == "tuned")
    ]
    bars = layer(solid, "low").mark_rule(strokeWidth=1.6).encode(y2="high:Q")
    marks = layer(solid).mark_point(filled=True, size=62).encode(shape=shape)
    triangles = layer(bounds).mark_point(shape="triangle-up", size=95, strokeWidth=1.8, filled=False)
    return [*joins, bars, marks, *([triangles] if bounds else [])]


def estimate_value(e: Estimate, top: float) -> dict[str, Any]:
    """One arm as Vega data; a bar without an upper end runs to the top of the panel."""
    open_end = e.kind == "estimate" and not math.isfinite(e.high) and math.isfinite(e.low)
    return {
        "x": short(dodged(e.policy, e.batch_size)),
        "y": short(e.value),
        "low": short(e.low if math.isfinite(e.low) else e.value),
        "high": short(top if open_end else e.high if math.isfinite(e.high) else e.value),
        "batch_size": e.batch_size,
        "policy": e.policy,
        "kind": e.kind,
        "text": written(e),
        "seeds": f"{e.n} ({e.censored} only a bound)" if e.censored else f"{e.n}",
    }


def written(e: Estimate) -> str:
    """The arm's value as the table writes it."""
    known = e.value if e.kind == "estimate" else None
    ends = (v if math.isfinite(v) else None for v in (e.low if known is not None else e.value, e.high))
    return measured(Measured(known, *ends, n=e.n), dash="–")


def spoken(e: Estimate, unit: str) -> str:
    """One arm in words, for readers who cannot see the chart."""
    policy = "" if e.policy == "both" else f" {e.policy}"
    return f"{e.batch_size:,}{policy}: {written(e)}{' ' + unit if unit else ''}"
