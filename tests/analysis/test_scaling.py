"""Is a step's time on n devices fitted, taken apart and predicted as its model says, and is the error stated right?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from batchscope.analysis.scaling import (
    UNKNOWN_SD,
    Predictor,
    compute_seconds,
    fit_scaling,
    joined,
    predictions_of,
    rows_of,
)
from batchscope.records import Network, ScalingPass

from .scaling_worlds import World, made_up_pass

WORLD = World()
PASS = made_up_pass(WORLD)
TRAIN_SIZE = 10_000


def row(timing: ScalingPass, devices: int, batch_size: int):
    return next(r for r in rows_of(timing, TRAIN_SIZE) if (r.devices, r.batch_size) == (devices, batch_size))


def test_rows_are_what_was_timed() -> None:
    found = row(PASS, 4, 512)
    assert found.seconds_per_step.estimate == pytest.approx(WORLD.step(4, 512))
    assert found.exposed.estimate == pytest.approx(WORLD.step(4, 512) - WORLD.alone(4, 512))
    assert found.seconds_per_epoch.estimate == pytest.approx(math.ceil(TRAIN_SIZE / 512) * WORLD.step(4, 512))
    assert found.examples_per_second.estimate == pytest.approx(512 / WORLD.step(4, 512))
    assert found.strong_speedup.estimate == pytest.approx(WORLD.step(1, 512) / WORLD.step(4, 512))
    assert found.weak_efficiency.estimate == pytest.approx(WORLD.step(1, 128) / WORLD.step(4, 512))


def test_one_device_exposes_nothing_and_is_as_fast_as_itself() -> None:
    found = row(PASS, 1, 128)
    assert found.exposed.estimate == 0.0
    assert found.strong_speedup.estimate == found.weak_efficiency.estimate == 1.0


def test_weak_efficiency_needs_the_part_to_have_been_timed() -> None:
    assert row(PASS, 4, 64).weak_efficiency is None
    assert row(PASS, 4, 64).strong_speedup is not None


def test_a_drift_common_to_all_device_counts_divides_out() -> None:
    drifting = made_up_pass(World(drift=0.5))
    for n, b in ((1, 32), (2, 256), (4, 2048)):
        estimate = row(drifting, n, b).seconds_per_step.estimate
        assert estimate == pytest.approx(WORLD.step(n, b) * math.exp(0.25))
    assert row(drifting, 4, 512).strong_speedup.estimate == pytest.approx(WORLD.step(1, 512) / WORLD.step(4, 512))


def test_the_parameters_are_found_exactly_without_noise() -> None:
    fit = fit_scaling(PASS)
    assert {n: k.estimate for n, k in fit.slowdown.items()} == pytest.approx({"2": 1.1, "4": 1.1}, rel=1e-3)
    assert fit.wrapper.estimate == pytest.approx(WORLD.wrapper, rel=1e-2)
    assert fit.factor.estimate == pytest.approx(WORLD.factor, rel=1e-2)
    assert fit.overlap.estimate == pytest.approx(WORLD.overlap, rel=1e-2)
    assert fit.residual_sd < 1e-3
    assert len(fit.residuals) == 14


@pytest.mark.parametrize("overlap", [1.0, 3.0, 10.0])
def test_any_overlap_is_found(overlap: float) -> None:
    fit = fit_scaling(made_up_pass(World(overlap=overlap, factor=1.0)))
    assert fit.overlap.estimate == pytest.approx(overlap, rel=0.02)
    assert fit.factor.estimate == pytest.approx(1.0, rel=0.02)


def test_joining_is_between_the_larger_and_the_sum() -> None:
    for a, b in ((1.0, 1.0), (1e-9, 5.0), (3.0, 0.0), (1e200, 1e200)):
        assert joined(a, b, 1.0) == pytest.approx(a + b)
        assert max(a, b) <= joined(a, b, 10.0) <= a + b
    assert joined(0.0, 0.0, 2.0) == 0.0


def test_computing_is_read_off_straight_lines() -> None:
    single = {b: WORLD.compute(b) for b in (32, 256, 2048)}
    for examples in (8, 32, 100, 2048, 10_000):
        assert compute_seconds(single, examples) == pytest.approx(WORLD.compute(examples))
    assert compute_seconds({64: 0.5}, 1000) == 0.5
    assert compute_seconds({64: 0.5, 128: 0.4}, 1000) == 0.4  # noise: never less for more examples than were timed


def test_what_was_timed_is_not_predicted() -> None:
    predictor = Predictor(PASS)
    seconds, measured = predictor.seconds(4, 512)
    assert measured
    assert seconds == row(PASS, 4, 512).seconds_per_step


@pytest.mark.parametrize("devices", [8, 64])
def test_more_devices_are_predicted_over_a_ring_or_a_tree(devices: int) -> None:
    """Without noise the ring's seconds are the world's own, and lie between the interval's ends."""
    seconds, measured = Predictor(PASS).seconds(devices, 1024)
    assert not measured
    true = WORLD.step(devices, 1024)
    assert seconds.low <= true <= seconds.high
    assert seconds.estimate <= true * 1.01  # the faster of the two
    assert "5% for each doubling" in seconds.interval


