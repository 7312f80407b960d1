"""Is a branch's loss the average that it claims, is k* Merrill's, and are verdicts wrong as seldom as they say?"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from batchscope.analysis.branching import (
    bracket,
    branch_answer,
    final_loss,
    final_losses,
    judged,
    passes,
    smoothing_of,
    student,
)
from batchscope.records import from_plain, to_plain
from batchscope.records.branching import Branch, BranchAnswer

BASE, WINDOW, RATE = 8, 512, 0.1
KS = (0.5, 1.0, 2.0, 4.0)


def branch(k: float, losses: tuple[float, ...], seed: int = 0, diverged: bool = False) -> Branch:
    size = int(k * BASE)
    return Branch(k, seed, size, RATE * k, losses, (float(size),) * len(losses), diverged)


def flat(k: float, seed: int, level: float) -> Branch:
    """From 2 at the checkpoint at once to `level`, for the whole window."""
    return branch(k, (2.0, *[level] * (round(WINDOW / (k * BASE)) - 1)), seed)


def standing(seed: int, level: float) -> Branch:
    """The checkpoint itself."""
    return Branch(0.0, seed, BASE, 0.0, (level,) * (WINDOW // BASE), (float(BASE),) * (WINDOW // BASE))


def answer(branches: list[Branch], seconds: dict[int, float] | None = None, start: float = 2.0) -> BranchAnswer:
    """Of these branches, beside a checkpoint whose own loss is `start` throughout."""
    return branch_answer(
        [*(standing(b.seed, start) for b in branches if b.k == 1), *branches],
        batch_size=BASE,
        window=WINDOW,
        unit="examples",
        rule="linear",
        tolerance=0.01,
        micro_batch_size=BASE,
        seconds=seconds,
    )


def of_levels(levels: dict[float, float], noise: float = 0.001, orders: int = 3) -> list[Branch]:
    """Branches that end at these levels, give or take, with a common part per data order."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=orders)
    return [flat(k, s, level + common[s] + noise * rng.normal()) for s in range(orders) for k, level in levels.items()]


def naive_average(b: Branch, window: float, smoothing: float) -> float:
    """The twin: an exponential moving average that takes the units one by one, started at nothing."""
    keep = math.exp(-1 / smoothing)
    total = weight = seen = 0.0
    for loss, units in zip(b.losses, b.units, strict=True):
        for _ in range(round(units)):
            if seen < window:
                total, weight, seen = keep * total + (1 - keep) * loss, keep * weight + 1 - keep, seen + 1
    return total / weight


@pytest.mark.parametrize("window", [256, 251, 37])
def test_the_final_loss_is_a_moving_average_over_units(window: int) -> None:
    rng = np.random.default_rng(1)
    losses, units = tuple(rng.normal(size=40)), tuple(float(u) for u in rng.integers(1, 14, size=40))
    b = Branch(1.0, 0, 7, RATE, losses, units)
    assert final_loss(b, window, 30.0) == pytest.approx(naive_average(b, window, 30.0), rel=1e-12)


def test_the_largest_branchs_average_is_mean_of_new_and_old() -> None:
    """Merrill's average, weight 1/2 to each new batch, where the window is short enough for it."""
    largest = branch(16.0, tuple(np.random.default_rng(2).normal(size=8)))
    smoothing = smoothing_of([branch(1.0, (0.0,)), largest], window=8 * 16 * BASE)
    assert smoothing == 16 * BASE / math.log(2)
    average, weight = 0.0, 0.0
    for loss in largest.losses:
        average, weight = average / 2 + loss / 2, weight / 2 + 0.5
    assert final_loss(largest, 8 * 16 * BASE, smoothing) == pytest.approx(average / weight)
    assert smoothing_of([branch(1.0, (0.0,))], window=8000) == 1000


def test_an_examples_own_difficulty_drops_out() -> None:
    """Where weights do not matter, the same examples give the same average whatever the batch they come in."""
    own = np.random.default_rng(3).normal(size=WINDOW)
    found = [
        final_loss(branch(k, tuple(own.reshape(-1, int(k * BASE)).mean(1))), WINDOW, smoothing=1e9) for k in (*KS, 8.0)
    ]
    assert found == pytest.approx([found[0]] * len(found), abs=1e-8)


def test_units_and_not_examples_weigh() -> None:
    b = Branch(1.0, 0, BASE, RATE, (1.0, 3.0), (10.0, 30.0))
    assert final_loss(b, 40.0, 1e9) == pytest.approx(2.5)
    assert smoothing_of([b], 1.0) == pytest.approx(20 / math.log(2))


