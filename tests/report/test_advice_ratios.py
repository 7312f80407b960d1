"""Are ratios between batch sizes what the draws say, on several devices too, and never too narrow without draws?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from made_up_advice import SIZES, advice
from made_up_answers import best_in, energetic, from_noise

from batchscope.records import Advice, Measured
from batchscope.report.advice_ratios import by_size, has_draws, log_step_seconds, over, quotient


def without_draws(made: Advice) -> Advice:
    """The same advice, its draws lost."""
    assert made.curves is not None
    return dataclasses.replace(made, curves=dataclasses.replace(made.curves, draws_log_examples=()))


def test_seconds_between_timed_sizes_are_straight_in_logs() -> None:
    curves = advice().curves
    assert curves is not None
    rows = np.array(curves.draws_log_seconds)
    for k, size in enumerate(SIZES):
        np.testing.assert_allclose(log_step_seconds(curves, size), rows[:, k])
    between = log_step_seconds(curves, math.sqrt(SIZES[2] * SIZES[3]))
    np.testing.assert_allclose(between, (rows[:, 2] + rows[:, 3]) / 2)
    np.testing.assert_allclose(log_step_seconds(curves, 1.0), rows[:, 0])
    np.testing.assert_allclose(log_step_seconds(curves, 4 * SIZES[-1]), rows[:, -1] + math.log(4))


@pytest.mark.parametrize("devices", [1, 4])
def test_a_ratio_is_naively_that_of_the_draws(devices: int) -> None:
    made = advice()
    a, b = (dataclasses.replace(by_size(made.candidates)[s], devices=devices) for s in (256, 64))
    assert made.curves is not None
    seconds = {s: [row[SIZES.index(s // devices)] for row in made.curves.draws_log_seconds] for s in (256, 64)}
    ratios = [
        math.exp(row[4] - row[2])
        / (54_000 / math.ceil(54_000 / 256))
        * (54_000 / math.ceil(54_000 / 64))
        * math.exp(x - y)
        for row, x, y in zip(made.curves.draws_log_examples, seconds[256], seconds[64], strict=True)
    ]
    found = over(made, a, b)
    assert found is not None
    assert [found.low, found.estimate, found.high] == pytest.approx(np.quantile(ratios, (0.05, 0.5, 0.95)))


def test_equal_points_have_the_ratio_one_exactly() -> None:
    made = advice()
    found = over(made, made.candidates[3], made.candidates[3])
    assert found is not None
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)


def test_without_draws_the_interval_is_wider() -> None:
    made = advice()
    a, b = made.candidates[4], made.candidates[3]
    paired, apart = over(made, a, b), over(without_draws(made), a, b)
    assert paired is not None
    assert apart is not None
    assert not has_draws(without_draws(made))
    assert apart.low is not None
    assert paired.low is not None
    assert apart.high is not None
    assert paired.high is not None
    assert apart.low < paired.low < paired.high < apart.high
    assert apart.estimate == pytest.approx(paired.estimate, rel=0.05)


def test_energy_and_losses_are_those_of_the_candidates() -> None:
    for made, field in ((energetic(), "joules"), (best_in(), "lowest_loss")):
        a, b = made.candidates[4], made.candidates[3]
        found = over(made, a, b)
        assert found is not None
        assert found.estimate == pytest.approx(getattr(a, field).estimate / getattr(b, field).estimate)


def test_ratios_to_the_own_point_stand_in_where_no_more_is_known() -> None:
    made = without_draws(from_noise())
    a, b = made.candidates[4], made.candidates[3]
    found = over(made, a, b)
    assert found is not None
    assert a.over_own is not None
    assert b.over_own is not None
    assert a.over_own.estimate is not None
    assert b.over_own.estimate is not None
    assert found.estimate == pytest.approx(a.over_own.estimate / b.over_own.estimate)


def test_a_quotient_is_exact_for_normal_logs_and_keeps_open_ends() -> None:
    a, b = Measured(6.0, 3.0, 12.0, 1), Measured(2.0, 1.0, 4.0, 1)
    found = quotient(a, b)
    assert found is not None
    spread = 2.0 ** math.sqrt(2.0)
    assert [found.low, found.estimate, found.high] == pytest.approx([3 / spread, 3.0, 3 * spread])
    open_above = quotient(a, dataclasses.replace(b, low=None))
    assert open_above is not None
    assert open_above.high is None
    assert quotient(a, Measured(None, 2.0, None, 0)) is None
    assert quotient(None, b) is None
