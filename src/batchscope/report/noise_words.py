"""What does a noise run say, in words? The answer's sentences, and how a scale, its source and its bounds are written.

The terminal and the page say the same. A value that only has one end is "at least" or "at most" that end in a
sentence, `> x` or `< x` in a table; it is never 0 and never infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from batchscope.records import Measured, NoiseAgainstSweep, NoiseResult, NoiseRun, NoiseScale, Principle, PrinciplePoint
from batchscope.report.words import (
    count,
    endless,
    goal_of,
    interval,
    list_of,
    measured,
    number,
    plain,
)

ABSENT = "–"  # what a cell says of a quantity that is not known
SOURCES = {
    "examples": "per-example gradient norms, taken in the backward pass",
    "micro-batches": "the gradients of the micro-batches that a step accumulates",
    "replicas": "the gradients of the data-parallel replicas",
    "parts": "the gradients of parts of one batch",
}
PROXIES = {
    "adam": "preconditioned by Adam's second moment",
    "sign": "sign-like",
}
PROXY_MEANINGS = {
    "adam": "B = tr(PΣ) / GᵀPG with P = 1 / (√v + ε), v Adam's second moment: the noise scale in coordinates in which "
    "Adam's step is a plain one; a proxy, for v is itself made of noisy gradients",
    "sign": "B = (Σᵢ σᵢ)² / (Σᵢ |Gᵢ|)², for steps that depend on signs alone; a proxy from below, for noise makes the "
    "|gᵢ| of a batch longer than |Gᵢ|",
}
DEFINITION = "B_simple = tr(Σ) / |G|²"


def cell(m: Measured | None, dash: str = "-") -> str:
    """A value for a table: `1,240 [1,100-1,400]`, `> 900`, `< 0.02`, or a dash where nothing is known."""
    if m is None or (m.estimate is None and m.low is None and m.high is None):
        return ABSENT
    return f"< {number(m.high)}" if m.estimate is None and m.low is None else measured(m, dash=dash)


def spelled(m: Measured, tail: str = "", dash: str = "-") -> str:
    """A value for a sentence, `tail` (a unit) behind the number: `120 examples [95-150]`, `at least 120 examples`."""
    if m.estimate is not None:
        return f"{number(m.estimate)}{tail}{interval(m, dash)}"
    side, end = ("at least", m.low) if m.low is not None else ("at most", m.high)
    return f"{side} {number(end)}{tail}"


def known(m: Measured | None) -> bool:
    """Whether a value has an estimate or an end."""
    return m is not None and not (m.estimate is None and m.low is None and m.high is None)


def given(scale: NoiseScale) -> bool:
    """Whether a noise scale is said at all: resolved, or a bound."""
    return scale.outcome != "not_enough" and known(scale.b_simple)


# --- the answer ---


def answer_sentences(result: NoiseResult, dash: str = "-") -> list[str]:
    """The answer, a line each: the run average, what it means, B_crit beside it, what it was measured with."""
    lines = (average_sentence(result, dash), meaning_of(result), sweep_sentence(result, dash), measuring_of(result))
    return [line for line in lines if line]


def average_sentence(result: NoiseResult, dash: str = "-") -> str:
    """The run average with its interval, or its bound, or why there is neither."""
    scale, over = result.run_average, stretch_of(result.data)
    unit = plain(result.unit)
    if scale.outcome == "not_enough":
        why = plain(scale.reason).rstrip(".") or "too few measurements"
        return f"No gradient noise scale can be given {over}: {why}."
    said = f"The gradient noise scale {DEFINITION}, averaged {over}, is {spelled(scale.b_simple, f' {unit}', dash)}"
    if scale.outcome == "at_least":
        return f"{said}: |G|² is not distinguishable from 0, so no upper end is known."
    return f"{said}."


def stretch_of(data: NoiseRun) -> str:
    """Which part of the run the average is of."""
    if data.crossed_at is not None:
        goal = goal_of(data.goal) if data.goal is not None else "the goal"
        return f"up to the crossing of {goal} (at {number(data.crossed_at)} examples)"
    if data.outcome == "diverged":
        return "over the run, which diverged"
    return "over the run" if data.goal is None else f"over the run, which did not cross {goal_of(data.goal)}"


def meaning_of(result: NoiseResult) -> str:
    """What the number is good for, and on which side of it the run's own batch size lies; empty without a number."""
    if not given(result.run_average):
        return ""
    meaning = (
        "Well below it, doubling the batch size nearly halves the steps; well above it, hardly any are saved. It is a "
        "proxy for the critical batch size: it looks at gradients alone, as if the loss were curved alike in all "
        "directions."
    )
    side = side_of(result)
    return f"{meaning} The run's own batch size, {count(result.data.batch_size)}, {side}." if side else meaning


def side_of(result: NoiseResult) -> str:
    """Where the run's batch size lies; empty where it counts something else than the noise scale does."""
    own, m = result.data.batch_size, result.run_average.b_simple
    if result.unit != "examples":
        return ""
    if m.low is not None and own < m.low:
        return "is below this bound" if m.high is None else "is below this interval"
    if m.high is not None and own > m.high:
        return "is above this interval"
    return "may be on either side of it" if m.high is None else "is within this interval"


