"""How is a measured value written, the same way in the terminal and on the page?

One rule for every number: three significant digits, thousands separated by commas, an interval in brackets behind
the estimate, and a bound (a value that no seed reached) as `> bound`. Counts are exact. Text that comes from a task
(its name, its metrics, paths) passes through `plain`, so that it can neither colour a terminal nor break a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from batchscope.records import Goal, LawFit, Measured, Row, StudyResult
from batchscope.records.hardware import OWN_LOOP

NOTHING = "n/a"  # what a cell says where there is no value and no bound


def plain(text: object) -> str:
    """`text` with every character that a terminal might obey (escapes, line breaks, direction marks) made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits: 1,240 · 0.0123 · 5.00 · 1.50e-05 · 12.3M; `n/a` if not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    size = abs(rounded)
    if size >= 1e9 or size < 1e-4:
        return f"{rounded:.{digits - 1}e}"
    if size >= 1e6:
        return f"{rounded / 1e6:.{digits}g}M"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{rounded:,.{decimals}f}"


def count(value: float | None) -> str:
    """A whole number in full: 12,345."""
    return NOTHING if value is None else f"{round(value):,}"


def measured(m: Measured | None, unit: str = "", dash: str = "-") -> str:
    """`1,240 [1,100-1,400]`, `> 40,000` for a bound, `1,240 [> 1,100]` where the interval has no upper end.

    Where an end is negative the dash would read as a minus sign, so the ends are parted by "to".
    """
    if m is None or (m.estimate is None and m.low is None):
        return NOTHING
    tail = f" {unit}" if unit else ""
    if m.estimate is None:
        return f"> {number(m.low)}{tail}"
    return f"{number(m.estimate)}{tail}{interval(m, dash)}"


def endless(m: Measured) -> bool:
    """Whether a positive quantity's interval excludes nothing: from 0 up, without an upper end."""
    return m.estimate is not None and m.high is None and not m.low


def interval(m: Measured, dash: str = "-") -> str:
    """The bracket behind an estimate, with a space before it; empty where there is no interval."""
    low, high = (v if v is not None and math.isfinite(v) else None for v in (m.low, m.high))
    if low is None and high is None:
        return ""
    if high is None:
        return f" [> {number(low)}]"
    if low is None:
        return f" [< {number(high)}]"
    between = " to " if low < 0 or high < 0 else dash
    return f" [{number(low)}{between}{number(high)}]"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it: 420 µs · 12.3 ms · 3.21 s · 4.5 min · 1.2 h."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for scale, unit, below in ((1e-6, "µs", 1e-3), (1e-3, "ms", 1.0), (1.0, "s", 120.0), (60.0, "min", 7200.0)):
        if abs(value) < below:
            return f"{number(value / scale)} {unit}"
    return f"{number(value / 3600.0)} h"


def list_of(words: Iterable[object]) -> str:
    """a · a and b · a, b and c."""
    items = [str(w) for w in words]
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def goal_of(goal: Goal) -> str:
    """The goal as a sentence part: validation loss at most 0.36."""
    return plain(f"validation {goal.metric} {'at most' if goal.falls else 'at least'} {goal.value:.6g}")


def law_sentences(law: LawFit, unit: str = "examples", dash: str = "-") -> list[str]:
    """What the fitted law says, or why there is none.

    At B = B_crit a run takes 2 S_min steps and 2 S_min B_crit examples: twice the least of either.
    """
    reason = sentence(law.reason) if law.reason else ""
    if law.critical_batch_size.estimate is None:
        bound = law.critical_batch_size.low
        known = f"The critical batch size is above {number(bound)} {unit}." if bound is not None else ""
        return [s for s in (known, reason or "No law was fitted.") if s]
    if endless(law.critical_batch_size):
        said = (
            "The critical batch size (tuned) is not resolved: its interval has no end on either side, so that the best "
            f"fit, {number(law.critical_batch_size.estimate)} {unit}, says little."
        )
        return [s for s in (said, reason) if s]
    said = (
        f"The critical batch size (tuned) is {measured(law.critical_batch_size, unit, dash)}: there the goal takes "
        f"twice the fewest steps, {measured(law.s_min, dash=dash)}, and twice the fewest {unit}."
    )
    return [s for s in (said, reason) if s]


def target_sentences(result: StudyResult, dash: str = "-") -> list[str]:
    """For each further goal value: how many rows reached it, and its critical batch size."""
    said = []
    for target in result.targets:
        reached = sum(1 for row in target.rows if row.reached)
        law = law_sentences(target.law, dash=dash)[0]
        said.append(f"At {goal_of(target.goal)}, reached in {reached} of {len(target.rows)} rows: {law}")
    return said


def fastest(rows: Sequence[Row], quantity: str) -> Row | None:
    """The row with the least estimate of `quantity`, of those that have one."""
    known = [(m.estimate, r.batch_size, r) for r in rows if (m := getattr(r, quantity)).estimate is not None]
    return min(known, key=lambda k: k[:2])[2] if known else None


def fastest_sentence(result: StudyResult, dash: str = "-") -> str:
    """Which batch size reached the goal in the least measured time, and which others' intervals overlap its own."""
    best = fastest(result.rows, "seconds_to_goal")
    if best is None:
        reached = sum(r.reached for r in result.rows)
        if reached:
            return "Seconds per step were not measured, so time to the goal is not known."
        budget = count(result.settings.budget_examples)
        return f"No batch size reached the goal within the budget of {budget} examples: the values are bounds."
    top = best.seconds_to_goal
    said = (
        f"The goal was reached soonest at batch size {best.batch_size:,} ({best.policy} learning rate "
        f"{number(best.learning_rate)}): {measured(top, 's', dash)}"
    )
    if top.high is None:
        return f"{said}."
    rivals = [
        f"{r.batch_size:,} {r.policy}"
        for r in result.rows
        if r is not best and (m := r.seconds_to_goal).estimate is not None and (m.low or 0.0) <= top.high
    ]
    if not rivals:
        return f"{said}; no other interval overlaps this one."
    return f"{said}. Intervals that overlap this one: {list_of(rivals)}."


def verdict_sentence(result: StudyResult) -> str:
    """How the claims fell, counted."""
    if not result.claims:
        return "No claim was judged."
    verdicts = [c.verdict for c in result.claims]
    parts = [f"{verdicts.count(v)} {w}" for v, w in VERDICT_COUNTS if verdicts.count(v)]
    return f"Of {len(verdicts)} judgements on the classic claims, {list_of(parts)}."


VERDICT_COUNTS = (("holds", "hold"), ("does not hold", "do not hold"), ("not resolved", "are not resolved"))


def sentence(text: str) -> str:
    """`text` as a sentence: first letter upper, full stop at the end, control characters visible."""
    text = plain(text).strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def loop_of(loop: str = OWN_LOOP) -> str:
    """Whose loop the seconds belong to."""
    return "Batchscope's own training loop" if loop == OWN_LOOP else f"the loop named “{plain(loop)}”"
