"""Does the answer of `noise` follow from its records: the average to the crossing, windows, picture, factor?"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from tests.analysis.builders import evaluation, synthetic_study

from batchscope.analysis.noise import (
    analyse_noise,
    change,
    deviation_of,
    factor_of,
    noise_to_json,
    predicted_of,
    train_loss_at,
)
from batchscope.analysis.noise_scale import noise_scale
from batchscope.records import Conditions, Deviations, Goal, GradientNorms, Measured, NoiseRun, from_plain, to_plain

N, B, PARTS = 4096, 64, 8


def measurements(count: int, seed: int = 0, every: int = 1, rise: float = 1.0) -> tuple[GradientNorms, ...]:
    """tr(Sigma) = 100 rise^s with 10 % noise, |G|^2 = 1 with 20 % noise, at progress s of the run."""
    rng = np.random.default_rng(seed)
    spread = 1 - 1 / N
    found = []
    for k in range(count):
        trace = 100 * rise ** (k / count) * (1 + 0.1 * rng.standard_normal()) / spread
        mean = 1 + 0.2 * rng.standard_normal() + trace * (1 / B - 1 / N)
        step = k * every
        found.append(GradientNorms(step, step * B, PARTS, B / PARTS, B, mean, mean + trace * (PARTS - 1) / B))
    return tuple(found)


def noise_run(count: int = 400, crossed_at: float | None = None, **changes: object) -> NoiseRun:
    run = NoiseRun(
        task="made up",
        fingerprint="f",
        train_size=N,
        goal=Goal("loss", at_most=0.36),
        batch_size=B,
        learning_rate=0.1,
        conditions=Conditions(),
        measurements=measurements(count),
        trace=tuple(evaluation(k, k * B, 1.0, train=2.0 - k / 400) for k in range(0, count + 1, 50)),
        outcome="not_reached" if crossed_at is None else "reached",
        crossed_at=crossed_at,
        steps=count,
    )
    return dataclasses.replace(run, **changes)


def test_the_run_average_ends_at_the_crossing() -> None:
    run = noise_run(crossed_at=100 * B - 1.0, discarded=2)
    got = analyse_noise(run)
    assert got.run_average == noise_scale(run.measurements[:100], data_size=N, discarded=2)
    assert got.run_average.b_simple.estimate == pytest.approx(100, rel=0.1)
    assert not got.notes
    whole = analyse_noise(noise_run(crossed_at=None))
    assert whole.run_average.measurements == 400
    assert "did not cross its goal" in whole.notes[0]


def test_tokens_have_no_finite_population() -> None:
    run = noise_run(unit="tokens")
    assert analyse_noise(run).run_average == noise_scale(run.measurements)


def test_windows_cover_the_run_without_overlap() -> None:
    for count, windows in ((10, 1), (31, 1), (40, 2), (100, 6), (400, 13), (0, 0)):
        run = noise_run(count)
        points = analyse_noise(run).points
        counted = [p.scale.measurements for p in points]
        assert sum(counted) == count
        assert len(points) == windows
        assert all(n >= 16 for n in counted) or len(points) == 1
        assert all(a.last_step < b.first_step for a, b in itertools.pairwise(points))


def test_a_point_carries_the_loss_at_its_middle() -> None:
    for point in analyse_noise(noise_run()).points:
        middle = (point.first_step + point.last_step) / 2
        assert point.examples == pytest.approx(middle * B)
        assert point.loss == pytest.approx(2.0 - middle / 400)
    trace = (evaluation(1, 100, 1.0, train=3.0), evaluation(2, 200, 1.0, train=math.nan))
    assert train_loss_at(trace, 100) == 3.0
    assert train_loss_at(trace, 99) is None
    assert train_loss_at(trace, 150) is None
    assert train_loss_at((), 0) is None


def principle_data(rng: np.random.Generator, sizes: tuple[int, ...] = (1, 16, 256, 2048, 4096)) -> Deviations:
    """Gaussian gradients in 50 dimensions with tr(Sigma) = 100, |G|^2 = 1, N = 4096; up to 16 disjoint batches."""
    gradients = rng.standard_normal((N, 50))
    gradients *= math.sqrt(100 / np.mean(np.sum((gradients - gradients.mean(axis=0)) ** 2, axis=1)))
    gradients += math.sqrt(1 / 50) - gradients.mean(axis=0)
    squared = []
    for b in sizes:
        order = rng.permutation(N)
        batches = [order[i * b : (i + 1) * b] for i in range(min(16, N // b))]
        squared.append(tuple(float(np.sum((gradients[i].mean(0) - gradients.mean(0)) ** 2)) for i in batches))
    return Deviations(200, 200 * B, 1.5, N, 1.0, sizes, tuple(squared), norms=measurements(33))


def test_the_picture_of_the_principle() -> None:
    run = noise_run(deviations=(principle_data(np.random.default_rng(0)),))
    (principle,) = analyse_noise(run).principles
    assert (principle.step, principle.squared_gradient, principle.scale.measurements) == (200, 1.0, 33)
    for point in principle.points[:3]:
        exact = 100 / point.batch_size * (N - point.batch_size) / (N - 1)
        assert point.predicted.estimate == pytest.approx(exact, rel=0.2)
        for m in (point.deviation, point.predicted):
            assert (m.low or 0) < exact < (m.high or 0)
    half, whole = principle.points[3:]
    assert half.deviation.low is None
    assert "two halves" in half.deviation.interval
    assert (whole.deviation.estimate, whole.predicted.estimate) == (0.0, 0.0)


def test_the_picture_rests_on_measurements_at_the_checkpoint_where_there_are_any() -> None:
    at = dataclasses.replace(principle_data(np.random.default_rng(0), (16,)), norms=measurements(24, seed=3))
    run = noise_run(deviations=(at,))
    assert analyse_noise(run).principles[0].scale == noise_scale(at.norms, data_size=N)


def test_batches_that_share_out_the_data_are_not_independent() -> None:
    """All four quarters of the data, 400 times: the widened t interval covers, a plain one does not."""
    rng, hits, plain = np.random.default_rng(1), 0, 0
    for _ in range(400):
        g = rng.standard_normal((4, 20))
        g -= g.mean(axis=0)  # of four batches that are the whole data; S2 (1/B - 1/N) = 20 * 3/4
        draws = np.sum(g * g, axis=1).tolist()
        m = deviation_of(draws, 8, Deviations(0, 0, 1.0, 32, 1.0, (8,), (tuple(draws),)))
        assert m.low is not None
        assert m.high is not None
        hits += m.low <= 15 <= m.high
        plain += abs(np.mean(draws) - 15) <= stats.t.ppf(0.975, 3) * np.std(draws, ddof=1) / 2
    assert 370 <= hits <= 394
    assert plain < 366


def test_deviations_without_an_interval_say_why() -> None:
    at = Deviations(0, 0, 1.0, 32, 2.0, (8,), ((1.0,),))
    assert deviation_of([1.0], 8, at) == Measured(0.5, None, None, 1, 0, "none: one draw has no spread")
    assert deviation_of([1.0], 8, dataclasses.replace(at, squared_gradient=0.0)).estimate is None
    assert predicted_of(noise_scale(measurements(20)), 8, 32, "tokens").estimate is None


def test_a_bound_predicts_a_bound() -> None:
    scale = noise_scale(measurements(20))
    bound = dataclasses.replace(scale, b_simple=Measured(None, 300.0, None, 20, 20))
    got = predicted_of(bound, 10, 100)
    assert got.low == pytest.approx(300 / 10 * 90 / 99)
    assert (got.estimate, got.high) == (None, None)


def test_the_factor_between_two_measured_quantities() -> None:
    """Log-normal intervals: the logs' half widths add in quadrature. Open ends stay open."""
    one, other = Measured(200.0, 100.0, 400.0, 9), Measured(50.0, 50 / 3, 150.0, 8)
    width = math.hypot(math.log(2), math.log(3))
    got = factor_of(one, other)
    assert (got.estimate, got.low, got.high) == pytest.approx((4.0, 4 * math.exp(-width), 4 * math.exp(width)))
    at_least, open_below = Measured(None, 300.0, None, 9, 9), Measured(50.0, 0.0, 150.0, 8)
    beyond = Measured(None, 60.0, None, 8, 8)

    def ends(a: Measured, b: Measured) -> tuple[float | None, ...]:
        m = factor_of(a, b)
        return m.estimate, m.low, m.high

    assert ends(at_least, other) == (None, 2.0, None)
    assert ends(one, beyond) == (None, None, pytest.approx(400 / 60))
    assert ends(at_least, beyond) == (None, None, None)
    assert ends(one, open_below) == (4.0, pytest.approx(4 * math.exp(-width)), None)


