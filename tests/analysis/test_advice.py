"""Is the answer the one that the trials, the profile and the noise scale give, and is it whole in every case?"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import numpy as np
import pytest
from tests.analysis.made_up_studies import (
    B_CRIT,
    BUDGET_EXAMPLES,
    OWN,
    RATE,
    REFERENCE,
    TRAIN_SIZE,
    advice_data,
    best_rate,
    near,
    profile,
    seconds,
    tried,
    usual_trials,
)

from batchscope.analysis import advice as of_advice
from batchscope.analysis.advice import (
    advice_to_json,
    analyse_advice,
    chosen_point,
    is_weak,
    look,
    prior_of,
    run_length,
    runs_of,
    setting_of,
)
from batchscope.analysis.decision import BAND, DOUBT
from batchscope.analysis.options import options_of
from batchscope.analysis.surface import NO_NOISE_SCALE, NOISE_SCALE_SD
from batchscope.errors import CannotAnswer
from batchscope.records import Advice, AdviceData, Goal, Measured, Tried, from_plain, to_plain

DRAWS = 1000
ASKED_FOR = {  # at least, of `--json`
    *("batch_size", "learning_rate", "micro_batch_size", "accumulation", "devices", "seconds_to_goal"),
    *("steps_to_goal", "examples_to_goal", "cost", "good_batch_sizes", "p_best", "binding_limit", "verified"),
    *("critical_batch_size", "spent"),
}


@pytest.fixture(autouse=True)
def _fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fourth of the draws: what is asked here does not hang on them."""
    monkeypatch.setattr(of_advice, "DRAWS", DRAWS)


@functools.cache
def usual() -> Advice:
    return analyse_advice(advice_data())


def whole(advice: Advice) -> dict[str, Any]:
    """As JSON: refuses nan and inf, and holds what was asked for."""
    answer = json.loads(json.dumps(advice_to_json(advice), allow_nan=False))
    assert set(answer) >= ASKED_FOR
    assert set(answer["spent"]) == {"examples", "steps", "seconds", "reference_runs"}
    return answer


# --- the usual answer ---


def test_the_fastest_verified_point_is_chosen_and_its_interval_holds_the_truth() -> None:
    found = usual()
    chosen = found.chosen
    assert chosen is not None
    assert found.answered
    assert found.verified
    assert (chosen.batch_size, chosen.learning_rate) == (128, near(128))
    truth, value = seconds(128, near(128)), chosen.seconds_to_goal
    assert (value.low or math.inf) < truth < (value.high or 0.0)
    assert (value.high or math.inf) / (value.low or math.inf) < 1.5
    assert (chosen.trials, chosen.reached) == (2, 2)
    critical = found.critical_batch_size
    assert (critical.low or math.inf) < B_CRIT < (critical.high or 0.0)


def test_equal_data_give_an_equal_answer() -> None:
    """Also after the data have been through a store."""
    again = from_plain(AdviceData, json.loads(json.dumps(to_plain(advice_data()))))
    assert again == advice_data()
    assert analyse_advice(again) == usual()


def test_the_seed_of_the_question_moves_no_number() -> None:
    """It names a block of seeds for runs; the answer to equal runs is the same."""
    other = analyse_advice(advice_data(seed=5))
    assert other.candidates == usual().candidates


def test_candidates_are_every_usable_batch_size_once() -> None:
    found = usual().candidates
    assert [c.batch_size for c in found] == [2**k for k in range(3, 14)]
    assert sum(c.p_best for c in found) == pytest.approx(1.0)
    assert usual().good_batch_sizes == tuple(c.batch_size for c in found if c.p_good > DOUBT)
    assert {64, 128} <= set(usual().good_batch_sizes) | {c.batch_size for c in found if c.p_best > 0.1}
    assert not {8, 1024, 2048} & set(usual().good_batch_sizes)
    for c in found:
        if c.batch_size <= 2048:
            assert abs(math.log2(c.learning_rate) - best_rate(c.batch_size)) < 2.0
    own = next(c for c in found if c.batch_size == OWN)
    assert own.over_own is not None
    assert own.over_own.estimate == pytest.approx(1.0, abs=0.1)


