"""Is the best batch size of each device count the one with the least seconds, and is it said when more buy nothing?"""

from __future__ import annotations

import math

import pytest

from batchscope.analysis.scaling import Predictor
from batchscope.analysis.scaling_choice import GoalSteps, choices_of, goal_steps, law_steps, most_useful
from batchscope.analysis.table import law_of
from batchscope.records import Measured

from .builders import synthetic_study
from .scaling_worlds import World, made_up_pass

WORLD = World()
SIZES = (32, 64, 128, 256, 512, 1024, 2048)
COUNTS = (1, 2, 4, 8, 64, 1024)


def steps(s_min: float = 100.0, b_crit: float = 300.0) -> GoalSteps:
    """Exact steps of a law at the sizes timed."""
    exact = {b: s_min * (1 + b_crit / b) for b in SIZES}
    return GoalSteps(
        {b: Measured(s, 0.9 * s, 1.1 * s, 3) for b, s in exact.items()},
        {},
        Measured(b_crit, 0.5 * b_crit, 2 * b_crit, 3),
    )


def test_each_count_takes_the_batch_size_with_the_least_seconds() -> None:
    """Against all of them, one by one."""
    known = steps()
    for choice in choices_of(Predictor(made_up_pass(WORLD)), known, (1, 2, 4)):
        seconds = {b: known.measured[b].estimate * WORLD.step(choice.devices, b) for b in SIZES}
        assert choice.batch_size == min(seconds, key=lambda b: seconds[b])
        assert choice.seconds_to_goal.estimate == pytest.approx(seconds[choice.batch_size])
        assert choice.device_seconds.estimate == pytest.approx(choice.devices * seconds[choice.batch_size])
        assert choice.measured
        assert not choice.extrapolated


def test_more_devices_want_larger_batches() -> None:
    sizes = [c.batch_size for c in choices_of(Predictor(made_up_pass(WORLD)), steps(), COUNTS)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_the_speed_up_is_over_one_device_at_its_own_best() -> None:
    one, *others = choices_of(Predictor(made_up_pass(WORLD)), steps(), COUNTS)
    assert (one.speedup.estimate, one.devices) == (1.0, 1)
    for choice in others:
        ratio = one.seconds_to_goal.estimate / choice.seconds_to_goal.estimate
        assert choice.speedup.estimate == pytest.approx(ratio)
        assert choice.speedup.low < ratio < choice.speedup.high


def test_steps_that_both_share_are_no_error_of_the_speed_up() -> None:
    """One batch size only: its steps drop out."""
    only = GoalSteps({512: Measured(100.0, 10.0, 1000.0, 3)}, {}, None)
    _, two = choices_of(Predictor(made_up_pass(World(noise=0.01))), only, (1, 2))
    assert two.speedup.high / two.speedup.low < 1.1
    assert two.seconds_to_goal.high / two.seconds_to_goal.low > 90


def test_a_batch_has_an_example_for_every_device() -> None:
    assert all(c.batch_size >= c.devices for c in choices_of(Predictor(made_up_pass(WORLD)), steps(), COUNTS))


def test_of_several_devices_nothing_is_said_without_a_link() -> None:
    found = choices_of(Predictor(made_up_pass(WORLD, counts=(1,))), steps(), COUNTS)
    assert [c.devices for c in found] == [1]


def test_the_most_useful_count_is_the_fewest_that_no_other_beats_by_more_than_the_band() -> None:
    choices = choices_of(Predictor(made_up_pass(WORLD)), steps(b_crit=30.0), COUNTS)
    seconds = {c.devices: c.seconds_to_goal.estimate for c in choices}
    enough = most_useful(choices)
    assert enough in seconds
    assert seconds[enough] <= 1.05 * min(seconds.values())
    assert all(s > 1.05 * min(seconds.values()) for n, s in seconds.items() if n < enough)


def test_a_smaller_critical_batch_size_makes_fewer_devices_useful() -> None:
    predictor = Predictor(made_up_pass(WORLD))
    few, many = (most_useful(choices_of(predictor, steps(b_crit=b), COUNTS)) for b in (10.0, 3000.0))
    assert few is not None
    assert many is None or few < many


def test_where_the_most_devices_still_gain_no_most_useful_count_is_known() -> None:
    assert most_useful(choices_of(Predictor(made_up_pass(WORLD)), steps(b_crit=1e6), (1, 2, 4))) is None
    assert most_useful(choices_of(Predictor(made_up_pass(WORLD)), steps(), (1,))) is None


def test_steps_are_those_of_the_tuned_policy_and_the_law_goes_beyond_them() -> None:
    data = synthetic_study(with_censored=False)
    known = goal_steps(data)
    law = law_of(data)
    assert set(known.measured) <= set(data.settings.batch_sizes)
    assert known.critical_batch_size == law.critical_batch_size
    assert all(b > max(data.settings.batch_sizes) for b in known.extrapolated)
    for b, m in known.extrapolated.items():
        assert m == law_steps(law, b, data.settings.train_size)
        assert m.low < m.estimate < m.high


def test_far_beyond_the_critical_batch_size_steps_are_the_least() -> None:
    law = law_of(synthetic_study(with_censored=False))
    far = law_steps(law, 10**9, 10**12)
    assert far.estimate == pytest.approx(law.s_min.estimate, rel=1e-3)
    assert math.log(far.high / far.estimate) == pytest.approx(math.log(far.estimate / far.low))
