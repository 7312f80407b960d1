"""How does a measured value become a mark on an axis that is mostly logarithmic? Axes, marks, bars and bounds.

An axis of logarithms has no place for what is not positive: a bar whose end is 0 or below, or is not known, runs to the
panel's edge, and a value below 0 is drawn as a triangle at its upper end. Nothing is dropped without a mark but what
has neither an estimate nor an end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from batchscope.records import Measured
from batchscope.report.noise_words import cell, known
from batchscope.report.style import HEIGHT, finished, needed, short

SHAPES = {"estimate": "circle", "at_least": "triangle-up", "at_most": "triangle-down"}
FAR = 8.0  # an interval may stretch an axis by this factor beyond the marks; what lies further is cut (a guess)
ROOM = 1.3  # free factor above and below everything that is drawn
DASH = "–"


class Axis(NamedTuple):
    """An axis: its title, its scale, and where its ticks are; without any, they follow the scale."""

    title: str
    scale: dict[str, Any]
    ticks: tuple[float, ...] = ()

    @property
    def ends(self) -> tuple[float, float]:
        """The domain."""
        low, high = self.scale["domain"]
        return low, high


class Frame(NamedTuple):
    """What the layers of one panel share: altair, both axes, the colour of every series in its legend, their data."""

    alt: Any
    x: Axis
    y: Axis
    series: dict[str, str]  # name in the legend -> colour
    datasets: dict[str, list[dict[str, Any]]]  # kept beside the chart: altair copies what is inside at every step

    def chart(self, values: list[dict[str, Any]]) -> Any:
        """A chart of `values`, which join the panel's data sets under a name of their own."""
        name = f"values{len(self.datasets)}"
        self.datasets[name] = values
        return self.alt.Chart(self.alt.NamedData(name))

    def at(self, field: str = "x") -> Any:
        """The x channel."""
        return self.alt.X(
            field, type="quantitative", title=self.x.title, scale=self.alt.Scale(**self.x.scale), axis=ruler(self.x)
        )

    def height(self, field: str = "y") -> Any:
        """The y channel."""
        return self.alt.Y(
            field, type="quantitative", title=self.y.title, scale=self.alt.Scale(**self.y.scale), axis=ruler(self.y)
        )

    def colour(self) -> Any:
        """The series' colour, with the legend that names them, a line each: no label can cover another, or a mark."""
        legend = self.alt.Legend(columns=1, labelLimit=0, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
        scale = self.alt.Scale(domain=list(self.series), range=list(self.series.values()))
        return self.alt.Color("series:N", scale=scale, legend=legend)

    def drawn(self, layers: Iterable[Any], height: int = HEIGHT) -> dict[str, Any]:
        """The panel's specification."""
        return {**finished(self.alt.layer(*layers)), "height": height, "datasets": self.datasets}


def ruler(a: Axis) -> Any:
    """Ticks at every power of two (batch sizes) or at round numbers; long counts whole, up to a million."""
    alt, (low, high) = needed("altair"), a.ends
    if a.ticks:
        return alt.Axis(values=list(a.ticks), format=",~r", labelOverlap="greedy")
    if a.scale["type"] != "log":
        return alt.Axis(
            tickCount=5, format="~s" if high >= 1e6 else ",~r" if high >= 1e4 else ",~f", labelOverlap="greedy"
        )
    if a.scale.get("base") == 2:
        powers = [2**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        return alt.Axis(values=powers, format=",d", labelOverlap="parity", grid=False)
    shown = "~s" if high >= 1e6 else ",~g"
    return alt.Axis(values=round_numbers(low, high), format=shown, labelOverlap="greedy")


def round_numbers(low: float, high: float) -> list[float]:
    """Labels of a logarithmic axis: powers of ten over three decades or more, 1-2-5 below, finer below two thirds."""
    decades = math.log10(high / low)
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if decades < 0.67 else (1, 2, 5) if decades < 3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for k in powers for m in steps if low <= (v := float(f"{m}e{k}")) <= high]


def log_domain(marks: Iterable[float | None], ends: Iterable[float | None]) -> dict[str, Any]:
    """A logarithmic scale that holds every positive mark, and every positive end up to FAR beyond the marks."""
    inside = [v for v in marks if v is not None and 0 < v < math.inf]
    if not inside:
        return {"type": "log", "domain": [0.1, 10.0], "nice": False}
    far = [v for v in ends if v is not None and 0 < v < math.inf]
    low = max(min([*inside, *far]), min(inside) / FAR)
    high = min(max([*inside, *far]), max(inside) * FAR)
    return {"type": "log", "domain": [short(low / ROOM), short(high * ROOM)], "nice": False}


def place_of(m: Measured) -> float | None:
    """Where a value's mark stands on a logarithmic axis: its estimate, or the end that is known; None without one."""
    if m.estimate is not None and m.estimate > 0:
        return m.estimate
    end = m.low if m.estimate is None and m.low is not None and m.low > 0 else m.high
    return end if end is not None and end > 0 else None


def bar_of(m: Measured, y: Axis) -> tuple[float, float]:
    """The interval of an estimate cut to the axis, an end that is not known being the edge; without any, no length."""
    bottom, top = y.ends
    if m.low is None and m.high is None:
        return m.estimate or 0.0, m.estimate or 0.0
    low, high = (edge if v is None else v for v, edge in ((m.low, bottom), (m.high, top)))
    return min(max(low, bottom), top), min(max(high, bottom), top)


def mark_of(m: Measured, x: float, y: Axis, **more: Any) -> dict[str, Any] | None:
    """One value as a row: an estimate with its bar cut to the axis, or a triangle at its bound.

    None where nothing is known: no estimate, and no end but a lower one that excludes nothing above 0.
    An estimate <= 0 stands as `at_most` its upper end; where that is <= 0 too, on the panel's lower edge.
    """
    place, text = place_of(m), cell(m, DASH)
    if not known(m) or (m.estimate is None and m.high is None and place is None):
        return None
    row = {"x": short(x), "text": text, **more}
    if m.estimate is not None and m.estimate > 0:
        low, high = bar_of(m, y)
        return {**row, "y": short(m.estimate), "low": short(low), "high": short(high), "kind": "estimate"}
    kind = "at_least" if m.estimate is None and place is not None and place == m.low else "at_most"
    return {**row, "y": short(y.ends[0] if place is None else place), "kind": kind}


def mark_layers(
    frame: Frame, rows: Sequence[dict[str, Any]], tips: Sequence[tuple[str, str]], shape: str = "circle", size: int = 58
) -> list[Any]:
    """Bars, estimates, and triangles at bounds; whoever points at one reads `tips`: (field, title)."""
    alt, layers = frame.alt, []
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in tips]
    for kind, triangle in SHAPES.items():
        chosen = [r for r in rows if r["kind"] == kind]
        if not chosen:
            continue
        base = frame.chart(chosen).encode(x=frame.at(), color=frame.colour(), tooltip=tooltip)
        if kind == "estimate":
            layers.append(base.mark_rule(strokeWidth=1.7, clip=True).encode(y=frame.height("low"), y2="high:Q"))
            layers.append(base.mark_point(filled=True, size=size, opacity=1, shape=shape).encode(y=frame.height()))
        else:
            layers.append(base.mark_point(shape=triangle, size=95, strokeWidth=1.8).encode(y=frame.height()))
    return layers
