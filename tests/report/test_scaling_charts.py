"""Are the panels of `scale` valid, told in words, and true to the numbers they draw?"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import altair as alt
import pytest
from made_up_scaling import alone, described, joined, nothing_hidden, unstudied

from batchscope.analysis.scaling import rounds_of
from batchscope.records import DeviceChoice, ScalingResult
from batchscope.report import scaling_charts as charts
from batchscope.report import scaling_goal as goal
from batchscope.report.charts import Panel
from batchscope.testing.example_scaling import BATCH_SIZES, COUNTS, MESSAGES, reduce_seconds

STEPS, THROUGHPUT, EXPOSED = "Seconds per step", "Throughput of each device", "Exposed averaging"
REDUCES, GOAL, PREDICTED = "All-reduces by themselves", "Seconds to goal", "Seconds per step, predicted"
PANELS = (
    charts.steps_panel,
    charts.throughput_panel,
    charts.exposed_panel,
    charts.reduces_panel,
    goal.goal_panel,
    goal.predictions_panel,
)


@functools.cache
def drawn(make: Callable[[], ScalingResult]) -> dict[str, Panel]:
    """Every panel that there is, by its title."""
    result = make()
    return {p.title: p for draw in PANELS if (p := draw(result)) is not None}


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    """All rows that a panel draws."""
    return [row for rows in panel.spec["datasets"].values() for row in rows]


def marks_of(panel: Panel) -> list[dict[str, Any]]:
    """The rows of estimates, each once."""
    found = {json.dumps(r, sort_keys=True): r for r in rows_of(panel) if r.get("kind") == "estimate"}
    return list(found.values())


@pytest.mark.parametrize("make", [joined, described, alone, nothing_hidden])
def test_every_panel_is_plain_json_with_a_label(make: Callable[[], ScalingResult]) -> None:
    for panel in drawn(make).values():
        json.dumps(panel.spec, allow_nan=False)
        assert ": " in panel.label
        assert "nan" not in panel.label


def test_the_panels_are_valid_vega_lite() -> None:
    assert list(drawn(joined)) == [STEPS, THROUGHPUT, EXPOSED, REDUCES, GOAL, PREDICTED]
    for title in (REDUCES, GOAL, PREDICTED):  # the others are made of the same layers
        panel = drawn(joined)[title]
        bare = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
        alt.LayerChart.from_dict(bare, validate=True)


def test_what_was_not_measured_is_left_out() -> None:
    assert list(drawn(alone)) == [STEPS, THROUGHPUT]
    assert goal.goal_panel(unstudied()) is None
    assert goal.predictions_panel(dataclasses.replace(joined(), predictions=())) is None


def test_strong_scaling_draws_every_step_with_its_interval_and_every_window() -> None:
    panel = drawn(joined)[STEPS]
    marks = {(m["series"], m["batch"]): m for m in marks_of(panel)}
    assert len(marks) == len(joined().rows) == len(COUNTS) * len(BATCH_SIZES)
    for r in joined().rows:
        mark, m = marks[charts.devices_of(r.devices), f"{r.batch_size:,}"], r.seconds_per_step
        expected = [1e3 * v for v in (m.estimate, m.low, m.high) if v is not None]
        assert [mark["y"], mark["low"], mark["high"]] == pytest.approx(expected, rel=1e-4)
        assert mark["x"] == pytest.approx(r.batch_size, rel=0.04)
    windows = [r for r in rows_of(panel) if "kind" not in r]
    assert len(windows) == sum(len(s) for s in rounds_of(joined().data.timing).values())


def test_weak_scaling_draws_the_throughput_of_each_device() -> None:
    marks = {(m["series"], m["batch"]): m for m in marks_of(drawn(joined)[THROUGHPUT])}
    for r in joined().rows:
        mark = marks[charts.devices_of(r.devices), f"{r.batch_size:,}"]
        assert mark["x"] == pytest.approx(r.batch_size / r.devices, rel=0.04)
        assert mark["y"] == pytest.approx((r.examples_per_second.estimate or 0.0) / r.devices, rel=1e-4)


def test_exposed_averaging_is_a_share_and_nothing_seen_is_a_bound() -> None:
    assert all(0 < m["y"] < 100 for m in marks_of(drawn(joined)[EXPOSED]))
    nothing = rows_of(drawn(nothing_hidden)[EXPOSED])
    assert {r["kind"] for r in nothing} == {"at_most"}


def test_the_ring_passes_through_the_all_reduces_that_are_rings() -> None:
    panel = drawn(joined)[REDUCES]
    marks = marks_of(panel)
    assert len(marks) == 2 * len(MESSAGES)
    curve = [r for r in rows_of(panel) if "kind" not in r and "y" in r]
    for n in (2, 4):
        for size in (MESSAGES[0], MESSAGES[-1]):
            near = min((c for c in curve if c["series"] == f"{n} devices"), key=lambda c: abs(c["x"] - size / 1024))
            assert near["y"] == pytest.approx(1e3 * reduce_seconds(n, size), rel=0.1)
    assert {"x": 97.656, "series": "this task's gradient: 97.7 KiB"} in rows_of(panel)


def test_a_device_count_keeps_its_colour_and_shape() -> None:
    whole, several = charts.series_of(joined()), charts.series_of(joined(), several=True)
    assert list(whole) == ["1 device", "2 devices", "4 devices"]
    assert several == {k: v for k, v in whole.items() if k != "1 device"}
    assert len({charts.shape_of(c) for c in charts.COLOURS}) == len(charts.COLOURS)


def test_the_goal_is_drawn_filled_where_measured_and_hollow_where_predicted() -> None:
    result = joined()
    panel = drawn(joined)[GOAL]
    marks = {m["size"]: m for m in marks_of(panel)}
    assert len(marks) == len(result.choices)
    for c in result.choices:
        mark = marks[charts.devices_of(c.devices)]
        assert mark["y"] == pytest.approx(1e3 * (c.seconds_to_goal.estimate or 0.0), rel=1e-4)
        assert mark["series"] == (goal.MEASURED if c.measured else goal.PREDICTED)
        assert mark["batch"] == f"{c.batch_size:,}"
        assert mark["steps"] == ("extrapolated" if c.extrapolated else "as trained")
    assert {"x": result.most_useful, "series": goal.useful_name(result)} in rows_of(panel)
    linear = [r for r in rows_of(panel) if r["series"] == goal.LINEAR]
    start = result.choices[0].seconds_to_goal.estimate or 0.0
    assert [r["y"] for r in linear] == pytest.approx([1e3 * start / r["x"] for r in linear], rel=1e-4)
    assert "16 devices [batch size 512]" in panel.label


def test_no_most_useful_count_is_no_line() -> None:
    assert described().most_useful is None
    assert not any("most useful" in r["series"] for r in rows_of(drawn(described)[GOAL]))


def test_predictions_begin_where_measuring_ends() -> None:
    marks = marks_of(drawn(joined)[PREDICTED])
    assert {m["devices"] for m in marks if m["solid"]} == set(COUNTS)
    assert min(m["devices"] for m in marks if not m["solid"]) == 8
    assert len({m["series"] for m in marks}) == goal.SIZES_DRAWN
    part = [m for m in marks if m["series"] == "batch size 256"]
    line = goal.joined(sorted(part, key=lambda m: m["devices"]))
    assert [m["devices"] for m in line[:2]] == [4, 8]


def test_one_choice_alone_is_drawn() -> None:
    only: tuple[DeviceChoice, ...] = joined().choices[:1]
    panel = goal.goal_panel(dataclasses.replace(joined(), choices=only, most_useful=None))
    assert panel is not None
    assert len(marks_of(panel)) == 1
