"""Made-up answers of `match`, shared by the report's tests: excesses that are written down, runs from closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math
import random

from made_up import HOSTILE

from batchscope.records import (
    NO_REMEDY,
    CannotApply,
    Gap,
    Goal,
    Largest,
    MatchCurve,
    MatchQuestion,
    MatchResult,
    MatchRow,
    Measured,
    RaceCost,
    Racer,
    RaceRound,
    Spent,
)
from batchscope.testing.examples import CONDITIONS

OWN, RATE, LOSS, ROOM, SEEDS = 32, 0.05, 0.12, 0.01, 5
T, BUDGET = "t on 5 seeds, 4 df", 2_000_000
SIZES = (128, 512, 1024)
# excess in percent at 128, growing with the batch; half of its interval; step over plain step; paper
REMEDIES = {
    "linear scaling": (0.1, 0.3, 1.0, "goyal2017"),
    NO_REMEDY: (0.5, 0.35, 1.0, "shallue2019"),
    "weight averaging": (0.45, 0.3, 1.02, "izmailov2018"),
    "square-root scaling": (0.9, 0.5, 1.0, "hoffer2017"),
    "label smoothing": (1.1, 0.4, 1.01, "szegedy2016"),
    "weight decay rescaled": (1.2, 0.4, 1.0, "bergsma2025"),
    "SAM": (1.6, 0.6, 1.9, "foret2021"),
    "growing batch": (1.9, 0.7, 1.0, "smith2018"),
    "ghost batch norm (ghost_batch_size=64)": (2.5, 0.8, 1.05, "hoffer2017"),
    "LARS": (4.0, 1.5, 1.12, "you2017"),
    "LAMB": (6.0, 2.0, 1.15, "you2019"),
    "label smoothing + linear scaling": (14.0, 3.0, 1.01, "szegedy2016"),
}


def around(estimate: float, half: float, n: int = SEEDS) -> Measured:
    """A value with an interval."""
    return Measured(estimate, estimate - half, estimate + half, n, 0, T)


def row_of(remedy: str, size: int, excess: float, half: float, cost: float = 1.0, **changes: object) -> MatchRow:
    """One confirmed remedy: `excess` and `half` in shares of the baseline's loss."""
    bound, k = excess + 0.77 * half, size / OWN
    verdict = "matches" if bound < ROOM else "narrows" if excess < 0.1 else "does not"
    loss, steps = LOSS * (1 + excess), 41_000 / k * (1 + 0.02 * math.log2(k)) * (1 + excess)
    seconds = cost * (2e-4 + 4e-6 * size)
    row = MatchRow(
        batch_size=size,
        remedy=remedy,
        role="confirmed",
        learning_rate=RATE * 2 ** round(math.log2(k) * 0.8),
        seeds=SEEDS,
        reached=SEEDS if excess < 0.1 else SEEDS - 2,
        diverged=0,
        min_validation_loss=around(loss, LOSS * half),
        excess=around(excess, half),
        bound=bound,
        room=ROOM,
        verdict=verdict,
        resolved=excess - 0.77 * half > ROOM,
        why="",
        validation={"loss": around(loss, LOSS * half), "accuracy": around(1 - loss / 4, 0.002)},
        test={"loss": around(1.03 * loss, LOSS * half), "accuracy": around(1 - loss / 3.8, 0.003)},
        steps_to_goal=around(steps, 0.06 * steps),
        examples_to_goal=around(steps * size, 0.06 * steps * size),
        steps=BUDGET // size,
        examples=BUDGET,
        seconds_per_step=around(seconds, 0.01 * seconds),
        seconds_to_goal={n: around(steps * seconds / n**0.8, 0.07 * steps * seconds / n**0.8) for n in (1, 2, 4)},
        seeds_wanted=None if excess - 0.77 * half > ROOM or bound < ROOM else 14,
        changes=f"What {remedy} changes, in a sentence of some length.",
        cost="Nothing." if cost == 1.0 else f"Every step takes about {cost:g} times as long.",
        sources=(REMEDIES[remedy][3],) if remedy in REMEDIES else (),
    )
    return dataclasses.replace(row, **changes)


