"""How is what `match` found drawn? The gap against batch size, the races, and the gap against steps to the goal.

Numbers first: `..._rows` make plain rows from the records, each `..._panel` draws them. A remedy has its colour, dashes
and shape everywhere; more remedies than colours differ by the latter two. Excesses stand on an axis that is linear up
to 1 % and logarithmic from there, so that both the room of a match and an untuned gap of a hundred percent are seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from batchscope.analysis.step_time import scaled
from batchscope.records import MatchCurve, MatchResult, MatchRow, Measured
from batchscope.report.charts import Panel
from batchscope.report.flatness_marks import LIST, LOG_FROM, Rows, axis_of
from batchscope.report.match_tables import PERCENT, UNTUNED, label_of, remedy_label
from batchscope.report.match_words import confirmed_rows, finite, sizes_of
from batchscope.report.noise_marks import DASH, Axis, Frame, log_domain
from batchscope.report.noise_words import cell
from batchscope.report.page import Key
from batchscope.report.style import CROSS, needed, short
from batchscope.report.words import count, number

COLOURS = LIST[:-1]  # the grey is for what no remedy changes
GREY, BLACK = "#555555", "#000000"
DASHES = ((1, 0), (6, 3), (2, 2))
SHAPES = ("circle", "square", "diamond")
GREEN = "#009e73"
BASELINE = "baseline"
SPREAD = 0.7  # factors of two over which the marks at one batch size are spread
CUT = 3.0  # an interval may stretch an axis this many times beyond the marks (a guess)
TICKS = (0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
FINE = 3.0  # percent: an axis that goes further has no tick for a fifth
TALL, TALLER = 330, 430  # pixels


# --- the series ---


def keys_of(result: MatchResult) -> dict[str, Key]:
    """The look of every series, by its name: the baseline, the large batch untuned, and each remedy raced."""
    looks = {}
    for k, name in enumerate(dict.fromkeys(remedy_label(r) for r in remedies_in(result))):
        turn, colour = divmod(k, len(COLOURS))
        looks[name] = Key(name, COLOURS[colour], DASHES[turn % len(DASHES)], SHAPES[turn % len(SHAPES)])
    return {BASELINE: Key(BASELINE, BLACK, (1, 0), "cross"), UNTUNED: Key(UNTUNED, GREY, (2, 2), "cross"), **looks}


def remedies_in(result: MatchResult) -> list[str]:
    """Every remedy that was raced: as asked for first, then as they come in rows and curves."""
    seen = {r.remedy for r in result.rows} | {c.remedy for c in result.curves if c.role == "race"}
    asked = [name for name in result.question.remedies if name in seen]
    return list(dict.fromkeys([*asked, *sorted(seen)]))


def used_keys(result: MatchResult, rows: Iterable[Rows]) -> tuple[Key, ...]:
    """The keys of the series that are drawn, in order."""
    drawn = {r["series"] for some in rows for r in some}
    return tuple(key for name, key in keys_of(result).items() if name in drawn)


def painted(frame: Frame, look: dict[str, Key]) -> Any:
    """The series' colour; the legend stands outside the chart."""
    scale = frame.alt.Scale(domain=list(look), range=[k.colour for k in look.values()])
    return frame.alt.Color("series:N", scale=scale, legend=None)


# --- axes ---


def excess_axis(values: Iterable[Measured], rooms: Iterable[float], title: str) -> Axis:
    """Percent, from below 0 to the largest; an interval stretches it up to CUT times beyond the marks."""
    known = list(values)
    marks = [finite(m.estimate) if finite(m.estimate) is not None else finite(m.low) for m in known]
    inside = [0.0, 1.0, *(v for v in marks if v is not None), *(PERCENT * r for r in rooms)]
    ends = [v for m in known for v in (finite(m.low), finite(m.high)) if v is not None]
    low = max(min([*inside, *ends]), min(inside) - CUT)
    high = min(max([*inside, *ends]), CUT * max(inside))
    bottom, top = low - 0.15 - 0.1 * abs(low), 1.2 * high
    domain = [short(bottom), short(top)]
    wide = high > FINE
    steps = [t for t in TICKS if not (wide and 0 < t < 0.5)]
    ticks = tuple(sorted({s * t for t in steps for s in (-1.0, 1.0) if bottom <= s * t <= top}))
    return Axis(title, {"type": "symlog", "constant": 1, "domain": domain, "nice": False}, ticks)