def test_the_json_holds_what_was_asked_for() -> None:
    answer, found = whole(usual()), usual()
    assert answer["batch_size"] == 128
    assert answer["seconds_to_goal"] == to_plain(found.chosen.seconds_to_goal if found.chosen else None)
    assert set(answer["seconds_to_goal"]) == {"estimate", "low", "high", "n", "censored", "interval"}
    assert answer["p_best"] == {str(c.batch_size): c.p_best for c in found.candidates}
    assert answer["spent"]["reference_runs"] == pytest.approx(found.data.examples / REFERENCE)
    assert len(answer["trials"]) == len(usual_trials())


def test_the_curves_hold_the_draws_that_the_page_computes_with() -> None:
    curves = usual().curves
    assert curves is not None
    sizes = [c.batch_size for c in usual().candidates]
    assert list(curves.sizes_timed) == sizes
    examples, steps = np.array(curves.draws_log_examples), np.array(curves.draws_log_seconds)
    assert examples.shape == steps.shape == (of_advice.DRAWS_KEPT, len(sizes))
    for k, c in enumerate(usual().candidates[:6]):
        assert np.exp(np.median(examples[:, k])) == pytest.approx(c.examples_to_goal.estimate, rel=0.05)
        assert np.exp(np.median(steps[:, k])) == pytest.approx(c.seconds_per_step.estimate, rel=0.05)
    low, middle, high = np.array(curves.steps).T
    assert np.all(low < middle)
    assert np.all(middle < high)
    assert np.all(np.diff(middle) < 0)  # steps only fall with the batch size


@pytest.mark.parametrize("objective", ["cost", "examples"])
def test_another_objective_moves_the_choice_its_way(objective: str) -> None:
    """Cost with one device is time; examples alone are fewest at the smallest batch size that reached."""
    found = analyse_advice(advice_data(objective=objective, price=2.0))
    answer = whole(found)
    if objective == "cost":
        assert found.good_batch_sizes == usual().good_batch_sizes
        assert answer["cost"]["estimate"] == pytest.approx(answer["seconds_to_goal"]["estimate"] * 2.0 / 3600)
    else:
        assert found.binding_limit == "noise"
        assert max(found.candidates, key=lambda c: c.p_best).batch_size <= OWN


def test_energy_is_answered_with_a_meter_and_refused_without() -> None:
    metered = advice_data(objective="energy", profile=profile(joules=0.01))
    answer = whole(analyse_advice(metered))
    assert answer["joules"]["estimate"] > 0
    with pytest.raises(CannotAnswer, match="energy meter"):
        analyse_advice(advice_data(objective="energy"))


# --- evidence that is not whole ---


def test_what_is_predicted_to_be_better_but_was_not_verified_is_given_with_its_price() -> None:
    """Only the own point was verified; the search found a batch size that takes a fifth less."""
    ran = (*(t for t in usual_trials() if t.role != "verification"), tried("verification", OWN, RATE, 1))
    found = analyse_advice(advice_data(ran))
    assert found.verified
    assert found.chosen is not None
    assert found.better is not None
    assert found.chosen.batch_size == OWN
    better = found.better
    assert better.candidate.batch_size in (64, 128)
    assert better.candidate.over_own is not None
    assert (better.candidate.over_own.estimate or 1.0) < 1.0 / (1.0 + BAND)
    price = (better.candidate.examples_to_goal.estimate or 0.0) / REFERENCE
    assert better.reference_runs == pytest.approx(price)
    assert whole(found)["better"]["reference_runs"] == pytest.approx(price)


def test_without_any_check_the_best_that_reached_is_given_as_not_verified() -> None:
    found = analyse_advice(advice_data([t for t in usual_trials() if t.role != "verification"]))
    assert found.answered
    assert not found.verified
    assert found.chosen is not None
    assert found.chosen.reached >= 1
    whole(found)


def test_a_failed_check_verifies_nothing() -> None:
    ran = [t for t in usual_trials() if t.role != "verification"]
    found = analyse_advice(advice_data([*ran, tried("verification", 128, near(128), 1, cap=30_000.0)]))
    assert found.answered
    assert not found.verified


