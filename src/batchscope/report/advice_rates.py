"""How are an advice's learning rates, and its time against cost, drawn?"""

from __future__ import annotations

from typing import Any

from batchscope.records import Advice
from batchscope.report import advice_points as points
from batchscope.report.advice_charts import CURVE, HEIGHT, Frame, curve_layers, sizes_axis
from batchscope.report.advice_facts import OUTCOMES, predicted_how
from batchscope.report.advice_numbers import chance, rate, unit_of
from batchscope.report.advice_points import CHOSEN_COLOUR, DASH
from batchscope.report.charts import Panel
from batchscope.report.noise_marks import Axis, log_domain
from batchscope.report.noise_words import cell
from batchscope.report.style import CROSS, needed, short
from batchscope.report.words import count, number, plain, seconds

OUTCOME_MARKS = {
    "reached": (CHOSEN_COLOUR, "circle"),
    "not_reached": ("#b97900", "triangle-up"),
    "diverged": ("#d55e00", CROSS),
    "failed": ("#000000", "triangle-down"),
}
MEASURED_COLOUR, PREDICTED_COLOUR = "#111111", CURVE

# --- the learning rate ---


def rate_panel(advice: Advice) -> Panel | None:
    """The best learning rate against batch size, and every rate that was tried by its outcome; None without either."""
    curve, rows = advice.learning_rate_curve, points.rate_rows(advice)
    pairs = zip(curve.batch_sizes, curve.learning_rates, strict=True) if curve is not None else ()
    ends = [e for b, m in pairs if (e := points.ends_of(b, m)) is not None]
    if not ends and not rows:
        return None
    values = [*(e.middle for e in ends), *(r["y"] for r in rows)]
    chosen = advice.chosen
    values += [chosen.learning_rate] if chosen is not None else []
    y = Axis("learning rate", log_domain(values, [v for e in ends for v in (e.low, e.high)]))
    frame = Frame(needed("altair"), sizes_axis(advice), y, {}, False, {})
    layers = [*curve_layers(frame, ends), *chosen_layers(frame, advice), *outcome_layers(frame, rows)]
    told = [f"{count(e.x)}: {rate(e.middle)}" for e in ends]
    told += [f"tried at {count(r['x'])}: {r['rate']}, {OUTCOMES.get(r['outcome'], r['outcome'])}" for r in rows]
    label = "Best learning rate against batch size: " + "; ".join(told)
    return Panel("Best learning rate", label, frame.drawn(layers, HEIGHT))


def chosen_layers(frame: Frame, advice: Advice) -> list[Any]:
    """A ring about the recommended point."""
    if advice.chosen is None:
        return []
    one = frame.chart([{"x": advice.chosen.batch_size, "y": short(advice.chosen.learning_rate)}])
    ring = one.mark_point(shape="circle", filled=False, size=330, strokeWidth=2.4, color=CHOSEN_COLOUR, opacity=1)
    return [ring.encode(x=frame.at(), y=frame.height())]


def outcome_layers(frame: Frame, rows: list[dict[str, Any]]) -> list[Any]:
    """The tried learning rates, in a colour and a shape for each outcome."""
    met = [o for o in OUTCOME_MARKS if any(r["outcome"] == o for r in rows)]
    if not met:
        return []
    alt, names = frame.alt, [OUTCOMES[o] for o in met]
    colour = alt.Scale(domain=names, range=[OUTCOME_MARKS[o][0] for o in met])
    shape = alt.Scale(domain=names, range=[OUTCOME_MARKS[o][1] for o in met])
    named = [{**r, "outcome": OUTCOMES.get(r["outcome"], r["outcome"])} for r in rows]
    legend = alt.Legend(columns=2)
    return [
        frame.chart(named)
        .mark_point(filled=True, size=64, opacity=1, strokeWidth=0)
        .encode(
            x=frame.at(),
            y=frame.height(),
            color=alt.Color("outcome:N", scale=colour, legend=legend),
            shape=alt.Shape("outcome:N", scale=shape, legend=legend),
            tooltip=frame.tips(("x", "batch size"), ("rate", "learning rate"), ("outcome", "outcome"), ("role", "run")),
        )
    ]


# --- time against cost ---


def pareto_panel(advice: Advice) -> Panel | None:
    """What more devices would buy and cost; None where there is but one point."""
    if len(advice.pareto) < 2:
        return None
    money = "cost" if advice.question.price is not None else "device hours"
    scale, unit = unit_of(min(p.seconds_to_goal for p in advice.pareto))
    names = {False: "as measured", True: predicted_how(advice)}
    colours = {"as measured": MEASURED_COLOUR, predicted_how(advice): PREDICTED_COLOUR}
    rows = [
        {
            "x": short(p.seconds_to_goal / scale),
            "y": short(p.cost),
            "series": names[p.predicted],
            "text": f"{count(p.devices)} device{'' if p.devices == 1 else 's'}",
            "time": seconds(p.seconds_to_goal),
            "money": number(p.cost),
            "size": count(p.batch_size),
        }
        for p in advice.pareto
    ]
    met = {name: c for name, c in colours.items() if any(r["series"] == name for r in rows)}
    x = Axis(f"time to goal ({unit})", log_domain([p.seconds_to_goal / scale for p in advice.pareto], []))
    y = Axis(money, log_domain([p.cost for p in advice.pareto], []))
    frame = Frame(needed("altair"), x, y, met, True, {})
    base = frame.chart(rows).encode(x=frame.at(), y=frame.height())
    colour = frame.alt.Color("series:N", scale=frame.colours(), legend=frame.alt.Legend(columns=1, labelLimit=0))
    tips = frame.tips(("text", "on"), ("size", "batch size"), ("time", "time to goal"), ("money", money))
    layers = [
        base.mark_line(color="#aaaaaa", strokeWidth=1.2, interpolate="linear"),
        base.mark_point(filled=True, size=60, opacity=1).encode(color=colour, tooltip=tips),
        base.mark_text(align="left", dx=7, dy=-7, fontSize=11, color="#333").encode(text="text:N"),
    ]
    told = "; ".join(f"{r['text']}, batch size {r['size']}: {r['time']}, {r['money']}" for r in rows)
    return Panel("Time against cost", f"{money.capitalize()} against time to goal: {told}", frame.drawn(layers, HEIGHT))


def rate_summary(advice: Advice) -> str:
    """The curve in a caption: its shape, and its value at the recommended batch size."""
    curve, chosen = advice.learning_rate_curve, advice.chosen
    if curve is None:
        return ""
    p = curve.probabilities.get(curve.shape)
    said = f"With batch size it is {plain(curve.shape)}{'' if p is None else f' (probability {chance(p)})'}"
    if chosen is None or chosen.batch_size not in curve.batch_sizes:
        return f"{said}."
    here = curve.learning_rates[curve.batch_sizes.index(chosen.batch_size)]
    return f"{said}; at {count(chosen.batch_size)} the best is {cell(here, DASH)}."
