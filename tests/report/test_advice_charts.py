"""Are an advice's panels valid, and true to the curves, runs and limits that they draw?"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import altair as alt
import pytest
from made_up_advice import B_CRIT, OWN, SIZES, TRAIN_SIZE, advice
from made_up_answers import best_in, from_noise, memory_binds, not_answered, nothing_ran, priced

from batchscope.records import Advice
from batchscope.report import advice_points as points
from batchscope.report.advice_charts import stacked_panels
from batchscope.report.advice_rates import pareto_panel, rate_panel, rate_summary
from batchscope.report.charts import Panel


def panels_of(made: Advice) -> list[Panel]:
    """Every panel of an advice."""
    return [p for p in (*stacked_panels(made), rate_panel(made), pareto_panel(made)) if p is not None]


def drawn(panel: Panel | None) -> list[dict[str, Any]]:
    """All rows that a panel draws."""
    assert panel is not None
    return [row for rows in panel.spec["datasets"].values() for row in rows]


def test_the_panels_are_valid_vega_lite() -> None:
    for panel in panels_of(memory_binds())[1::2]:  # every kind of mark but text is in one of them
        bare = {k: v for k, v in panel.spec.items() if k != "datasets"}  # the schema says little about rows, slowly
        alt.LayerChart.from_dict(bare, validate=True)


def test_stacked_panels_share_their_horizontal_axis() -> None:
    domains = set()
    for panel in stacked_panels(advice()):
        for layer in panel.spec["layer"]:
            domains.add(tuple(layer["encoding"]["x"]["scale"]["domain"]))
    assert len(domains) == 1
    low, high = domains.pop()
    assert low < SIZES[0]
    assert high > 5312  # the ceiling is not far beyond the sizes


def test_runs_are_drawn_as_steps_and_as_seconds() -> None:
    made = advice()
    by = {(t.batch_size, t.learning_rate, t.seed): t for t in made.data.trials}
    steps, seconds = points.run_rows(made, "steps"), points.run_rows(made, "seconds")
    assert len(steps) == len(seconds) == len(by) - 1  # the one that diverged has no steps to the goal
    for row, other in zip(steps, seconds, strict=True):
        t = next(t for t in by.values() if t.batch_size == row["x"] and f"seed {t.seed}" in row["role"])
        if row["series"] == points.AT_BEST and row["kind"] == "estimate":
            assert t.reached is not None
            naive = t.reached * math.ceil(TRAIN_SIZE / t.batch_size) / TRAIN_SIZE
            assert row["y"] == pytest.approx(naive, rel=1e-4)
            step = made.candidates[SIZES.index(t.batch_size)].seconds_per_step.estimate
            assert step is not None
            assert other["y"] == pytest.approx(naive * step, rel=1e-3)
    bounds = [r for r in steps if r["kind"] == "at_least"]
    assert [r["x"] for r in bounds] == [32]
    assert bounds[0]["text"].startswith("> ")


def test_runs_at_the_recommended_learning_rates_are_told_apart() -> None:
    rows = points.run_rows(advice(), "steps")
    assert [r["x"] for r in rows if r["series"] == points.BESIDE] == [256, 32]
    assert sorted(r["x"] for r in rows if r["series"] == points.AT_BEST) == [64, 128, 128, 256, 512]


def test_the_curves_are_the_records() -> None:
    made = advice()
    assert made.curves is not None
    steps = points.steps_curve(made)
    assert [(e.low, e.middle, e.high) for e in steps] == list(made.curves.steps)
    for e, c in zip(points.seconds_curve(made), made.candidates, strict=True):
        assert (e.x, e.middle) == (c.batch_size, c.seconds_to_goal.estimate)


def test_ratios_are_one_at_the_own_batch_size() -> None:
    made = from_noise()
    assert points.is_relative(made)
    assert points.reference_size(made) == OWN
    for curve in (points.steps_curve(made), points.seconds_curve(made)):
        own = next(e for e in curve if e.x == OWN)
        assert (own.low, own.middle, own.high) == pytest.approx((1.0, 1.0, 1.0))
        assert len(curve) == len(SIZES)
    whole = {e.x: e.middle for e in points.seconds_curve(advice(ceiling=64))}
    for e in points.seconds_curve(made):
        assert e.middle == pytest.approx(whole[e.x] / whole[OWN], rel=0.15)  # medians of ratios, not ratios of medians
    assert "over those at 64" in stacked_panels(made)[0].title
    assert not points.is_relative(advice())


def test_the_limits_stand_where_they_were_found() -> None:
    found = {v.name: v for v in points.limits_of(advice())}
    assert list(found) == [
        "recommended batch size 128",
        "critical batch size 180 [130–250]",
        "throughput knee 1,024 [512–1,024]",
        "memory ceiling, micro-batch 5,312",
    ]
    crit = found["critical batch size 180 [130–250]"]
    assert (crit.x, crit.low, crit.high) == (B_CRIT, 130, 250)
    first, *rest = stacked_panels(advice())
    for panel in (first, *rest):
        assert {128, 180, 1024, 5312} <= {r["x"] for r in drawn(panel) if r.get("series") in found and "x2" not in r}
    text = json.dumps(rest[0].spec)
    assert '"legend": null' in text  # named once, above the first panel
    far = dataclasses.replace(advice(), largest_micro_batch_size=10**6)
    assert 10**6 not in {r["x"] for r in drawn(stacked_panels(far)[0])}


def test_predicted_steps_are_hollow() -> None:
    rows = points.timed_rows(memory_binds())
    assert [r["x"] for r in rows if r["measured"]] == [16, 32, 64]
    assert all("predicted" in r["text"] for r in rows if not r["measured"])
    assert all(r["measured"] for r in points.timed_rows(advice()))


def test_no_answer_draws_bounds_and_no_curve() -> None:
    steps, step, total = stacked_panels(not_answered())
    assert {r["kind"] for p in (steps, total) for r in drawn(p) if "kind" in r} == {"at_least"}
    assert points.steps_curve(not_answered()) == []
    assert len(points.step_curve(not_answered())) == len(SIZES)
    assert step.title == "Seconds per step"
    assert panels_of(nothing_ran()) == []


def test_the_lowest_loss_replaces_steps() -> None:
    loss, step = stacked_panels(best_in())
    assert loss.title == "Lowest validation loss in 30 s"
    assert step.title == "Seconds per step"
    ys = {r["x"]: r["y"] for r in drawn(loss) if "low" in r}
    assert ys[128] == pytest.approx(0.33)


def test_every_learning_rate_that_was_tried_is_drawn_with_its_outcome() -> None:
    rows = [r for r in drawn(rate_panel(advice())) if "outcome" in r]
    assert len(rows) == len(advice().data.trials)
    assert {r["outcome"] for r in rows} == {"reached", "not reached", "diverged"}
    lost = next(r for r in rows if r["outcome"] == "diverged")
    assert (lost["x"], lost["rate"]) == (128, "0.566")
    assert "linear (probability 61 %); at 128 the best is 0.164" in rate_summary(advice())
    curve = advice().learning_rate_curve
    assert curve is not None
    vague = dataclasses.replace(advice(), learning_rate_curve=dataclasses.replace(curve, shape="not resolved"))
    assert rate_summary(vague).startswith("With batch size it is not resolved; at 128")


def test_time_against_cost_holds_every_point_in_one_unit() -> None:
    made = priced()
    rows = [r for r in drawn(pareto_panel(made)) if "money" in r]
    assert [r["text"] for r in rows] == ["1 device", "2 devices", "4 devices", "8 devices"]
    for row, p in zip(rows, made.pareto, strict=True):
        assert row["x"] == pytest.approx(p.seconds_to_goal / 60, rel=1e-4)
        assert row["y"] == pytest.approx(p.cost, rel=1e-4)
    assert pareto_panel(dataclasses.replace(made, pareto=made.pareto[:1])) is None