def unreached(**changes: Any) -> tuple[Tried, ...]:
    """Runs none of which got to the goal."""
    points = [("reference", OWN, RATE), ("search", 128, near(128)), ("search", 64, near(64))]
    runs = (tried(role, b, rate, cap=30_000.0) for role, b, rate in points)
    return tuple(dataclasses.replace(t, **changes) for t in runs)


def test_no_batch_size_reaching_the_goal_is_an_answer() -> None:
    data = advice_data(unreached(), reference_reached=False, reference_examples=float(BUDGET_EXAMPLES))
    found = analyse_advice(data)
    assert not found.answered
    assert found.chosen is None
    assert not found.verified
    assert found.better is None
    assert found.good_batch_sizes == ()
    assert found.pareto == ()
    assert found.binding_limit == "none"
    assert found.s_min.estimate is None
    assert all(c.seconds_to_goal.estimate is None for c in found.candidates)
    assert any("did not reach the goal" in note for note in found.notes)
    answer = whole(found)
    assert answer["batch_size"] is None
    assert answer["seconds_to_goal"] is None


def test_an_own_point_that_never_reaches_is_no_obstacle() -> None:
    """A learning rate sixteen times too small: the budget is its bound, and the unit of what is spent."""
    lost = tried("reference", OWN, RATE / 16, cap=200_000.0)
    assert lost.reached is None
    ran = (lost, *usual_trials()[1:])
    data = advice_data(
        ran,
        own_learning_rate=RATE / 16,
        reference_reached=False,
        reference_examples=200_000.0,
        budget_examples=200_000,
    )
    found = analyse_advice(data)
    assert found.chosen is not None
    assert found.verified
    assert found.chosen.batch_size == 128
    assert found.chosen.over_own is not None
    assert (found.chosen.over_own.high or 1.0) < 0.5
    assert found.spent.reference_runs == pytest.approx(data.examples / 200_000.0)
    whole(found)


def test_while_nothing_reaches_runs_are_compared_at_the_provisional_goal() -> None:
    """It orders the points; no seconds to the goal are known, and none are claimed."""
    goal = Goal("loss", at_most=0.5)
    ran = tuple(dataclasses.replace(t, provisional=20_000.0 + 50 * t.batch_size) for t in unreached())
    data = advice_data(ran, reference_reached=False, provisional_goal=goal)
    assert [r.log_value for r in runs_of(data)] == [math.log(20_000.0 + 50 * t.batch_size) for t in ran]
    assert not any(r.censored for r in runs_of(data))
    found = analyse_advice(data)
    assert not found.answered
    assert found.candidates[0].over_own is not None
    whole(found)
    reached = advice_data((*ran, tried("search", 128, near(128))), provisional_goal=goal)
    assert [r.censored for r in runs_of(reached)] == [True, True, True, False]


def test_a_budget_that_affords_no_run_to_the_goal_gives_ratios_only() -> None:
    found = analyse_advice(advice_data([tried("reference", OWN, RATE)], budget=2.0))
    assert is_weak(found.data)
    assert found.answered
    assert not found.verified
    assert found.better is None
    assert found.pareto == ()
    assert found.evidence == "throughput and noise scale"
    assert found.chosen is not None
    answer = whole(found)
    for name in ("seconds_to_goal", "steps_to_goal", "examples_to_goal", "cost"):
        assert answer[name]["estimate"] is None
        assert answer[name]["high"] is None
    assert answer["over_own"]["estimate"] < 1.0
    assert answer["over_own"]["high"] > answer["over_own"]["low"]


def test_the_lowest_loss_in_a_given_time() -> None:
    """Every run as long as its batch size's steps allow; the measured loss of the choice lies in its interval."""
    found = analyse_advice(advice_data(goal=None, best_in_seconds=1.0))
    assert found.evidence == "trials of a given length"
    assert found.chosen is not None
    assert found.answered
    assert found.verified
    answer = whole(found)
    assert answer["seconds_to_goal"]["estimate"] is None
    losses = [t.lowest_loss or math.inf for t in usual_trials() if t.batch_size == found.chosen.batch_size]
    assert answer["lowest_loss"]["low"] <= max(losses)
    assert answer["lowest_loss"]["high"] >= min(losses)
    assert found.s_min.estimate is None


