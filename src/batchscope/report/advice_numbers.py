"""How is a number of an advice written in a sentence? Durations, ratios, chances and rates, each with its interval.

A sentence is read once, so its numbers have two significant digits where their interval is wider than a tenth; tables
keep three. The bracket stands behind the words that the number belongs to: `0.84 times as long (0.74 to 0.98)`.
"""

from __future__ import annotations

from typing import NamedTuple

from batchscope.records import Advice, Measured
from batchscope.report.words import count, goal_of, number

NARROW = 1.1  # high over low below which a value keeps three digits instead of two (a guess at what reads best)
WIDE = 1000.0  # high over low from which the ends say nothing but how wide the interval is (a guess)
UNITS = ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0))  # below, name, seconds
DAYS = (86_400.0, "days")
NAMED = "90 % interval "  # what the first bracket of a paragraph says


class Aim(NamedTuple):
    """How an objective is spoken of."""

    best: str  # the best batch size is ...
    verb: str  # another would ...
    ratio: str  # ... r times ...


AIMS = {
    "time": Aim("the fastest", "take", "as long"),
    "cost": Aim("the cheapest", "cost", "as much"),
    "examples": Aim("the one that needs the fewest examples", "need", "as many examples"),
    "energy": Aim("the one that needs the least energy", "need", "as much energy"),
}
LOSS = Aim("the one that ends lowest", "end at", "as high a loss")


def digits_of(m: Measured) -> int:
    """Two significant digits, three where the interval is narrow or missing."""
    return 2 if m.low and m.high and m.low > 0 and m.high / m.low >= NARROW else 3


def spelled(m: Measured, scale: float = 1.0, unit: str = "", named: str = "") -> str:
    """`25 s (19 to 39 s)`, in units of `scale`; `at least 40 s` for a bound; `named`: what the bracket begins with."""
    digits, tail = digits_of(m), f" {unit}" if unit else ""
    if m.estimate is None:
        return f"at least {number(None if m.low is None else m.low / scale, digits)}{tail}"
    low, high = (None if v is None else number(v / scale, digits) for v in (m.low, m.high))
    bounds = unresolved(named) if is_wide(m) else bracket(low, high, tail, named)
    return f"{number(m.estimate / scale, digits)}{tail}{bounds}"


def times(m: Measured, what: str, named: str = "") -> str:
    """A ratio to two decimals: `0.84 times as long (0.74 to 0.98)`; without a space where `what` is empty."""
    low, high = (None if v is None else decimals(v) for v in (m.low, m.high))
    bounds = unresolved(named) if is_wide(m) else bracket(low, high, "", named)
    return f"{decimals(m.estimate)} times{f' {what}' if what else ''}{bounds}"


def is_wide(m: Measured) -> bool:
    """Whether the interval excludes next to nothing."""
    return m.low is not None and m.high is not None and 0 <= m.low * WIDE < m.high


def unresolved(named: str) -> str:
    """What stands in place of such an interval."""
    return f" ({named or NAMED}wider than a factor of {count(WIDE)})"


def decimals(value: float | None) -> str:
    """Two decimals below 10, two significant digits from there."""
    return number(value, 2) if value is None or abs(value) >= 10 or abs(value) < 0.1 else f"{value:.2f}"


def bracket(low: str | None, high: str | None, tail: str, named: str) -> str:
    """The interval in words, with a space before it."""
    if low is None and high is None:
        return " (without an interval)"
    if low is None or high is None:
        return f" ({named}{f'above {low}' if high is None else f'below {high}'}{tail})"
    return f" ({named}{low} to {high}{tail})"


def unit_of(value: float) -> tuple[float, str]:
    """Seconds per unit and its name, for a duration: ms, s, min, h or days."""
    return next(((seconds, name) for below, name, seconds in UNITS if abs(value) < below), DAYS)


def lasting(m: Measured, named: str = "") -> str:
    """A duration with its interval in one unit: 3.2 min (2.8 to 3.7 min)."""
    scale, unit = unit_of(m.estimate if m.estimate is not None else m.low or 0.0)
    return spelled(m, scale, unit, named)


def chance(p: float) -> str:
    """A probability: 67 %, more than 99 %, less than 1 %."""
    return "more than 99 %" if p >= 0.995 else "less than 1 %" if p < 0.005 else f"{100 * p:.0f} %"


def rate(value: float) -> str:
    """A learning rate to three digits."""
    return f"{value:.3g}"


# --- what was asked ---


def by_loss(advice: Advice) -> bool:
    """Whether the lowest loss in a given time was asked for, instead of a goal."""
    question = advice.question
    return question.best_in_seconds is not None or question.best_in_examples is not None


def aim_of(advice: Advice) -> Aim:
    """What the advice strives for."""
    return LOSS if by_loss(advice) else AIMS[advice.question.objective]


def allowance(advice: Advice) -> str:
    """The time or the examples within which the lowest loss was asked for."""
    seconds, examples = advice.question.best_in_seconds, advice.question.best_in_examples
    if seconds is None:
        return f"{count(examples)} examples"
    scale, unit = unit_of(seconds)
    return f"{seconds / scale:.3g} {unit}"


def goal_in(advice: Advice) -> str:
    """The goal, or the lowest loss in the time given."""
    if by_loss(advice):
        return f"the lowest validation loss in {allowance(advice)}"
    return goal_of(advice.data.goal) if advice.data.goal is not None else "the goal"
