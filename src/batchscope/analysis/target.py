"""When did a trial reach its goal, and when did it converge?

Rule of measurement 4: the goal is *crossed* at evaluation k >= 1 if it is met at k, k + 1 and k + 2. A single lucky
evaluation of a noisy metric is therefore no crossing; the first one is kept beside it as the *raw* crossing, which is
optimistic, and more so the more often a trial is evaluated.

A trial that does not cross is *censored*: all that is known is that it needs more than the study's budget. That is the
bound whatever ended it. A trial that stopped by patience or diverged had no prospect of reaching the goal in the
examples it left unused, and the shorter bound would reward it for giving up early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from batchscope.records import Evaluation, Goal, TrialResult

HOLDS_FOR = 3  # evaluations running, design section 5, rule 4
COARSE = 0.05  # of the examples to goal: evaluations further apart make a crossing coarse (science notes, section g)


class Value(NamedTuple):
    """One seed's value; `censored`: only known to be larger than this."""

    value: float
    censored: bool = False


@dataclass(frozen=True)
class Crossing:
    """Where a goal was crossed: the position between the evaluations `index` - 1 and `index`."""

    examples: float
    steps: float
    raw_examples: float | None  # the first evaluation at which the goal was met at all, by the same interpolation
    index: int


def coarse_note(between: float, examples: float | None, what: str) -> list[str]:
    """A sentence where evaluations, so many examples apart, are far apart beside what a run needs; else none."""
    if examples is None or between <= COARSE * examples:
        return []
    share = f"{100 * between / examples:.0f} % of the {what} to goal"
    return [f"Evaluations are {between:.0f} examples apart, {share}: crossings are interpolated between them."]


def crossing(trace: Sequence[Evaluation], goal: Goal) -> Crossing | None:
    """The first crossing that lasts three evaluations, or None where the trace holds none.

    With x the examples and y the metric at the evaluations k - 1 and k, and y* the goal's value,

        log x* = log x_(k-1) + f (log x_k - log x_(k-1)),    f = (y* - y_(k-1)) / (y_k - y_(k-1)).

    Examples 0 have no logarithm: between the initial weights and the first evaluation, x* is linear in y instead. Where
    y_(k-1) is not finite, or already met the goal (only at k = 1), x* = x_k. Steps are linear in examples in between.
    """
    index = _first_run(trace, goal, HOLDS_FOR)
    if index is None:
        return None
    examples = _position(trace, goal, index)
    return Crossing(examples, _steps_at(trace, index, examples), raw_crossing(trace, goal), index)


def first_crossing(trace: Sequence[Evaluation], goal: Goal) -> Crossing | None:
    """Where the goal was met for the first time, by the same interpolation; None if it never was."""
    index = _first_run(trace, goal, 1)
    if index is None:
        return None
    examples = _position(trace, goal, index)
    return Crossing(examples, _steps_at(trace, index, examples), examples, index)


def raw_crossing(trace: Sequence[Evaluation], goal: Goal) -> float | None:
    """Examples at the first evaluation k >= 1 that meets the goal at all, interpolated alike; None if none does."""
    found = first_crossing(trace, goal)
    return None if found is None else found.examples


def crossed(trace: Sequence[Evaluation], goal: Goal) -> bool:
    """Whether the trace so far holds a crossing: one pass over it, cheap enough for every evaluation."""
    return _first_run(trace, goal, HOLDS_FOR) is not None


def best(trace: Sequence[Evaluation]) -> int | None:
    """Index of the lowest finite validation loss, the first of equals (0: the initial weights); None if none is."""
    finite = [(e.validation["loss"], k) for k, e in enumerate(trace) if math.isfinite(e.validation["loss"])]
    return min(finite)[1] if finite else None


def examples_to_goal(result: TrialResult, goal: Goal, budget_examples: int) -> Value:
    """Examples at the crossing, or the budget as a bound (see the top of this file)."""
    found = crossing(result.trace, goal)
    return Value(float(budget_examples), True) if found is None else Value(found.examples)


def steps_to_goal(result: TrialResult, goal: Goal, budget_examples: int, train_size: int, batch_size: int) -> Value:
    """Steps at the crossing, or the steps that the budget holds as a bound."""
    found = crossing(result.trace, goal)
    if found is None:
        return Value(budget_examples / effective_batch_size(train_size, batch_size), True)
    return Value(found.steps)


def epochs_to_converge(result: TrialResult, train_size: int, budget_examples: int) -> Value:
    """Epoch of the best validation loss (the classic's early stopping), in epochs of `train_size` examples.

    Censored where the trial was stopped by its budget or its goal: training on could only have moved the best later.
    A trial that diverged, or never improved on its initial weights, did not converge at all: the budget is its bound.
    """
    index = best(result.trace)
    if result.ended_by in ("divergence", "failure") or not index:
        return Value(budget_examples / train_size, True)
    return Value(result.trace[index].examples / train_size, result.ended_by in ("budget", "goal"))


def steps_per_epoch(train_size: int, batch_size: int) -> int:
    """ceil(N / B): the last short batch is kept."""
    return -(-train_size // batch_size)


def effective_batch_size(train_size: int, batch_size: int) -> float:
    """Examples per step averaged over an epoch, N / ceil(N / B)."""
    return train_size / steps_per_epoch(train_size, batch_size)


def _first_run(trace: Sequence[Evaluation], goal: Goal, length: int) -> int | None:
    run = 0
    for k in range(1, len(trace)):
        run = run + 1 if goal.met(_metric(trace[k], goal)) else 0
        if run == length:
            return k - length + 1
    return None


def _position(trace: Sequence[Evaluation], goal: Goal, k: int) -> float:
    before, at = _metric(trace[k - 1], goal), _metric(trace[k], goal)
    x0, x1 = float(trace[k - 1].examples), float(trace[k].examples)
    if not (math.isfinite(before) and math.isfinite(at)) or goal.met(before):
        return x1
    fraction = (goal.value - before) / (at - before)
    if x0 <= 0:
        return x0 + fraction * (x1 - x0)
    return x0 * (x1 / x0) ** fraction


def _steps_at(trace: Sequence[Evaluation], k: int, examples: float) -> float:
    before, at = trace[k - 1], trace[k]
    return before.step + (at.step - before.step) * (examples - before.examples) / (at.examples - before.examples)


def _metric(evaluation: Evaluation, goal: Goal) -> float:
    return evaluation.validation.get(goal.metric, math.nan)
