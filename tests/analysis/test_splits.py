"""Is a split's cost what its micro-batches cost, is the fastest one found, and does it fit?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from batchscope.analysis.splits import MICRO_SIZES, candidates, fastest_split, measured_splits, predicted_splits
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import (
    Conditions,
    MemoryProfile,
    ProfileData,
    SplitTiming,
    StepTiming,
    TimingPass,
)

SIZES = tuple(2**k for k in range(3, 11))
OVERHEAD, PER_EXAMPLE, OPTIMIZER = 2e-4, 1e-5, 5e-4


def micro(b: float) -> float:
    """Seconds of data, forward and backward of one micro-batch."""
    return OVERHEAD + PER_EXAMPLE * b


def step(b: int, rounds: int = 9, noise: float = 0.0, phases: bool = True, drift: bool = False) -> StepTiming:
    rng = np.random.default_rng(b)
    speed = np.exp(noise * rng.standard_normal(rounds)) * (np.linspace(1, 1.5, rounds) if drift else 1.0)
    parts = {"resident": tuple((0.9 * micro(b) + OPTIMIZER) * speed), "backward": tuple(0.9 * micro(b) * speed)}
    reference = tuple(1e-3 * (np.linspace(1, 1.5, rounds) if drift else np.ones(rounds)))
    return StepTiming(b, 10, tuple((micro(b) + OPTIMIZER) * speed), reference, parts if phases else {})


def profile(largest: int | None = None, sizes: tuple[int, ...] = SIZES, **changes: Any) -> ProfileData:
    """A profile of the closed form; `largest` fits, or memory was not measured."""
    timing = TimingPass(64, tuple(step(b) for b in sizes), Conditions())
    memory = None
    if largest is not None:
        memory = MemoryProfile(1, "", "", "", (), largest or None, "memory", "", Conditions())
    return replace(ProfileData("t", "f", 10**5, 64, Conditions(), timing=timing, memory=memory), **changes)


def truth(batch_size: int, m: int) -> float:
    whole, last = divmod(batch_size, m)
    return whole * micro(m) + (micro(last) if last else 0.0) + OPTIMIZER


def windows(batch_size: int, m: int, seconds: tuple[float, ...], reference: float = 1e-3) -> SplitTiming:
    return SplitTiming(batch_size, m, seconds, (reference,) * len(seconds))


# --- measured ---


def test_ratios_are_paired_by_round_with_the_whole_batch_of_the_same_pass() -> None:
    """Rounds differ by 40 % in speed, alike for both; the whole batch of the other pass does not matter."""
    speed = np.exp(0.4 * np.random.default_rng(0).standard_normal(8))
    ratio = np.exp(0.01 * np.random.default_rng(1).standard_normal(8)) * 1.25
    whole, cut = windows(64, 64, tuple(8e-3 * speed)), windows(64, 16, tuple(8e-3 * speed * ratio))
    other = TimingPass(64, (StepTiming(64, 1, (1.0,) * 8, (1.0,) * 8),), Conditions())
    found = measured_splits([whole, cut], other)
    assert [(s.micro_batch_size, s.accumulation, s.measured) for s in found] == [(16, 4, True), (64, 1, True)]
    over = found[0].over_whole
    assert over is not None
    half = stats.t.ppf(0.975, 7) * math.sqrt(math.pi / 2) * stats.sem(np.log(ratio))
    middle = float(np.median(ratio))
    assert (over.estimate, over.low, over.high) == pytest.approx(
        (middle, middle * math.exp(-half), middle * math.exp(half))
    )
    exact = found[1].over_whole
    assert exact is not None
    assert (exact.estimate, exact.low, exact.high) == (1.0, 1.0, 1.0)


def test_against_another_pass_each_is_taken_over_its_own_reference() -> None:
    """The machine was twice as slow when the splits were timed."""
    timing = TimingPass(64, (StepTiming(64, 1, (4e-3,) * 6, (1e-3,) * 6),), Conditions())
    (split,) = measured_splits([windows(64, 16, (10e-3,) * 5, 2e-3)], timing)
    assert split.over_whole is not None
    assert split.over_whole.estimate == pytest.approx(1.25)
    assert split.over_whole.n == 5
    bare = replace(timing, timings=(StepTiming(64, 1, (4e-3,) * 6, ()),))
    (plain,) = measured_splits([windows(64, 16, (10e-3,) * 5, 2e-3)], bare)
    assert plain.over_whole is not None
    assert plain.over_whole.estimate == pytest.approx(2.5)


def test_without_the_whole_batch_there_is_no_ratio() -> None:
    (split,) = measured_splits([windows(100, 32, (1e-3, 2e-3))], None)
    assert split.over_whole is None
    assert split.accumulation == 4
    assert measured_splits([windows(100, 32, ())], None) == ()


# --- predicted ---


@settings(max_examples=50)
@given(batch_size=st.integers(8, 20000), m=st.sampled_from(SIZES))
def test_predictions_are_the_closed_form(batch_size: int, m: int) -> None:
    """Exact where all micro-batches were timed; the last, interpolated one costs at most what its neighbours do."""
    if m > batch_size:
        return
    found = next(s for s in predicted_splits(profile(), batch_size) if s.micro_batch_size == m)
    last = batch_size % m
    assert found.accumulation == math.ceil(batch_size / m)
    assert not found.measured
    estimate = found.seconds_per_step.estimate
    assert estimate is not None
    if last == 0 or last in SIZES:
        assert estimate == pytest.approx(truth(batch_size, m))
    else:
        below = max((b for b in SIZES if b <= last), default=0)
        above = min(b for b in SIZES if b >= last)
        assert truth(batch_size - last + below, m) - 1e-9 <= estimate <= truth(batch_size - last + above, m) + 1e-9


def test_the_prediction_equals_its_textbook_sum() -> None:
    """k (backward + data) + optimiser, for a loader that hides nothing: whole = data + resident."""
    timing = next(t for t in (step(b) for b in SIZES) if t.batch_size == 32)
    data = np.array(timing.seconds_per_step) - np.array(timing.phases["resident"])
    backward = np.array(timing.phases["backward"])
    optimizer = np.array(timing.phases["resident"]) - backward
    found = next(s for s in predicted_splits(profile(), 320) if s.micro_batch_size == 32)
    assert found.seconds_per_step.estimate == pytest.approx(float(np.median(10 * (backward + data) + optimizer)))


def test_the_interval_carries_the_windows_spread() -> None:
    rounds = 9
    timing = TimingPass(64, tuple(step(b, rounds, noise=0.05) for b in SIZES), Conditions())
    found = next(s for s in predicted_splits(profile(timing=timing), 320) if s.micro_batch_size == 32)
    speed = np.array(timing.timings[2].seconds_per_step) / (micro(32) + OPTIMIZER)
    sums = truth(320, 32) * speed
    half = stats.t.ppf(0.975, rounds - 1) * math.sqrt(math.pi / 2) * stats.sem(np.log(sums))
    m = found.seconds_per_step
    middle = float(np.median(sums))
    assert (m.low, m.high) == pytest.approx((middle * math.exp(-half), middle * math.exp(half)))
    assert "predicted from micro-batch 32" in m.interval


def test_drift_divides_out_of_predictions() -> None:
    timing = TimingPass(64, tuple(step(b, drift=True) for b in SIZES), Conditions(), drift=0.4)
    found = next(s for s in predicted_splits(profile(timing=timing), 320) if s.micro_batch_size == 32)
    assert found.seconds_per_step.estimate == pytest.approx(1.25 * truth(320, 32))  # 1.25: the median reference
    assert found.seconds_per_step.low == pytest.approx(found.seconds_per_step.estimate)


def test_without_phases_the_optimiser_is_counted_with_every_micro_batch() -> None:
    timing = TimingPass(64, tuple(step(b, phases=False) for b in SIZES), Conditions())
    found = next(s for s in predicted_splits(profile(timing=timing), 320) if s.micro_batch_size == 32)
    assert found.seconds_per_step.estimate == pytest.approx(10 * (micro(32) + OPTIMIZER))
    assert "optimiser counted with every micro-batch" in found.seconds_per_step.interval


def test_an_optimiser_of_no_time_is_taken_as_none() -> None:
    """Noise puts its difference below 0: it must not make accumulation dearer."""
    timings = tuple(replace(step(b), phases={"resident": (1e-3,) * 9, "backward": (2e-3,) * 9}) for b in SIZES)
    found = next(
        s for s in predicted_splits(profile(timing=TimingPass(64, timings, Conditions())), 64) if s.accumulation == 2
    )
    assert found.seconds_per_step.estimate == pytest.approx(2 * (micro(32) + OPTIMIZER))


def test_whole_batches_beyond_the_sizes_timed_are_bounded_from_above() -> None:
    small = next(s for s in predicted_splits(profile(), 5))
    assert small.accumulation == 1
    assert small.seconds_per_step.estimate == pytest.approx(micro(8) + OPTIMIZER)
    assert "beyond the sizes timed" in small.seconds_per_step.interval
    large = next(s for s in predicted_splits(profile(), 1536) if s.accumulation == 1)
    assert large.seconds_per_step.estimate == pytest.approx(1.5 * (micro(1024) + OPTIMIZER))
    assert all(s.accumulation > 1 for s in predicted_splits(profile(), 4096))


# --- the fastest ---


@settings(max_examples=50)
@given(batch_size=st.integers(1, 10**5), largest=st.one_of(st.none(), st.integers(8, 3000)))
def test_the_fastest_fits_and_nothing_that_fits_is_faster(batch_size: int, largest: int | None) -> None:
    found = fastest_split(profile(largest), batch_size)
    assert found.batch_size == batch_size
    assert found.micro_batch_size <= (largest or 10**5)
    assert found.accumulation == math.ceil(batch_size / found.micro_batch_size)
    assert found.measured == (batch_size in SIZES and batch_size <= (largest or 10**5))
    if not found.measured:
        estimate = found.seconds_per_step.estimate
        assert estimate is not None
        for m in SIZES:
            if m <= min(batch_size, largest or 10**5) and batch_size % m == 0:
                assert estimate <= truth(batch_size, m) * (1 + 1e-9)


def test_what_was_timed_goes_before_what_is_predicted() -> None:
    slow = windows(2048, 512, (0.9,) * 5)
    slower = windows(2048, 256, (1.0,) * 5)
    found = fastest_split(profile(splits=(slower, slow)), 2048)
    assert (found.micro_batch_size, found.measured) == (512, True)
    assert not fastest_split(profile(100, splits=(slower, slow)), 2048).measured  # neither fits
    quick = windows(1024, 256, (1e-3,) * 5)  # faster than the whole batch, which was timed too
    assert fastest_split(profile(splits=(quick,)), 1024).micro_batch_size == 256
    assert fastest_split(profile(), 1024).accumulation == 1


def test_a_predicted_split_is_held_against_a_whole_batch_that_was_timed() -> None:
    found = fastest_split(profile(256), 1024)
    assert (found.micro_batch_size, found.measured) == (256, False)
    assert found.over_whole is not None
    assert found.over_whole.estimate == pytest.approx(truth(1024, 256) / truth(1024, 1024))


@pytest.mark.parametrize(
    ("data", "batch_size", "error", "words"),
    [
        (profile(), 0, UsageError, "expected a batch size from 1 to the 100000 training examples, got 0"),
        (profile(), 100001, UsageError, "got 100001"),
        (profile(timing=None), 64, CannotAnswer, "expected a profile with seconds per step, got none"),
        (profile(0), 64, CannotAnswer, "expected some micro-batch size that was timed to fit, got none up to 0"),
        (profile(4), 64, CannotAnswer, "got none up to 4"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    data: ProfileData, batch_size: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fastest_split(data, batch_size)


# --- what to time ---


def test_candidates_hold_the_own_size_and_what_needs_accumulation() -> None:
    pairs = candidates(profile(1024))
    sizes = {b for b, _ in pairs}
    assert {64, 1024, 2048} <= sizes
    for b in sizes:
        micros = {m for size, m in pairs if size == b}
        assert (b in micros) == (b <= 1024)  # beside the whole batch where it fits
        assert 1 <= len(micros - {b}) <= MICRO_SIZES
        assert max(micros) <= min(b, 1024)
    assert candidates(profile(timing=None)) == ()
    assert candidates(profile(4)) == ()
    assert candidates(profile(sizes=(8,), own_batch_size=8, train_size=8)) == ()


def test_candidates_that_take_too_long_are_left_out() -> None:
    def slowed(timing: StepTiming) -> StepTiming:
        return replace(timing, seconds_per_step=tuple(20000 * s for s in timing.seconds_per_step))

    timing = TimingPass(64, tuple(slowed(step(b)) if b > 200 else step(b) for b in SIZES), Conditions())
    pairs = candidates(profile(1024, timing=timing))
    assert pairs
    assert all(m <= 200 for _, m in pairs)
    assert 2048 in {b for b, _ in pairs}  # as many quick micro-batches it does not take long
