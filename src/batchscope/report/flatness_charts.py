"""How are measures of flatness drawn? Against batch size and training loss; distances; causal runs; sample sizes.

Numbers first: `..._rows` make plain rows from the records, each `..._panel` draws them. Lines between minima, slices
and spectra are in `flatness_pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.causes import KINDS, NOISE, UNINTERRUPTED, WARM, Run, compared, measures_among, runs_of
from batchscope.records import CauseRow, FlatnessRow, SharpnessResult
from batchscope.report.charts import Panel
from batchscope.report.flatness_facts import measures_in
from batchscope.report.flatness_marks import (
    GREY,
    LIST,
    TALL,
    Rows,
    axis_of,
    dot_colour,
    level_layer,
    line_layer,
    mark_of,
    pale_layer,
    panel_title,
    policy_name,
    policy_series,
    series_for,
    series_name,
    size_name,
    size_series,
    sizes_axis,
)
from batchscope.report.flatness_tables import CURVED, STEPPED, layers_of, run_words
from batchscope.report.noise_marks import DASH, Axis, Frame, mark_layers
from batchscope.report.noise_words import cell
from batchscope.report.style import POLICY_DASHES, POLICY_SHAPES, needed, short
from batchscope.report.words import count, list_of, number, plain

DODGE = 2.0**0.12  # held marks stand this factor left of their batch size
EDGE_NAME = f"edge of stability: {name.EDGE:g}"
NOT_BY_SIZE = ("gradient norm",)  # measures that have no panel: the tables hold them
LAYER_PIXELS = 17


# --- measures against batch size ---


def sharp_measures(result: SharpnessResult) -> list[str]:
    """The measures of curvature and of the box."""
    known = (*CURVED, *STEPPED)
    return [m for m in measures_in(result) if m in known or m.startswith("sharpness (box")]


def end_measures(result: SharpnessResult) -> list[str]:
    """Distances, losses and metrics where training ended."""
    sharp = sharp_measures(result)
    return [m for m in measures_in(result) if m not in sharp and m not in NOT_BY_SIZE]


def measure_panels(result: SharpnessResult, measures: Sequence[str]) -> list[Panel]:
    """A panel for each measure, seeds and intervals, held and tuned; empty where no row has a batch size."""
    return [p for m in measures if (p := measure_panel(result, m)) is not None]


def measure_panel(result: SharpnessResult, measure: str) -> Panel | None:
    """One measure against batch size; None without a value."""
    rows = [r for r in result.rows if r.batch_size is not None and measure in r.measures]
    rows = [r for r in rows if r.measures[measure].estimate is not None]
    if not rows:
        return None
    seeds = seed_rows(result, measure)
    edge = [name.EDGE] if measure in (name.LARGEST_RATE, name.BATCH_RATE) else []
    ends = [e for r in rows for m in (r.measures[measure],) for e in (m.estimate, m.low, m.high)]
    y = axis_of(measure, [*ends, *(s["y"] for s in seeds), *edge], log_from=3.0)
    x = sizes_axis(r.batch_size for r in rows if r.batch_size is not None)
    policies = list(dict.fromkeys(r.policy for r in rows))
    series = policy_series(policies) | ({EDGE_NAME: GREY} if edge else {})
    frame = Frame(needed("altair"), x, y, series, {})
    layers = [level_layer(frame, name.EDGE, EDGE_NAME)] if edge else []
    spoken = []
    for policy in policies:
        drawn = measure_rows([r for r in rows if r.policy == policy], measure, y)
        spoken += drawn
        shape = POLICY_SHAPES.get(policy, "circle")
        layers += pale_layer(frame, [s for s in seeds if s["series"] == policy_name(policy)], shape)
        layers += [line_layer(frame, drawn, dash=POLICY_DASHES.get(policy, [1, 0]), width=1.2)] if drawn[1:] else []
        layers += mark_layers(frame, drawn, (("size", "batch size"), ("text", measure), ("seeds", "seeds")), shape)
    label = f"{measure} against batch size: " + "; ".join(f"{r['size']}, {r['series']}: {r['text']}" for r in spoken)
    return Panel(measure, label, frame.drawn(layers, TALL))


def dodged(size: int, policy: str) -> float:
    """Where on the axis a policy's mark stands."""
    return size / DODGE if policy == "held" else float(size)


