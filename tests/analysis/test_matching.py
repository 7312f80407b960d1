"""Does a match's answer say what is true, with seeds that diverge, seconds, races, and when nothing was measured?"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from analysis.match_worlds import (
    BUDGET,
    LARGE,
    OWN,
    N,
    World,
    data_of,
    lost,
    race_of,
    run_of,
    runs_of,
    timing_of,
    timings_of,
)
from analysis.scaling_worlds import World as Machine
from analysis.scaling_worlds import made_up_pass
from batchscope.analysis.match_course import MOST_POINTS, thinned
from batchscope.analysis.matching import analyse_match, match_to_json, steps_of
from batchscope.records import (
    NO_REMEDY,
    MatchData,
    MatchResult,
    MatchRow,
    Racer,
    RemedyTiming,
    ScalingData,
    ScalingQuestion,
    to_plain,
)

GOOD, FAIR, BAD = "good", "fair", "bad"
WORLD = World({NO_REMEDY: 0.3, GOOD: -0.01, FAIR: 0.1, BAD: 0.6})


def answer(world: World = WORLD, seed: int = 0, **more: object) -> MatchResult:
    return analyse_match(data_of(runs_of(world, np.random.default_rng(seed)), world, **more))


def row_of(result: MatchResult, remedy: str, batch_size: int = LARGE) -> MatchRow:
    return next(r for r in result.rows if (r.remedy, r.batch_size) == (remedy, batch_size))


def test_verdicts_of_a_known_world() -> None:
    result = answer()
    assert {r.remedy: r.verdict for r in result.rows} == {
        GOOD: "matches",
        FAIR: "narrows",
        NO_REMEDY: "narrows",
        BAD: "does not",
    }
    assert [r.remedy for r in result.rows] == [GOOD, FAIR, NO_REMEDY, BAD]
    assert all(r.resolved for r in result.rows)
    (gap,) = result.gaps
    assert gap.exists
    assert gap.room == 0.01
    assert gap.untuned.estimate == pytest.approx(0.5, abs=0.03)
    assert result.baseline.excess.estimate == 0.0
    assert result.baseline.role == "baseline"
    assert result.baseline.verdict == result.untuned[0].verdict == ""
    assert result.untuned[0].excess == gap.untuned


def test_truths_are_inside_their_intervals_about_as_often_as_meant() -> None:
    inside = total = 0
    for seed in range(150):
        for row in answer(seed=seed).rows:
            low, high = row.excess.low, row.excess.high
            assert low is not None
            assert high is not None
            inside += low <= WORLD.excesses[row.remedy] <= high
            total += 1
    assert 0.92 <= inside / total <= 0.98


def test_a_diverged_seed_is_counted_and_never_matches() -> None:
    runs = runs_of(WORLD, np.random.default_rng(0))
    k = next(i for i, r in enumerate(runs) if r.remedy == GOOD)
    for outcome in ("diverged", "failed"):
        changed = [*runs[:k], lost(runs[k], outcome), *runs[k + 1 :]]
        result = analyse_match(data_of(changed, WORLD))
        row = row_of(result, GOOD)
        assert (row.seeds, row.diverged, row.reached) == (5, 1, 4)
        assert (row.verdict, row.resolved) == ("does not", True)
        assert row.excess.estimate is row.min_validation_loss.estimate is row.validation["accuracy"].estimate is None
        assert row.min_validation_loss.low is not None
        assert row.validation["accuracy"].low is None
        assert row.steps_to_goal is not None
        assert row.steps_to_goal.censored == 1
        assert result.rows[-1] is row
        assert ("failed: out of memory" in " ".join(result.notes)) is (outcome == "failed")
    after_goal = dataclasses.replace(runs[k], ended_by="divergence")  # it had reached the goal before
    assert row_of(analyse_match(data_of([*runs[:k], after_goal, *runs[k + 1 :]], WORLD)), GOOD).verdict == "does not"


def test_one_seed() -> None:
    result = answer(dataclasses.replace(WORLD, seeds=1))
    row = row_of(result, GOOD)
    assert row.excess.estimate is not None
    assert row.excess.low is row.bound is None
    assert (row.verdict, row.resolved) == ("does not", False)
    assert result.largest is None
    assert result.gaps[0].room == 0.01
    assert not result.gaps[0].exists
    assert any("one seed" in note for note in result.notes)


def test_without_untuned_runs_the_room_is_one_percent() -> None:
    runs = [r for r in runs_of(WORLD, np.random.default_rng(0)) if r.role != "untuned"]
    result = analyse_match(data_of(runs, WORLD))
    assert result.gaps == ()
    assert row_of(result, GOOD).room == 0.01
    assert row_of(result, GOOD).verdict == "matches"
    assert row_of(result, FAIR).verdict == "does not"
    assert any("not run untuned" in note for note in result.notes)


def test_no_baseline_no_answer() -> None:
    runs = [r for r in runs_of(WORLD, np.random.default_rng(0)) if r.role != "baseline"]
    with pytest.raises(ValueError, match="expected runs of the baseline"):
        analyse_match(data_of(runs, WORLD))


# --- steps, seconds, the largest ---


def test_steps_to_goal_and_how_many_fewer() -> None:
    runs = runs_of(WORLD, np.random.default_rng(0))
    largest = analyse_match(data_of(runs, WORLD)).largest
    assert largest is not None
    assert (largest.batch_size, largest.remedy, largest.tested_beyond) == (LARGE, GOOD, None)
    logs = [
        math.log((a.steps_to_goal or 0) / (b.steps_to_goal or 1))
        for a in runs
        for b in runs
        if a.role == "baseline" and b.remedy == GOOD and a.seed == b.seed
    ]
    low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    fewer = largest.fewer_steps
    assert fewer.estimate == pytest.approx(math.exp(np.mean(logs)))
    assert (fewer.low, fewer.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))


def test_fewer_steps_where_not_all_reached() -> None:
    runs = runs_of(WORLD, np.random.default_rng(0))
    some = [dataclasses.replace(r, steps_to_goal=None) if r.remedy == GOOD and r.seed == 0 else r for r in runs]
    largest = analyse_match(data_of(some, WORLD)).largest
    assert largest is not None
    assert largest.fewer_steps.estimate is not None
    none = [dataclasses.replace(r, steps_to_goal=None) if r.remedy == GOOD else r for r in runs]
    result = analyse_match(data_of(none, WORLD))
    assert row_of(result, GOOD).steps_to_goal == dataclasses.replace(
        row_of(result, GOOD).steps_to_goal, estimate=None, low=pytest.approx(BUDGET / LARGE), high=None, censored=5
    )
    assert result.largest is not None
    bound = result.largest.fewer_steps
    assert bound.estimate is bound.low is None
    own = result.baseline.steps_to_goal
    assert own is not None
    assert own.high is not None
    assert bound.high == pytest.approx(own.high / (BUDGET / LARGE))


def test_the_largest_batch_that_matches_and_the_next_beyond() -> None:
    world = World({GOOD: 0.0, FAIR: 0.001}, batch_sizes=(128, 256, 512), own_sd=0.002)
    runs = [
        dataclasses.replace(r, validation={"loss": 1.3 * r.validation["loss"]})
        if r.batch_size == 512 and r.role == "confirmed"
        else dataclasses.replace(r, steps_to_goal=(r.steps_to_goal or 0) / 2)
        if r.remedy == FAIR
        else r
        for r in runs_of(world, np.random.default_rng(1))
    ]
    result = analyse_match(data_of(runs, world))
    assert result.largest is not None
    assert (result.largest.batch_size, result.largest.remedy, result.largest.tested_beyond) == (256, FAIR, 512)
    assert [r.batch_size for r in result.rows] == [128, 128, 256, 256, 512, 512]


def test_seconds_are_steps_times_seconds_per_step() -> None:
    times = timings_of({OWN: 0.001, LARGE: 0.004}, **{GOOD: {LARGE: 0.006}})
    result = answer(timings=times)
    row, own = row_of(result, GOOD), result.baseline
    assert row.seconds_per_step is not None
    assert row.seconds_per_step.estimate == pytest.approx(0.006)
    assert row_of(result, FAIR).seconds_per_step is None
    assert row_of(result, FAIR).seconds_to_goal == {}
    assert row.steps_to_goal is not None
    assert own.steps_to_goal is not None
    assert row.seconds_to_goal[1].estimate == pytest.approx(0.006 * (row.steps_to_goal.estimate or 0))
    assert own.seconds_to_goal[1].estimate == pytest.approx(0.001 * (own.steps_to_goal.estimate or 0))
    assert result.largest is not None
    fewer, faster = result.largest.fewer_steps, result.largest.faster[1]
    assert faster.estimate == pytest.approx((fewer.estimate or 0) / 6)
    assert faster.low == pytest.approx((fewer.low or 0) / 6)  # timings without noise add nothing


def test_drift_divides_out() -> None:
    times = (
        RemedyTiming(NO_REMEDY, timing_of({OWN: 0.001, LARGE: 0.004}, drift=0.5)),
        RemedyTiming(GOOD, timing_of({LARGE: 0.006}, drift=0.5)),
    )
    result = answer(timings=times)
    seconds = row_of(result, GOOD).seconds_per_step
    assert seconds is not None
    assert seconds.low == pytest.approx(seconds.high)
    assert seconds.estimate == pytest.approx(0.006 * 1.25)  # at the pass's typical speed
    assert any("drifted by 50 %" in note for note in result.notes)


def test_seconds_on_several_devices() -> None:
    """The plain step there times what the remedy adds on one device."""
    machine = Machine()
    scaling = ScalingData(
        task="made up",
        fingerprint="f" * 16,
        train_size=N,
        own_batch_size=OWN,
        own_learning_rate=0.1,
        question=ScalingQuestion((1, 2, 4), (OWN, LARGE)),
        conditions=made_up_pass(machine).passes[0].conditions,
        timing=made_up_pass(machine),
    )
    times = timings_of({OWN: 0.001, LARGE: 0.004}, **{GOOD: {LARGE: 0.006}})
    data = data_of(runs_of(WORLD, np.random.default_rng(0)), WORLD, timings=times, scaling=scaling)
    question = dataclasses.replace(data.question, devices=(1, 4))
    result = analyse_match(dataclasses.replace(data, question=question))
    row = row_of(result, GOOD)
    assert row.steps_to_goal is not None
    expected = machine.step(4, LARGE) * 1.5 * (row.steps_to_goal.estimate or 0)
    assert row.seconds_to_goal[4].estimate == pytest.approx(expected, rel=1e-6)
    assert result.largest is not None
    gain = (result.largest.fewer_steps.estimate or 0) * machine.step(4, OWN) / (1.5 * machine.step(4, LARGE))
    assert result.largest.faster[4].estimate == pytest.approx(gain, rel=1e-6)
    without = analyse_match(dataclasses.replace(data, question=question, scaling=None))
    assert set(row_of(without, GOOD).seconds_to_goal) == {1}
    assert any("one device only" in note for note in without.notes)


def test_a_batch_that_grows_takes_the_seconds_of_its_mean_batch() -> None:
    a, b = 5e-4, 7e-6
    times = timings_of({OWN: a + b * OWN, LARGE: a + b * LARGE}, **{GOOD: {LARGE: 99.0}})
    runs = [
        dataclasses.replace(r, steps=700, steps_to_goal=300.0 + r.seed, examples_to_goal=20_000.0)
        if r.remedy == GOOD
        else r
        for r in runs_of(WORLD, np.random.default_rng(0))
    ]
    result = analyse_match(data_of(runs, WORLD, timings=times))
    row = row_of(result, GOOD)
    assert row.seconds_per_step is not None
    assert row.seconds_per_step.estimate == pytest.approx((700 * a + BUDGET * b) / 700)
    seconds = [(300 + s) * a + 20_000 * b for s in range(5)]
    assert row.seconds_to_goal[1].estimate == pytest.approx(math.exp(np.mean(np.log(seconds))))
    assert row.verdict == "matches"
    assert not row.saves_steps  # the baseline gets to the goal in fewer
    assert result.largest is None


def test_steps_of_examples_counts_the_short_batches() -> None:
    assert steps_of(96 * 1024, 1024, 512) == 192
    assert steps_of(2 * 1000, 1000, 512) == 4
    assert steps_of(2 * 1000 + 512, 1000, 512) == 5


# --- the race, and how it went ---


def test_what_the_race_left_behind() -> None:
    rounds = (
        race_of({NO_REMEDY: 0.3, GOOD: 0.2, FAIR: 0.4, BAD: 0.5, "dropped": 0.7, "lost": math.inf}, kept=(GOOD,)),
    )
    runs = runs_of(WORLD, np.random.default_rng(0))
    runs += [run_of("race", LARGE, "dropped", 900, 0.7, None), lost(run_of("race", LARGE, "lost", 900, 0.7, None))]
    result = analyse_match(data_of(runs, WORLD, rounds=rounds, titles={"dropped": "It changes."}))
    assert [r.remedy for r in result.rows] == [GOOD, FAIR, NO_REMEDY, BAD, "dropped", "lost"]
    dropped, gone = result.rows[-2:]
    assert (dropped.verdict, dropped.role, dropped.seeds, dropped.excess.estimate) == ("dropped", "race", 0, None)
    assert dropped.min_validation_loss.estimate == 0.7
    assert dropped.changes == "It changes."
    assert gone.min_validation_loss.estimate is None
    assert gone.diverged == 1


def test_costs_count_each_run_once() -> None:
    runs = runs_of(World({GOOD: 0.0}, seeds=2), np.random.default_rng(0))
    first = dataclasses.replace(run_of("race", LARGE, GOOD, 900, 0.3, None), examples=10_752, steps=21)
    whole = dataclasses.replace(first, examples=BUDGET, steps=192)
    other = dataclasses.replace(first, remedy="longer")
    data = data_of([*runs, first, whole, other], World({GOOD: 0.0}, seeds=2), lengths=((LARGE, "longer", 4.0),))
    result = analyse_match(dataclasses.replace(data, reference_examples=10_000.0))
    (race,) = result.races
    assert (race.candidates, race.examples, race.to_the_end) == (2, BUDGET + 10_752, 5 * BUDGET)
    assert result.spent is not None
    assert result.spent.examples == 7 * BUDGET + 10_752
    assert result.spent.trials == 8
    assert result.spent.reference_runs == pytest.approx(result.spent.examples / 10_000)


def test_curves_fall_and_keep_both_ends() -> None:
    result = answer()
    assert len(result.curves) == 5 * (1 + 1 + 4)
    for curve in result.curves:
        losses = [loss for _, loss in curve.lowest]
        assert losses == sorted(losses, reverse=True)
        assert curve.lowest[0][0] == 0
        assert curve.lowest[-1][0] == BUDGET
    long = [(k, float(-k)) for k in range(1000)]
    short = thinned(long)
    assert len(short) == MOST_POINTS == len(set(short))
    assert (short[0], short[-1]) == (long[0], long[-1])


def test_notes_tell_of_multiplicity_edges_and_evaluations() -> None:
    rounds = tuple(
        dataclasses.replace(race_of({GOOD: 0.1}), raced=tuple(Racer(GOOD, r) for r in rates), scores=(0.1, 0.2, 0.3))
        for rates in [(0.8, 0.4, 0.2)]
    )
    runs = [
        dataclasses.replace(r, losses=r.losses * 2) if r.remedy == FAIR else r
        for r in runs_of(WORLD, np.random.default_rng(0))
    ]
    notes = analyse_match(
        data_of(runs, WORLD, rounds=rounds, chosen=((LARGE, Racer(GOOD, 0.8)),), notes=("First.",))
    ).notes
    assert notes[0] == "First."
    assert any(f"(4 at batch size {LARGE})" in note for note in notes)
    assert any("'good', 0.8, is on the edge" in note for note in notes)
    assert any("'fair' were evaluated 10 times, those of the baseline 5 times" in note for note in notes)


def test_json_is_plain_and_finite() -> None:
    result = answer(rounds=(race_of({GOOD: 0.1, BAD: math.inf}),))
    text = json.dumps(match_to_json(result), allow_nan=False)
    assert "curves" not in json.loads(text)
    assert json.loads(text)["rows"][0]["verdict"] == "matches"


def test_equal_data_give_an_equal_answer() -> None:
    data: MatchData = data_of(runs_of(WORLD, np.random.default_rng(3)), WORLD)
    assert to_plain(analyse_match(data)) == to_plain(analyse_match(data))