def test_intervals_are_the_paired_t_test() -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 6))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = student(a - b, "the paired differences")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert "5 df" in found.interval
    levels = dict.fromkeys(KS, 1.0)
    point = answer(of_levels(levels, orders=6)).points[3]
    branches = [*of_levels(levels, orders=6), *(standing(s, 2.0) for s in range(6))]
    losses = final_losses(branches, WINDOW, smoothing_of(branches, WINDOW), 0.01)
    pairs = [list(losses[k].values()) for k in (4.0, 1.0)]
    assert (point.excess.low, point.excess.high) == pytest.approx(
        tuple(stats.ttest_rel(*pairs).confidence_interval(0.95))
    )


def naive_best(means: dict[float, float], tolerance: float) -> float | None:
    """Merrill's k* by its definition, over the ks that have a smaller one."""
    best = None
    for k, loss in means.items():
        smaller = [means[j] for j in means if j < k]
        if smaller and all(loss <= other + tolerance for other in smaller):
            best = k
    return best


def test_k_star_is_merrills() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        means = dict(zip((0.5, 1.0, 2.0, 3.0, 4.0), rng.normal(size=5).cumsum() * 0.01, strict=True))
        losses = {k: {0: value} for k, value in means.items()}  # one data order: nothing is sure, k* is by the means
        best = max((k for k in losses if passes(losses, k, 0.01)), default=None)
        assert best == naive_best(means, 0.01)
        outcome, estimate, low, high = bracket(losses, 0.01)
        assert (outcome, low, high) == ("not_resolved", None, None)
        assert estimate == (None if best == 4.0 else best)


def test_a_bracket() -> None:
    found = answer(of_levels({0.5: 1.0, 1.0: 1.001, 2.0: 1.003, 4.0: 1.2}))
    assert found.outcome == "bracketed"
    b = found.recovered_up_to
    assert (b.estimate, b.low, b.high, b.n) == (16, 16, 32, 3)
    assert [p.recovered for p in found.points] == ["not resolved", "yes", "yes", "no"]
    assert (found.steps_saved.estimate, found.steps_saved.high) == (0.5, 0.75)
    assert "paired t on 3 data orders, 2 df" in b.interval
    assert "recovers up to 16 and no longer at 32" in str(found)
    assert "Weaker than runs to a goal" in found.evidence


def test_bounds_on_either_side() -> None:
    largest = answer(of_levels(dict.fromkeys(KS, 1.0)))
    assert largest.outcome == "at_least"
    assert (largest.recovered_up_to.estimate, largest.recovered_up_to.low, largest.recovered_up_to.high) == (
        None,
        32,
        None,
    )
    assert "recovers up to 32, and no larger one" in str(largest)
    below = answer(of_levels({0.5: 1.0, 1.0: 1.5, 2.0: 1.7, 4.0: 2.0}))
    assert below.outcome == "below"
    assert (below.recovered_up_to.estimate, below.recovered_up_to.low, below.recovered_up_to.high) == (None, None, 8)
    assert below.steps_saved.high == 0
    assert "does not recover at 8" in str(below)


def test_what_is_near_the_tolerance_is_not_resolved() -> None:
    found = answer(of_levels({1.0: 1.0, 2.0: 1.0, 4.0: 1.01}, noise=0.002, orders=3))
    assert [p.recovered for p in found.points] == ["not resolved", "yes", "not resolved"]
    assert found.outcome == "at_least"
    assert found.recovered_up_to.low == 16
    assert "Not resolved by these 3 data orders: k = 4. Give more seeds." in found.notes


def test_one_data_order_has_no_interval() -> None:
    found = answer(of_levels({1.0: 1.0, 2.0: 1.0, 4.0: 3.0, 8.0: 4.0}, orders=1))
    assert found.outcome == "not_resolved"
    assert found.recovered_up_to.estimate == 16
    assert found.recovered_up_to.interval == "none: one data order has no spread"
    assert {p.recovered for p in found.points} == {"not resolved"}
    assert found.points[1].excess.low is None
    assert "by the mean losses, up to 16 (1 data order, " in str(found)


def test_divergence_is_a_result() -> None:
    branches = of_levels({0.5: 1.0, 1.0: 1.0, 2.0: 1.0})
    branches += [branch(4.0, (2.0, 50.0), s, diverged=True) if s == 1 else flat(4.0, s, 1.0) for s in range(3)]
    branches += [flat(8.0, s, 1e6) for s in range(3)]  # finite, but no training any more
    found = answer(branches)
    assert [p.diverged for p in found.points] == [False, False, False, True, True]
    assert [p.recovered for p in found.points[3:]] == ["no", "no"]
    assert (found.points[3].loss.estimate, found.points[3].loss.censored, found.points[3].excess.n) == (None, 1, 3)
    assert found.points[3].reason == "diverged on 1 of 3 data orders"
    assert found.outcome == "bracketed"
    assert (found.recovered_up_to.low, found.recovered_up_to.high) == (16, 32)


