"""Which goal does a task get that names none? The validation loss that its baseline reaches, with a little slack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.analysis.target import HOLDS_FOR
from batchscope.records import Evaluation, Goal

SLACK = 0.02  # the lowest loss that held plus 2 % of its fall, so that most seeds reach it (a guess)


def goal_within(traces: Sequence[Sequence[Evaluation]]) -> Goal | None:
    """The loss that every one of these runs holds at some time; None where one of them does not lower it.

    To reach a loss is to hold it at three evaluations running: the least that a run did so is
    min over k of max(y_k, y_(k+1), y_(k+2)), with y the validation losses after the initial one.
    """
    held = [_held(trace) for trace in traces]
    pairs = [pair for pair in held if pair is not None]
    if not pairs or len(pairs) < len(held):
        return None
    value = max(slackened for _, slackened in pairs)
    rounded = float(f"{value:.4g}")
    return Goal("loss", at_most=rounded if all(rounded >= lowest for lowest, _ in pairs) else value)


def _held(trace: Sequence[Evaluation]) -> tuple[float, float] | None:
    """(the lowest loss that was held, the same with the slack)."""
    start, *losses = [e.validation["loss"] for e in trace]
    runs = [losses[k : k + HOLDS_FOR] for k in range(len(losses) - HOLDS_FOR + 1)]
    lowest = min((max(run) for run in runs if all(map(math.isfinite, run))), default=math.inf)
    return (lowest, lowest + SLACK * (start - lowest)) if lowest < start < math.inf else None
