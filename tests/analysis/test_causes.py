"""Are causal runs pooled over their seeds, and held against the right uninterrupted ones, on a world that is known?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from batchscope.analysis import flatness_measures as name
from batchscope.analysis.causes import ALIKE, HIGHER, LOWER, LOWEST, OPEN, cause_rows, compared, side_of
from batchscope.analysis.flatness import analyse_sharpness
from batchscope.analysis.target import Value
from batchscope.analysis.uncertainty import pooled
from batchscope.records import CauseRow, Measured, SharpnessData, from_plain, to_plain

from .flatness_worlds import LOST, NOISY, SWITCH, made_up_sharpness

BOX = "sharpness (box, full space, eps 0.001)"
DATA = made_up_sharpness(drawn=False, causes=True)
ROWS = {(r.batch_size, r.kind, r.share): r for r in cause_rows(DATA)}
SHARES = (0.25, 0.5, 1.0)


def rows_without(data: SharpnessData, **changes: object) -> dict[tuple[int, str, float], CauseRow]:
    """The rows of changed data, by what they are of."""
    return {(r.batch_size, r.kind, r.share): r for r in cause_rows(dataclasses.replace(data, **changes))}


def values_of(row: CauseRow, measure: str) -> list[float]:
    """A measure of every run of a row, by seed, read from the data by hand."""

    def read(p: object) -> float:
        return p.boxes[0].percent if measure == BOX else p.largest_eigenvalue.estimate

    if row.kind == "uninterrupted":
        points = [p for p in DATA.points if (p.policy, p.batch_size) == ("held", row.batch_size) and p.seed in (0, 1)]
        return [p.validation["loss"] if measure == LOWEST else read(p) for p in points]
    own = [c for c in DATA.continued if (c.kind, c.batch_size, c.share) == (row.kind, row.batch_size, row.share)]
    return [c.reached_loss if measure == LOWEST else read(c.point) for c in own]


def test_a_row_for_each_kind_of_run_the_uninterrupted_first() -> None:
    assert list(ROWS) == [
        (8, "uninterrupted", 0.0),
        *((8, "warm start", s) for s in SHARES),
        (64, "uninterrupted", 0.0),
        *((64, "warm start", s) for s in SHARES),
        (64, "noise injected", 0.0),
    ]
    for (size, kind, share), row in ROWS.items():
        assert row.seeds == 2  # the study's third seed was not continued
        assert row.from_batch_size == (size if kind == "uninterrupted" else {8: 64, 64: 8}[size])
        assert row.epochs == pytest.approx(share * 8.5)
        after = {"uninterrupted": 0.0, "noise injected": 9.5}.get(kind, 8 * (1 - share) + 0.5)
        assert row.epochs_after == pytest.approx(after)
    shown = [BOX, name.LARGEST, LOWEST, name.TRACE, name.ADAPTIVE_EIGENVALUE, name.DISTANCE, name.TRAIN_LOSS]
    assert all(list(row.measures) == shown for row in ROWS.values())
    assert cause_rows(dataclasses.replace(DATA, continued=())) == ()


@pytest.mark.parametrize("measure", [BOX, name.LARGEST, LOWEST])
def test_measures_are_pooled_over_all_kinds_on_logs(measure: str) -> None:
    expected = pooled({k: [Value(v) for v in values_of(row, measure)] for k, row in ROWS.items()}, log=True)
    for k, row in ROWS.items():
        found = row.measures[measure]
        assert dataclasses.replace(found, interval="") == dataclasses.replace(expected[k], interval="")
        assert found.interval == "t on logs, pooled over 9 kinds of run, 9 df"


@pytest.mark.parametrize("measure", [BOX, name.LARGEST, LOWEST])
@pytest.mark.parametrize("size", [8, 64])
def test_ratios_are_paired_by_seed_with_the_spread_of_the_layout(measure: str, size: int) -> None:
    """By hand: the layout is complete, so that its residuals are what double centring leaves."""
    kinds = [k for k in ROWS if k[0] == size]
    logs = np.log([values_of(ROWS[k], measure) for k in kinds])
    left = logs - logs.mean(1, keepdims=True) - logs.mean(0, keepdims=True) + logs.mean()
    df = (len(kinds) - 1) * (2 - 1)
    half = stats.t.ppf(0.975, df) * math.sqrt(2 / 2 * float(np.sum(left**2)) / df)
    assert not ROWS[kinds[0]].ratios
    for k, row in zip(kinds[1:], logs[1:], strict=True):
        difference = float(np.mean(row - logs[0]))
        found = ROWS[k].ratios[measure]
        ends = [math.exp(difference), math.exp(difference - half), math.exp(difference + half)]
        assert [found.estimate, found.low, found.high] == pytest.approx(ends, rel=1e-9)
        assert found.n == 2
        assert found.interval == (
            f"95 % t on paired logs, {df} df, pooled over the runs that ended with batch size {size}"
        )


def test_what_a_switch_does_is_found() -> None:
    for (size, kind, share), row in ROWS.items():
        sign = 1 if size == 64 else -1
        if kind == "uninterrupted":
            continue
        factor = NOISY if kind == "noise injected" else SWITCH ** (sign * share)
        for measure in (BOX, name.LARGEST):
            assert row.ratios[measure].low < factor < row.ratios[measure].high
            assert side_of(row.ratios[measure]) == (LOWER if factor < 1 else HIGHER)
        lowest = row.ratios[LOWEST]
        assert lowest.estimate == pytest.approx(LOST ** (sign * share) if share else 1.0)
        assert side_of(lowest) == (ALIKE if not share else LOWER if sign > 0 else HIGHER)
        assert all(compared(m) for m in row.ratios)


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [
        (1.06, 2.0, HIGHER),
        (0.5, 0.94, LOWER),
        (0.97, 1.04, ALIKE),
        (1.01, 1.2, OPEN),
        (0.5, 0.97, OPEN),
        (None, None, OPEN),
    ],
)
def test_sides_of_a_5_percent_band(low: float | None, high: float | None, side: str) -> None:
    assert side_of(Measured(1.0, low, high, 3)) == side


def test_a_run_without_a_finite_loss_costs_only_itself() -> None:
    first, *others = DATA.continued
    broken = dataclasses.replace(first, reached_loss=math.inf)
    rows = rows_without(DATA, continued=(broken, *others))
    key = (first.batch_size, first.kind, first.share)
    assert rows[key].measures[LOWEST].n == rows[key].ratios[LOWEST].n == 1
    assert rows[key].ratios[LOWEST].low is not None
    assert rows[key].ratios[name.LARGEST] == ROWS[key].ratios[name.LARGEST]
    lost = tuple(dataclasses.replace(c, reached_loss=math.inf) for c in DATA.continued)
    rows = rows_without(DATA, continued=lost)
    assert rows[key].measures[LOWEST].estimate is None
    assert LOWEST not in rows[key].ratios


def test_one_seed_has_no_interval_and_no_side() -> None:
    rows = rows_without(DATA, continued=tuple(c for c in DATA.continued if c.seed == 0))
    row = rows[64, "warm start", 1.0]
    (own,) = values_of(ROWS[64, "warm start", 1.0], BOX)[:1]
    ratio = row.ratios[BOX]
    assert (ratio.low, ratio.high, ratio.n, side_of(ratio)) == (None, None, 1, OPEN)
    assert ratio.estimate == pytest.approx(own / values_of(ROWS[64, "uninterrupted", 0.0], BOX)[0])


def test_what_has_nothing_to_stand_beside_has_no_ratio() -> None:
    tuned = tuple(p for p in DATA.points if p.policy == "tuned")
    rows = rows_without(DATA, points=tuned)
    assert {kind for _, kind, _ in rows} == {"warm start", "noise injected"}
    assert all(not row.ratios and row.measures[LOWEST].low is not None for row in rows.values())
    at_the_end = dataclasses.replace(DATA.question, at="last")  # the points' validation loss is not the lowest
    rows = rows_without(DATA, question=at_the_end)
    assert list(rows[64, "warm start", 1.0].ratios) == [BOX, name.LARGEST]
    assert rows[64, "uninterrupted", 0.0].measures[LOWEST].estimate is None


def test_the_answer_holds_the_rows() -> None:
    result = analyse_sharpness(DATA, None)
    assert result.causes == cause_rows(DATA)
    assert from_plain(tuple[CauseRow, ...], to_plain(result.causes)) == result.causes
