"""Are a profile's panels valid, on one axis, and true to the numbers they draw?"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import altair as alt
import pytest
from made_up_profile import (
    ALL,
    GIB,
    MIB,
    around,
    loader_bound,
    memory_profile,
    nothing_fits,
    odd_outcomes,
    one_size,
    profile,
    without_memory,
)

from batchscope.records import Measured, ProfileResult, ThroughputRow, TimingPass
from batchscope.report import profile_charts as charts


def found(spec: Any, key: str) -> list[Any]:
    """Every value under `key`, anywhere in a specification."""
    if isinstance(spec, dict):
        return [v for k, v in spec.items() if k == key] + [x for v in spec.values() for x in found(v, key)]
    return [x for v in spec for x in found(v, key)] if isinstance(spec, list) else []


def rows_of(panel: charts.Panel) -> list[dict[str, Any]]:
    """All rows that a panel draws."""
    return [row for rows in panel.spec["datasets"].values() for row in rows]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_panel_is_plain_json_with_a_label(make: Callable[[], ProfileResult]) -> None:
    result = make()
    phases = charts.phase_panel(result.rows)
    for panel in [*charts.axis_panels(result), *([phases] if phases else [])]:
        json.dumps(panel.spec, allow_nan=False)
        assert panel.label
        assert "nan" not in panel.label


def test_the_panels_are_valid_vega_lite() -> None:
    result = profile(cuda=True)
    phases = charts.phase_panel(result.rows)
    assert phases is not None
    for panel in (*charts.axis_panels(result), phases):
        bare = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
        alt.LayerChart.from_dict(bare, validate=True)


def test_both_panels_have_one_horizontal_axis_and_the_same_room_beside_it() -> None:
    above, below = charts.axis_panels(profile())
    domains = [
        {tuple(x["scale"]["domain"]) for x in found(p.spec["layer"], "x") if "scale" in x} for p in (above, below)
    ]
    assert domains[0] == domains[1]
    assert len(domains[0]) == 1
    ((low, high),) = domains[0]
    assert low < 8 < 6144 < high
    for panel in (above, below):
        rooms = {
            (y["axis"]["minExtent"], y["axis"]["maxExtent"]) for y in found(panel.spec["layer"], "y") if "axis" in y
        }
        assert rooms == {(charts.AXIS_ROOM, charts.AXIS_ROOM)}


def test_the_largest_that_ran_is_an_upright_line_in_both_panels_and_the_limit_a_level_below() -> None:
    above, below = charts.axis_panels(profile())
    for panel in (above, below):
        assert {"x": 5312.0, "text": "largest that ran 5,312"} in rows_of(panel)
    assert {"y": 1.0, "text": "limit 1.00 GiB"} in rows_of(below)


def test_the_knee_is_a_line_and_its_interval_a_band_cut_at_the_edges() -> None:
    def bands(knee: Measured) -> list[dict[str, Any]]:
        (above, *_) = charts.axis_panels(profile(knee=knee))
        return [r for r in rows_of(above) if "x2" in r]

    low, high = charts.sizes_domain(profile())
    assert bands(Measured(1024, 512, 2048, 10)) == [{"x": 512.0, "x2": 2048.0}]
    assert bands(Measured(1024, 512, None, 10)) == [{"x": 512.0, "x2": charts.short(high)}]
    assert bands(Measured(1024, None, 2048, 10)) == [{"x": charts.short(low), "x2": 2048.0}]
    assert bands(Measured(1024, None, None, 1)) == []
    assert bands(Measured(None, None, None, 0)) == []


def test_the_curve_is_the_fitted_step_time_as_throughput() -> None:
    fit = profile().step_time
    assert fit is not None
    a, c, s = (m.estimate or 0.0 for m in (fit.overhead_seconds, fit.seconds_per_example, fit.saturation_batch_size))
    values = charts.curve_values(fit, per_example=128.0)
    assert (values[0]["x"], values[-1]["x"]) == (8.0, 4096.0)
    for v in values:
        took = a + c * math.sqrt(math.sqrt(v["x"] ** 4 + s**4))
        assert v["y"] == pytest.approx(128.0 * v["x"] / took, rel=1e-3)
    assert charts.curve_values(None, 1.0) == []
    assert charts.curve_values(dataclasses.replace(fit, seconds_per_example=Measured(None, None, None, 0)), 1.0) == []


def test_windows_are_units_per_second_as_the_clock_read_them_unless_the_machine_drifted() -> None:
    def windows(timing: TimingPass) -> list[dict[str, Any]]:
        result = profile()
        data = dataclasses.replace(result.data, units_per_example=3.0, timing=timing)
        return charts.window_values(dataclasses.replace(result, data=data))

    steady = profile().data.timing
    assert steady is not None
    (first, *_), values = steady.timings, windows(steady)
    assert len(values) == sum(len(t.seconds_per_step) for t in steady.timings)
    assert values[0]["y"] == pytest.approx(3.0 * first.batch_size / first.seconds_per_step[0], rel=1e-4)
    slowed = tuple(
        dataclasses.replace(t, **{k: tuple(2 * s for s in getattr(t, k)) for k in ("seconds_per_step", "reference")})
        for t in steady.timings[1:]
    )
    drifted = dataclasses.replace(steady, timings=(first, *slowed), drift=1.0)
    ratio = [w["y"] / v["y"] for v, w in zip(values[10:], windows(drifted)[10:], strict=True)]
    typical = statistics.median([r for t in drifted.timings for r in t.reference])
    naive = [typical / r for t in steady.timings[1:] for r in t.reference]
    assert ratio == pytest.approx([1 / n for n in naive], rel=1e-3)


def parted(wait: float, copy: float | None, compute: float | None = 6.0, optimizer: float = 1.0) -> ThroughputRow:
    row = profile().rows[0]
    made = {"data_wait": wait, "copy": copy, "compute": compute, "optimizer": optimizer}
    return dataclasses.replace(row, **{k: None if v is None else around(v) for k, v in made.items()})


@pytest.mark.parametrize(
    ("wait", "copy", "drawn"),
    [
        (3.0, 1.0, (2.0, 1.0, 6.0, 1.0)),  # the copy is part of the wait
        (1.0, 3.0, (0.0, 1.0, 6.0, 1.0)),  # computing hides most of the copy
        (-0.5, 3.0, (0.0, 0.0, 6.0, 1.0)),  # all of it: what noise makes negative is nothing
        (2.0, None, (2.0, 0.0, 6.0, 1.0)),
    ],
)
def test_the_parts_of_a_step(wait: float, copy: float | None, drawn: tuple[float, ...]) -> None:
    parts = charts.phase_seconds(parted(wait, copy))
    assert parts is not None
    assert tuple(parts.values()) == drawn
    shares = [v["y"] for v in charts.phase_values([parted(wait, copy)])]
    assert sum(shares) == pytest.approx(100.0, abs=0.01)
    assert shares == pytest.approx([100 * d / sum(drawn) for d in drawn], rel=1e-3)


def test_without_phases_there_is_no_figure_of_them() -> None:
    assert charts.phase_seconds(parted(1.0, None, compute=None)) is None
    assert charts.phase_panel(odd_outcomes().rows) is None
    panel = charts.phase_panel(loader_bound().rows)
    assert panel is not None
    assert "4,096: 72 %" in panel.label


def test_a_probe_that_nobody_saw_a_peak_of_stands_on_the_upper_edge() -> None:
    memory = odd_outcomes().memory
    assert memory is not None
    values = {v["x"]: v for v in charts.probe_values(memory, float(GIB), edge=1.12)}
    assert (values[16384]["y"], values[16384]["text"]) == (1.12, "not seen")
    assert (values[8192]["y"], values[8192]["outcome"]) == (pytest.approx(600 / 1024, rel=1e-4), "crashed")
    _, below = charts.axis_panels(odd_outcomes())
    legend = next(c for c in found(below.spec["layer"], "color") if isinstance(c, dict) and c.get("legend") is not None)
    assert legend["scale"]["domain"] == list(charts.OUTCOMES.values())


def test_the_line_is_the_fit_in_three_parts() -> None:
    memory = memory_profile()
    values = charts.fit_values(memory, (4.0, 9000.0), float(MIB))
    assert memory.fit is not None
    fixed, slope = memory.fit.fixed_bytes.estimate or 0.0, memory.fit.bytes_per_example.estimate or 0.0
    for v in values:
        assert v["y"] == pytest.approx((fixed + slope * v["x"]) / MIB, rel=1e-3)
        assert (v["part"] == "fitted") <= (64 <= v["x"] <= 6144)
    assert list(dict.fromkeys(v["part"] for v in values)) == ["below", "fitted", "above"]
    assert charts.fit_values(memory_profile(fit=None), (4.0, 9000.0), 1.0) == []


@pytest.mark.parametrize(("low", "kind"), [(0.3, "linear"), (2.0, "log")])
def test_bytes_begin_at_zero_unless_they_span_far(low: float, kind: str) -> None:
    seen = [low * GIB, 0.9 * GIB] if kind == "linear" else [low * GIB, 70 * GIB]
    limit = GIB if kind == "linear" else 76 * GIB
    scale = charts.bytes_scale(seen, limit, float(GIB))
    assert scale["type"] == kind
    assert scale["domain"][1] > limit / GIB
    assert scale["domain"][0] == 0 or scale["domain"][0] < low


def test_what_was_not_measured_is_left_out() -> None:
    assert [p.title for p in charts.axis_panels(without_memory())] == ["Examples per second"]
    assert [p.title for p in charts.axis_panels(nothing_fits())] == ["Peak memory of a training process"]
    assert len(charts.axis_panels(one_size())) == 2


def test_the_level_is_95_percent_of_the_highest_below_the_ceiling() -> None:
    result = profile()
    (above, *_) = charts.axis_panels(result)
    (level,) = [r for r in rows_of(above) if r.get("text") == "95 % of the highest"]
    highest = max(r.units_per_second.estimate or 0.0 for r in result.rows)
    assert level["y"] == pytest.approx(0.95 * highest, rel=1e-4)
