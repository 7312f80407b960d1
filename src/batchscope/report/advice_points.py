"""Which numbers do an advice's figures hold? Curves, candidates, runs and limits as plain points, before any drawing.

A run that took E examples to the goal at batch size B is drawn as E / B' steps and E / B' x t(B) seconds, B' the
examples per step averaged over an epoch (whose last batch is short) and t(B) the seconds of a step as timed. Where no
run to the goal stands behind an advice, only ratios to a batch size are known, and are drawn instead: from the same
draws, in which what is shared cancels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from batchscope.analysis.particles import Array
from batchscope.analysis.target import effective_batch_size
from batchscope.records import Advice, Candidate, Measured
from batchscope.report.advice_facts import ROLES
from batchscope.report.advice_numbers import by_loss, rate
from batchscope.report.advice_ratios import TAILS, by_size, has_draws, log_step_seconds, share_timed
from batchscope.report.noise_words import cell, known
from batchscope.report.profile_words import size_interval
from batchscope.report.style import short
from batchscope.report.words import count, number, plain, seconds

DASH = "–"
AT_BEST, BESIDE = "run at the learning rate of the table", "run at another learning rate"
BEYOND = 4.0  # a limit so far past the batch sizes is named but not drawn (a guess)
# Okabe & Ito 2008, the orange and the purple made darker: thin lines must show on white
CHOSEN_COLOUR, CRITICAL, KNEE, CEILING = "#009e73", "#d55e00", "#a0447a", "#946200"
DASHES = {CHOSEN_COLOUR: [1, 0], CRITICAL: [5, 3], KNEE: [2, 2], CEILING: [9, 3, 2, 3]}


class Ends(NamedTuple):
    """A point of a curve with its 90 % interval."""

    x: float
    low: float
    middle: float
    high: float

    def row(self) -> dict[str, Any]:
        """As Vega reads it."""
        return {"x": short(self.x), "y": short(self.middle), "low": short(self.low), "high": short(self.high)}


class Limit(NamedTuple):
    """An upright mark over the batch sizes, with its interval."""

    name: str
    colour: str
    x: float
    low: float | None = None
    high: float | None = None


# --- the limits ---


def limits_of(advice: Advice) -> list[Limit]:
    """The recommended batch size and the three limits, as far as they are known."""
    found = []
    if advice.chosen is not None:
        b = advice.chosen.batch_size
        found.append(Limit(f"recommended batch size {count(b)}", CHOSEN_COLOUR, b))
    crit, knee, ceiling = advice.critical_batch_size, advice.knee, advice.largest_micro_batch_size
    if crit.estimate is not None:
        found.append(Limit(f"critical batch size {cell(crit, DASH)}", CRITICAL, crit.estimate, crit.low, crit.high))
    if knee.estimate is not None:
        found.append(Limit(f"throughput knee {size_interval(knee, DASH)}", KNEE, knee.estimate, knee.low, knee.high))
    if ceiling is not None:
        found.append(Limit(f"memory ceiling, micro-batch {count(ceiling)}", CEILING, ceiling))
    return found


def sizes_domain(advice: Advice) -> tuple[float, float]:
    """The horizontal axis: every batch size that was compared or run, and the limits that are not far beyond them."""
    sizes = [float(c.batch_size) for c in advice.candidates] + [float(t.batch_size) for t in advice.data.trials]
    sizes = sizes or [float(advice.data.own_batch_size)]
    low, high = min(sizes), max(sizes)
    near = [v.x for v in limits_of(advice) if low / BEYOND <= v.x <= high * BEYOND]
    return min([low, *near]) / 1.3, max([high, *near]) * 1.3


# --- curves ---


def reference_size(advice: Advice) -> int | None:
    """The batch size that ratios are over: the task's own where it was compared, else the recommended one."""
    sizes = by_size(advice.candidates)
    own = advice.data.own_batch_size
    return own if own in sizes else advice.chosen.batch_size if advice.chosen is not None else None


def is_relative(advice: Advice) -> bool:
    """Whether only ratios are known."""
    return advice.chosen is not None and not by_loss(advice) and not known(advice.chosen.seconds_to_goal)


def steps_curve(advice: Advice) -> list[Ends]:
    """Steps to the goal by the law, on its fine grid; ratios at the candidates where no more is known."""
    if advice.chosen is None or advice.curves is None or by_loss(advice):
        return []
    if is_relative(advice):
        return relative_curve(advice, timed=False)
    curves = advice.curves
    return [Ends(b, *ends) for b, ends in zip(curves.batch_sizes, curves.steps, strict=True)]


def seconds_curve(advice: Advice) -> list[Ends]:
    """Seconds to the goal at the candidates, or their ratios."""
    if is_relative(advice):
        return relative_curve(advice, timed=True)
    return [ends for c in advice.candidates if (ends := ends_of(c.batch_size, c.seconds_to_goal)) is not None]


def step_curve(advice: Advice) -> list[Ends]:
    """Seconds per step as timed: with an interval from the draws, else as the candidates have it."""
    curves = advice.curves
    if curves is not None and len(curves.sizes_timed) == len(curves.seconds_per_step):
        return [Ends(b, *ends) for b, ends in zip(curves.sizes_timed, curves.seconds_per_step, strict=True)]
    return [ends for c in advice.candidates if (ends := ends_of(c.batch_size, c.seconds_per_step)) is not None]