def test_against_a_study_of_the_same_task() -> None:
    study = synthetic_study()
    run = noise_run(fingerprint=study.settings.fingerprint)
    got = analyse_noise(run, study, "s1").against_sweep
    assert got is not None
    assert got.study == "s1"
    assert got.critical_batch_size.estimate is not None
    assert got.factor == factor_of(analyse_noise(run).run_average.b_simple, got.critical_batch_size)
    tokens = analyse_noise(dataclasses.replace(run, unit="tokens"), study)
    assert tokens.against_sweep is None
    assert "not compared" in tokens.notes[-1]
    untuned = dataclasses.replace(study, settings=dataclasses.replace(study.settings, policies=("held",)))
    none = analyse_noise(run, untuned)
    assert none.against_sweep is None
    assert "no critical batch size" in none.notes[-1]
    with pytest.raises(ValueError, match="own study"):
        analyse_noise(noise_run(), study)


def test_notes_say_what_a_reader_must_know() -> None:
    assert any("factor of" in n for n in analyse_noise(noise_run(measurements=measurements(400, rise=30))).notes)
    few = analyse_noise(noise_run(6))
    assert any("No interval for the run average" in n for n in few.notes)
    assert change([Measured(1.0, 0.5, 2.0, 9), Measured(3.0, 1.5, 6.0, 9)]) is None
    assert change([Measured(1.0, 0.5, 2.0, 9), Measured(9.0, 4.0, 20.0, 9)]) == 9
    assert change([Measured(None, 0.5, None, 9)]) is None


def test_json_holds_everything_and_no_nan() -> None:
    run = noise_run(40, deviations=(principle_data(np.random.default_rng(2)),), notes=("batch norm",))
    result = analyse_noise(run)
    text = json.dumps(noise_to_json(result), allow_nan=False)
    answer = json.loads(text)
    assert answer["run_average"]["b_simple"]["estimate"] == result.run_average.b_simple.estimate
    assert len(answer["data"]["measurements"]) == 40
    assert answer["notes"][0] == "batch norm"
    assert answer["against_sweep"] is None
    assert {"points", "layers", "proxies", "principles", "conditions", "spent"} <= answer.keys()
    assert from_plain(NoiseRun, json.loads(json.dumps(to_plain(run)))).measurements == run.measurements
