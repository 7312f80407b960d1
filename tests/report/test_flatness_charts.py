"""Are the panels of `sharpness` valid, told in words, and true to the numbers they draw?"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np
import pytest
from made_up_flatness import bare, files, held, whole
from made_up_flatness import drawn as everything

from batchscope.analysis import flatness_measures as name
from batchscope.records import Density, SharpnessResult
from batchscope.report import flatness_charts as charts
from batchscope.report import flatness_pictures as pictures
from batchscope.report.charts import Panel
from batchscope.report.noise_words import cell


def sharp_panels(result: SharpnessResult) -> list[Panel]:
    """The first figure's."""
    return charts.measure_panels(result, charts.sharp_measures(result))


DRAW = (
    sharp_panels,
    charts.loss_panels,
    charts.trace_panels,
    charts.layer_panels,
    charts.cause_panels,
    charts.sample_panels,
    pictures.between_panels,
    pictures.slice_panels,
    pictures.heat_panels,
    pictures.density_panels,
)


@functools.cache
def drawn(make: Callable[[], SharpnessResult], draw: Callable[[SharpnessResult], list[Panel]]) -> list[Panel]:
    """The panels of one kind."""
    return list(draw(make()))


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    """All rows that a panel draws."""
    return [row for rows in panel.spec["datasets"].values() for row in rows]


def marks_of(panel: Panel) -> list[dict[str, Any]]:
    """The rows of estimates, each once."""
    found = {json.dumps(r, sort_keys=True): r for r in rows_of(panel) if r.get("kind") == "estimate"}
    return list(found.values())


@pytest.mark.parametrize("make", [whole, held, files, bare])
def test_every_panel_is_plain_json_with_a_label(make: Callable[[], SharpnessResult]) -> None:
    for drawing in everything(make):
        for panel in drawing.panels:
            json.dumps(panel.spec, allow_nan=False)
            assert ": " in panel.label
            assert "nan" not in panel.label


@pytest.mark.parametrize("draw", DRAW)
def test_the_panels_are_valid_vega_lite(draw: Callable[[SharpnessResult], list[Panel]]) -> None:
    panel = drawn(whole, draw)[0]
    bare_spec = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
    alt.LayerChart.from_dict(bare_spec, validate=True)


def test_what_was_not_measured_is_left_out() -> None:
    counts = {d.__name__: len(drawn(bare, d)) for d in DRAW}
    missing = ("trace_panels", "cause_panels", "sample_panels", "between_panels", "slice_panels", "density_panels")
    assert [counts[d] for d in missing] == [0] * 6
    assert counts["loss_panels"] == 1
    assert [p.title for p in drawn(bare, sharp_panels)][:4] == list(bare().rows[0].measures)[:4]
    assert drawn(files, sharp_panels) == []
    assert drawn(files, pictures.between_panels)[0].title == "Straight line, loss: small.pt to large.pt"


def test_a_measure_is_drawn_with_its_interval_and_every_seed() -> None:
    panel = next(p for p in drawn(whole, sharp_panels) if p.title == name.TRACE)
    marks = {(m["series"], m["size"]): m for m in marks_of(panel)}
    assert len(marks) == len(whole().rows)
    for r in whole().rows:
        m, mark = r.measures[name.TRACE], marks[charts.policy_name(r.policy), f"{r.batch_size}"]
        assert [mark["y"], mark["low"], mark["high"]] == pytest.approx([m.estimate, m.low, m.high], rel=1e-4)
        assert mark["x"] == pytest.approx(r.batch_size, rel=0.1)
    assert len([r for r in rows_of(panel) if set(r) == {"x", "y", "series"}]) == len(whole().data.points)


def test_negative_values_are_drawn_on_a_linear_axis() -> None:
    panel = next(p for p in drawn(whole, sharp_panels) if p.title == name.SMALLEST)
    assert all(m["low"] <= m["y"] < 0 for m in marks_of(panel))
    assert len(marks_of(panel)) == len(whole().rows)


def test_the_edge_of_stability_is_drawn_with_what_is_held_against_it() -> None:
    with_edge = [
        p.title for p in drawn(whole, sharp_panels) if any(r["series"] == charts.EDGE_NAME for r in rows_of(p))
    ]
    assert with_edge == [name.LARGEST_RATE, name.BATCH_RATE]


def test_distances_are_the_traces() -> None:
    panels = drawn(whole, charts.trace_panels)
    assert len(panels) == 2
    own = [t for t in whole().traces if t.policy == "held"]
    assert len(rows_of(panels[0])) == sum(len(t.steps) for t in own)
    first = next(r for r in rows_of(panels[0]) if r["series"] == "batch size 8" and r["seed"] == own[0].seed)
    assert (first["x"], first["y"]) == (own[0].steps[0], pytest.approx(own[0].distances[0], rel=1e-4))


