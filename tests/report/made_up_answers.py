"""Which cases of advice do the report's tests know? Unverified, unanswered, priced, hostile ... (`made_up_advice`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from made_up_advice import (
    CEILING,
    NOTHING,
    POSTERIOR,
    SIZES,
    advice,
    curves_of,
    data_of,
    rate_at,
    rates,
    trials,
)
from made_up_profile import CONDITIONS, HOSTILE

from batchscope.records import (
    Advice,
    Goal,
    Measured,
    Spent,
    Unverified,
)


def unverified() -> Advice:
    """The predicted best could not be run inside the budget; what was run and is best is recommended."""
    base = advice(slow=500.0, chosen=256)
    k = SIZES.index(128)
    foreseen = dataclasses.replace(base.candidates[k], trials=0, reached=0, extrapolated=True)
    data = data_of(base.question, tuple(t for t in trials() if t.batch_size != 128), ended="budget")
    candidates = (*base.candidates[:k], foreseen, *base.candidates[k + 1 :])
    return dataclasses.replace(base, verified=False, candidates=candidates, better=Unverified(foreseen, 2.6), data=data)


def verified_but_better() -> Advice:
    """A verified recommendation, and one predicted to be better that was not run."""
    return dataclasses.replace(unverified(), verified=True)


def not_answered() -> Advice:
    """No run reached the goal."""
    runs = tuple(
        dataclasses.replace(t, reached=None, provisional=None, outcome="not_reached", lowest_loss=0.372 + 0.001 * k)
        if t.reached is not None
        else t
        for k, t in enumerate(trials()[:-1])
    )
    base = advice()
    none = tuple(
        dataclasses.replace(
            c,
            steps_to_goal=Measured(None, 4e7 / c.batch_size, None, 0, 0, "bound"),
            examples_to_goal=Measured(None, 4e7, None, 0, 0, "bound"),
            seconds_to_goal=NOTHING,
            cost=NOTHING,
            reached=0,
            extrapolated=True,
        )
        for c in base.candidates
    )
    data = data_of(
        base.question, runs, reference_reached=False, ended="budget", provisional_goal=Goal("loss", at_most=0.39)
    )
    return dataclasses.replace(
        base,
        answered=False,
        chosen=None,
        verified=False,
        candidates=none,
        good_batch_sizes=(),
        binding_limit="none",
        binding_why="",
        critical_batch_size=NOTHING,
        s_min=NOTHING,
        law_holds=False,
        law_misfit=None,
        pareto=(),
        data=data,
    )


def nothing_ran() -> Advice:
    """Not answered, without a run, a candidate, or a curve."""
    base = not_answered()
    return dataclasses.replace(
        base,
        candidates=(),
        knee=NOTHING,
        largest_micro_batch_size=None,
        learning_rate_curve=None,
        curves=None,
        data=dataclasses.replace(base.data, trials=()),
    )


def best_in(examples: bool = False) -> Advice:
    """No goal: the lowest validation loss in 30 seconds, or in a million examples; the draws are of no use then."""
    base = advice()
    limit = {"best_in_examples": 1_000_000} if examples else {"best_in_seconds": 30.0}
    question = dataclasses.replace(base.question, **limit)
    runs = tuple(
        dataclasses.replace(t, reached=None, provisional=None, outcome="not_reached" if t.reached else t.outcome)
        for t in trials()
    )
    found = []
    for c in base.candidates:
        loss = 0.33 + 0.01 * math.log2(c.batch_size / 128) ** 2
        fields: dict[str, Any] = {"steps_to_goal": NOTHING, "examples_to_goal": NOTHING, "seconds_to_goal": NOTHING}
        fields |= {"cost": NOTHING, "lowest_loss": Measured(loss, loss - 0.008, loss + 0.008, 2, 0, POSTERIOR)}
        found.append(dataclasses.replace(c, **fields, over_own=None))
    evidence = "trials of a given length"
    data = data_of(question, runs, goal=None)
    return dataclasses.replace(
        base,
        question=question,
        chosen=found[SIZES.index(128)],
        candidates=tuple(found),
        critical_batch_size=NOTHING,
        s_min=NOTHING,
        pareto=(),
        evidence=evidence,
        data=data,
    )


def from_noise(branches: bool = False) -> Advice:
    """Too dear to run to the goal: ratios alone, from throughput and noise scale (or branches); seconds are null."""
    base = advice(ceiling=64)
    none = Measured(None, None, None, 0, 0, "none: no run to the goal was made")
    fields: dict[str, Any] = {"steps_to_goal": none, "examples_to_goal": none, "seconds_to_goal": none, "cost": none}
    found = tuple(
        dataclasses.replace(c, **fields, trials=0, reached=0, extrapolated=True, learning_rate=rate_at(c.batch_size))
        for c in base.candidates
    )
    chosen = next(c for c in found if base.chosen is not None and c.batch_size == base.chosen.batch_size)
    return dataclasses.replace(
        base,
        chosen=chosen,
        verified=False,
        candidates=found,
        s_min=none,
        pareto=(),
        learning_rate_curve=None,
        evidence="branches" if branches else "throughput and noise scale",
        spent=Spent(540_000, 8_400, 12.0, 1, 0.2),
        data=data_of(base.question, (), ended="budget"),
    )


def lawless() -> Advice:
    """The law does not describe what was measured."""
    return advice(
        law_holds=False, law_misfit=0.31, binding_limit="knee", binding_why="Throughput is flat from 1,024 on."
    )


def memory_binds() -> Advice:
    """What is best does not fit: accumulation."""
    why = "No micro-batch above 64 fits in memory, and accumulation saves no time."
    return advice(ceiling=64, binding_limit="memory", binding_why=why)


def uneven() -> Advice:
    """The micro-batches of the recommended batch size are not alike: 128 as 43, 43 and 42."""
    return advice(ceiling=50, binding_limit="memory", binding_why="No micro-batch above 50 fits in memory.")


def priced() -> Advice:
    """Cost as the objective, at 2.4 for a device for an hour, over hours."""
    return advice(objective="cost", price=2.4, slow=500.0)


def energetic() -> Advice:
    """Energy as the objective."""
    return advice(objective="energy", pareto=())


def fewest_examples() -> Advice:
    """Examples as the objective: the smallest size that was considered wins."""
    why = "Fewer examples per step always need fewer in all; no smaller size was considered."
    return advice(objective="examples", binding_limit="smallest size", binding_why=why)


def one_size() -> Advice:
    """One candidate only."""
    base = advice()
    only = dataclasses.replace(base.candidates[SIZES.index(128)], p_best=1.0, p_good=1.0)
    k, whole, steps = SIZES.index(128), curves_of(CEILING, 1.0), only.steps_to_goal
    curves = dataclasses.replace(
        whole,
        batch_sizes=(128.0,),
        steps=((steps.low or 0.0, steps.estimate or 0.0, steps.high or 0.0),),
        sizes_timed=(128,),
        seconds_per_step=whole.seconds_per_step[k : k + 1],
        draws_log_examples=tuple(row[k : k + 1] for row in whole.draws_log_examples),
        draws_log_seconds=tuple(row[k : k + 1] for row in whole.draws_log_seconds),
    )
    rate = dataclasses.replace(rates(), batch_sizes=(128,), learning_rates=rates().learning_rates[3:4])
    return dataclasses.replace(
        base,
        chosen=only,
        candidates=(only,),
        good_batch_sizes=(128,),
        curves=curves,
        learning_rate_curve=rate,
        pareto=base.pareto[:1],
    )


def hostile() -> Advice:
    """Advice whose task, unit, metric, limits, devices and notes are named like an attack on the page."""
    base = unverified()
    conditions = dataclasses.replace(CONDITIONS, device_name=HOSTILE, platform=HOSTILE, versions={HOSTILE: HOSTILE})
    data = dataclasses.replace(
        base.data, task=HOSTILE, unit=HOSTILE, goal=Goal(HOSTILE, at_most=0.36), conditions=conditions, notes=(HOSTILE,)
    )
    return dataclasses.replace(
        base,
        task=HOSTILE,
        binding_why=HOSTILE,
        data=data,
        evidence=HOSTILE,
        notes=(f"a note on {HOSTILE}",),
        report=f"/tmp/{HOSTILE}.html",
    )


ALL: dict[str, Callable[[], Advice]] = {
    "whole": advice,
    "unverified": unverified,
    "verified but better": verified_but_better,
    "not answered": not_answered,
    "nothing ran": nothing_ran,
    "best in seconds": best_in,
    "best in examples": lambda: best_in(True),
    "from noise": from_noise,
    "branches": lambda: from_noise(True),
    "lawless": lawless,
    "memory binds": memory_binds,
    "uneven": uneven,
    "priced": priced,
    "energetic": energetic,
    "fewest examples": fewest_examples,
    "one size": one_size,
    "hostile": hostile,
}