def batches_axis(sizes: Sequence[int]) -> Axis:
    """Large batch sizes on log2, a tick at each."""
    domain = [short(sizes[0] / 2**0.6), short(sizes[-1] * 2**0.6)]
    return Axis("batch size (examples)", {"type": "log", "base": 2, "domain": domain, "nice": False}, tuple(sizes))


# --- marks ---


def excess_mark(row: MatchRow, x: float, y: Axis, **more: Any) -> dict[str, Any] | None:
    """A row's excess as a mark: an estimate with its bar, a triangle at a bound, a cross on top where all diverged."""
    bottom, top = y.ends
    m = scaled(row.excess, PERCENT)
    estimate, low, high = map(finite, (m.estimate, m.low, m.high))
    base = {"x": short(x), "series": label_of(row), "size": count(row.batch_size), "verdict": row.verdict or "–"}
    base |= {"rate": number(row.learning_rate), "text": cell(m, DASH), **more}
    if estimate is not None:
        ends = [estimate if v is None else min(max(v, bottom), top) for v in (low, high)]
        bound = finite(row.bound)
        shown = bound is not None and bottom <= PERCENT * bound <= top
        base["bound"] = short(PERCENT * bound) if shown and bound is not None else None
        return {
            **base,
            "y": short(min(max(estimate, bottom), top)),
            "low": ends[0],
            "high": ends[1],
            "kind": "estimate",
        }
    if low is not None:
        return {**base, "y": short(min(max(low, bottom), top)), "kind": "at_least"}
    return {**base, "y": short(top), "kind": "diverged", "text": "diverged"} if row.diverged else None


def mark_layers(frame: Frame, rows: Rows, look: dict[str, Key], across: bool = False) -> list[Any]:
    """Bars, marks with each series' shape, bounds as short strokes; `across`: bars of x too."""
    alt, layers = frame.alt, []
    tips = [("series", "remedy"), ("size", "batch size"), ("rate", "learning rate"), ("verdict", "verdict")]
    tips += [("text", frame.y.title), *([("steps", frame.x.title)] if across else [])]
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in tips]

    def layer(chosen: Rows) -> Any:
        return frame.chart(chosen).encode(x=frame.at(), color=painted(frame, look), tooltip=tooltip)

    solid = [r for r in rows if r["kind"] == "estimate"]
    if solid:
        layers.append(layer(solid).mark_rule(strokeWidth=1.6, clip=True).encode(y=frame.height("low"), y2="high:Q"))
        if across:
            bars = layer(solid).mark_rule(strokeWidth=1.6, clip=True)
            layers.append(bars.encode(x=frame.at("left"), x2="right:Q", y=frame.height()))
        stroked = [r for r in solid if r.get("bound") is not None]
        if stroked and not across:
            ticks = layer(stroked).mark_tick(orient="horizontal", thickness=1.6, size=9)
            layers.append(ticks.encode(y=frame.height("bound")))
    for shape in dict.fromkeys(look[r["series"]].shape for r in solid):
        own = [r for r in solid if look[r["series"]].shape == shape]
        layers.append(layer(own).mark_point(filled=True, size=58, opacity=1, shape=shape).encode(y=frame.height()))
    for kind, shape in (("at_least", "triangle-up"), ("diverged", CROSS)):
        own = [r for r in rows if r["kind"] == kind]
        if own:
            layers.append(layer(own).mark_point(shape=shape, size=90, strokeWidth=1.8).encode(y=frame.height()))
    return layers


def line_layers(frame: Frame, rows: Rows, look: dict[str, Key]) -> list[Any]:
    """A thin line for each series with more than one mark, in its dashes."""
    layers = []
    for name, key in look.items():
        own = [r for r in rows if r["series"] == name and r["kind"] == "estimate"]
        if len(own) > 1:
            line = frame.chart(own).mark_line(strokeWidth=1.3, strokeDash=list(key.dash), opacity=0.7, clip=True)
            layers.append(line.encode(x=frame.at(), y=frame.height(), color=painted(frame, look)))
    return layers


def level_layer(frame: Frame) -> Any:
    """The baseline's own loss: an excess of 0."""
    return frame.chart([{"y": 0}]).mark_rule(color=BLACK, strokeWidth=1.2).encode(y=frame.height())


def spoken(title: str, rows: Rows) -> str:
    """The values in words, for readers who cannot see the chart."""
    return f"{title}: " + "; ".join(f"{r['series']} at {r['size']}: {r['text']}" for r in rows)


# --- the gap against batch size ---

GAP_TITLE = "excess over the baseline's lowest loss (%)"


