"""Matches of which everything is known: losses and steps drawn about true excesses and ratios."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from batchscope.analysis.matching import steps_of
from batchscope.records import (
    NO_REMEDY,
    Conditions,
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

OWN, LARGE, N, BUDGET = 32, 512, 1024, 96 * 1024
CONDITIONS = Conditions()


@dataclasses.dataclass(frozen=True)
class World:
    """What is true. Excesses are relative to the baseline's loss; steps to goal at batch B are S_min (1 + 40 / B)."""

    excesses: dict[str, float]  # of each confirmed remedy
    untuned: float = 0.5
    loss: float = 0.12
    seed_sd: float = 0.05  # relative, shared by all runs with a seed
    own_sd: float = 0.005  # relative, of each run
    least_steps: float = 60.0
    step_sd: float = 0.05  # of log steps, of each run
    seeds: int = 5
    batch_sizes: tuple[int, ...] = (LARGE,)


def run_of(
    role: str, batch_size: int, remedy: str, seed: int, loss: float, steps_to_goal: float | None, rate: float = 0.8
) -> MatchRun:
    """A run to the end of its budget, its loss falling to `loss` half-way."""
    steps = steps_of(BUDGET, N, batch_size)
    curve = (
        (0, 2.3),
        (BUDGET // 4, 2 * loss),
        (BUDGET // 2, loss),
        (3 * BUDGET // 4, 1.5 * loss),
        (BUDGET, 1.1 * loss),
    )
    return MatchRun(
        role=role,
        batch_size=batch_size,
        remedy=remedy,
        learning_rate=rate,
        seed=seed,
        outcome="not_reached" if steps_to_goal is None else "reached",
        ended_by="budget",
        steps=steps,
        examples=BUDGET,
        losses=curve,
        lowest_at=BUDGET // 2,
        validation={"loss": loss, "accuracy": 1 - loss},
        test={"loss": 1.1 * loss},
        steps_to_goal=steps_to_goal,
        examples_to_goal=None if steps_to_goal is None else steps_to_goal * batch_size,
        trial_key=f"{role} {batch_size} {remedy} {seed} {rate}",
    )


def lost(run: MatchRun, outcome: str = "diverged") -> MatchRun:
    """The same run, diverged after its first evaluation."""
    ending = {"diverged": "divergence", "failed": "failure"}[outcome]
    return dataclasses.replace(
        run,
        outcome=outcome,
        ended_by=ending,
        losses=((0, 2.3), (1024, math.inf)),
        validation={"loss": 2.3},
        examples=1024,
        steps=steps_of(1024, N, run.batch_size),
        steps_to_goal=None,
        examples_to_goal=None,
        reason="out of memory" if outcome == "failed" else "",
    )


def runs_of(world: World, rng: np.random.Generator) -> list[MatchRun]:
    """Baseline, untuned and confirmed runs."""
    shared = world.loss * np.exp(world.seed_sd * rng.standard_normal(world.seeds))

    def arm(role: str, size: int, remedy: str, excess: float) -> list[MatchRun]:
        found = []
        for seed in range(world.seeds):
            loss = float(shared[seed] + world.loss * (excess + world.own_sd * rng.standard_normal()))
            steps = world.least_steps * (1 + 40 / size) * math.exp(world.step_sd * rng.standard_normal())
            found.append(run_of(role, size, remedy, seed, loss, steps))
        return found

    runs = arm("baseline", OWN, NO_REMEDY, 0.0)
    for size in world.batch_sizes:
        runs += arm("untuned", size, NO_REMEDY, world.untuned)
        for remedy, excess in world.excesses.items():
            runs += arm("confirmed", size, remedy, excess)
    return runs


def data_of(runs: list[MatchRun], world: World, **more: object) -> MatchData:
    """A match with these runs."""
    question = MatchQuestion(
        batch_sizes=world.batch_sizes,
        own_batch_size=OWN,
        own_learning_rate=0.1,
        remedies=tuple(world.excesses),
        seeds=tuple(range(world.seeds)),
        race_seeds=(900,),
        budget_examples=BUDGET,
        cadence_examples=1024,
    )
    plain = MatchData("made up", "f" * 16, question, CONDITIONS, Goal(at_most=0.18), N, 0.8, tuple(runs), ())
    return dataclasses.replace(plain, **more)


def timing_of(seconds: dict[int, float], rounds: int = 7, drift: float = 0.0) -> TimingPass:
    """Windows without noise, of a machine that gets slower by `drift`."""
    slow = 1 + drift * np.linspace(0, 1, rounds)
    reference = tuple(map(float, 1e-3 * slow))
    timings = tuple(StepTiming(b, 10, tuple(map(float, t * slow)), reference) for b, t in seconds.items())
    return TimingPass(OWN, timings, CONDITIONS, drift)


def timings_of(plain: dict[int, float], **remedies: dict[int, float]) -> tuple[RemedyTiming, ...]:
    """Of the plain task, and of remedies by name."""
    return tuple(RemedyTiming(name, timing_of(s)) for name, s in {NO_REMEDY: plain, **remedies}.items())


def race_of(scores: dict[str, float], batch_size: int = LARGE, kept: tuple[str, ...] = ()) -> RaceRound:
    """One round, a rate for each remedy."""
    racers = tuple(Racer(name, 0.8) for name in scores)
    stays = tuple(racer for racer in racers if racer.remedy in kept)
    return RaceRound(batch_size, 10_752, racers, tuple(scores.values()), stays)