def sweep_sentence(result: NoiseResult, dash: str = "-") -> str:
    """The measured critical batch size and the factor by which the proxy misses it, or how to measure it."""
    against = result.against_sweep
    if result.unit != "examples" and against is None:
        return f"The critical batch size is measured in examples, this in {plain(result.unit)}: they are not compared."
    if against is None:
        return (
            "The critical batch size B_crit itself is not known: no tuned study of this task that gives one is in the "
            "store; `batchscope study TASK --policy tuned` measures it."
        )
    crit = against.critical_batch_size
    said = f"The critical batch size B_crit, measured by study {plain(against.study)}, "
    if not known(crit) or endless(crit):
        return f"{said}is not resolved, so the proxy cannot be held against it."
    return f"{said}is {spelled(crit, ' examples', dash)}: {verdict_of(against, dash)}."


def verdict_of(against: NoiseAgainstSweep, dash: str = "-") -> str:
    """Whether the proxy is too high or too low, and by what factor B_simple / B_crit."""
    m = against.factor
    if not known(m) or endless(m):
        return "the factor between the proxy and it is not resolved"
    said = f"the proxy is {spelled(m, dash=dash)} times that"
    if m.low is not None and m.low > 1:
        return f"{said}, too high here"
    if m.high is not None and m.high < 1:
        return f"{said}, too low here"
    return f"{said}, and its interval does not exclude 1"


def measuring_of(result: NoiseResult) -> str:
    """The source of statistics, how many steps were measured, what they are worth, and how many more it takes."""
    scale, n = result.run_average, result.run_average.measurements
    source = SOURCES.get(result.source, plain(result.source))
    every = "every step" if result.every == 1 else f"at first every one, later one in {count(result.every)}"
    said = f"Source: {source} ({plain(result.source)}), at {count(n)} step{'' if n == 1 else 's'} ({every})"
    if n == 0:
        return f"{said}."
    worth = f"worth {number(scale.effective_measurements, 2)} independent ones"
    below = f"{percent(scale.negative_share)} of them put" if scale.negative_share > 0 else "none of them puts"
    return f"{said}, {worth}; taken alone, {below} |G|² below 0. {needed_sentence(scale)}"


def needed_sentence(scale: NoiseScale) -> str:
    """How many more measurements the asked precision needs."""
    asked = f"±{percent(scale.precision)}"
    if scale.needed == 0:
        return f"The interval is as narrow as was asked for ({asked})."
    if scale.needed is not None:
        s = "" if scale.needed == 1 else "s"
        return f"About {count(scale.needed)} further measurement{s} would narrow the interval to {asked}."
    return f"How many measurements {asked} would take cannot be told from these."


def percent(share: float) -> str:
    """A share as a percentage: 34 %, 2.5 %."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


# --- tables ---


def measures(scale: NoiseScale) -> tuple[Measured, Measured, Measured]:
    """B_simple, tr(Sigma), |G|^2."""
    return scale.b_simple, scale.trace, scale.squared_gradient


def share_of(scale: NoiseScale, layers: Iterable[NoiseScale]) -> float | None:
    """A layer's part of the layers' summed tr(Sigma), 0 to 1; tr(Sigma) is additive over disjoint parameters."""
    own = scale.trace.estimate
    whole = math.fsum(s.trace.estimate for s in layers if s.trace.estimate is not None and s.trace.estimate > 0)
    return None if own is None or whole <= 0 else max(0.0, own) / whole


def proxy_sentences(result: NoiseResult) -> list[str]:
    """What each proxy that was measured stands for."""
    return [f"{name_of(k)}: {PROXY_MEANINGS[k]}." for k in result.proxies if k in PROXY_MEANINGS]


def name_of(metric: str) -> str:
    """A proxy by name."""
    return f"“{plain(metric)}”, {PROXIES[metric]}" if metric in PROXIES else f"“{plain(metric)}”"


def data_size_of(principle: Principle, data: NoiseRun) -> int:
    """N at this checkpoint: what its batches were drawn from."""
    return next((d.data_size for d in data.deviations if d.step == principle.step), data.train_size)


def predicted_cell(point: PrinciplePoint, data_size: int, dash: str = "-") -> str:
    """A predicted deviation for a table: exactly 0 at B = N, whatever B_simple is."""
    return "0" if point.batch_size >= data_size else cell(point.predicted, dash)


def unresolved_sentence(result: NoiseResult) -> str:
    """The windows that gave no value or only a bound, counted; empty where there are none."""
    bounds = sum(p.scale.outcome == "at_least" for p in result.points)
    none = sum(p.scale.outcome == "not_enough" for p in result.points)
    parts = [
        f"{n} {'gives' if n == 1 else 'give'} {what}"
        for n, what in ((bounds, "only a bound"), (none, "no value and so no mark"))
        if n
    ]
    total = len(result.points)
    return f"Of {total} window{'' if total == 1 else 's'}, {list_of(parts)}." if parts else ""


def heading_of(step: int, examples: int, loss: float) -> str:
    """A checkpoint of the principle: `step 1,200 (76,800 examples, training loss 0.412)`."""
    return f"step {count(step)} ({count(examples)} examples, training loss {number(loss)})"