def measure_rows(rows: Sequence[FlatnessRow], measure: str, y: Axis) -> Rows:
    """A drawn row for each batch size that has a value."""
    drawn = [
        mark_of(
            r.measures[measure],
            dodged(r.batch_size or 1, r.policy),
            y,
            series=policy_name(r.policy),
            size=count(r.batch_size),
            seeds=count(r.measures[measure].n),
        )
        for r in rows
    ]
    return [d for d in drawn if d is not None]


def seed_rows(result: SharpnessResult, measure: str) -> Rows:
    """Every seed's own value."""
    points = [p for p in result.data.points if p.batch_size is not None]
    reader = next((m for m in name.measures_of(points) if m.name == measure), None)
    found = [(p, reader.of(p)) for p in points] if reader is not None else []
    return [
        {"x": short(dodged(p.batch_size or 1, p.policy)), "y": short(m.estimate), "series": policy_name(p.policy)}
        for p, m in found
        if m is not None and m.estimate is not None
    ]


# --- against training loss ---


def loss_panels(result: SharpnessResult) -> list[Panel]:
    """The first box and the largest eigenvalue of every point against its training loss."""
    boxes = [m.name for m in name.box_measures(result.data.points)]
    return [p for m in (*boxes[:1], name.LARGEST) if (p := loss_panel(result, m)) is not None]


def loss_panel(result: SharpnessResult, measure: str) -> Panel | None:
    """One measure against f; a circle is held, a square tuned; None without two values."""
    points = result.data.points
    reader = next((m for m in name.measures_of(points) if m.name == measure), None)
    if reader is None:
        return None
    known = [(p, m.estimate) for p in points if (m := reader.of(p)) is not None and m.estimate is not None]
    if len(known) < 2:
        return None
    x = axis_of("training loss at the measured weights", [p.loss for p, _ in known])
    y = axis_of(measure, [v for _, v in known])
    frame = Frame(needed("altair"), x, y, series_for([p for p, _ in known]), {})
    rows = [
        {
            "x": short(p.loss),
            "y": short(v),
            "series": series_name(p),
            "label": plain(p.label),
            "policy": p.policy,
            "text": number(v),
            "loss": number(p.loss),
        }
        for p, v in known
    ]
    layers = []
    tips = [
        frame.alt.Tooltip(f"{f}:N", title=t) for f, t in (("label", "weights"), ("loss", "loss"), ("text", measure))
    ]
    for policy in dict.fromkeys(p.policy for p, _ in known):
        own = frame.chart([r for r in rows if r["policy"] == policy])
        marks = own.mark_point(filled=True, size=55, opacity=0.85, shape=POLICY_SHAPES.get(policy, "circle"))
        layers.append(marks.encode(x=frame.at(), y=frame.height(), color=dot_colour(frame), tooltip=tips))
    label = f"{measure} against training loss: " + "; ".join(f"{r['label']}: {r['text']} at {r['loss']}" for r in rows)
    return Panel(measure, label, frame.drawn(layers, TALL))


# --- distances ---


