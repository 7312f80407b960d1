"""Are verdicts right as often as they claim, and their bounds those of the closed forms?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from batchscope.analysis.match_verdicts import (
    MOST_ROOM,
    ends_below,
    excess_of,
    gap_of,
    seeds_wanted,
    verdict_of,
)

BASE = {0: 0.10, 1: 0.12, 2: 0.11, 3: 0.13, 4: 0.12}
INF = math.inf


def shifted(by: list[float]) -> dict[int, float]:
    return {s: BASE[s] + d for s, d in enumerate(by)}


def test_the_excess_is_a_paired_t_on_shares_of_the_baselines_mean() -> None:
    moves, base = np.array([0.001, 0.003, 0.002, 0.0, 0.004]), np.array(list(BASE.values()))
    found = excess_of(shifted(list(moves)), BASE)
    x = (moves - moves.mean() / base.mean() * (base - base.mean())) / base.mean()
    reference = stats.ttest_1samp(x, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert found.measured.estimate == pytest.approx(x.mean())
    assert (found.measured.low, found.measured.high) == (pytest.approx(low), pytest.approx(high))
    one_sided = stats.ttest_1samp(x, 0.0, alternative="less").confidence_interval(0.95)
    assert found.upper == pytest.approx(one_sided.high)
    assert found.lower == pytest.approx(2 * x.mean() - one_sided.high)
    assert found.sd == pytest.approx(x.std(ddof=1))


def test_seeds_are_paired_by_their_number() -> None:
    own = {4: BASE[4], 0: BASE[0], 7: 99.0}
    found = excess_of(own, BASE)
    assert found.measured.n == 2
    assert found.measured.estimate == found.upper == 0.0


def test_one_seed_has_no_interval_and_never_matches() -> None:
    found = excess_of({0: 0.05}, {0: 0.10})
    assert found.measured.estimate == pytest.approx(-0.5)
    assert found.measured.low is found.upper is None
    said = verdict_of(found, MOST_ROOM, {0: 0.05}, {0: 0.2})
    assert (said.verdict, said.resolved, said.seeds_wanted) == ("does not", False, None)


def test_a_lost_seed_never_matches() -> None:
    own = shifted([-0.02, -0.02, INF, -0.02, -0.02])
    found = excess_of(own, BASE)
    assert found.measured.estimate is None
    assert (found.measured.n, found.measured.censored) == (5, 1)
    assert found.measured.low == pytest.approx(-0.02 / np.mean(list(BASE.values())))
    said = verdict_of(found, MOST_ROOM, own, shifted([0.1] * 5))
    assert (said.verdict, said.resolved) == ("does not", True)


def test_a_lost_baseline_seed_is_left_out_of_pairs_and_mean() -> None:
    found = excess_of(shifted([0.001] * 5), BASE | {2: INF})
    assert found.measured.n == 4
    assert found.measured.estimate == pytest.approx(0.001 / np.mean([BASE[s] for s in (0, 1, 3, 4)]))


def test_no_pairs_no_excess() -> None:
    found = excess_of({9: 1.0}, BASE)
    assert found.measured.estimate is None
    assert verdict_of(found, MOST_ROOM, {9: 1.0}, BASE).verdict == "does not"
    assert not verdict_of(found, MOST_ROOM, {9: 1.0}, BASE).resolved
    assert excess_of({0: 1.0}, {0: 0.0}).measured.estimate is None


def test_where_losses_are_proportional_the_excess_is_exact() -> None:
    found = excess_of({s: 1.2 * loss for s, loss in BASE.items()}, BASE)
    assert found.measured.estimate == pytest.approx(0.2)
    assert found.sd == pytest.approx(0.0, abs=1e-12)
    below = {s: -loss for s, loss in BASE.items()}
    found = excess_of({s: 0.8 * loss for s, loss in below.items()}, below)
    assert found.measured.estimate == pytest.approx(0.2)
    assert found.sd == pytest.approx(0.0, abs=1e-12)


def test_a_loss_below_zero_has_an_excess_of_its_absolute_value() -> None:
    base = dict.fromkeys(range(3), -2.0)
    assert excess_of(dict.fromkeys(range(3), -1.9), base).measured.estimate == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("moves", "exists", "room"),
    [
        ([0.060, 0.061, 0.062, 0.061, 0.060], True, 0.01),  # a quarter of 52 % is more than 1 %
        ([0.0024, 0.0023, 0.0024, 0.0023, 0.0024], True, 0.25 * 0.00236 / 0.116),
        ([0.002, -0.002, 0.001, -0.001, 0.0005], False, 0.01),
        ([-0.01, -0.011, -0.01, -0.011, -0.01], False, 0.01),
        ([0.1, INF, 0.1, 0.1, 0.1], True, 0.01),
        ([INF] * 5, True, 0.01),
    ],
)
def test_the_room(moves: list[float], exists: bool, room: float) -> None:
    gap = gap_of(512, shifted(moves), BASE)
    assert gap.exists is exists
    assert gap.room == pytest.approx(room)


def test_ends_below_is_the_one_sided_paired_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        own, other = rng.normal(0.0, 1, 6), rng.normal(0.5, 1, 6)
        p = stats.ttest_rel(own, other, alternative="less").pvalue
        assert ends_below(dict(enumerate(own)), dict(enumerate(other))) is bool(p < 0.05)


def test_ends_below_runs_that_diverged() -> None:
    own = {0: 1.0, 1: 1.1, 2: 0.9}
    assert ends_below(own, {0: INF, 1: INF, 2: INF})
    assert ends_below(own, {0: 2.0, 1: INF, 2: 1.9})
    assert not ends_below(own, {0: 1.0, 1: INF, 2: 0.9})  # the one that diverged counts as its worst other
    assert not ends_below(own | {1: INF}, {0: INF, 1: INF, 2: INF})
    assert not ends_below(own, {})


def test_narrows_and_resolved() -> None:
    untuned = shifted([0.06, 0.061, 0.062, 0.061, 0.06])
    far = shifted([0.02, 0.021, 0.022, 0.02, 0.021])
    said = verdict_of(excess_of(far, BASE), MOST_ROOM, far, untuned)
    assert (said.verdict, said.resolved, said.seeds_wanted) == ("narrows", True, None)
    near = shifted([0.0, 0.002, -0.001, 0.003, -0.002])
    said = verdict_of(excess_of(near, BASE), MOST_ROOM, near, untuned)
    assert (said.verdict, said.resolved) == ("narrows", False)
    assert said.seeds_wanted is not None
    worse = shifted([0.2] * 5)
    assert verdict_of(excess_of(worse, BASE), MOST_ROOM, worse, untuned).verdict == "does not"


def test_seeds_wanted_is_the_least_that_would_do() -> None:
    found = excess_of(shifted([0.0, 0.002, -0.001, 0.003, -0.002]), BASE)
    mean, sd = found.measured.estimate, found.sd
    assert mean is not None
    assert sd is not None
    n = seeds_wanted(found, MOST_ROOM)
    assert n is not None
    assert n > 5
    bounds = [mean + stats.t.ppf(0.95, m - 1) * sd / math.sqrt(m) for m in (n - 1, n)]
    assert bounds[1] < MOST_ROOM <= bounds[0]
    assert seeds_wanted(found, mean / 2) is None


@pytest.mark.parametrize(("excess", "least", "most"), [(0.01, 0.03, 0.07), (0.0, 0.95, 1.0), (0.02, 0.0, 0.001)])
def test_how_often_a_match_is_found(excess: float, least: float, most: float) -> None:
    """5 % where the true excess is just the room; rarely where it is more; mostly where there is none."""
    rng = np.random.default_rng(7)
    matches, repeats = 0, 2000
    for _ in range(repeats):
        base = 0.12 * np.exp(0.05 * rng.standard_normal(5))
        own = base + 0.12 * (excess + 0.005 * rng.standard_normal(5))
        untuned = base * 1.5
        first = dict(enumerate(base))
        gap = gap_of(512, dict(enumerate(untuned)), first)
        found = excess_of(dict(enumerate(own)), first)
        matches += verdict_of(found, gap.room, dict(enumerate(own)), dict(enumerate(untuned))).verdict == "matches"
    assert least <= matches / repeats <= most


@pytest.mark.parametrize("excess", [0.03, 0.6])
def test_how_often_the_interval_holds_the_truth(excess: float) -> None:
    """Also of large ones, which the error of the baseline's own mean matters to."""
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(2000):
        base = 0.12 * np.exp(0.05 * rng.standard_normal(4))
        own = base + 0.12 * (excess + 0.01 * rng.standard_normal(4))
        m = excess_of(dict(enumerate(own)), dict(enumerate(base))).measured
        assert m.low is not None
        assert m.high is not None
        inside += m.low <= excess <= m.high
    assert 0.93 <= inside / 2000 <= 0.965
