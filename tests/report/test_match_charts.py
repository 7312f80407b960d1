"""Do the figures of `match` draw what was found, where it was found, and is each a valid Vega-Lite chart?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import altair as alt
import pytest
from made_up_match import ALL, BUDGET, ROOM, SIZES, alone, diverged, matched, row_of

from batchscope.records import MatchCurve, MatchResult, Measured
from batchscope.report import match_charts as charts
from batchscope.report.charts import Panel
from batchscope.report.match_tables import UNTUNED
from batchscope.report.style import CROSS


def panels_of(result: MatchResult) -> list[Panel]:
    """Every panel."""
    gap = charts.gap_panel(result)
    found = [*([gap] if gap else []), *charts.race_panels(result), *charts.steps_panels(result)]
    return [panel for panel, _ in found]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_every_panel_is_a_valid_chart(make: Callable[[], MatchResult]) -> None:
    for panel in panels_of(make()):
        alt.Chart.from_dict({k: v for k, v in panel.spec.items() if k != "datasets"}, validate=True)
        values = [v for rows in panel.spec["datasets"].values() for row in rows for v in row.values()]
        assert all(math.isfinite(v) for v in values if isinstance(v, float))
        assert panel.label


def test_each_remedy_stands_beside_its_batch_size_with_its_bound() -> None:
    panel = charts.gap_panel(matched())
    assert panel is not None
    _, rows = panel
    confirmed = [r for r in matched().rows if r.role == "confirmed"]
    assert len(rows) == len(SIZES) + len(confirmed)
    for size in SIZES:
        own = [r for r in rows if r["size"] == f"{size:,}"]
        places = [r["x"] for r in own]
        assert len(set(places)) == len(places)
        assert all(size / 2**0.5 < x < size * 2**0.5 for x in places)
    for drawn, row in zip(rows[len(SIZES) :], confirmed, strict=True):
        assert drawn["y"] == pytest.approx(100 * (row.excess.estimate or 0.0), rel=1e-4)
        assert drawn["bound"] == pytest.approx(100 * (row.bound or 0.0), rel=1e-4)
        assert drawn["low"] <= drawn["y"] <= drawn["high"]
    assert rows[0]["series"] == UNTUNED


def test_the_room_of_a_match_is_shaded_at_every_batch_size() -> None:
    panel = charts.gap_panel(matched())
    assert panel is not None
    tops = [row["top"] for rows in panel[0].spec["datasets"].values() for row in rows if "top" in row]
    assert tops == [100 * ROOM] * (len(SIZES) + 2)
    assert charts.rooms_of(matched()) == dict.fromkeys(SIZES, ROOM)
    assert charts.rooms_of(dataclasses.replace(matched(), gaps=(), rows=())) == {}


def test_the_axis_of_excesses_is_linear_up_to_one_percent() -> None:
    wide = charts.excess_axis([Measured(40.0, 30.0, 1e9, 5), Measured(-0.5, -80.0, 1.0, 5)], [ROOM], "excess")
    assert (wide.scale["type"], wide.scale["constant"]) == ("symlog", 1)
    low, high = wide.ends
    assert -10 < low < -0.5
    assert 100 < high < 200
    assert 0.0 in wide.ticks
    assert {1, 50} <= set(wide.ticks)
    assert 0.2 not in wide.ticks
    fine = charts.excess_axis([Measured(0.1, -0.2, 0.4, 5), Measured(None, None, None, 0)], [ROOM], "excess")
    assert 0.2 in fine.ticks


def test_rows_without_an_excess_are_drawn_as_what_is_known() -> None:
    panel = charts.gap_panel(diverged())
    assert panel is not None
    spec, rows = panel
    assert [(r["series"], r["kind"]) for r in rows] == [(UNTUNED, "diverged"), ("LARS", "at_least")]
    assert rows[1]["y"] == pytest.approx(0.4)
    shapes = {layer["mark"].get("shape") for layer in spec.spec["layer"] if isinstance(layer["mark"], dict)}
    assert {CROSS, "triangle-up"} <= shapes
    nothing = dataclasses.replace(row_of("LARS", 512, 0.1, 0.1), excess=Measured(None, None, None, 0))
    assert charts.gap_panel(alone(nothing, untuned=())) is None


def test_a_race_draws_every_candidate_to_where_it_ended() -> None:
    panels = charts.race_panels(matched())
    assert [p.title for p, _ in panels][:2] == [
        "batch size 32: the baseline's learning rate",
        "batch size 128: remedies",
    ]
    _, rows = panels[1]
    assert len(rows) == 6 * 12
    assert len({r["run"] for r in rows}) == len(rows)
    ends = {r["xs"][-1] for r in rows}
    assert len(ends) == 3
    assert max(ends) == pytest.approx(BUDGET, rel=1e-3)
    for row, curve in zip(rows, [c for c in matched().curves if c.batch_size == 128], strict=True):
        assert len(row["xs"]) == len(row["ys"]) == len(curve.lowest) - 1  # 0 examples have no place
        assert row["ys"] == sorted(row["ys"], reverse=True)


def test_runs_without_a_finite_loss_are_not_drawn() -> None:
    bad = MatchCurve(512, "LARS", "race", 0.1, 1, ((0, 2.3), (100, math.inf), (200, math.nan)))
    good = dataclasses.replace(bad, lowest=((0, 2.3), (100, 1.0), (200, math.inf)))
    assert charts.race_panels(dataclasses.replace(matched(), curves=(bad,))) == []
    (panel,) = charts.race_panels(dataclasses.replace(matched(), curves=(bad, good)))
    assert [(r["xs"], r["ys"]) for r in panel[1]] == [([100.0], [1.0])]


def test_the_gap_against_steps_has_the_baseline_in_every_panel() -> None:
    panels = charts.steps_panels(matched())
    assert [p.title for p, _ in panels] == ["batch size 128", "batch size 512", "batch size 1,024"]
    for _, rows in panels:
        assert rows[-1]["series"] == "baseline"
        assert (rows[-1]["y"], rows[-1]["x"]) == (0, pytest.approx(41_000, rel=1e-3))
    unreached = charts.steps_panels(diverged())
    assert [(r["series"], r["x"]) for r in unreached[0][1] if r["series"] == "LARS"] == [("LARS", 3900.0)]
    base = dataclasses.replace(matched().baseline, steps_to_goal=None)
    unknown = alone(dataclasses.replace(row_of("LARS", 512, 0.1, 0.1), steps_to_goal=None), baseline=base, untuned=())
    assert charts.steps_panels(unknown) == []


def test_more_remedies_than_colours_differ_in_dashes_and_shape() -> None:
    keys = charts.keys_of(matched())
    looks = {(k.colour, k.dash, k.shape) for k in keys.values()}
    assert len(looks) == len(keys) == 14
    assert keys["SAM"].colour == keys["linear scaling"].colour
    assert keys["SAM"].dash != keys["linear scaling"].dash
    assert charts.remedies_in(matched())[0] == matched().question.remedies[0]
