"""Which batch sizes can be used, in which parts, at which price: memory, batch norm, the data set and the meter?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from tests.analysis.made_up_studies import EACH, OVERHEAD, OWN, TRAIN_SIZE, profile

from batchscope.analysis.options import CLEARLY, UNKNOWN_SD, Option, draws_of, log_weights, options_of
from batchscope.errors import CannotAnswer
from batchscope.records import Measured, SplitTiming


def by_size(options: list[Option]) -> dict[int, tuple[int, int]]:
    """Batch size -> (micro-batch size, accumulation)."""
    return {o.batch_size: (o.split.micro_batch_size, o.split.accumulation) for o in options}


def step(size: float) -> float:
    return (OVERHEAD + size) * EACH


# --- sizes and parts ---


def test_sizes_are_those_timed_and_the_powers_of_two_above_that_the_data_allow() -> None:
    found = by_size(options_of(profile((8, 32, 128)), 1000))
    assert list(found) == [8, 32, 128, 256, 512]
    assert found[8] == (8, 1)
    assert found[512] == (128, 4)


def test_the_own_batch_size_is_always_among_them() -> None:
    found = options_of(profile((8, 32, 128)), 1000, own=50)
    assert [o.batch_size for o in found][:4] == [8, 32, 50, 128]
    own = found[2]
    assert (own.split.micro_batch_size, own.split.measured) == (50, False)
    assert own.seconds.estimate == pytest.approx(step(50), rel=0.1)  # between its neighbours, log against log


@pytest.mark.parametrize("train_size", [100, 128, 129, 1000])
def test_no_batch_is_larger_than_the_data(train_size: int) -> None:
    sizes = [o.batch_size for o in options_of(profile((8, 64, 128, 256)), train_size, own=OWN)]
    assert max(sizes) <= train_size
    assert min(sizes) == 8


def test_beyond_the_memory_ceiling_batches_are_accumulated() -> None:
    """Micro-batches of 128 run, larger ones do not; parts of 128 are the fastest, overhead paid once each."""
    found = options_of(profile(largest=128), TRAIN_SIZE)
    parts = by_size(found)
    assert parts[128] == (128, 1)
    assert parts[256] == (128, 2)
    assert parts[1024] == (128, 8)
    assert max(parts) == 8192
    seconds = next(o.seconds.estimate for o in found if o.batch_size == 1024)
    assert seconds == pytest.approx(8 * step(128), rel=0.01)


@pytest.mark.parametrize(("gain", "parts"), [(1.03, (256, 1)), (1.10, (128, 2))])
def test_the_whole_batch_is_preferred_unless_its_parts_are_clearly_faster(gain: float, parts: tuple[int, int]) -> None:
    """In two parts a step was timed to take as much less."""
    whole = 256 * EACH * gain
    timed = profile((64, 128, 256), step=lambda b: whole if b == 256 else b * EACH, noise=1e-6)
    cut = dataclasses.replace(timed, splits=(SplitTiming(256, 128, (256 * EACH,) * 9, ()),))
    (found,) = (o for o in options_of(cut, 1000) if o.batch_size == 256)
    assert (found.split.micro_batch_size, found.split.accumulation) == parts
    assert found.seconds.estimate == pytest.approx(whole if parts[1] == 1 else 256 * EACH, rel=1e-4)
    assert by_size(options_of(cut, 1000, coupled=True))[256] == (256, 1)
    assert 1.03 < CLEARLY < 1.10


def test_with_batch_norm_parts_are_as_large_as_can_be() -> None:
    """However much faster small parts are: the split is part of the training there."""
    slow_when_large = profile((8, 32, 128), largest=128, step=lambda b: b * b * EACH)
    assert by_size(options_of(slow_when_large, 2000, coupled=True))[512] == (128, 4)
    assert by_size(options_of(slow_when_large, 2000, coupled=True))[128] == (128, 1)
    assert by_size(options_of(slow_when_large, 2000))[512] == (8, 64)


def test_without_seconds_there_is_no_answer() -> None:
    with pytest.raises(CannotAnswer, match="no batch fits"):
        options_of(profile(()), TRAIN_SIZE)
    with pytest.raises(CannotAnswer, match="fit"):
        options_of(profile(largest=4), TRAIN_SIZE)


# --- what an example costs ---


def test_what_an_example_costs_by_each_objective() -> None:
    """Over an epoch the last batch is short: 100 examples in batches of 64 are 2 steps, 50 examples each."""
    options = options_of(profile((16, 64), joules=0.01), 100)
    seconds = {o.batch_size: o.seconds.estimate or math.nan for o in options}
    time = log_weights(options, "time", 100)
    assert time[64] == pytest.approx(math.log(seconds[64] / 50))
    assert time[16] == pytest.approx(math.log(seconds[16] / (100 / 7)))
    assert log_weights(options, "examples", 100) == {16: 0.0, 64: 0.0}
    cost = log_weights([dataclasses.replace(o, devices=2) for o in options], "cost", 100, 7.2)
    assert cost[64] - time[64] == pytest.approx(math.log(7.2 * 2 / 3600))
    assert log_weights(options, "cost", 100)[64] - time[64] == pytest.approx(math.log(1 / 3600))
    energy = log_weights(options, "energy", 100)
    assert energy[64] == pytest.approx(math.log(0.01 * (1 + 20 / 64)))


def test_energy_needs_a_meter() -> None:
    with pytest.raises(CannotAnswer, match="energy meter"):
        log_weights(options_of(profile(), TRAIN_SIZE), "energy", TRAIN_SIZE)


def test_a_batch_that_was_not_timed_whole_has_the_energy_of_the_nearest_micro_batch() -> None:
    """A meter that is there answers for every batch size."""
    options = options_of(profile((16, 64), joules=0.01), 1000, own=50)
    weights = log_weights(options, "energy", 1000)
    assert set(weights) == {16, 50, 64, 128, 256, 512}
    assert weights[50] == weights[64]
    assert weights[128] == weights[64]


# --- the seconds' error ---


def test_draws_of_a_measured_value_have_its_interval() -> None:
    """Student t on the log about the estimate: the 95 % interval is that of the draws, at the rounds' df."""
    value = Measured(3e-3, 2e-3, 4.5e-3, 6, 0, "t")
    logs = draws_of(value, 40_000, np.random.default_rng(0))
    assert np.exp(np.quantile(logs, [0.025, 0.5, 0.975])) == pytest.approx([2e-3, 3e-3, 4.5e-3], rel=0.03)
    scaled = (logs - math.log(3e-3)) / (math.log(1.5) / stats.t.ppf(0.975, 5))
    assert stats.kstest(scaled, stats.t(5).cdf).pvalue > 0.01


def test_seconds_without_an_interval_have_a_guessed_error() -> None:
    logs = draws_of(Measured(3e-3, None, None, 1), 40_000, np.random.default_rng(0))
    assert logs.std() == pytest.approx(UNKNOWN_SD, rel=0.03)
    assert logs.mean() == pytest.approx(math.log(3e-3), abs=0.003)