def test_a_base_that_diverges_is_said() -> None:
    branches = of_levels({0.5: 1.0, 2.0: 1.0}) + [branch(1.0, (2.0,), s, diverged=True) for s in range(3)]
    found = answer(sorted(branches, key=lambda b: (b.seed, b.k)))
    assert found.learned.estimate is None
    assert "the base diverged on 3 of 3" in found.points[2].excess.interval
    assert any("The base itself (k = 1) diverged" in note for note in found.notes)
    nothing = answer([branch(k, (), s, diverged=True) for s in range(2) for k in KS])
    assert {p.recovered for p in nothing.points} == {"no"}
    assert nothing.spent == 2 * WINDOW  # of the checkpoint itself


def test_a_base_that_learns_nothing_is_said() -> None:
    up = answer([flat(k, s, 2.5 + 0.01 * s) for s in range(3) for k in KS])
    assert any("not shown to end below the checkpoint's own loss (+0.51)" in note for note in up.notes)
    unsure = answer([flat(k, s, 1.9 + 0.1 * s) for s in range(3) for k in KS])
    assert any("not shown to end below" in note for note in unsure.notes)
    little = answer([flat(k, s, 1.995) for s in range(3) for k in KS])
    assert any("a branch that learned nothing would count as recovered" in note for note in little.notes)
    assert little.learned.estimate == pytest.approx(0.005, abs=1e-3)
    assert answer(of_levels({1.0: 0.1, 2.0: 0.1})).notes == ()


def test_a_checkpoint_without_a_loss_is_a_result() -> None:
    lost = Branch(0.0, 0, BASE, 0.0, (), (), diverged=True)
    found = branch_answer(
        [lost, flat(1.0, 0, 1.0), flat(2.0, 0, 1.0)],
        batch_size=BASE,
        window=WINDOW,
        unit="examples",
        rule="sqrt",
        tolerance=0.01,
        micro_batch_size=BASE,
    )
    assert found.learned.interval == "none: the checkpoint's own loss is not finite"
    assert not any(p.diverged for p in found.points)


def test_old_weights_are_told_of() -> None:
    """The loss falls by 0.001 an example; a batch of 4 B is read at weights 1.5 B older, and older where it counts."""
    branches = [
        branch(k, tuple(5 - 0.001 * np.arange(0, WINDOW, k * BASE) + 0.01 * s), s) for s in range(3) for k in (1.0, 4.0)
    ]
    found = answer(branches, start=5.0)
    assert any("about 0.013 of its excess" in note for note in found.notes)
    assert found.points[1].excess.estimate == pytest.approx(0.0132, rel=0.01)


def test_what_is_not_monotone_is_said() -> None:
    found = answer(of_levels({0.5: 1.0, 1.0: 1.0, 2.0: 1.1, 4.0: 1.0}))
    assert any("Not monotone: k = 4 recovers by its mean loss, k = 2 does not" in note for note in found.notes)


def test_time_is_a_ratio() -> None:
    found = answer(of_levels(dict.fromkeys(KS, 1.0)), seconds={BASE: 0.1, 4 * BASE: 0.3})
    ratios = [p.time_ratio and p.time_ratio.estimate for p in found.points]
    assert ratios == [None, 1.0, None, pytest.approx(0.75)]


def test_json_and_back() -> None:
    found = answer(of_levels(dict.fromkeys(KS, 1.0)), seconds={BASE: 0.1})
    assert from_plain(BranchAnswer, json.loads(json.dumps(to_plain(found)))) == found


@pytest.mark.parametrize(("smaller", "above"), [(1, 0.01), (4, 0.01)])
def test_verdicts_are_rarely_wrong(smaller: int, above: float) -> None:
    """At the tolerance itself both verdicts are wrong: "no" in at most 5 % of cases, "yes" in 2.5, less 3 errors."""
    rng, cases = np.random.default_rng(6), 1000
    wrong = {"yes": 0, "no": 0, "not resolved": 0}
    for _ in range(cases):
        losses = {float(k): {s: 0.01 * rng.normal() for s in range(3)} for k in range(1, smaller + 1)}
        losses[9.0] = {s: above + 0.01 * rng.normal() for s in range(3)}
        wrong[judged(losses, 9.0, 0.01)[0]] += 1
    assert wrong["no"] / cases <= 0.05 + 3 * math.sqrt(0.05 / cases)
    assert wrong["yes"] / cases <= 0.025 + 3 * math.sqrt(0.025 / cases)