def trace_panels(result: SharpnessResult) -> list[Panel]:
    """Distance from the initial weights against log steps, a line for each trial, a panel for each policy."""
    if not result.traces:
        return []
    policies = list(dict.fromkeys(t.policy for t in result.traces))
    x = axis_of("steps", [float(s) for t in result.traces for s in t.steps if s > 0], log_from=1.5)
    y = axis_of("distance from the initial weights", [0.0, *(d for t in result.traces for d in t.distances)])
    panels = []
    for policy in policies:
        own = [t for t in result.traces if t.policy == policy]
        frame = Frame(needed("altair"), x, y, size_series(t.batch_size for t in own), {})
        rows = [
            {"x": s, "y": short(d), "series": size_name(t.batch_size), "seed": t.seed}
            for t in own
            for s, d in zip(t.steps, t.distances, strict=True)
            if s > 0
        ]
        said = "; ".join(f"{size_name(t.batch_size)}, seed {t.seed}: {number(t.distances[-1])} at the end" for t in own)
        spec = frame.drawn([line_layer(frame, rows, detail="seed", width=1.3)], TALL)
        panels.append(Panel(panel_title("Distance", policy, policies), f"{y.title} against steps: {said}", spec))
    return panels


def layer_panels(result: SharpnessResult) -> list[Panel]:
    """Relative distance of each parameter tensor, mean over seeds, a panel for each policy."""
    rows = [(r, layers) for r in result.rows if (layers := layers_of(result, r))]
    policies = list(dict.fromkeys(r.policy for r, _ in rows))
    x = axis_of("distance over initial norm", [v for _, layers in rows for v in layers.values()])
    panels = []
    for policy in policies:
        own = [(r, layers) for r, layers in rows if r.policy == policy]
        labels = list(dict.fromkeys(n for _, layers in own for n in layers))
        sizes = size_series(r.batch_size for r, _ in own if r.batch_size is not None)
        files = {row_name(r): LIST[k % len(LIST)] for k, (r, _) in enumerate(own) if r.batch_size is None}
        frame = Frame(needed("altair"), x, Axis("", {"type": "linear", "domain": [0, 1]}), sizes | files, {})
        drawn: Rows = [
            {"x": short(v), "layer": plain(n), "series": row_name(r)} for r, layers in own for n, v in layers.items()
        ]
        said = "; ".join(f"{d['layer']}, {d['series']}: {number(d['x'])}" for d in drawn)
        title = panel_title("Relative distance", policy, policies)
        label = f"Distance over initial norm by parameter: {said}"
        panels.append(Panel(title, label, layer_spec(frame, drawn, len(labels))))
    return panels


def row_name(row: FlatnessRow) -> str:
    """A row as legends name it."""
    return plain(row.label) if row.batch_size is None else size_name(row.batch_size)


def layer_spec(frame: Frame, rows: Rows, count_: int) -> dict[str, Any]:
    """A line of marks for each parameter tensor, in the model's order."""
    alt = frame.alt
    axis = alt.Axis(labelLimit=150, grid=True)
    place = alt.Y("layer:N", sort=None, title=None, axis=axis)
    tips = [alt.Tooltip(f"{f}:N", title=t) for f, t in (("layer", "parameter"), ("series", "of"), ("x", frame.x.title))]
    marks = frame.chart(rows).mark_point(filled=True, size=45, opacity=0.85)
    layer = marks.encode(x=frame.at(), y=place, color=dot_colour(frame), tooltip=tips)
    return frame.drawn([layer], 90 + LAYER_PIXELS * count_ + LAYER_PIXELS * len(frame.series))


# --- causal runs ---


def cause_panels(result: SharpnessResult) -> list[Panel]:
    """Where training ended that went on otherwise, against the share of the way before the switch."""
    runs = runs_of(result.data)
    known = [m for m in measures_among([r.point for r in runs]) if compared(m.name)]
    return [p for m in known if (p := cause_panel(result.causes, m, runs)) is not None]


