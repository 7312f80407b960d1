"""Does the table say what the records say, and is its JSON the contract?"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from batchscope.analysis.table import analyse, to_json
from batchscope.records import Goal, Measured, StudyResult, from_plain

from .builders import TRAIN_SIZE, synthetic_study

ROW_KEYS = {
    "batch_size",
    "policy",
    "learning_rate",
    "tuning_trials",
    "seeds",
    "reached",
    "epochs_to_converge",
    "steps_to_goal",
    "examples_to_goal",
    "seconds_per_epoch",
    "seconds_to_converge",
    "seconds_to_goal",
    "min_validation_loss",
    "train_loss",
    "generalization_gap",
    "distance_from_init",
}
MEASURED_KEYS = {"estimate", "low", "high", "n", "censored", "interval"}


def study(**options: Any) -> StudyResult:
    return analyse(synthetic_study(**options))


def test_rows_by_policy_then_batch_size() -> None:
    rows = study().rows
    assert [(r.policy, r.batch_size) for r in rows] == [
        (p, b) for p in ("held", "tuned") for b in (8, 16, 32, 64, 128, 256)
    ]
    assert {r.learning_rate for r in rows if r.policy == "held"} == {0.05}
    assert [r.tuning_trials for r in rows] == [0] * 6 + [3] * 6
    assert all(r.seeds == 3 for r in rows)
    assert (rows[5].reached, rows[5].diverged, rows[11].reached) == (2, 1, 2)


def test_tuned_rows_hold_the_truth() -> None:
    """Crossings are interpolated in a coarse trace: 6 % of tolerance beside the lack of fit."""
    data = synthetic_study(with_censored=False, tau=0.0, sigma=0.001)
    result = analyse(data)
    for r in result.rows[6:]:
        assert r.steps_to_goal.estimate == pytest.approx(60 * (1 + 40 / r.batch_size), rel=0.06)
        assert r.examples_to_goal.estimate == pytest.approx(60 * (r.batch_size + 40), rel=0.06)
    assert result.law.critical_batch_size.estimate == pytest.approx(40, rel=0.1)
    assert result.law.s_min.estimate == pytest.approx(60, rel=0.1)


def test_values_at_the_best_evaluation() -> None:
    data = synthetic_study(with_censored=False)
    row = next(r for r in analyse(data).rows if r.policy == "tuned" and r.batch_size == 32)
    own = [t for t in data.tuned if t.spec.arm.batch_size == 32]
    at = [min(t.result.trace, key=lambda e: e.validation["loss"]) for t in own]

    def geometric(values: list[float]) -> float:
        return math.exp(float(np.mean(np.log(values))))

    assert row.min_validation_loss.estimate == pytest.approx(geometric([e.validation["loss"] for e in at]))
    assert row.train_loss.estimate == pytest.approx(geometric([e.train["loss"] for e in at]))
    gaps = [e.validation["loss"] - e.train["loss"] for e in at]
    assert row.generalization_gap.estimate == pytest.approx(np.mean(gaps))
    assert row.distance_from_init.estimate == pytest.approx(geometric([e.distance for e in at]))
    assert row.epochs_to_converge.estimate == pytest.approx(geometric([e.examples / TRAIN_SIZE for e in at]))
    errors = [e.train["accuracy"] - e.validation["accuracy"] for e in at]
    assert row.error_gap is not None
    assert row.error_gap.estimate == pytest.approx(np.mean(errors))
    assert row.test is not None
    assert set(row.test) == {"loss", "accuracy"}


def test_totals_are_products() -> None:
    for r in study(with_censored=False, budget_epochs=150).rows:
        epochs, seconds, total = (
            m.estimate for m in (r.epochs_to_converge, r.seconds_per_epoch, r.seconds_to_converge)
        )
        assert epochs is not None
        assert seconds is not None
        assert total == pytest.approx(epochs * seconds)
        steps = r.steps_to_goal.estimate
        assert steps is not None
        per_step = seconds / math.ceil(TRAIN_SIZE / r.batch_size)
        assert r.seconds_to_goal.estimate == pytest.approx(steps * per_step)


def test_a_goal_that_nothing_reaches_is_an_answer() -> None:
    data = synthetic_study()
    settings = dataclasses.replace(data.settings, goal=Goal("loss", at_most=0.01))
    result = analyse(dataclasses.replace(data, settings=settings))
    for r in result.rows:
        assert r.reached == 0
        m = r.examples_to_goal
        assert (m.estimate, m.high, m.n, m.censored) == (None, None, 3, 3)
        assert m.low == pytest.approx(settings.budget_examples)
        assert r.seconds_to_goal.low is not None
    assert result.law.critical_batch_size.estimate is None
    assert "0 of 6" in result.law.reason
    assert sum("No batch size reaches the goal" in n for n in result.notes) == 2


def test_held_alone_has_no_law() -> None:
    result = study(policies=("held",))
    assert result.law.s_min.estimate is None
    assert "tuned policy only" in result.law.reason
    answer = to_json(result)
    assert answer["critical_batch_size"] is None
    assert answer["s_min"] is None
    assert answer["critical_batch_size_reason"]


def test_failed_trials_are_noted_and_not_counted() -> None:
    result = study(with_failed=True, with_censored=False)
    assert result.rows[0].seeds == 2
    assert result.rows[0].steps_to_goal.n == 2
    assert any("seed 0 failed: the worker was killed." in n for n in result.notes)


def test_an_arm_that_was_not_run_is_an_empty_row() -> None:
    data = synthetic_study()
    held = tuple(t for t in data.held if t.spec.arm.batch_size != 16)
    result = analyse(dataclasses.replace(data, held=held))
    row = result.rows[1]
    assert (row.batch_size, row.seeds, row.steps_to_goal.estimate) == (16, 0, None)
    assert any("Not measured in the policy held: batch size 16." in n for n in result.notes)
    json.dumps(to_json(result), allow_nan=False)


def test_no_trials_at_all() -> None:
    data = dataclasses.replace(synthetic_study(), held=(), tuned=(), tuning=(), choices=(), timing=None)
    result = analyse(data)
    assert all(c.verdict == "not resolved" for c in result.claims)
    json.dumps(to_json(result), allow_nan=False)


def test_spent_counts_everything() -> None:
    data = synthetic_study(with_failed=True)
    spent = analyse(data).spent
    trials = (*data.held, *data.tuned, *data.tuning)
    assert spent.trials == 18 + 18 + 18 == len(trials)
    assert spent.examples == sum(t.result.examples for t in trials)
    assert spent.reference_runs == pytest.approx(spent.examples / data.reference_examples)


def test_drift_and_coarse_evaluations_are_noted() -> None:
    notes = " ".join(study(drift=0.5).notes)
    assert "drifted by" in notes
    assert "Evaluations are 512 examples apart" in notes
    assert "timing pass was not run" in " ".join(study(with_timing=False).notes)


def test_losses_that_are_not_positive_are_pooled_as_they_are() -> None:
    data = synthetic_study(with_censored=False)

    def lowered(t: Any) -> Any:
        trace = tuple(
            dataclasses.replace(e, validation={**e.validation, "loss": e.validation["loss"] - 0.3})
            for e in t.result.trace
        )
        return dataclasses.replace(t, result=dataclasses.replace(t.result, trace=trace))

    result = analyse(dataclasses.replace(data, held=tuple(lowered(t) for t in data.held)))
    lowest = result.rows[0].min_validation_loss.estimate
    assert lowest is not None
    assert lowest < 0
    assert next(c for c in result.claims if c.number == 2).verdict == "not resolved"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policies": ("held",)},
        {"with_timing": False},
        {"n_batch": 1, "seeds": 1},
        {"budget_epochs": 1},
        {"seeds": 2},
    ],
)
def test_json_is_the_contract(options: dict[str, Any]) -> None:
    result = study(**options)
    answer = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert {
        "rows",
        "claims",
        "critical_batch_size",
        "s_min",
        "report",
        "task",
        "fingerprint",
        "goal",
        "settings",
    } <= set(answer)
    for row in answer["rows"]:
        assert set(row) >= ROW_KEYS
        assert set(row["steps_to_goal"]) == MEASURED_KEYS
    for claim in answer["claims"]:
        assert set(claim) == {"claim", "number", "policy", "verdict", "effect", "why"}
        assert set(claim["effect"]["ratio"]) == MEASURED_KEYS
    assert from_plain(StudyResult, {**answer, "law": answer["law"], "claims": answer["claims"]}).rows == result.rows
    for k in ("critical_batch_size", "s_min"):
        assert answer[k] is None or set(answer[k]) == MEASURED_KEYS
    if answer["critical_batch_size"] is None:
        assert answer["critical_batch_size_reason"]


def test_a_law_without_end_is_null_in_json() -> None:
    result = study()
    law = dataclasses.replace(
        result.law,
        critical_batch_size=Measured(None, 900.0, None, 6),
        joint_covariance=((math.inf, 0.0), (0.0, math.nan)),
    )
    answer = to_json(dataclasses.replace(result, law=law))
    assert answer["critical_batch_size"]["low"] == 900.0
    json.dumps(answer, allow_nan=False)


def test_equal_data_give_an_equal_answer() -> None:
    assert to_json(study(seed=3)) == to_json(study(seed=3))


def test_further_targets_are_read_from_the_same_trials() -> None:
    data = synthetic_study(seed=0, with_censored=False)
    goal = data.settings.goal
    easier = goal.value * 1.2
    settings = dataclasses.replace(data.settings, targets=(goal.value, easier))
    result = analyse(dataclasses.replace(data, settings=settings))
    same, easy = result.targets
    assert [r.steps_to_goal for r in same.rows] == [r.steps_to_goal for r in result.rows]
    assert same.law == result.law
    assert easy.goal.value == easier
    for a, b in zip(easy.rows, result.rows, strict=True):
        assert a.examples_to_goal.estimate < b.examples_to_goal.estimate


def test_an_optimum_on_the_edge_of_what_was_tried_is_noted() -> None:
    data = synthetic_study(seed=0, with_censored=False)
    first, *rest = data.choices
    edge = dataclasses.replace(first, learning_rate=0.4, tried=((0.2, None), (0.4, 100.0)))
    inside = [dataclasses.replace(c, learning_rate=0.2, tried=((0.1, None), (0.2, 1.0), (0.4, None))) for c in rest]
    notes = analyse(dataclasses.replace(data, choices=(edge, *inside))).notes
    assert [n for n in notes if "edge" in n and f"batch size {first.batch_size} " in n]
    assert sum("edge" in n for n in notes) == 1


def test_trials_at_a_learning_rate_chosen_no_longer_are_left_out() -> None:
    data = synthetic_study(seed=0, with_censored=False)
    old = data.tuned[0]
    arm = dataclasses.replace(old.spec.arm, learning_rate=2 * old.spec.arm.learning_rate)
    stale = dataclasses.replace(old, spec=dataclasses.replace(old.spec, arm=arm))
    result = analyse(dataclasses.replace(data, tuned=(stale, *data.tuned)))
    assert result.rows == analyse(data).rows
    assert result.law == analyse(data).law