def gap_rows(result: MatchResult, y: Axis) -> Rows:
    """The untuned large batch and every confirmed remedy at its batch size, side by side."""
    rows = [*result.untuned, *confirmed_rows(result, None)]
    names = [name for name in keys_of(result) if name in {label_of(r) for r in rows}]
    drawn = []
    for r in rows:
        place = (names.index(label_of(r)) - (len(names) - 1) / 2) / max(len(names), 6)
        mark = excess_mark(r, r.batch_size * 2 ** (SPREAD * place), y)
        drawn += [mark] if mark is not None else []
    return drawn


def gap_panel(result: MatchResult) -> tuple[Panel, Rows] | None:
    """The gap against batch size, a line for each remedy; None where nothing was confirmed."""
    rows = [*result.untuned, *confirmed_rows(result, None)]
    y = excess_axis([scaled(r.excess, PERCENT) for r in rows], rooms_of(result).values(), GAP_TITLE)
    drawn = gap_rows(result, y)
    if not drawn:
        return None
    sizes, look = sorted({r.batch_size for r in rows}), keys_of(result)
    frame = Frame(needed("altair"), batches_axis(sizes), y, {}, {})
    layers = [*room_layers(frame, result), level_layer(frame), *line_layers(frame, drawn, look)]
    spec = frame.drawn([*layers, *mark_layers(frame, drawn, look)], TALLER)
    return Panel("The gap", spoken("Excess in percent by remedy and batch size", drawn), spec), drawn


def rooms_of(result: MatchResult) -> dict[int, float]:
    """What an excess has to stay below, by batch size."""
    rooms = {r.batch_size: room for r in result.rows if (room := finite(r.room)) is not None}
    return rooms | {g.batch_size: g.room for g in result.gaps if finite(g.room) is not None}


def room_layers(frame: Frame, result: MatchResult) -> list[Any]:
    """The room of a match, shaded over the whole width."""
    rooms, (left, right) = sorted(rooms_of(result).items()), frame.x.ends
    if not rooms:
        return []
    places = [(left, rooms[0][1]), *rooms, (right, rooms[-1][1])]
    values = [{"x": short(x), "top": short(PERCENT * room), "bottom": frame.y.ends[0]} for x, room in places]
    area = frame.chart(values).mark_area(color=GREEN, opacity=0.16)
    return [area.encode(x=frame.at(), y=frame.height("top"), y2="bottom:Q")]


# --- the races ---


def race_panels(result: MatchResult) -> list[tuple[Panel, Rows]]:
    """Lowest loss so far against examples, a panel for each batch size, the baseline's own race first."""
    baseline = [c for c in result.curves if c.role == "baseline race"]
    sizes = sorted({c.batch_size for c in result.curves if c.role == "race"})
    own = f"batch size {count(result.baseline.batch_size)}: the baseline's learning rate"
    found = [race_panel(result, own, baseline)]
    for b in sizes:
        at = f"batch size {count(b)}: remedies"
        found.append(race_panel(result, at, [c for c in result.curves if (c.role, c.batch_size) == ("race", b)]))
    return [panel for panel in found if panel is not None]


def race_panel(result: MatchResult, title: str, curves: Sequence[MatchCurve]) -> tuple[Panel, Rows] | None:
    """One race: a line for each candidate and seed, thick where it ran to the end; None without a line."""
    rows = [row for row in (race_row(c) for c in curves) if row["xs"]]
    if not rows:
        return None
    alt, look = needed("altair"), keys_of(result)
    ends = short(min(r["xs"][0] for r in rows) / 1.1), short(max(r["xs"][-1] for r in rows) * 1.1)
    x = Axis("examples", {"type": "log", "domain": list(ends), "nice": False})
    y = axis_of("lowest validation loss so far", [v for r in rows for v in r["ys"]], log_from=LOG_FROM / 2)
    frame = Frame(alt, x, y, {}, {})
    end = max(r["xs"][-1] for r in rows)
    layers = []
    for dash in dict.fromkeys(look[r["series"]].dash for r in rows):
        for whole, width, opacity in ((False, 1.1, 0.5), (True, 2.0, 0.95)):
            own = [r for r in rows if look[r["series"]].dash == dash and (r["xs"][-1] >= 0.98 * end) == whole]
            if own:
                line = frame.chart(own).mark_line(strokeWidth=width, opacity=opacity, strokeDash=list(dash), clip=True)
                layers.append(along(frame, line, look))
    last = [{**r, "xs": r["xs"][-1:], "ys": r["ys"][-1:]} for r in rows]
    dots = frame.chart(last).mark_point(filled=True, size=22, opacity=0.9)
    layers.append(along(frame, dots, look))
    said = "; ".join(f"{r['series']}, {r['rate']}: {number(r['ys'][-1])} after {count(r['xs'][-1])}" for r in rows)
    return Panel(title, f"Lowest validation loss so far, {title}: {said}", frame.drawn(layers, TALL)), rows


