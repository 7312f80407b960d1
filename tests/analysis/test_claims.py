"""Are the claims judged as the rule says, on studies whose truth is known?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from batchscope.analysis import quantities as q
from batchscope.analysis.claims import CLAIMED_SIDE, CLAIMS, judge
from batchscope.analysis.contrasts import BAND
from batchscope.analysis.reasons import affine_step, short
from batchscope.analysis.table import rows_of
from batchscope.records import Claim, StudyData

from .builders import synthetic_study, timing_pass


def claims_of(**options: Any) -> dict[tuple[int, str], Claim]:
    return by_key(synthetic_study(**options))


def by_key(data: StudyData) -> dict[tuple[int, str], Claim]:
    rows = [row for p in data.settings.policies for row in rows_of(data, p)]
    return {(c.number, c.policy): c for c in judge(data, rows)}


def test_every_claim_in_every_policy_and_the_truth_is_found() -> None:
    claims = claims_of(with_censored=False, budget_epochs=150)
    assert set(claims) == {(k, p) for k in range(1, 7) for p in ("held", "tuned")} | {(7, "both")}
    verdicts = {key: c.verdict for key, c in claims.items()}
    for policy in ("held", "tuned"):
        assert [verdicts[k, policy] for k in (1, 3, 4)] == ["holds"] * 3
    assert verdicts[2, "held"] == "holds"  # floor 0.28 against 0.33
    assert verdicts[2, "tuned"] == "does not hold"  # 3 %: within the band
    assert verdicts[6, "held"] == "holds"
    assert verdicts[6, "tuned"] == "does not hold"
    assert verdicts[7, "both"] == "holds"
    for c in claims.values():
        assert c.claim == CLAIMS[c.number]
        assert c.why.endswith(".")
        assert "nan" not in c.why
        assert "None" not in c.why


def test_verdicts_follow_from_the_interval_that_is_shown() -> None:
    for seed in range(3):
        for c in claims_of(seed=seed, tau=0.1, sigma=0.1).values():
            m, side = c.effect.ratio, CLAIMED_SIDE[c.number]
            low = -math.inf if m.low is None else math.log(m.low)
            high = math.inf if m.high is None else math.log(m.high)
            low, high = (low, high) if side > 0 else (-high, -low)
            if m.n == 0:
                assert c.verdict == "not resolved"
            else:
                expected = "holds" if low > BAND else "does not hold" if high < BAND else "not resolved"
                assert c.verdict == expected
                assert "Holm over" in m.interval
                assert "df" in m.interval


def test_validation_ratio_is_the_mean_of_the_paired_ratios() -> None:
    data = synthetic_study(with_censored=False)
    loss = {(t.spec.arm.batch_size, t.spec.seed): min(e.validation["loss"] for e in t.result.trace) for t in data.held}
    ratios = [loss[256, s] / loss[8, s] for s in data.settings.seeds]
    effect = by_key(data)[2, "held"].effect
    assert effect.ratio.estimate == pytest.approx(math.exp(np.mean(np.log(ratios))))
    x = np.log2(data.settings.batch_sizes)
    slopes = [np.polyfit(x, [math.log(loss[b, s]) for b in data.settings.batch_sizes], 1)[0] for s in range(3)]
    assert effect.slope_per_doubling is not None
    assert effect.slope_per_doubling.estimate == pytest.approx(math.exp(np.mean(slopes)))
    assert effect.monotone is True


def test_training_losses_are_compared_at_equal_examples() -> None:
    """Where all are evaluated at the same examples, the twin is a mean over the common evaluations."""
    data = synthetic_study(with_censored=False)
    means, end = q.mean_log_train_loss(data.tuned)
    shortest = min(t.result.examples for t in data.tuned)
    assert end == shortest
    for t in data.tuned:
        losses = [e.train["loss"] for e in t.result.trace if 0 < e.examples <= shortest]
        assert means[t.spec.arm.batch_size, t.spec.seed] == pytest.approx(float(np.mean(np.log(losses))))


def test_censored_large_batches_give_a_lower_bound() -> None:
    claims = claims_of()  # held trials at batch size 256 end at the budget
    four, five = claims[4, "held"], claims[5, "held"]
    assert four.effect.ratio.estimate is None
    assert four.effect.ratio.high is None
    assert four.effect.ratio.low is not None
    assert four.effect.ratio.low > 1.05
    assert four.verdict == "holds"
    assert "bound" in four.why
    assert five.effect.ratio.high is None
    assert five.verdict == "not resolved"
    assert "at least" in five.why


def test_censored_at_both_ends_is_not_judged() -> None:
    claims = claims_of(budget_epochs=1)
    assert claims[4, "held"].verdict == "not resolved"
    assert claims[4, "held"].effect.ratio.n == 0
    assert "both" in claims[4, "held"].why
    assert claims[5, "tuned"].effect.ratio.n == 0


def test_total_time_is_the_product() -> None:
    claims = claims_of(with_censored=False, budget_epochs=150)
    for policy in ("held", "tuned"):
        epochs, seconds, total = (claims[k, policy].effect.ratio.estimate for k in (4, 3, 5))
        assert epochs is not None
        assert seconds is not None
        assert total == pytest.approx(epochs * seconds)


def test_timing_claim_sees_through_drift_and_finds_the_overhead() -> None:
    data = synthetic_study(with_timing=False)
    timing = timing_pass(data.settings.batch_sizes, np.random.default_rng(0), 2e-4, 4e-6, rounds=9, drift=0.8)
    assert affine_step(timing)[1] / affine_step(timing)[0] == pytest.approx(0.02, rel=0.05)
    claim = by_key(dataclasses.replace(data, timing=timing))[3, "held"]
    truth = (2e-4 + 4e-6 * 256) * 4 / ((2e-4 + 4e-6 * 8) * 128)
    low, high = claim.effect.ratio.low, claim.effect.ratio.high
    assert low is not None
    assert high is not None
    assert low < truth < high
    assert claim.verdict == "holds"
    assert "86 % of a step" in claim.why


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_batch": 1}, "only batch size 8"),
        ({"seeds": 1, "with_censored": False}, "one seed"),
    ],
)
def test_what_cannot_be_judged_says_why(options: dict[str, Any], words: str) -> None:
    claim = claims_of(**options)[2, "held"]
    assert claim.verdict == "not resolved"
    assert claim.effect.ratio.estimate is None
    assert words in claim.why


def test_without_timing_only_the_timed_claims_fall() -> None:
    claims = claims_of(with_timing=False, with_censored=False)
    assert [claims[k, "held"].effect.ratio.n > 0 for k in range(1, 7)] == [True, True, False, True, False, True]
    assert "timing pass was not run" in claims[3, "held"].why
    assert "timing pass was not run" in claims[5, "held"].why


def test_one_policy_has_six_claims() -> None:
    assert set(claims_of(policies=("held",))) == {(k, "held") for k in range(1, 7)}


def test_diverged_trials_are_counted_and_cost_their_cell() -> None:
    data = synthetic_study()
    broken = []
    for t in data.held:
        if t.spec.arm.batch_size == 256 and t.spec.seed == 0:
            bad = tuple(dataclasses.replace(e, validation={"loss": math.nan}) for e in t.result.trace)
            t = dataclasses.replace(t, result=dataclasses.replace(t.result, trace=bad))
        broken.append(t)
    claim = by_key(dataclasses.replace(data, held=tuple(broken)))[2, "held"]
    assert claim.verdict == "holds"  # the two other seeds, paired
    assert "9 df" in claim.effect.ratio.interval
    assert "1 of 3 trials at batch size 256 diverged" in claim.why


def test_a_size_where_all_diverged_is_not_passed_over() -> None:
    data = synthetic_study()
    held = []
    for t in data.held:
        if t.spec.arm.batch_size == 256:
            result = dataclasses.replace(t.result, outcome="diverged", ended_by="divergence", trace=())
            t = dataclasses.replace(t, result=result)
        held.append(t)
    claims = by_key(dataclasses.replace(data, held=tuple(held)))
    assert claims[2, "held"].verdict == "not resolved"
    assert "no seed gave a value at batch size 256" in claims[2, "held"].why
    assert "3 of 3 trials at batch size 256 diverged" in claims[2, "held"].why
    assert claims[7, "both"].verdict == "not resolved"
    assert claims[4, "held"].verdict == "holds"  # never converging is longer than any that did


def test_failed_trials_are_no_measurement() -> None:
    with_failed = claims_of(with_failed=True, with_censored=False)[2, "held"]
    assert "9 df" in with_failed.effect.ratio.interval


def test_retuning_that_closes_nothing_says_so() -> None:
    data = synthetic_study(with_censored=False)
    own = data.settings.own_learning_rate  # the search chose the held learning rate everywhere
    choices = tuple(dataclasses.replace(c, learning_rate=own) for c in data.choices)
    same = dataclasses.replace(data, tuned=data.held, choices=choices)
    claim = by_key(same)[7, "both"]
    assert claim.verdict == "does not hold"
    assert claim.effect.ratio.estimate == pytest.approx(1.0)
    assert "no smaller" in claim.why or "removes 0 %" in claim.why


def test_short_numbers() -> None:
    assert [short(v) for v in (0.012345, 12345.6, 1.0, 0.0, 2.0e-5)] == ["0.0123", "12300", "1", "0", "2.00e-05"]


def test_a_study_on_several_devices_says_so_where_it_matters() -> None:
    data = synthetic_study(with_censored=False)
    conditions = dataclasses.replace(data.settings.conditions, world_size=2)
    several = dataclasses.replace(data, settings=dataclasses.replace(data.settings, conditions=conditions))
    assert by_key(several)[5, "held"].claim == "larger batches take longer to converge in total on 2 devices"
    assert by_key(several)[4, "held"] == by_key(data)[4, "held"]