def loss_curve(advice: Advice) -> list[Ends]:
    """The lowest validation loss in the time that was given."""
    values = [(c.batch_size, c.lowest_loss) for c in advice.candidates if c.lowest_loss is not None]
    return [ends for b, m in values if (ends := ends_of(b, m)) is not None]


def ends_of(x: float, m: Measured) -> Ends | None:
    """A measured value as a point; without an interval its ends are itself; None without an estimate."""
    if m.estimate is None or m.estimate <= 0:
        return None
    return Ends(x, m.estimate if m.low is None else m.low, m.estimate, m.estimate if m.high is None else m.high)


def relative_curve(advice: Advice, timed: bool) -> list[Ends]:
    """Steps (or seconds) to the goal over those at the reference size, from paired draws; empty without draws."""
    reference = reference_size(advice)
    if not has_draws(advice) or reference is None:
        return []
    logs = {c.batch_size: log_to_goal(advice, k, c, timed) for k, c in enumerate(advice.candidates)}
    ends = {b: np.exp(np.quantile(v - logs[reference], TAILS)).tolist() for b, v in logs.items()}
    return [Ends(float(b), *values) for b, values in ends.items()]


def log_to_goal(advice: Advice, column: int, candidate: Candidate, timed: bool) -> Array:
    """(draws,) log steps, or log seconds, to the goal but for what all candidates share."""
    if advice.curves is None:
        return np.zeros(0)
    steps = np.array(advice.curves.draws_log_examples)[:, column]
    steps = steps - math.log(effective_batch_size(advice.data.train_size, candidate.batch_size))
    if not timed:
        return steps
    step = log_step_seconds(advice.curves, share_timed(advice, candidate))
    return steps + step[np.arange(len(steps)) % len(step)]


# --- runs and candidates ---


def step_at(advice: Advice, batch_size: int) -> float | None:
    """Seconds of a step at this batch size: as timed, interpolated log against log where it was not."""
    known_at = [(math.log(e.x), math.log(e.middle)) for e in step_curve(advice) if e.middle > 0]
    if not known_at:
        return None
    x, y = np.array(known_at).T
    at = math.log(batch_size)
    return math.exp(float(np.interp(at, x, y)) + max(0.0, at - float(x[-1])))


def run_rows(advice: Advice, quantity: str) -> list[dict[str, Any]]:
    """The training runs as "steps" or "seconds" to the goal, or by their lowest "loss"; a bound where not reached.

    Runs that diverged or failed have no steps to the goal; those of a relative figure have no place on its axis.
    """
    if is_relative(advice) and quantity != "loss":
        return []
    rates = {c.batch_size: c.learning_rate for c in advice.candidates}
    rows = []
    for t in advice.data.trials:
        examples = t.reached if t.reached is not None else t.bound
        steps = examples / effective_batch_size(advice.data.train_size, t.batch_size)
        step = step_at(advice, t.batch_size) if quantity == "seconds" else None
        y = {"steps": steps, "seconds": None if step is None else steps * step, "loss": t.lowest_loss}[quantity]
        if y is None or y <= 0 or (quantity != "loss" and t.outcome in ("diverged", "failed")):
            continue
        at_best = math.isclose(t.learning_rate, rates.get(t.batch_size, 0.0), rel_tol=1e-3)
        bound = quantity != "loss" and t.reached is None
        value = seconds(y) if quantity == "seconds" else number(y)
        rows.append(
            {
                "x": t.batch_size,
                "y": short(y),
                "kind": "at_least" if bound else "estimate",
                "series": AT_BEST if at_best else BESIDE,
                "text": f"> {value}" if bound else value,
                "rate": rate(t.learning_rate),
                "role": f"{ROLES.get(t.role, plain(t.role))}, seed {t.seed}",
            }
        )
    return rows


def timed_rows(advice: Advice) -> list[dict[str, Any]]:
    """Seconds per step at the candidates; `measured` False where they follow from a smaller micro-batch's."""
    profile = advice.data.profile
    timed = {t.batch_size for t in profile.timing.timings} if profile.timing is not None else set()
    splits = {(s.batch_size, s.micro_batch_size) for s in profile.splits}
    rows = []
    for c in advice.candidates:
        ends = ends_of(c.batch_size, c.seconds_per_step)
        if ends is None:
            continue
        whole = c.accumulation == 1 and c.batch_size in timed
        seen = whole or (c.batch_size, c.micro_batch_size) in splits
        text = f"{seconds(ends.middle)}{'' if seen else ', predicted'}"
        rows.append({**ends.row(), "measured": seen, "text": text})
    return rows


def rate_rows(advice: Advice) -> list[dict[str, Any]]:
    """Every learning rate that was tried, with its outcome."""
    return [
        {
            "x": t.batch_size,
            "y": short(t.learning_rate),
            "outcome": t.outcome,
            "rate": rate(t.learning_rate),
            "role": f"{ROLES.get(t.role, plain(t.role))}, seed {t.seed}",
        }
        for t in advice.data.trials
    ]
