"""Are claims 8 and 9 judged as the rule says, on passes and studies whose truth is known?"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from batchscope.analysis.claims import cases_of
from batchscope.analysis.contrasts import BAND
from batchscope.analysis.scaling_claims import CLAIMS, judge_scaling, paired
from batchscope.analysis.table import analyse
from batchscope.analysis.target import steps_per_epoch
from batchscope.records import Conditions, ScalingData, ScalingQuestion

from .builders import TRAIN_SIZE, synthetic_study
from .scaling_worlds import World, made_up_pass

SIZES = (8, 16, 32, 64, 128, 256)
STUDY = synthetic_study(with_censored=False, budget_epochs=150)


def made_up_data(world: World, counts: tuple[int, ...] = (1, 2), batch_sizes: tuple[int, ...] = SIZES) -> ScalingData:
    timing = made_up_pass(world, counts, batch_sizes, own=32)
    question = ScalingQuestion(counts, batch_sizes)
    return ScalingData("made up", "f" * 16, TRAIN_SIZE, 32, 0.05, question, Conditions(), timing)


# at a batch of 8 averaging costs more than half a batch saves; at 256 it is the other way round
CLASSIC = World(overhead=1e-4, per_example=5e-5, noise=0.02, gradient_bytes=400_000)


def verdict_of(low: float, high: float) -> str:
    """By the interval that is shown."""
    edge = math.exp(BAND)
    return "holds" if low > edge else "does not hold" if high < edge else "not resolved"


def test_small_batches_slower_and_large_ones_faster_holds() -> None:
    claim, *_ = judge_scaling(made_up_data(CLASSIC), None)
    assert (claim.number, claim.claim, claim.policy, claim.verdict) == (8, CLAIMS[8], "both", "holds")
    assert "2 devices over one, batch size 256" in claim.effect.what
    true = CLASSIC.step(2, 256) / CLASSIC.step(1, 256)
    assert claim.effect.ratio.low < true < claim.effect.ratio.high
    assert claim.why.count("times") == 2


@pytest.mark.parametrize(
    "world",
    [
        World(overhead=1e-4, per_example=5e-5, wrapper=0.0, noise=0.01, gradient_bytes=4),  # all are faster
        World(overhead=1e-4, per_example=1e-8, noise=0.01),  # all are slower
    ],
    ids=["faster", "slower"],
)
def test_where_one_half_is_wrong_it_does_not_hold(world: World) -> None:
    quick = dataclasses.replace(world, link=dataclasses.replace(world.link, latency=1e-7))
    claim, *_ = judge_scaling(made_up_data(quick if world.gradient_bytes == 4 else world), None)
    assert claim.verdict == "does not hold"


def test_noise_resolves_nothing() -> None:
    claim, *_ = judge_scaling(made_up_data(dataclasses.replace(CLASSIC, noise=2.0)), None)
    assert claim.verdict == "not resolved"


def test_the_large_batch_on_many_against_the_small_one_on_one_is_epochs_times_seconds() -> None:
    world = dataclasses.replace(CLASSIC, noise=0.0)
    data = made_up_data(world)
    for policy in ("held", "tuned"):
        claim = next(c for c in judge_scaling(data, STUDY) if c.number == 9 and c.policy == policy)
        epochs = next(case for case in cases_of(STUDY, policy) if case.number == 4).ends
        large, small = (steps_per_epoch(TRAIN_SIZE, b) * world.step(n, b) for n, b in ((2, 256), (1, 8)))
        true = math.exp(epochs.difference) * large / small
        assert claim.effect.ratio.estimate == pytest.approx(true)
        assert claim.effect.what == "seconds to converge, batch size 256 on 2 devices over 8 on one"
        assert claim.verdict == verdict_of(claim.effect.ratio.low, claim.effect.ratio.high)


def test_it_holds_where_seconds_hardly_depend_on_the_batch_and_not_where_steps_are_all() -> None:
    """No overhead at all: an epoch takes as long at any batch size, and the large batch needs more of them."""
    even = World(overhead=1e-9, per_example=1e-4, slowdown=2.0, wrapper=0.0, noise=0.01, gradient_bytes=4)
    quick = dataclasses.replace(even, link=dataclasses.replace(even.link, latency=1e-8))
    heavy = World(overhead=1e-2, per_example=1e-8, wrapper=0.0, noise=0.01, gradient_bytes=4)
    verdicts = {
        name: [c.verdict for c in judge_scaling(made_up_data(world), STUDY) if c.number == 9 and c.policy == "held"]
        for name, world in {"even": quick, "heavy": heavy}.items()
    }
    assert verdicts == {"even": ["holds"], "heavy": ["does not hold"]}


def test_levels_are_holms_over_the_claims_that_can_be_judged() -> None:
    ratios = [c.effect.ratio.interval for c in judge_scaling(made_up_data(CLASSIC), STUDY)]
    assert len(ratios) == 3
    assert all("Holm over 3 claims" in text for text in ratios)


def test_what_cannot_be_judged_says_why() -> None:
    assert judge_scaling(made_up_data(CLASSIC, counts=(1,)), STUDY) == ()
    claims = judge_scaling(made_up_data(CLASSIC, batch_sizes=(8, 16)), STUDY)
    nine = [c for c in claims if c.number == 9]
    assert {c.verdict for c in nine} == {"not resolved"}
    assert {c.why for c in nine} == {"batch size 256 or 8 was not timed: give --batch-sizes"}
    (eight, *_) = judge_scaling(made_up_data(CLASSIC, batch_sizes=(8,)), None)
    assert eight.verdict == "not resolved"
    assert eight.why == "fewer than two batch sizes were timed on one device and on several"


def test_rounds_are_paired() -> None:
    """What slows a round of both drops out."""
    slow = np.array([1.0, 3.0, 1.5, 7.0])
    contrast = paired(2.0 * slow, slow)
    assert contrast.difference == pytest.approx(math.log(2.0))
    assert contrast.standard_error == pytest.approx(0.0, abs=1e-12)


def test_a_study_beside_a_pass_over_devices_judges_them_too() -> None:
    """After its own seven, which do not change."""
    data = made_up_data(CLASSIC)
    alone, beside = analyse(STUDY), analyse(dataclasses.replace(STUDY, scaling=data))
    assert beside.claims[: len(alone.claims)] == alone.claims
    assert beside.claims[len(alone.claims) :] == judge_scaling(data, STUDY)
    assert {c.number for c in beside.claims} == set(range(1, 10))