def test_both_lines_are_drawn_for_loss_and_accuracy() -> None:
    titles = [p.title for p in drawn(whole, pictures.between_panels)]
    ends = "8 held seed 0 to 64 held seed 0"
    assert titles == [f"{kind} line, {m}: {ends}" for kind in ("Straight", "Curved") for m in ("loss", "accuracy")]
    rows = rows_of(drawn(whole, pictures.between_panels)[0])
    assert {r["series"] for r in rows if "series" in r} == {"training", "validation"}
    assert [r["text"] for r in rows if "text" in r] == ["batch size 8", "batch size 64"]


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    (line, *rest) = whole().data.lines
    values = (math.inf, *line.train["loss"][1:])
    broken = dataclasses.replace(line, train={"loss": values})
    data = dataclasses.replace(whole().data, lines=(broken, *rest))
    panel = pictures.between_panels(dataclasses.replace(whole(), data=data))[0]
    assert len([r for r in rows_of(panel) if r.get("series") == "training"]) == len(values) - 1
    json.dumps(panel.spec, allow_nan=False)


def test_heat_maps_share_one_scale_and_cover_the_grid() -> None:
    panels = drawn(whole, pictures.heat_panels)
    scales = [p.spec["layer"][0]["encoding"]["color"]["scale"] for p in panels]
    assert scales[0] == scales[1]
    assert [len(rows_of(p)) for p in panels] == [121, 121]
    assert pictures.cell_edges((0.0, 1.0, 3.0)) == [-0.5, 0.5, 2.0, 4.0]


def test_a_density_integrates_to_one_and_its_band_is_that_of_the_starts() -> None:
    density = Density(((0.0, 2.0), (1.0, 3.0)), ((0.5, 0.5), (0.25, 0.75)))
    grid = np.linspace(-2, 5, 2001)
    values, error = pictures.density_of(density, grid, 0.1)
    assert float(np.trapezoid(values, grid)) == pytest.approx(1.0, abs=1e-6)
    at_two = int(np.argmin(np.abs(grid - 2.0)))
    peak = 0.5 / (0.1 * math.sqrt(2 * math.pi))
    assert values[at_two] == pytest.approx(peak / 2, rel=1e-3)
    assert error[at_two] == pytest.approx(peak / 2, rel=1e-3)  # of the values peak and 0
    alone, nothing = pictures.density_of(Density(((0.0,),), ((1.0,),)), grid, 0.1)
    assert alone.max() == pytest.approx(1 / (0.1 * math.sqrt(2 * math.pi)), rel=1e-3)
    assert not nothing.any()


def test_causal_runs_are_drawn_against_their_switch() -> None:
    panels = {p.title: p for p in drawn(whole, charts.cause_panels)}
    assert list(panels) == ["sharpness (box, full space, eps 0.001)", name.LARGEST, "lowest validation loss"]
    panel = panels["lowest validation loss"]
    marks = {(m["series"], m["x"]): m for m in marks_of(panel)}
    paths = {64: "from batch size 8 to 64", 8: "from batch size 64 to 8"}
    levels = [r for r in rows_of(panel) if r["series"] == "batch size 64 with the noise of 8"]
    for row in whole().causes:
        m = row.measures["lowest validation loss"]
        if row.kind == "noise injected":
            assert levels == [{"y": pytest.approx(m.estimate, rel=1e-4), "series": levels[0]["series"]}]
            assert f"{levels[0]['series']}: {cell(m, '–')}" in panel.label
            continue
        mark = marks.pop((paths[row.batch_size], row.share))  # uninterrupted: at 0
        assert [mark["y"], mark["low"], mark["high"]] == pytest.approx([m.estimate, m.low, m.high], rel=1e-4)
    assert marks == {}
    seeds = [r for r in rows_of(panel) if set(r) == {"x", "y", "series"}]
    assert len(seeds) == 2 * 2 * 4  # both ways, two seeds, uninterrupted and three shares


def test_sample_sizes_are_joined() -> None:
    (panel,) = drawn(whole, charts.sample_panels)
    wanted = [(n, m.estimate, m.low, m.high) for n, m in whole().data.sample_sizes]
    found = sorted({(r["x"], r["y"], r["low"], r["high"]) for r in rows_of(panel)})
    for row, expected in zip(found, wanted, strict=True):
        assert row == pytest.approx(expected)
