"""Does the race stay below a third of the cost, whatever comes, and does it keep what is best?"""

from __future__ import annotations

import math
import random

import pytest

from batchscope.analysis.race import LEAST_EVALUATIONS, MOST_COST, OFFSETS, RATES, Race
from batchscope.records import Racer

BUDGET, BATCH, CADENCE = 96_000, 512, 1024


def plateau(racer: Racer) -> float:
    """The best rate is 2^0.5; remedy b is the best."""
    worse = {"a": 0.2, "b": 0.0, "c": 0.1}.get(racer.remedy, 0.3)
    return 1.0 + worse + 0.1 * (math.log2(racer.learning_rate) - 0.5) ** 2


def falling(racer: Racer, cap: int, cadence: int = CADENCE) -> tuple[tuple[int, float], ...]:
    """Evaluations that fall towards the plateau, at the cap too; curves never cross."""
    at = [*range(0, cap, cadence), cap]
    return tuple((x, plateau(racer) * (1 + math.exp(-x / 20_000))) for x in at)


def run(race: Race, seeds: int = 1) -> dict[Racer, list[int]]:
    """The race on curves that never cross; the caps of each racer."""
    caps: dict[Racer, list[int]] = {}
    while wanted := race.next_round():
        for racer, cap in wanted.items():
            caps.setdefault(racer, []).append(cap)
            for seed in range(seeds):
                race.add(racer, falling(racer, cap), seed=seed)
    return caps


