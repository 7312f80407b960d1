"""Which match can a test begin with? Runs that are drawn from closed forms; nothing was trained.

    lowest loss   0.12 (1 + excess), the remedy's excess growing with log2 (B / 32)
    loss          after k of K cadences: lowest + (2 - lowest) (k^-0.7 - K^-0.7), and 2.3 before training
    goal          loss at most 0.16

Lowest losses are multiplied by e^(0.3 % times a normal number) that remedies share and one of a third of it that they
do not, the same ones for the same seed: seeds are paired.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

from batchscope.records import (
    NO_REMEDY,
    CannotApply,
    Goal,
    MatchData,
    MatchQuestion,
    MatchRun,
    Racer,
    RaceRound,
    RemedyTiming,
    StepTiming,
    TimingPass,
)
from batchscope.testing.examples import CONDITIONS

OWN_BATCH_SIZE, OWN_LEARNING_RATE = 32, 0.05
BATCH_SIZES, SEEDS, RACE_SEED = (128, 512), (1, 2, 3, 4, 5), 101
LOSS, NOISE, GOAL = 0.12, 0.003, 0.16
TRAIN_SIZE, BUDGET, CADENCE = 8192, 65_536, 2048
EXCESS = {"linear scaling": 0.0002, NO_REMEDY: 0.03, "LARS": 0.12}  # for each doubling of the batch
UNTUNED = 0.4  # the same of the large batch untuned
TITLES = {"linear scaling": "The learning rate, k times the own.", NO_REMEDY: "Nothing but the learning rate."}


def lowest_loss(excess: float, seed: int) -> float:
    """The lowest validation loss of a seed."""
    shared, own = random.Random(seed), random.Random(f"{excess:.9f} {seed}")
    return LOSS * (1 + excess) * math.exp(NOISE * shared.gauss(0.0, 1.0) + NOISE / 3 * own.gauss(0.0, 1.0))


def make_run(
    role: str = "confirmed",
    batch_size: int = 512,
    remedy: str = "linear scaling",
    learning_rate: float = 0.8,
    seed: int = 1,
    examples: int = BUDGET,
    excess: float | None = None,
    **changes: object,
) -> MatchRun:
    """One training run; `changes` makes it another."""
    if excess is None:
        excess = EXCESS[remedy] * math.log2(batch_size / OWN_BATCH_SIZE)
    end = lowest_loss(excess, seed)
    places = range(CADENCE, examples + 1, CADENCE)
    losses = ((0, 2.3), *((e, end + (2 - end) * ((e / CADENCE) ** -0.7 - (BUDGET / CADENCE) ** -0.7)) for e in places))
    crossed = next((e for e, loss in losses if loss <= GOAL), None)
    run = MatchRun(
        role=role,
        batch_size=batch_size,
        remedy=remedy,
        learning_rate=learning_rate,
        seed=seed,
        outcome="reached" if crossed is not None else "not_reached",
        ended_by="budget" if examples == BUDGET else "cap",
        steps=examples // batch_size,
        examples=examples,
        losses=losses,
        lowest_at=losses[-1][0],
        validation={"loss": losses[-1][1], "accuracy": 1 - losses[-1][1] / 4},
        test={"loss": 1.02 * losses[-1][1], "accuracy": 1 - losses[-1][1] / 3.9} if examples == BUDGET else None,
        steps_to_goal=None if crossed is None else crossed / batch_size,
        examples_to_goal=None if crossed is None else float(crossed),
        trial_key=f"{batch_size:08x}{seed:08x}",
    )
    return dataclasses.replace(run, **changes)


def race_of(batch_size: int, remedies: Sequence[str] = tuple(EXCESS)) -> tuple[list[MatchRun], tuple[RaceRound, ...]]:
    """A race of three learning rates of each remedy in two rounds; the outer rates end worse."""
    racers = [Racer(remedy, rate) for remedy in remedies for rate in (0.4, 0.8, 1.6)]
    first, runs, scores = BUDGET // 8, {}, {}
    for racer in racers:
        excess = EXCESS[racer.remedy] * math.log2(batch_size / OWN_BATCH_SIZE) + 0.2 * (racer.learning_rate != 0.8)
        runs[racer] = make_run(
            "race", batch_size, racer.remedy, racer.learning_rate, RACE_SEED, first, excess, outcome="not_reached"
        )
        scores[racer] = runs[racer].lowest_loss
    kept = tuple(racer for racer in racers if racer.learning_rate == 0.8)
    for racer in kept:
        runs[racer] = make_run("race", batch_size, racer.remedy, 0.8, RACE_SEED, ended_by="budget")
    last = tuple(runs[racer].lowest_loss for racer in kept)
    rounds = (
        RaceRound(batch_size, first, tuple(racers), tuple(scores.values()), kept),
        RaceRound(batch_size, BUDGET, kept, last, kept[:1]),
    )
    return list(runs.values()), rounds


def make_timing(remedy: str, batch_sizes: Sequence[int]) -> RemedyTiming:
    """Steps of 0.2 ms + 4 us an example, a tenth more with a remedy."""
    cost = 1.0 if remedy == NO_REMEDY else 1.1

    def windows(b: int) -> tuple[float, ...]:
        rng = random.Random(f"{remedy} {b}")
        return tuple(cost * (2e-4 + 4e-6 * b) * math.exp(0.01 * rng.gauss(0.0, 1.0)) for _ in range(5))

    plain = (2e-4 + 4e-6 * OWN_BATCH_SIZE,) * 5
    timings = tuple(StepTiming(b, 20, windows(b), plain) for b in batch_sizes)
    return RemedyTiming(remedy, TimingPass(OWN_BATCH_SIZE, timings, CONDITIONS, 0.0))


def make_match_data(
    batch_sizes: Sequence[int] = BATCH_SIZES, seeds: Sequence[int] = SEEDS, **changes: object
) -> MatchData:
    """One `match` of the examples' task: three remedies raced and confirmed; `changes` makes it another."""
    runs = [make_run("baseline", OWN_BATCH_SIZE, NO_REMEDY, OWN_LEARNING_RATE, s, excess=0.0) for s in seeds]
    rounds: list[RaceRound] = []
    for b in batch_sizes:
        raced, told = race_of(b)
        gap = UNTUNED * math.log2(b / OWN_BATCH_SIZE)
        runs += [*raced, *(make_run("untuned", b, NO_REMEDY, OWN_LEARNING_RATE, s, excess=gap) for s in seeds)]
        runs += [make_run("confirmed", b, remedy, 0.8, s) for remedy in EXCESS for s in seeds]
        rounds += told
    data = MatchData(
        task="a task",
        fingerprint="f" * 16,
        question=MatchQuestion(
            batch_sizes=tuple(batch_sizes),
            own_batch_size=OWN_BATCH_SIZE,
            own_learning_rate=0.1,
            remedies=tuple(EXCESS),
            seeds=tuple(seeds),
            race_seeds=(RACE_SEED,),
            budget_examples=BUDGET,
            cadence_examples=CADENCE,
        ),
        conditions=CONDITIONS,
        goal=Goal("loss", at_most=GOAL),
        train_size=TRAIN_SIZE,
        baseline_learning_rate=OWN_LEARNING_RATE,
        runs=tuple(runs),
        rounds=tuple(rounds),
        cannot_apply=tuple(CannotApply(b, "ghost batch norm", "the model has no batch norm") for b in batch_sizes),
        chosen=tuple((b, Racer(remedy, 0.8)) for b in batch_sizes for remedy in EXCESS),
        timings=tuple(
            make_timing(remedy, (OWN_BATCH_SIZE, *batch_sizes) if remedy == NO_REMEDY else batch_sizes)
            for remedy in EXCESS
        ),
        costs=dict.fromkeys(EXCESS, "Nothing."),
        titles=TITLES | {"LARS": "The step of each layer, as long as a share of its weights."},
        sources={"linear scaling": ("goyal2017",), NO_REMEDY: ("shallue2019",), "LARS": ("you2017",)},
        metrics=("loss", "accuracy"),
        notes=("the runs were made up",),
        seconds=12.25,
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )
    return dataclasses.replace(data, **changes)


def make_small_match(**changes: object) -> MatchData:
    """Of two runs, without anything beside them; every number is finite, so that equal ones are equal."""
    runs = (make_run("baseline", OWN_BATCH_SIZE, NO_REMEDY, OWN_LEARNING_RATE, excess=0.0), make_run())
    data = make_match_data((512,), (1,), runs=runs, rounds=(), chosen=(), timings=(), cannot_apply=())
    return dataclasses.replace(data, **changes)
