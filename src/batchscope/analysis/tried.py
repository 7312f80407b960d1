"""What does a training run say to `recommend`: where it crossed the goal, or which level it held?"""

from __future__ import annotations

import math

from batchscope.analysis.target import HOLDS_FOR, crossing
from batchscope.records import Goal, TrialRecord, Tried

SLACK = 0.02  # of the own point's fall: a provisional goal that most runs can reach (a guess)


def tried(role: str, record: TrialRecord, goal: Goal | None, provisional: Goal | None) -> Tried:
    """A trial as the analysis reads it: where it crossed the goal, or a bound."""
    spec, result = record.spec, record.result
    at = crossing(result.trace, goal) if goal is not None else None
    before = crossing(result.trace, provisional) if provisional is not None else None
    level = lowest_held(record, "loss", True)
    return Tried(
        role=role,
        batch_size=spec.arm.batch_size,
        learning_rate=spec.arm.learning_rate,
        seed=spec.seed,
        reached=at.examples if at is not None else None,
        bound=bound_of(record, goal),
        provisional=before.examples if before is not None else None,
        lowest_loss=level if math.isfinite(level) else None,
        outcome=result.outcome,
        examples=result.examples,
        steps=result.steps,
        ended_by=result.ended_by,
    )


def bound_of(record: TrialRecord, goal: Goal | None) -> float:
    """Examples that a run that did not reach needs more than: its cap, or the budget where it gave up before.

    Cut off while it met the goal, but not for long enough to hold, it crosses after the last evaluation that missed.
    """
    stop, result = record.spec.stop, record.result
    if result.ended_by not in ("cap", "budget"):
        return float(stop.budget_examples)
    end = stop.cap_examples if result.ended_by == "cap" and stop.cap_examples else stop.budget_examples
    if goal is None:
        return float(end)
    missed = [e.examples for e in result.trace if not goal.met(e.validation.get(goal.metric, math.nan))]
    return float(min(end, max(missed, default=0)))


def lowest_held(record: TrialRecord, metric: str, falls: bool) -> float:
    """The best value of a metric that was held at three evaluations running (`target`); infinite where none was."""
    sign = 1.0 if falls else -1.0
    values = [sign * e.validation.get(metric, math.nan) for e in record.result.trace[1:]]
    runs = [values[k : k + HOLDS_FOR] for k in range(len(values) - HOLDS_FOR + 1)]
    return sign * min((max(run) for run in runs if all(map(math.isfinite, run))), default=math.inf)


def level_of(record: TrialRecord, goal: Goal | None) -> Goal | None:
    """What a run reached of the goal's metric (default: of the loss), with a little slack; None where nothing."""
    goal = goal or Goal("loss", at_most=0.0)
    best = lowest_held(record, goal.metric, goal.falls)
    start = record.result.trace[0].validation.get(goal.metric, math.nan) if record.result.trace else math.nan
    if not math.isfinite(best) or not math.isfinite(start) or (best - start) * (1 if goal.falls else -1) >= 0:
        return None
    value = float(f"{best + SLACK * (start - best):.6g}")
    return Goal(goal.metric, at_most=value) if goal.falls else Goal(goal.metric, at_least=value)