def test_the_grid_then_one_rate_more_then_drops() -> None:
    race = Race({"a": 1.0, "b": 1.0, "c": 1.0}, BUDGET, BATCH, CADENCE)
    first = race.next_round()
    assert set(first) == {Racer(name, 2.0**o) for name in "abc" for o in OFFSETS}
    assert set(first.values()) == {BUDGET // 9 // BATCH * BATCH}
    for racer, cap in first.items():
        race.add(racer, falling(racer, cap))
    further = race.next_round()
    assert set(further) == {Racer(name, 2.0**0.5) for name in "abc"}  # between 0 and 1, which score alike
    assert set(further.values()) == set(first.values())
    for racer, cap in further.items():
        race.add(racer, falling(racer, cap))
    assert not race.rounds
    second = race.next_round()
    assert len(second) == 9
    assert {racer.remedy for racer in second} == set("abc")
    assert race.rounds[0].raced[0] == Racer("b", 2.0**0.5)
    assert set(race.rounds[0].kept) == set(second)
    assert list(race.rounds[0].scores) == sorted(race.rounds[0].scores)


def test_the_best_wins_and_its_run_has_ended() -> None:
    race = Race({"a": 1.0, "b": 1.0, "c": 1.0}, BUDGET, BATCH, CADENCE)
    caps = run(race)
    assert race.ranking() == tuple(Racer(name, 2.0**0.5) for name in "bca")
    assert caps[race.ranking()[0]][-1] == BUDGET
    assert race.next_round() == {}
    assert race.rounds[-1].kept[0] == race.ranking()[0]
    last = {racer: found[-1] for racer, found in caps.items()}
    assert race.cost().examples == sum(last.values())  # runs go on from where they stopped
    assert race.cost().to_the_end == 3 * RATES * BUDGET
    assert race.cost().candidates == len(last) == 3 * RATES


@pytest.mark.parametrize(("lowest", "expected"), [(-3.0, -3.0), (3.0, 3.0), (-0.7, -0.5), (0.2, 0.5)])
def test_the_further_rate(lowest: float, expected: float) -> None:
    """Beyond the edge, or half an octave towards the better neighbour."""
    race = Race({"a": 0.1}, BUDGET, BATCH, CADENCE)
    for racer, cap in race.next_round().items():
        race.add(racer, ((cap, 1 + (math.log2(racer.learning_rate / 0.1) - lowest) ** 2),))
    (racer,) = race.next_round()
    assert math.log2(racer.learning_rate / 0.1) == pytest.approx(expected)


def test_the_baseline_goes_on_beyond_the_edge() -> None:
    race, asked = Race({"none": 1.0}, BUDGET, 32, CADENCE, whole=True), []
    while wanted := race.next_round():
        asked.append(sorted(math.log2(racer.learning_rate) for racer in wanted))
        for racer, cap in wanted.items():
            race.add(racer, ((cap, 1 + (math.log2(racer.learning_rate) - 4.2) ** 2 / 50),))
    assert asked == [[-2, -1, 0, 1, 2], [3], [4], [5]]
    assert race.ranking() == (Racer("none", 16.0),)
    assert race.cost().candidates == 8
    assert race.cost().to_the_end == race.cost().examples == 8 * BUDGET


def test_where_all_diverge_smaller_rates_are_tried_and_the_race_ends() -> None:
    race, smaller = Race({"a": 1.0}, BUDGET, BATCH, CADENCE, whole=True), []
    for racer in race.next_round():
        race.add(racer, ((0, 1.0), (CADENCE, math.inf)), "diverged")
    while wanted := race.next_round():
        (racer,) = wanted
        smaller.append(math.log2(racer.learning_rate))
        race.add(racer, (), "failed")
    assert smaller == [-3, -4, -5, -6]
    assert race.rounds[0].kept == ()
    assert math.isinf(race.score(race.ranking()[0]))
    assert race.cost().examples == 5 * CADENCE


def drawn(rng: random.Random, racer: Racer, cap: int, batch: int) -> tuple[tuple[tuple[int, float], ...], str]:
    """Anything that a run may do; an overshoot of less than a batch is part of it."""
    kind = rng.random()
    if kind < 0.1:
        return ((0, 1.0), (rng.randrange(cap), math.nan)), "diverged"
    if kind < 0.15:
        return (), "failed"
    if kind < 0.2:
        return ((0, 1.0), (rng.randrange(1, cap), rng.random())), "not_reached"  # it ended early
    return ((0, 1.0), (cap + rng.randrange(batch), rng.random())), "not_reached"


def test_never_more_than_a_third_whatever_comes() -> None:
    shortened = 0
    for number in range(400):
        rng = random.Random(number)
        batch = rng.choice([1, 32, 500, 4096])
        budget = rng.randrange(30 * batch, 3000 * batch)
        remedies = {f"r{k}": rng.uniform(0.01, 10) for k in range(rng.choice([1, 1, 2, 3, 7, 12]))}
        lengths = {name: 16.0 for name in remedies if rng.random() < 0.1}
        seeds = rng.choice([1, 1, 3])
        cadence = rng.randrange(1, max(2, budget // 8))
        race = Race(remedies, budget, batch, cadence, lengths, seeds)
        rounds = 0
        while wanted := race.next_round():
            rounds += 1
            for racer, cap in wanted.items():
                assert cap % max(batch, cadence) == 0 or cap == race.budgets[racer.remedy]
                for seed in range(seeds):
                    race.add(racer, *drawn(rng, racer, cap, batch), seed)
        assert rounds < 12
        assert {racer.remedy for racer in race.ranking()} == set(remedies)
        shortened += bool(race.note)
        if not race.note:
            assert race.cost().examples * MOST_COST <= race.cost().to_the_end
    assert shortened < 120


def test_one_remedy_alone_compares_its_last_two_as_late_as_it_can() -> None:
    race = Race({"none": 1.0}, BUDGET, 32, CADENCE)
    caps = run(race)
    ends = sorted(found[-1] for found in caps.values())
    assert ends[-2] == ends[-1] > BUDGET / 2
    assert 0.32 < race.cost().share <= 1 / 3
    assert race.ranking() == (Racer("none", 2.0**0.5),)


def test_no_drop_before_a_few_evaluations() -> None:
    race = Race({"a": 1.0, "b": 1.0}, 20 * 1024, 512, 1024)
    (cap,) = set(race.next_round().values())
    assert cap == LEAST_EVALUATIONS * 1024
    assert not race.note


def test_a_budget_too_short_runs_all_to_the_end_and_says_so() -> None:
    race = Race({"a": 1.0, "b": 1.0}, 8 * 1024, 512, 1024)
    caps = run(race)
    assert all(found == [8 * 1024] for found in caps.values())
    assert "too short" in race.note
    assert race.cost().share == 1.0
    assert len(race.rounds) == 1
    assert [racer.remedy for racer in race.rounds[0].kept] == ["b", "a"]


def test_a_slow_starter_is_carried_into_the_second_round() -> None:
    """Each remedy's best rate is compared with others only after two rounds."""
    race = Race({"quick": 1.0, "slow": 1.0}, BUDGET, BATCH, CADENCE)
    while wanted := race.next_round():
        for racer, cap in wanted.items():
            later = 9.0 if cap < 20_000 else -0.5
            race.add(racer, ((cap, plateau(racer) + later * (racer.remedy == "slow")),))
    assert race.ranking()[0].remedy == "slow"


def test_the_score_is_the_mean_of_the_seeds() -> None:
    race = Race({"a": 1.0}, BUDGET, BATCH, CADENCE, seeds=2)
    wanted = race.next_round()
    racer, cap = next(iter(wanted.items()))
    race.add(racer, ((cap, 1.0),), seed=0)
    with pytest.raises(ValueError, match="expected all runs of this round"):
        race.next_round()
    race.add(racer, ((0, 9.0), (cap, 3.0)), seed=1)
    assert race.score(racer) == 2.0
    assert race.cost().examples == 2 * cap
    with pytest.raises(ValueError, match="that next_round named"):
        race.add(racer, ((cap, 1.0),), seed=1)


def test_a_longer_remedy_stops_at_the_same_share_of_its_run() -> None:
    race = Race({"a": 1.0, "longer": 1.0}, BUDGET, BATCH, CADENCE, {"longer": 4.0})
    caps = {racer.remedy: cap for racer, cap in race.next_round().items()}
    assert caps["longer"] == pytest.approx(4 * caps["a"], abs=4 * BATCH)


@pytest.mark.parametrize("wrong", [{"remedies": {}}, {"remedies": {"a": 0.0}}, {"batch_size": 0}])
def test_what_is_not_positive_is_refused(wrong: dict[str, object]) -> None:
    right = {"remedies": {"a": 1.0}, "budget_examples": BUDGET, "batch_size": BATCH, "cadence_examples": CADENCE}
    with pytest.raises(ValueError, match="above 0"):
        Race(**(right | wrong))


def test_the_baseline_runs_whole_and_goes_further_while_its_best_lies_on_the_edge() -> None:
    race = Race({"none": 1.0}, BUDGET, BATCH, CADENCE, whole=True)
    tried = []
    while wanted := race.next_round():
        assert set(wanted.values()) == {BUDGET}
        for racer in wanted:
            tried.append(math.log2(racer.learning_rate))
            loss = 1 + abs(math.log2(racer.learning_rate) - 4.1)
            race.add(racer, ((0, 9.0), (BUDGET // 2, 5.0), (BUDGET, loss)))
    assert tried == [-2, -1, 0, 1, 2, 3, 4, 5]
    assert race.ranking() == (Racer("none", 16.0),)
    assert race.cost().share == 1
    assert race.next_round() == {}