# --- the data as the model reads them ---


def test_runs_say_where_they_crossed_or_that_they_need_more() -> None:
    """Diverged runs are known as such; failed ones say nothing."""
    failed = tried("search", 64, RATE, outcome="failed", reached=None)
    found = runs_of(advice_data([*usual_trials(), failed]))
    assert len(found) == len(usual_trials())
    for run, t in zip(found, usual_trials(), strict=True):
        assert (run.batch_size, run.learning_rate) == (t.batch_size, t.learning_rate)
        assert run.diverged is (t.outcome == "diverged")
        assert run.censored is (t.reached is None)
        assert run.log_value == pytest.approx(math.log(t.reached or t.bound))


def test_losses_are_read_as_such_and_a_run_without_one_was_lost() -> None:
    lost = tried("search", 64, RATE, lowest_loss=None)
    first, last = runs_of(advice_data([tried("reference", OWN, RATE), lost], goal=None, best_in_examples=50_000))
    assert first.log_value == pytest.approx(math.log(usual_trials()[0].lowest_loss or 0.0))
    assert (first.censored, first.diverged) == (False, False)
    assert last.diverged


def test_a_goal_reached_within_a_few_evaluations_is_said_to_be() -> None:
    fine, coarse = (analyse_advice(advice_data(cadence_examples=c)) for c in (100, 50_000))
    assert not any("examples apart" in note for note in fine.notes)
    assert any("Evaluations are 50000 examples apart" in note for note in coarse.notes)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (Measured(100.0, 50.0, 200.0, 9), (math.log(100.0), NOISE_SCALE_SD)),
        (Measured(None, 80.0, None, 9), (math.log(80.0) + NOISE_SCALE_SD / 2, NOISE_SCALE_SD)),
        (Measured(None, None, None, 0), NO_NOISE_SCALE),
        (None, NO_NOISE_SCALE),
    ],
)
def test_the_noise_scale_is_the_prior_of_the_critical_batch_size(
    noise: Measured | None, expected: tuple[float, float]
) -> None:
    data = advice_data(noise=noise)
    prior = prior_of(data, setting_of(data, {o.batch_size: o for o in options_of(data.profile, TRAIN_SIZE)}))
    assert prior.log_b_crit == pytest.approx(expected)
    crossed = next(t.reached for t in data.trials if t.role == "reference")
    assert (prior.batch_size, prior.learning_rate, prior.log_value) == (OWN, RATE, math.log(crossed or 0.0))


def test_a_run_lasts_as_many_examples_as_its_steps_make_in_the_time() -> None:
    (option,) = (o for o in options_of(profile(), TRAIN_SIZE) if o.batch_size == 64)
    step = option.seconds.estimate or math.nan
    data = advice_data(goal=None, best_in_seconds=2.0)
    assert run_length(data, option) == math.floor(2.0 / step * TRAIN_SIZE / 157)  # 157 steps an epoch
    assert run_length(advice_data(goal=None, best_in_examples=12_345), option) == 12_345
    assert run_length(advice_data(goal=None, best_in_seconds=1e-9), option) == 1


def test_the_search_knows_the_budget_in_examples() -> None:
    data = advice_data(budget=4.0)
    setting = setting_of(data, {o.batch_size: o for o in options_of(data.profile, TRAIN_SIZE)})
    assert setting.limit_examples == 4.0 * REFERENCE
    assert setting.run_examples is None
    assert setting.log_weights[64] < setting.log_weights[8]


def test_the_best_of_the_verified_points_is_chosen() -> None:
    """Not the one with the most luck, but the one with the least mean; and only if it is verified."""
    data = advice_data([*usual_trials(), tried("verification", 512, near(512), 1)])
    _, view = look(data, 200)
    point, verified = chosen_point(data, view)
    assert (point, verified) == ((128, near(128)), True)
    assert chosen_point(advice_data([]), view) == (None, False)
