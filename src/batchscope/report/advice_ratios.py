"""How do two batch sizes of an advice compare? Ratios of the objective with intervals, from draws where there are any.

With draws, log E of all candidates belongs together, so the ratio of two is far better known than either. On N devices
a step of a batch size B takes what B / N examples take on one (communication free):

    log seconds to goal of candidate c in draw d = log E[d][c] - log B_c + log t[d](B_c / N)

with t interpolated log against log between the sizes that were timed, constant below the smallest (a step has its
fixed costs) and proportional to B above the largest (accumulation). B_c is the examples per step averaged over an
epoch, whose last batch is short. The page computes the same in the browser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from batchscope.analysis.particles import Array
from batchscope.analysis.target import effective_batch_size
from batchscope.analysis.uncertainty import product
from batchscope.records import Advice, Candidate, Curves, Measured

TAILS = (0.05, 0.5, 0.95)
FIELDS = {"time": "seconds_to_goal", "cost": "cost", "examples": "examples_to_goal", "energy": "joules"}
FROM_DRAWS, CONSERVATIVE = "90% posterior, paired draws", "as if independent (MOVER): at least 90 %"


def by_size(candidates: Iterable[Candidate]) -> dict[int, Candidate]:
    """Candidates by batch size."""
    return {c.batch_size: c for c in candidates}


def has_draws(advice: Advice) -> bool:
    """Whether there are draws of every candidate's examples and of seconds."""
    curves = advice.curves
    return (
        curves is not None
        and bool(curves.draws_log_seconds)
        and bool(curves.draws_log_examples)
        and all(len(row) == len(advice.candidates) for row in curves.draws_log_examples)
    )


def log_step_seconds(curves: Curves, size: float) -> Array:
    """(draws,) log seconds of a step of `size` examples on one device."""
    x, rows = np.log(np.array(curves.sizes_timed, float)), np.array(curves.draws_log_seconds)
    at = math.log(size)
    beyond = max(0.0, at - float(x[-1]))
    k = int(np.clip(np.searchsorted(x, at), 1, max(1, len(x) - 1)))
    if len(x) == 1:
        return rows[:, 0] + beyond
    share = min(1.0, max(0.0, (at - float(x[k - 1])) / float(x[k] - x[k - 1])))
    return rows[:, k - 1] + share * (rows[:, k] - rows[:, k - 1]) + beyond


def share_timed(advice: Advice, candidate: Candidate) -> float:
    """The size at which the curve of seconds per step tells a candidate's own.

    With a pass over several devices the curve is of every batch size on its number of devices. Without one, it is of
    one device, and each of several takes its share, communication free.
    """
    return candidate.batch_size if advice.data.scaling is not None else candidate.batch_size / candidate.devices


def log_objective(advice: Advice, candidate: Candidate) -> Array | None:
    """(draws,) log of the objective but for a constant; None without draws, and for energy and losses."""
    objective, curves = advice.question.objective, advice.curves
    lost = advice.question.best_in_seconds is not None or advice.question.best_in_examples is not None
    if curves is None or not has_draws(advice) or objective == "energy" or lost:
        return None
    sizes = [c.batch_size for c in advice.candidates]
    if candidate.batch_size not in sizes:
        return None
    log_examples = np.array(curves.draws_log_examples)[:, sizes.index(candidate.batch_size)]
    if objective == "examples":
        return log_examples
    seconds = log_step_seconds(curves, share_timed(advice, candidate))
    seconds = seconds[np.arange(len(log_examples)) % len(seconds)]
    devices = math.log(candidate.devices) if objective == "cost" else 0.0
    return (
        log_examples - math.log(effective_batch_size(advice.data.train_size, candidate.batch_size)) + seconds + devices
    )


def over(advice: Advice, a: Candidate, b: Candidate) -> Measured | None:
    """The objective at a over that at b; None where it is not known.

    Without draws the two are taken to be independent, though they are not: the interval is too wide rather than too
    narrow, for their errors (seeds, the law) are shared.
    """
    draws, others = log_objective(advice, a), log_objective(advice, b)
    if draws is not None and others is not None:
        low, middle, high = (float(np.exp(q)) for q in np.quantile(draws - others, TAILS))
        return Measured(middle, low, high, len(draws), 0, FROM_DRAWS)
    return quotient(value_of(advice, a), value_of(advice, b))


def value_of(advice: Advice, candidate: Candidate) -> Measured | None:
    """The objective; the lowest loss where that was asked for, the ratio to the own point where no more is known."""
    if candidate.lowest_loss is not None:
        return candidate.lowest_loss
    value = getattr(candidate, FIELDS[advice.question.objective])
    return value if value is not None and value.estimate is not None else candidate.over_own


def quotient(a: Measured | None, b: Measured | None) -> Measured | None:
    """a / b of positive values, as if independent."""
    if a is None or b is None or not a.estimate or not b.estimate or a.estimate < 0 or b.estimate < 0:
        return None
    inverse = Measured(1 / b.estimate, 1 / b.high if b.high else None, 1 / b.low if b.low else None, b.n)
    made = product(a, inverse)
    return Measured(made.estimate, made.low, made.high, made.n, made.censored, CONSERVATIVE)