def race_row(curve: MatchCurve) -> dict[str, Any]:
    """One run: its series, learning rate, and the places with a finite loss; 0 examples have none on a log axis."""
    places = [(e, v) for e, v in curve.lowest if e > 0 and math.isfinite(v)]
    series = BASELINE if curve.role == "baseline race" else remedy_label(curve.remedy)
    return {
        "series": series,
        "rate": number(curve.learning_rate),
        "run": f"{series} {curve.learning_rate!r} {curve.seed}",
        "xs": [short(float(e)) for e, _ in places],
        "ys": [short(v) for _, v in places],
    }


def along(frame: Frame, marks: Any, look: dict[str, Key]) -> Any:
    """The runs' arrays unfolded in the browser."""
    alt = frame.alt
    tooltip = [alt.Tooltip(f"{f}:N", title=t) for f, t in (("series", "remedy"), ("rate", "learning rate"))]
    return marks.transform_flatten(["xs", "ys"]).encode(
        x=frame.at("xs"), y=frame.height("ys"), color=painted(frame, look), detail="run:N", tooltip=tooltip
    )


# --- the gap against steps ---


def steps_panels(result: MatchResult) -> list[tuple[Panel, Rows]]:
    """Excess against steps to the goal, a panel for each batch size on common axes; those without marks left out."""
    sizes = sizes_of(result)
    rows = [result.baseline, *result.untuned, *confirmed_rows(result, None)]
    steps = [m for r in rows if (m := r.steps_to_goal) is not None]
    places = [v for m in steps for v in (finite(m.estimate), finite(m.low) if m.estimate is None else None) if v]
    if not places:
        return []
    x = Axis("steps to goal", log_domain(places, [v for m in steps for v in (m.low, m.high)]))
    y = excess_axis([scaled(r.excess, PERCENT) for r in rows[1:]], rooms_of(result).values(), GAP_TITLE)
    panels = [steps_panel(result, b, x, y) for b in sizes]
    return [panel for panel in panels if panel is not None]


def steps_panel(result: MatchResult, batch_size: int, x: Axis, y: Axis) -> tuple[Panel, Rows] | None:
    """One batch size beside the baseline."""
    rows = [r for r in (*result.untuned, *confirmed_rows(result, None)) if r.batch_size == batch_size]
    drawn = [mark for r in rows if (mark := steps_mark(r, x, y)) is not None]
    base = steps_mark(result.baseline, x, y)
    if not drawn:
        return None
    frame, look = Frame(needed("altair"), x, y, {}, {}), keys_of(result)
    marks = [*drawn, *([base] if base is not None else [])]
    spec = frame.drawn(
        [*band_layers(frame, result, batch_size), level_layer(frame), *mark_layers(frame, marks, look, True)], TALL
    )
    title = f"batch size {count(batch_size)}"
    return Panel(title, spoken("Excess in percent against steps to the goal", drawn), spec), marks


def steps_mark(row: MatchRow, x: Axis, y: Axis) -> dict[str, Any] | None:
    """A row at its steps to the goal; a bound of them stands at its lower end, as a triangle."""
    m = row.steps_to_goal
    if m is None:
        return None
    left, right = x.ends
    estimate, low, high = map(finite, (m.estimate, m.low, m.high))
    place = estimate if estimate is not None else low
    if place is None or place <= 0:
        return None
    ends = [place if v is None else min(max(v, left), right) for v in (low, high)]
    more = {"left": short(ends[0]), "right": short(ends[1] if estimate is not None else right), "steps": cell(m, DASH)}
    if row.role != "baseline":
        return excess_mark(row, place, y, **more)
    told = {"series": BASELINE, "size": count(row.batch_size), "rate": number(row.learning_rate), "verdict": "–"}
    return {"x": short(place), "y": 0, "low": 0, "high": 0, "kind": "estimate", "text": "0", **told, **more}


def band_layers(frame: Frame, result: MatchResult, batch_size: int) -> list[Any]:
    """The room of a match at one batch size."""
    room = rooms_of(result).get(batch_size)
    if room is None:
        return []
    rows = [{"top": short(PERCENT * room), "bottom": frame.y.ends[0]}]
    band = frame.chart(rows).mark_rect(color=GREEN, opacity=0.16)
    return [band.encode(y=frame.height("top"), y2="bottom:Q")]
