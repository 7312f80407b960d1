"""Does a study ask for the right trials? Held to slow searches of everything, over made-up curves."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Sequence

import pytest

from batchscope.analysis.target import HOLDS_FOR, crossing
from batchscope.records import (
    Arm,
    Conditions,
    Evaluation,
    Goal,
    StopRule,
    TrialRecord,
    TrialResult,
    TrialSpec,
)
from batchscope.sweep.plan import (
    MOST_EXTENSIONS,
    MOST_RATES,
    SEED_BLOCK,
    LearningRateSearch,
    arms_of,
    default_batch_sizes,
    default_cadence,
    seeds_of,
    tuning_seeds_of,
)
from batchscope.training.loop import ending

GOAL = Goal("loss", at_most=0.5)
STOP = StopRule(budget_examples=20_000, cadence_examples=200, patience_epochs=20.0)
TRAIN = 1000
SIZES = (8, 64, 1000)


# --- batch sizes, cadence, seeds ---


@pytest.mark.parametrize("size", [2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 1024, 4096, 4097, 60_000, 10**6, 10**7, 10**9])
def test_default_batch_sizes_are_few_powers_of_two_within_the_data(size: int) -> None:
    sizes = default_batch_sizes(size)
    assert 1 <= len(sizes) <= 8
    assert sizes == tuple(sorted(set(sizes)))
    assert all(b == 2 ** round(math.log2(b)) for b in sizes)
    assert sizes[-1] <= max(1, size // 4)
    assert sizes[0] == (8 if size >= 32 else sizes[0])
    assert len({b // a for a, b in itertools.pairwise(sizes)}) <= 1  # evenly spread
    if len(sizes) > 1:
        assert sizes[-1] * (sizes[1] // sizes[0]) > size // 4  # one more would not fit


def test_default_batch_sizes_of_the_built_in_tasks() -> None:
    assert default_batch_sizes(1024) == (8, 16, 32, 64, 128, 256)
    assert default_batch_sizes(50_000) == (8, 32, 128, 512, 2048, 8192)


def test_the_cadence_is_a_quarter_epoch_and_never_nothing() -> None:
    assert default_cadence(1000, 40_000) == 250
    assert default_cadence(1000, 6_000) == 100
    assert default_cadence(2, 4) == 1


def test_seeds_of_different_studies_and_purposes_never_meet() -> None:
    blocks = [{*seeds_of(s, 800), *tuning_seeds_of(s)} for s in range(4)]
    assert [len(block) for block in blocks] == [801] * 4
    assert len(set.union(*blocks)) == 4 * 801
    assert seeds_of(3, 2) == (3 * SEED_BLOCK, 3 * SEED_BLOCK + 1)


def test_arms_have_every_batch_size_before_the_next_seed() -> None:
    specs = arms_of((8, 16), 0.1, "fp32", STOP, (0, 1))
    assert [(s.seed, s.arm.batch_size, s.arm.learning_rate) for s in specs] == [
        (0, 8, 0.1),
        (0, 16, 0.1),
        (1, 8, 0.1),
        (1, 16, 0.1),
    ]
    assert [s.arm for s in arms_of((8, 16), {8: 0.5}, "bf16", STOP, (0,))] == [Arm(8, 0.5, precision="bf16")]


# --- the search, on made-up trainings ---


@functools.cache
def positions(batch_size: int) -> list[int]:
    """Examples at which a trial is evaluated: the first step boundary at or past each multiple of the cadence."""
    found, seen, next_look = [0], 0, STOP.cadence_examples
    while seen < STOP.budget_examples:
        seen += min(batch_size, TRAIN - seen % TRAIN)
        if seen >= min(next_look, STOP.budget_examples):
            found.append(seen)
            next_look = (seen // STOP.cadence_examples + 1) * STOP.cadence_examples
    return found


def newly_crossed(trace: Sequence[Evaluation], goal: Goal) -> bool:
    """Whether the goal is crossed, as the newest evaluation tells; had an older one told it, the trial had ended."""
    return crossing(trace[-1 - HOLDS_FOR :], goal) is not None


def trained(spec: TrialSpec, curve, diverged: bool = False) -> TrialRecord:
    """A trial whose validation loss is `curve(examples)`, ended by the loop's own rule."""
    trace: list[Evaluation] = []
    for examples in positions(spec.arm.batch_size):
        loss = curve(examples)
        trace.append(Evaluation(examples // spec.arm.batch_size, examples, {"loss": loss}, {"loss": loss}, 0.0, 0.0))
        ended_by = ending(trace, spec.stop, TRAIN, newly_crossed)
        if ended_by is not None:
            break
    reached = crossing(trace, GOAL) is not None
    outcome = "reached" if reached else "diverged" if diverged else "not_reached"
    result = TrialResult(outcome, ended_by or "budget", "", trace[-1].step, trace[-1].examples, tuple(trace))
    return TrialRecord(spec, result, Conditions())


def search_with(world, own_lr: float = 0.3, seeds=(900,), capped: bool = True) -> tuple[LearningRateSearch, list[int]]:
    """Search to the end in a world (batch size, learning rate, seed) -> (curve, diverged); also the rounds' sizes."""
    search = LearningRateSearch(SIZES, 64, own_lr, STOP, GOAL, "fp32", seeds)
    rounds = []
    while cells := search.next_round():
        rounds.append(len(cells))
        for spec, cell in cells.items():
            run = spec if capped else dataclasses.replace(spec, stop=dataclasses.replace(spec.stop, cap_examples=None))
            record = trained(run, *world(spec.arm.batch_size, spec.arm.learning_rate, spec.seed))
            search.add(cell, dataclasses.replace(record, spec=spec))
    return search, rounds


def smooth(best: dict[int, float], floor: float = 0.1):
    """A world where examples to goal are least at `best`, and grow by half with every doubling away from it."""

    def world(batch_size: int, rate: float, seed: int):
        needed = 3000 * 1.5 ** abs(math.log2(rate / best[batch_size]))
        return lambda examples: floor + 2.0 * math.exp(-math.log(2.0 / (0.5 - floor)) * examples / needed), False

    return world


def test_the_search_finds_the_best_and_gives_every_batch_size_as_many_rates() -> None:
    best = {8: 0.15, 64: 0.3, 1000: 1.2}
    search, rounds = search_with(smooth(best))
    assert {b: search.choice(b).learning_rate for b in SIZES} == best
    assert rounds == [3, 6, 6]
    for b in SIZES:
        choice = search.choice(b)
        powers = [math.log2(rate / 0.3) for rate, _ in choice.tried]
        assert powers == [round(p) for p in powers]
        assert powers == sorted(powers)
        assert len(powers) == 5
        assert choice.criterion == "examples to goal"


@pytest.mark.parametrize(("far", "extra"), [(3, 2), (4, 3), (-4, 3), (40, MOST_EXTENSIONS), (-40, MOST_EXTENSIONS)])
def test_an_optimum_on_the_edge_extends_the_grid_for_all(far: int, extra: int) -> None:
    """One batch size's best is `far` doublings from its centre: the grids of all grow that way, until it is inside."""
    search, rounds = search_with(smooth({8: 0.15, 64: 0.3 * 2.0**far, 1000: 1.2}))
    assert rounds == [3, 6, 6, *[3] * extra]
    assert {len(search.choice(b).tried) for b in SIZES} == {5 + extra}
    if abs(far) < 10:
        assert search.choice(64).learning_rate == pytest.approx(0.3 * 2.0**far)


def test_optima_on_both_edges_extend_both_ways_to_a_limit() -> None:
    search, rounds = search_with(smooth({8: 1e-9, 64: 0.3, 1000: 1e9}))
    assert rounds == [3, 6, 6, *[6] * MOST_EXTENSIONS]
    assert {len(search.choice(b).tried) for b in SIZES} == {MOST_RATES}


@pytest.mark.parametrize("seed", range(60))
def test_caps_never_change_a_choice(seed: int) -> None:
    """Noisy, bumpy and stalling curves: the same grids and the same choices as a search that never caps."""
    draw = random.Random(seed)

    def world(batch_size: int, rate: float, trial_seed: int):
        noise = random.Random(f"{seed} {batch_size} {rate} {trial_seed}")
        needed = 2500 * 1.5 ** abs(math.log2(rate / 0.6) + draw_offset[batch_size]) * noise.uniform(0.8, 1.25)
        bumps = [noise.gauss(0, 0.06) for _ in range(2 + STOP.budget_examples // STOP.cadence_examples)]
        floor = noise.choice([0.1, 0.45, 0.55])
        return (lambda x: floor + 2 * math.exp(-1.5 * x / needed) + bumps[x // STOP.cadence_examples]), False

    draw_offset = {b: draw.uniform(-3, 3) for b in SIZES}
    capped, rounds = search_with(world)
    free, free_rounds = search_with(world, capped=False)
    assert rounds == free_rounds
    for b in SIZES:
        ours, truth = capped.choice(b), free.choice(b)
        assert (ours.learning_rate, ours.criterion) == (truth.learning_rate, truth.criterion)
        assert dict(ours.tried)[ours.learning_rate] == dict(truth.tried)[ours.learning_rate]
        needed = [e for _, e in truth.tried if e is not None]
        if needed:  # the brute force: the least examples of all that were tried
            assert dict(ours.tried)[ours.learning_rate] == min(needed)
    spent = sum(r.result.examples for records in capped.results.values() for r in records)
    assert spent <= sum(r.result.examples for records in free.results.values() for r in records)


def test_caps_save_work() -> None:
    world = smooth({8: 0.15, 64: 0.3, 1000: 1.2})
    work = [
        sum(r.result.examples for records in search_with(world, capped=c)[0].results.values() for r in records)
        for c in (True, False)
    ]
    assert work[0] < 0.8 * work[1]


def test_with_several_tuning_seeds_their_mean_decides_and_nothing_is_capped() -> None:
    """At 0.6 one seed is slow, the other fast, better on average than at 0.3: a cap would have cut the slow one off."""

    def world(batch_size: int, rate: float, seed: int):
        slow = {0.3: (6000, 6000), 0.6: (2000, 11_000)}.get(round(rate, 6), (15_000, 15_000))[seed]
        return lambda x: 2.0 if x < slow else 0.1, False

    search = LearningRateSearch((64,), 64, 0.3, STOP, GOAL, "fp32", (0, 1))
    while cells := search.next_round():
        assert all(spec.stop.cap_examples is None for spec in cells)
        for spec, cell in cells.items():
            search.add(cell, trained(spec, *world(64, spec.arm.learning_rate, spec.seed)))
    assert search.choice(64).learning_rate == 0.6


def test_where_none_reaches_the_goal_the_lowest_validation_loss_decides() -> None:
    def world(batch_size: int, rate: float, seed: int):
        return lambda x: 0.6 + 0.1 * abs(math.log2(rate / 0.6)) + 1 / (1 + x), False

    search, _ = search_with(world)
    for b in SIZES:
        assert search.choice(b).learning_rate == pytest.approx(0.6)
        assert search.choice(b).criterion == "validation loss"
        assert all(examples is None for _, examples in search.choice(b).tried)


def test_a_rate_that_diverged_is_chosen_only_if_all_did() -> None:
    """The diverging ones have the lowest loss of all for a moment; one survives, however bad."""

    def world(batch_size: int, rate: float, seed: int):
        if rate <= 0.15:
            return lambda x: 5.0 - x / 1e5, False
        return lambda x: 0.51 if x < 2000 else math.nan, True

    search, _ = search_with(world)
    for b in SIZES:
        assert search.choice(b).learning_rate <= 0.15
    search, rounds = search_with(lambda b, rate, seed: (lambda x: 2.0 if x < 600 else math.inf, True))
    assert {search.choice(b).criterion for b in SIZES} == {"validation loss"}
    assert rounds == [3, 6, 6, *[3] * MOST_EXTENSIONS]  # smaller ones are tried
    assert [search.choice(b).learning_rate for b in SIZES] == [min(r for r, _ in search.choice(b).tried) for b in SIZES]


def test_a_failed_trial_wins_nothing() -> None:
    search = LearningRateSearch((64,), 64, 0.3, STOP, GOAL, "fp32", (0,))
    while cells := search.next_round():
        for spec, cell in cells.items():
            good = spec.arm.learning_rate == 0.15
            record = trained(spec, lambda x: 0.9 - x / 1e6)
            failed = TrialResult("failed", "failure", "the worker died", 0, 0, ())
            search.add(cell, record if good else dataclasses.replace(record, result=failed))
    assert search.choice(64).learning_rate == 0.15