def cause_panel(rows: Sequence[CauseRow], measure: name.Measure, runs: Sequence[Run]) -> Panel | None:
    """Means with their intervals, joined; seeds pale; a large batch with injected noise as a dashed level.

    Uninterrupted runs stand at 0, in the series of those that ended with the same batch size.
    """
    known = [(r, m) for r in rows if (m := r.measures.get(measure.name)) is not None and m.estimate is not None]
    paths = {path_of(r): (r.from_batch_size, r.batch_size) for r, _ in known if r.kind == WARM}
    levels = {f"batch size {count(r.batch_size)} with the {run_words(r)}": m for r, m in known if r.kind == NOISE}
    if not paths and not levels:
        return None
    seeds: Rows = [
        {"x": short(r.kind.share), "y": short(m.estimate), "series": path}
        for path, ends in paths.items()
        for r in runs
        if on_path(KINDS[r.kind.place], r.kind.from_batch_size, r.kind.batch_size, ends)
        and (m := measure.of(r.point)) is not None
    ]
    x = axis_of("share of the way before the switch", [0.0, 1.0])
    y = axis_of(measure.name, [*(v for _, m in known for v in (m.estimate, m.low, m.high)), *(s["y"] for s in seeds)])
    names = {n: LIST[k % len(LIST)] for k, n in enumerate([*paths, *levels])}
    frame = Frame(needed("altair"), x, y, names, {})
    layers, said = pale_layer(frame, seeds), []
    for path, ends in paths.items():
        own = [(r, m) for r, m in known if on_path(r.kind, r.from_batch_size, r.batch_size, ends)]
        found = [mark_of(m, r.share, y, series=path, run=run_words(r), seeds=count(m.n)) for r, m in own]
        drawn = [d for d in found if d is not None]
        layers += [line_layer(frame, drawn, width=1.2)] if drawn[1:] else []
        layers += mark_layers(frame, drawn, (("run", "run"), ("text", measure.name), ("seeds", "seeds")))
        said += [f"{path}, {d['run']}: {d['text']}" for d in drawn]
    for series, m in levels.items():
        layers.append(level_layer(frame, m.estimate or 0.0, series))
        said.append(f"{series}: {cell(m, DASH)}")
    label = f"{measure.name} against the share of the way before the switch: " + "; ".join(said)
    return Panel(measure.name, label, frame.drawn(layers, TALL))


def path_of(row: CauseRow) -> str:
    """Warm starts of all shares as the legend names them."""
    return f"from batch size {count(row.from_batch_size)} to {count(row.batch_size)}"


def on_path(kind: str, from_size: int, size: int, ends: tuple[int, int]) -> bool:
    """Whether a run is a warm start between these batch sizes, or an uninterrupted one of the second."""
    return (from_size, size) == ends if kind == WARM else kind == UNINTERRUPTED and size == ends[1]


def levels_of(result: SharpnessResult) -> str:
    """What the dashed levels are, with their intervals; empty without one."""
    said = []
    for r in result.causes:
        if r.kind == NOISE:
            values = [f"{m} {cell(v, DASH)}" for m, v in r.measures.items() if compared(m) and v.estimate is not None]
            said.append(f"batch size {count(r.batch_size)} with the gradient noise of {count(r.from_batch_size)}")
            said[-1] += f" ({'; '.join(values)})" if values else ""
    return list_of(said)


# --- sample sizes ---


def sample_panels(result: SharpnessResult) -> list[Panel]:
    """The largest eigenvalue at one point over ever more examples."""
    pairs = sorted(result.data.sample_sizes, key=lambda pair: pair[0])
    if len(pairs) < 2:
        return []
    x = axis_of("examples", [float(n) for n, _ in pairs], log_from=1.5)
    y = axis_of(name.LARGEST, [v for _, m in pairs for v in (m.estimate, m.low, m.high)])
    series = "one set of weights"
    frame = Frame(needed("altair"), x, y, {series: LIST[0]}, {})
    drawn = [mark_of(m, n, y, series=series, examples=count(n)) for n, m in pairs]
    rows = [d for d in drawn if d is not None]
    tips = (("examples", "examples"), ("text", name.LARGEST))
    said = "; ".join(f"{d['examples']}: {d['text']}" for d in rows)
    label = f"{name.LARGEST} against examples: {said}"
    layers = [line_layer(frame, rows), *mark_layers(frame, rows, tips)]
    return [Panel("Largest eigenvalue by examples", label, frame.drawn(layers, TALL))]