def curves_of(size: int, remedies: tuple[str, ...], role: str = "race", rates: int = 6) -> list[MatchCurve]:
    """A race: at each learning rate a power law towards a plateau; the outer rates stop early."""
    curves = []
    for k, remedy in enumerate(remedies):
        for j in range(rates):
            rng, off = random.Random(f"{remedy} {j} {size}"), abs(j - 2)
            caps = (BUDGET // 9, BUDGET // 3, BUDGET)
            cap = caps[0] if off > 1 else caps[1] if off == 1 or k % 3 else caps[2]
            floor, lowest, places = 0.118 * (1 + 0.004 * k + 0.05 * off), math.inf, []
            for e in range(0, cap + 1, BUDGET // 60):
                loss = 2.3 if e == 0 else floor + 0.5 * (60 * e / BUDGET) ** -0.8
                lowest = min(lowest, loss * math.exp(0.02 * rng.gauss(0.0, 1.0)))
                places.append((e, lowest))
            curves.append(MatchCurve(size, remedy, role, RATE * 2.0**j, 101, tuple(places)))
    return curves


def rounds_of(size: int, remedies: tuple[str, ...]) -> tuple[RaceRound, ...]:
    """Three rounds of the race, the last remedy's runs all diverged."""
    racers = [Racer(remedy, RATE * 2.0**j) for remedy in remedies for j in range(6)]
    scores = tuple(math.inf if r.remedy == remedies[-1] else 0.2 + 0.01 * k for k, r in enumerate(racers))
    half = racers[: len(racers) // 2]
    return (
        RaceRound(size, BUDGET // 9, tuple(racers), scores, tuple(half)),
        RaceRound(size, BUDGET // 3, tuple(half), tuple(0.15 + 0.01 * k for k in range(len(half))), tuple(half[:8])),
        RaceRound(size, BUDGET, tuple(half[:8]), tuple(0.12 + 0.01 * k for k in range(len(half[:8]))), tuple(half[:4])),
    )


@functools.cache
def matched() -> MatchResult:
    """Twelve remedies at three batch sizes over five seeds: linear scaling matches up to 512."""
    rows: list[MatchRow] = []
    for k, size in enumerate(SIZES):
        own = [
            row_of(name, size, (3**k * excess) / 100, 2**k * half / 100, cost)
            for name, (excess, half, cost, _) in REMEDIES.items()
        ]
        if size == 1024:
            own[0] = row_of("linear scaling", size, 0.011, 0.006)
            own[-2] = dropped(own[-2])
        rows += sorted(own, key=lambda r: (r.verdict == "dropped", r.excess.estimate or 0.0))
    untuned = tuple(row_of(NO_REMEDY, b, 0.1 * 2**k, 0.02, role="untuned", verdict="") for k, b in enumerate(SIZES))
    names = tuple(REMEDIES)
    baseline = row_of(NO_REMEDY, OWN, 0.0, 0.001, role="baseline", verdict="", bound=None, room=None)
    return MatchResult(
        task="a task",
        fingerprint="f" * 16,
        goal=Goal("loss", at_most=0.16),
        question=MatchQuestion(
            SIZES, OWN, 0.1, names, (1, 2, 3, 4, 5), (101,), BUDGET, BUDGET // 60, None, True, (1, 2, 4)
        ),
        conditions=CONDITIONS,
        baseline=dataclasses.replace(baseline, learning_rate=RATE),
        untuned=tuple(dataclasses.replace(r, learning_rate=RATE) for r in untuned),
        rows=tuple(rows),
        gaps=tuple(Gap(r.batch_size, r.excess, True, ROOM) for r in untuned),
        rounds=(*rounds_of(OWN, (NO_REMEDY,)), *(r for b in SIZES for r in rounds_of(b, names))),
        races=tuple(RaceCost(b, 6 * len(names), 23 * BUDGET, 72 * BUDGET) for b in SIZES),
        cannot_apply=tuple(CannotApply(b, "Adam scaled", "expected Adam, the task has SGD") for b in SIZES),
        largest=Largest(
            512,
            "linear scaling",
            rows[12].learning_rate,
            around(14.8, 1.2),
            {1: around(5.1, 0.4), 4: around(8.25, 0.7)},
            1024,
        ),
        curves=(
            *curves_of(OWN, (NO_REMEDY,), "baseline race"),
            *(c for b in SIZES for c in curves_of(b, names)),
        ),
        spent=Spent(123_456_789, 456_789, 3600.0, 412, 96.5),
        notes=("Twelve remedies were tested at each batch size; the 5 % is that of each.",),
        measured_at="2026-03-01T12:00:00.000001+00:00",
    )


def dropped(row: MatchRow) -> MatchRow:
    """A remedy that its race left behind."""
    nothing = Measured(None, None, None, 0, 0, "none: dropped in the race")
    return dataclasses.replace(
        row,
        role="race",
        verdict="dropped",
        excess=nothing,
        bound=None,
        test=None,
        seeds=1,
        reached=0,
        steps_to_goal=None,
        examples_to_goal=None,
        seconds_per_step=None,
        seconds_to_goal={},
        min_validation_loss=Measured(0.3, None, None, 1, 0, "none: one seed"),
    )


def alone(row: MatchRow, **changes: object) -> MatchResult:
    """A result of one confirmed row at one batch size, beside the untuned one; nothing matches."""
    whole = matched()
    result = dataclasses.replace(
        whole,
        question=dataclasses.replace(whole.question, batch_sizes=(row.batch_size,), seeds=tuple(range(row.seeds))),
        untuned=tuple(r for r in whole.untuned if r.batch_size == row.batch_size),
        rows=(row,),
        gaps=tuple(g for g in whole.gaps if g.batch_size == row.batch_size),
        largest=None,
        curves=(),
        rounds=(),
        races=(),
        cannot_apply=(),
    )
    return dataclasses.replace(result, **changes)


def unmatched() -> MatchResult:
    """One remedy narrows the gap, and more seeds may turn that."""
    return alone(row_of("linear scaling", 512, 0.009, 0.006))


def hopeless() -> MatchResult:
    """One remedy that more seeds will not help."""
    return alone(row_of("LAMB", 512, 0.18, 0.02))


def one_seed() -> MatchResult:
    """No interval anywhere, nothing timed."""
    single = Measured(0.002, None, None, 1, 0, "none: one seed has no spread")
    row = row_of("linear scaling", 512, 0.002, 0.0)
    return alone(
        dataclasses.replace(
            row, seeds=1, reached=1, excess=single, bound=None, verdict="does not", resolved=False, seeds_wanted=None
        ),
        gaps=(Gap(512, dataclasses.replace(single, estimate=0.2), False, ROOM),),
    )


def diverged() -> MatchResult:
    """Two seeds of the remedy and all of the untuned large batch have no loss; no seed reached the goal."""
    bound = Measured(None, 0.004, None, SEEDS, 2, "bound: 2 of 5 seeds diverged or failed")
    nothing = Measured(None, None, None, SEEDS, SEEDS, "bound: 5 of 5 seeds diverged or failed")
    far = Measured(None, 3900.0, None, SEEDS, SEEDS, "none: no seed reached the goal")
    row = row_of("LARS", 512, 0.004, 0.1, diverged=2, reached=0, bound=None, verdict="narrows", steps_to_goal=far)
    result = alone(dataclasses.replace(row, excess=bound, resolved=True, seeds_wanted=None))
    changes = {"excess": nothing, "diverged": SEEDS, "reached": 0, "bound": None, "steps_to_goal": far}
    untuned = dataclasses.replace(result.untuned[0], min_validation_loss=nothing, **changes)
    return dataclasses.replace(result, untuned=(untuned,), gaps=(Gap(512, nothing, True, ROOM),))


def unconfirmed() -> MatchResult:
    """The budget ended before anything was confirmed: one remedy dropped, one refused."""
    row = dropped(row_of("LAMB", 512, 0.1, 0.1))
    result = alone(row, untuned=(), gaps=(), rounds=rounds_of(512, ("linear scaling", "LAMB")))
    return dataclasses.replace(result, cannot_apply=(CannotApply(512, "ghost batch norm", "no batch norm"),))


def plain_matches() -> MatchResult:
    """The learning rate re-tuned alone matches; nothing was timed, steps are not known, no larger batch was tried."""
    row = row_of(NO_REMEDY, 512, 0.001, 0.002, seconds_per_step=None, seconds_to_goal={}, test=None)
    unknown = Measured(None, None, None, 0, 0, "none: the goal was not reached")
    result = alone(row, largest=Largest(512, NO_REMEDY, 0.4, unknown))
    bare = {"seconds_per_step": None, "seconds_to_goal": {}, "test": None}
    untuned = tuple(dataclasses.replace(r, **bare) for r in result.untuned)
    return dataclasses.replace(result, untuned=untuned, baseline=dataclasses.replace(result.baseline, **bare))


def hostile() -> MatchResult:
    """A result whose task, remedies, reasons, metrics and notes are named like an attack on the page."""
    whole = matched()
    conditions = dataclasses.replace(
        whole.conditions, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE}
    )

    def attacked(row: MatchRow) -> MatchRow:
        remedy = HOSTILE if row.remedy == "linear scaling" else row.remedy
        test = {HOSTILE: row.min_validation_loss}
        return dataclasses.replace(row, remedy=remedy, changes=HOSTILE, cost=HOSTILE, why=HOSTILE, test=test)

    largest = None if whole.largest is None else dataclasses.replace(whole.largest, remedy=HOSTILE)
    return dataclasses.replace(
        whole,
        task=HOSTILE,
        goal=Goal(HOSTILE, at_most=0.16),
        conditions=conditions,
        rows=tuple(map(attacked, whole.rows)),
        largest=largest,
        cannot_apply=(CannotApply(128, HOSTILE, HOSTILE),),
        notes=(HOSTILE,),
        report=f"/tmp/{HOSTILE}.html",
    )


ALL = {
    "matched": matched,
    "unmatched": unmatched,
    "hopeless": hopeless,
    "one seed": one_seed,
    "diverged": diverged,
    "unconfirmed": unconfirmed,
    "plain matches": plain_matches,
    "hostile": hostile,
}