def test_the_error_grows_with_the_distance() -> None:
    predictor = Predictor(made_up_pass(World(noise=0.02)))
    widths = [math.log(m.high / m.low) for n in (8, 32, 128, 1024) for m, _ in [predictor.seconds(n, 1024)]]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_the_interval_of_twice_the_devices_holds_the_truth() -> None:
    """Fitted on 1, 2 and 4, asked of 8: in at least 21 of 24 noisy passes (meant: more than 95 %)."""
    true, held = WORLD.step(8, 512), 0
    for seed in range(24):
        seconds, _ = Predictor(made_up_pass(World(noise=0.05), seed=seed)).seconds(8, 512)
        held += seconds.low <= true <= seconds.high
    assert held >= 21


def test_another_model_with_the_same_link_is_predicted() -> None:
    """From its own steps on one device, and from averaging as it was fitted with other gradients."""
    fitted = Predictor(PASS)
    for factor in (0.5, 2.0):
        other = dataclasses.replace(WORLD, gradient_bytes=int(factor * WORLD.gradient_bytes), per_example=2e-5)
        steps = made_up_pass(other, counts=(1,))
        predicted = fitted.of_another(steps, (other.gradient_bytes,))
        for b in (64, 512, 2048):
            assert predicted.predicted((2, b)).estimate == pytest.approx(other.step(2, b), rel=0.01)


def test_a_described_link_takes_the_place_of_the_measured_one() -> None:
    slow = Network(1e-3, 1e7)
    seconds, measured = Predictor(PASS, slow).seconds(2, 512)
    assert not measured
    true = dataclasses.replace(WORLD, link=slow, factor=1.0).step(2, 512)  # it is taken at its word
    assert seconds.low <= true <= seconds.high
    assert seconds.estimate == pytest.approx(true, rel=0.01)
    assert Predictor(PASS, slow).seconds(1, 512)[1]


def test_without_a_step_on_several_devices_the_overlap_is_not_known() -> None:
    """From none of the averaging hidden to all of it; without a link, nothing can be said."""
    single = made_up_pass(WORLD, counts=(1,))
    assert not Predictor(single).can(2, 512)
    seconds, _ = Predictor(single, WORLD.link).seconds(2, 512)
    averaging = WORLD.ring(2, WORLD.gradient_bytes)
    assert seconds.low <= max(WORLD.compute(256), averaging) * 1.08
    assert seconds.high >= WORLD.compute(256) + averaging
    fit = fit_scaling(single)
    assert fit.overlap.estimate is None
    assert "no step on several devices was timed" in fit.reason


def test_steps_on_several_devices_without_all_reduces_tell_of_those_devices_only() -> None:
    """A study's own seconds."""
    predictor = Predictor(dataclasses.replace(made_up_pass(WORLD, counts=(1, 2)), all_reduces=()))
    assert [predictor.can(n, 512) for n in (1, 2, 4)] == [True, True, False]
    assert predictor.seconds(2, 512)[0].estimate == pytest.approx(WORLD.step(2, 512))
    assert predictor.predicted((2, 700)).estimate == pytest.approx(WORLD.step(2, 700), rel=0.05)


def test_one_batch_size_does_not_tell_what_a_part_of_it_takes() -> None:
    """Nothing is predicted then, but what was timed stands."""
    predictor = Predictor(made_up_pass(WORLD, counts=(1, 2), batch_sizes=(512,)))
    assert predictor.can(2, 512)
    assert not predictor.can(4, 512)
    assert not predictor.can(2, 256)
    assert predictions_of(made_up_pass(WORLD, counts=(1, 2), batch_sizes=(512,)), (1, 2, 4), (512,), None) == ()


def test_as_many_parameters_as_places_leave_no_residual() -> None:
    """Two sizes on two devices are fitted exactly: the model's error is then a guess, not 0."""
    few = made_up_pass(WORLD, counts=(1, 2), batch_sizes=(64, 512))
    assert math.isnan(fit_scaling(few).residual_sd)
    seconds, _ = Predictor(few).seconds(4, 512)
    assert seconds.high / seconds.low > math.exp(2 * 1.96 * UNKNOWN_SD)


def test_predictions_name_the_link_and_leave_out_what_was_measured() -> None:
    found = predictions_of(PASS, (1, 2, 4, 8), (4, 64, 512), None)
    assert {(p.devices, p.batch_size) for p in found} == {(1, 4), (2, 4), (4, 4), (8, 64), (8, 512)}
    assert {p.how for p in found} == {"predicted over the link measured here"}
    described = predictions_of(PASS, (2,), (512,), Network(1e-6, 1e10))
    assert [p.how for p in described] == ["predicted over the link described"]


def test_intervals_of_the_fit_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals of k and g, 24 passes: at least 20."""
    held = np.zeros(2)
    for seed in range(24):
        fit = fit_scaling(made_up_pass(World(noise=0.03), seed=seed))
        held += [fit.slowdown["2"].low <= 1.1 <= fit.slowdown["2"].high, fit.overlap.low <= 1.5 <= fit.overlap.high]
    assert held.min() >= 20, held
