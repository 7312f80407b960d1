"""Are a noise run's panels valid, and true to the numbers, bounds and predictions that they draw?"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import altair as alt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_noise import (
    ALL,
    CROSSED,
    TRAIN_SIZE,
    against,
    at_least,
    deviation,
    mixed_windows,
    noise,
    not_enough,
    nothing_measured,
    principle,
    run,
    scale,
    tokens,
    too_few,
    unswept,
)

from batchscope.records import Deviations, Measured, NoiseResult
from batchscope.report import noise_charts as charts
from batchscope.report import noise_marks as marks
from batchscope.report.charts import Panel

LOG = marks.Axis("y", {"type": "log", "domain": [1.0, 1000.0]})


def panels_of(result: NoiseResult) -> list[Panel]:
    """Every panel of a noise run."""
    one = (charts.examples_panel(result), charts.loss_panel(result), charts.parts_panel(result))
    return [p for p in (*one, *charts.principle_panels(result)) if p is not None]


def drawn(panel: Panel | None) -> list[dict[str, Any]]:
    """All rows that a panel draws."""
    assert panel is not None
    return [row for rows in panel.spec["datasets"].values() for row in rows]


def of(panel: Panel | None, series: str) -> list[dict[str, Any]]:
    """The rows of one series, by the beginning of its name."""
    return [r for r in drawn(panel) if r.get("series", "").startswith(series)]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_panel_is_plain_json_with_a_label(make: Callable[[], NoiseResult]) -> None:
    for panel in panels_of(make()):
        json.dumps(panel.spec, allow_nan=False)
        assert panel.label
        assert "nan" not in panel.label
        for row in drawn(panel):
            assert None not in row.values()


def test_the_panels_are_valid_vega_lite() -> None:
    for panel in panels_of(mixed_windows())[1:4]:  # every kind of mark is in one of them
        bare = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
        alt.LayerChart.from_dict(bare, validate=True)


# --- marks ---


@pytest.mark.parametrize(
    ("m", "row"),
    [
        (Measured(30, 20, 50, 9), {"y": 30, "low": 20, "high": 50, "kind": "estimate"}),
        (Measured(30, -1, 5e4, 9), {"y": 30, "low": 1, "high": 1000, "kind": "estimate"}),  # cut to the axis
        (Measured(30, 20, None, 9), {"y": 30, "low": 20, "high": 1000, "kind": "estimate"}),  # no upper end
        (Measured(30, None, None, 1), {"y": 30, "low": 30, "high": 30, "kind": "estimate"}),  # no interval
        (Measured(None, 20, None, 9), {"y": 20, "kind": "at_least"}),
        (Measured(None, None, 40, 9), {"y": 40, "kind": "at_most"}),
        (Measured(-3, -9, 4, 9), {"y": 4, "kind": "at_most"}),  # a negative estimate: its upper end
        (Measured(-3, -9, -1, 9), {"y": 1, "kind": "at_most"}),  # wholly below 0: the lower edge
        (Measured(None, None, None, 3), None),
        (Measured(None, 0.0, None, 3), None),  # "at least 0" excludes nothing
    ],
)
def test_a_value_becomes_a_mark(m: Measured, row: dict[str, Any] | None) -> None:
    made = marks.mark_of(m, 7.0, LOG)
    assert made is None if row is None else made == {"x": 7.0, "text": made and made["text"], **row}


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5), st.lists(st.floats(-1.0, 1e30), max_size=5))
def test_an_axis_holds_every_mark_and_is_not_stretched_by_what_is_far(places: list[float], ends: list[float]) -> None:
    low, high = marks.log_domain(places, ends)["domain"]
    assert 0 < low < min(places) <= max(places) < high
    assert high <= 1.01 * max(places) * marks.FAR * marks.ROOM
    assert low >= 0.99 * min(places) / marks.FAR / marks.ROOM


@given(st.floats(-6, 6), st.floats(0.02, 9))
def test_round_numbers_are_few_rise_and_lie_on_the_axis(start: float, decades: float) -> None:
    low, high = 10.0**start, 10.0 ** (start + decades)
    values = marks.round_numbers(low, high)
    assert values == sorted(set(values))
    assert all(low <= v <= high for v in values)
    assert len(values) <= 11
    if decades > 0.2:
        assert values


# --- the noise scale along the run ---


def test_every_window_is_drawn_at_its_examples_with_its_interval() -> None:
    result = noise()
    rows = of(charts.examples_panel(result), charts.WINDOWS)
    assert len(rows) == len(result.points) == 12
    for row, p in zip(rows, result.points, strict=True):
        m = p.scale.b_simple
        assert (row["x"], row["y"]) == (pytest.approx(p.examples, rel=1e-4), pytest.approx(m.estimate, rel=1e-4))
        assert (row["low"], row["high"]) == (pytest.approx(m.low, rel=1e-4), pytest.approx(m.high, rel=1e-4))


def test_bounds_are_upward_triangles_and_windows_without_a_value_are_left_out() -> None:
    panel = charts.examples_panel(mixed_windows())
    rows = of(panel, charts.WINDOWS)
    assert [r["kind"] for r in rows].count("at_least") == 3
    assert len(rows) == 11
    assert panel is not None
    shapes = [layer["mark"].get("shape") for layer in panel.spec["layer"]]
    assert shapes.count("triangle-up") == 1
    assert "> " in panel.label


def test_a_far_end_does_not_squeeze_the_axis() -> None:
    _, high = charts.scale_axis(mixed_windows()).ends
    assert high < 1e5  # one interval ends at 4e7


def test_the_average_is_drawn_as_far_as_it_is_averaged_and_b_crit_across() -> None:
    result = noise()
    panel = charts.examples_panel(result)
    right = charts.examples_axis(result).ends[1]
    line, band = sorted(of(panel, "run average"), key=len)
    assert (line["x"], line["x2"], line["y"]) == (0.0, CROSSED, 276.0)
    assert (band["y"], band["y2"]) == (pytest.approx(276 / 1.3, rel=1e-4), pytest.approx(276 * 1.3, rel=1e-4))
    line, band = sorted(of(panel, "B_crit"), key=len)
    assert (line["x2"], line["y"], band["y"], band["y2"]) == (right, 120.0, 95.0, 150.0)
    (own,) = of(panel, "own batch size")
    assert own["y"] == 64.0
    assert panel is not None
    for text in ("run average 276 [212–359]", "B_crit measured 120 [95.0–150]", "own batch size 64"):
        assert text in panel.label


def test_a_bound_on_the_average_is_a_dashed_line_without_a_band() -> None:
    panel = charts.examples_panel(at_least())
    (line,) = of(panel, "run average > 2,000")
    assert line["y"] == 2000.0
    assert panel is not None
    names = [k for k, rows in panel.spec["datasets"].items() if line in rows]
    (layer,) = [layer for layer in panel.spec["layer"] if layer["data"]["name"] in names]
    assert layer["mark"]["strokeDash"] == [6, 4]


def test_every_series_has_a_colour_of_its_own_in_the_legend() -> None:
    for panel in panels_of(noise()):
        colours = [layer["encoding"]["color"] for layer in panel.spec["layer"] if "color" in layer["encoding"]]
        (scale_of,) = {json.dumps(c["scale"]) for c in colours}
        made = json.loads(scale_of)
        assert len(set(made["range"])) == len(made["domain"])
        assert {r["series"] for r in drawn(panel) if "series" in r} <= set(made["domain"])


def test_loss_falls_to_the_right_on_the_same_vertical_axis() -> None:
    result = noise()
    by_loss = charts.loss_panel(result)
    rows = of(by_loss, charts.WINDOWS)
    assert [r["x"] for r in rows] == pytest.approx([p.loss for p in result.points], rel=1e-4)
    assert by_loss is not None
    x = next(layer["encoding"]["x"] for layer in by_loss.spec["layer"] if layer["mark"]["type"] == "point")
    assert x["scale"]["reverse"] is True
    low, high = x["scale"]["domain"]
    assert low < min(r["x"] for r in rows) < max(r["x"] for r in rows) < high
    assert len(of(charts.loss_panel(mixed_windows()), charts.WINDOWS)) == 11  # the twelfth has neither value nor loss


@pytest.mark.parametrize(
    ("losses", "kind"), [([2.0, 1.0], "log"), ([2.0, 1.9], "linear"), ([1.0, -1.0], "linear"), ([1.0], "linear")]
)
def test_the_loss_axis(losses: list[float], kind: str) -> None:
    made = charts.loss_scale(losses)
    assert made["type"] == kind
    assert made["domain"][0] < min(losses) <= max(losses) < made["domain"][1]


def test_without_measurements_there_is_nothing_to_draw() -> None:
    assert panels_of(not_enough()) == []
    assert panels_of(nothing_measured()) == []


def test_what_counts_other_units_has_no_line() -> None:
    panel = charts.examples_panel(tokens())
    assert of(panel, "B_crit") == of(panel, "own batch size") == []
    assert of(panel, "run average")
    assert of(charts.examples_panel(unswept()), "B_crit") == []
    endless = against(critical=Measured(120.0, 0.0, None, 9))
    assert of(charts.examples_panel(noise(against_sweep=endless)), "B_crit") == []


# --- what it is made of ---


def test_trace_and_gradient_are_drawn_and_their_distance_is_the_noise_scale() -> None:
    result = noise()
    panel = charts.parts_panel(result)
    pairs = zip(of(panel, "tr(Σ)"), of(panel, "|G|²"), result.points, strict=True)
    for trace, gradient, p in pairs:
        assert trace["y"] / gradient["y"] == pytest.approx(p.scale.b_simple.estimate, rel=1e-3)


def test_a_negative_squared_gradient_stands_at_its_upper_end_or_on_the_edge() -> None:
    result = mixed_windows()
    panel = charts.parts_panel(result)
    rows = {r["x"]: r for r in of(panel, "|G|²")}
    for k in (7, 10):
        row, high = rows[result.points[k].examples], result.points[k].scale.squared_gradient.high
        assert (row["kind"], row["y"]) == ("at_most", pytest.approx(high, rel=1e-4))
    edge = rows[result.points[9].examples]
    assert edge["kind"] == "at_most"
    assert edge["y"] < min(r["y"] for r in rows.values() if r is not edge)
    assert edge["text"] == "-0.0100 [-0.0200 to -0.00400]"


# --- the principle ---


def test_the_curve_is_the_prediction_with_its_finite_population_factor() -> None:
    result = noise()
    _, y = charts.principle_axes(result)
    for one in result.principles:
        m = one.scale.b_simple
        rows = charts.curve_rows(one, TRAIN_SIZE, y)
        assert rows[0]["x"] == 1.0
        assert all(r["x"] < TRAIN_SIZE for r in rows)
        for r in rows[::7]:
            b = r["x"]
            rel = 2e-4 * TRAIN_SIZE / max(1.0, TRAIN_SIZE - b)  # five digits of B tell N - B that well
            assert r["y"] == pytest.approx(deviation(m.estimate or 0.0, b), rel=rel)
            assert r["low"] == pytest.approx(max(y.ends[0], deviation(m.low or 0.0, b)), rel=rel)
            assert r["high"] == pytest.approx(min(y.ends[1], deviation(m.high or 0.0, b)), rel=rel)


def test_at_the_whole_data_set_there_is_no_mark_even_of_rounding() -> None:
    one = principle(384)
    last = dataclasses.replace(one.points[-1], deviation=Measured(3e-15, None, None, 1))
    result = noise(principles=(dataclasses.replace(one, points=(*one.points[:-1], last)),))
    x, y = charts.principle_axes(result)
    assert y.ends[0] > 1e-6
    assert x.ends[1] > TRAIN_SIZE
    (panel,) = charts.principle_panels(result)
    assert len(of(panel, charts.MEASURED_NAME)) == len(one.points) - 1


def test_the_checkpoints_share_their_axes_and_every_point_has_its_bar() -> None:
    panels = charts.principle_panels(noise())
    assert len(panels) == 3
    domains = {json.dumps(layer["encoding"]["y"]["scale"]) for p in panels for layer in p.spec["layer"]}
    assert len(domains) == 1
    for panel, one in zip(panels, noise().principles, strict=True):
        rows = of(panel, charts.MEASURED_NAME)
        for row, p in zip(rows, one.points, strict=False):
            m = p.deviation
            assert row["y"] == pytest.approx(m.estimate, rel=1e-4)
            low = m.estimate if m.low is None else m.low
            assert row["low"] == pytest.approx(low, rel=1e-4)


def test_a_bound_predicts_a_dashed_lower_curve() -> None:
    result = at_least()
    (panel,) = charts.principle_panels(result)
    lines = [layer["mark"] for layer in panel.spec["layer"] if layer["mark"]["type"] in ("line", "area")]
    assert [m["type"] for m in lines] == ["line"]
    assert lines[0]["strokeDash"] == [6, 4]
    first = of(panel, charts.PREDICTED_NAME)[0]
    assert first["y"] == pytest.approx(100.0, rel=1e-4)


def test_a_checkpoint_with_nothing_to_draw_has_no_panel() -> None:
    empty = dataclasses.replace(principle(384, too_few()), points=())
    assert charts.principle_panels(noise(principles=(empty,))) == ()
    assert len(charts.principle_panels(noise(principles=(empty, principle(0))))) == 1


def test_each_checkpoint_has_the_size_that_its_batches_were_drawn_from() -> None:
    stored = (Deviations(384, 384 * 64, 1.0, 4096, 1.0, (1,), ((1.0,),)),)
    result = noise(principles=(principle(384, scale(10.0, 0.1)),), data=run(deviations=stored))
    (panel,) = charts.principle_panels(result)
    assert max(r["x"] for r in of(panel, charts.PREDICTED_NAME)) < 4096
    assert all(r["x"] < 4096 for r in of(panel, charts.MEASURED_NAME))


@pytest.mark.parametrize("data_size", [2, 3, 10])
def test_tiny_data_sets_have_a_curve_too(data_size: int) -> None:
    rows = charts.curve_rows(principle(0, scale(10.0, 1.0)), data_size, LOG)
    assert all(1 <= r["x"] < data_size for r in rows)
    assert all(math.isfinite(r["y"]) for r in rows)
    assert rows
