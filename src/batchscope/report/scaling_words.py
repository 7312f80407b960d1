"""What do more devices buy, in words? Three to six paragraphs that a person would write, with their intervals.

What several devices do to a step at a fixed global batch (strong scaling) and at a fixed batch per device (weak
scaling); what averaging the gradients adds; what it takes to the goal; past which device count more buy nothing; what
was not measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from batchscope.analysis.scaling import PER_DOUBLING
from batchscope.analysis.scaling_choice import GAIN
from batchscope.analysis.step_time import scaled
from batchscope.records import DeviceChoice, Measured, ScalingResult, ScalingRow
from batchscope.report.advice_numbers import is_wide, spelled, times, unit_of
from batchscope.report.noise_words import known
from batchscope.report.profile_words import size_of
from batchscope.report.words import count, endless, goal_of, list_of, plain

PERCENT = 100.0
BAND = f"{PERCENT * (GAIN - 1):.0f} %"
FAR_BELOW = 4  # times below the critical batch size a step is far from useless (a guess)
FEW = 3  # device counts that a sentence names one by one
NAMED = "95 % interval "  # what every paragraph's first bracket says


def worded(result: ScalingResult) -> ScalingResult:
    """The result with its `sentences`."""
    return dataclasses.replace(result, sentences=tuple(sentences_of(result)))


def sentences_of(result: ScalingResult) -> list[str]:
    """The answer, a paragraph each."""
    parts = (step_sentences, averaging_sentence, goal_sentences, useful_sentence, missing_sentence)
    return [said for part in parts if (said := part(result))]


# --- how numbers are told ---


def devices_of(n: int) -> str:
    """`1 device`, `4 devices`."""
    return f"{count(n)} device{'' if n == 1 else 's'}"


def told(m: Measured, unit: str, named: str = "") -> str:
    """`62 % (59 to 65 %)`; an interval that begins at 0 is told by its upper end."""
    m = dataclasses.replace(m, low=None) if m.low == 0 and m.high else m
    return spelled(m, 1.0, unit, NAMED if is_wide(m) else named)


def lasting(m: Measured, named: str = "") -> str:
    """A duration with its interval: `12 s (11 to 14 s)`."""
    factor, unit = unit_of(m.estimate if m.estimate is not None else m.low or 0.0)
    return told(scaled(m, 1 / factor), unit, named)


def share_of(part: Measured, whole: Measured) -> Measured:
    """A part of the median step, in percent, with the part's interval over that step, of which there is no more."""
    if not whole.estimate:
        return Measured(None, None, None, part.n, 0, "none: no step was timed")
    share = scaled(part, PERCENT / whole.estimate)
    return share if share.high is None else dataclasses.replace(share, high=min(share.high, PERCENT))


def largest_count(result: ScalingResult) -> int:
    """The most devices that were measured."""
    return max((r.devices for r in result.rows), default=1)


def at_ends(rows: Sequence[ScalingRow], field: str) -> list[ScalingRow]:
    """The rows of the smallest and of the largest batch size that have a value for `field`."""
    having = sorted((r for r in rows if known(getattr(r, field))), key=lambda r: r.batch_size)
    return [having[0], having[-1]] if len(having) > 1 else having


# --- what was measured of a step ---


def step_sentences(result: ScalingResult) -> str:
    """Strong and weak scaling at the most devices measured."""
    n = largest_count(result)
    if n == 1:
        return "Steps were timed on one device only, so what several devices do to a step was not measured."
    rows = [r for r in result.rows if r.devices == n]
    return " ".join(s for s in (strong_sentence(n, rows), weak_sentence(n, rows)) if s)


def strong_sentence(n: int, rows: Sequence[ScalingRow]) -> str:
    """A step of the same global batch on n devices and on one."""
    ends = [(r.batch_size, m) for r in at_ends(rows, "strong_speedup") if (m := r.strong_speedup) is not None]
    if not ends:
        return ""
    parts = [f"{faster(m, NAMED if k == 0 else '')} at batch size {count(b)}" for k, (b, m) in enumerate(ends)]
    how = "With the global batch fixed and divided (strong scaling)"
    return f"{how}, a step on {devices_of(n)} is {list_of(parts)}, compared with one device."


def faster(speedup: Measured, named: str = "") -> str:
    """`1.72 times as fast (1.59 to 1.85)`, `2.10 times as slow ...`; undecided where the interval holds 1."""
    m = speedup
    if m.estimate and m.low and m.high and m.high < 1:
        return times(Measured(1 / m.estimate, 1 / m.high, 1 / m.low, m.n), "as slow", named)
    said = times(m, "as fast", named)
    decided = m.low is not None and m.low > 1
    return said if decided else f"not clearly faster or slower, {said},"


def weak_sentence(n: int, rows: Sequence[ScalingRow]) -> str:
    """n times the batch on n devices, against one device at its own share."""
    ends = [(r.batch_size, m) for r in at_ends(rows, "weak_efficiency") if (m := r.weak_efficiency) is not None]
    if not ends:
        return ""
    parts = [f"{told(scaled(m, PERCENT), '%')} with {count(b // n)} examples each" for b, m in ends]
    how = "With the batch of each device fixed (weak scaling)"
    return f"{how}, {devices_of(n)} reach {list_of(parts)} of {count(n)} times one device's throughput."


def averaging_sentence(result: ScalingResult) -> str:
    """What of a step is averaging that computing does not hide."""
    n = largest_count(result)
    ends = at_ends([r for r in result.rows if r.devices == n], "exposed") if n > 1 else []
    if not ends:
        return ""
    parts = [
        f"{told(share_of(r.exposed, r.seconds_per_step), '%', NAMED if r is ends[0] else '')} of a step "
        f"at batch size {count(r.batch_size)}"
        for r in ends
    ]
    size = size_of(result.data.timing.gradient_bytes)
    what = f"Averaging {size} of gradients over {devices_of(n)}"
    return f"{what}, as far as computing does not hide it, takes {list_of(parts)}."


# --- to the goal ---


def goal_sentences(result: ScalingResult) -> str:
    """What it takes to the goal on each device count measured, and on those predicted."""
    timed = [c for c in result.choices if c.measured]
    guessed = [c for c in result.choices if not c.measured]
    said = []
    if timed:
        parts = [f"{choice_words(c, NAMED if c is timed[0] else '')} on {devices_of(c.devices)}" for c in timed]
        own = "its best batch size" if len(timed) == 1 else "the best batch size of each"
        goal = f" ({goal_of(result.goal)})" if result.goal is not None else ""
        said.append(f"Training to the goal{goal} at {own} takes {list_of(parts)}; these seconds are measured.")
    if guessed:
        best = min(guessed, key=lambda c: c.seconds_to_goal.estimate or math.inf)
        named = "" if timed else NAMED
        gain = f"{times(best.speedup, 'as fast as one device')}" if known(best.speedup) else "how much faster not known"
        said.append(
            f"{counts_words([c.devices for c in guessed])} they are predicted, the least of them "
            f"{choice_words(best, named)} on {devices_of(best.devices)}: {gain}."
        )
    return " ".join(said)


def counts_words(counts: Sequence[int]) -> str:
    """`For 8 and 16 devices`, `For 8 device counts from 8 to 1,024`."""
    if len(counts) > FEW:
        return f"For {len(counts)} device counts from {count(counts[0])} to {count(counts[-1])}"
    return f"For {list_of(map(count, counts))} device{'' if list(counts) == [1] else 's'}"


def choice_words(choice: DeviceChoice, named: str = "") -> str:
    """`12 s (11 to 13 s) with batch size 128`."""
    far = " (its steps extrapolated)" if choice.extrapolated else ""
    return f"{lasting(choice.seconds_to_goal, named)} with batch size {count(choice.batch_size)}{far}"


def useful_sentence(result: ScalingResult) -> str:
    """Past which device count more buy nothing, and why."""
    choices = {c.devices: c for c in result.choices}
    if len(choices) < 2:
        return ""
    most, n = max(choices), result.most_useful
    if n is None:
        return (
            f"Even {devices_of(most)}, the most considered, are more than {BAND} faster than any fewer: where more buy "
            f"nothing was not found. {critical_words(result)}"
        )
    how = " (as predicted)" if any(not c.measured for c in choices.values() if c.devices >= n) else ""
    more = "More than one device buys" if n == 1 else f"More than {devices_of(n)} buy"
    said = f"{more} nothing{how}: no larger number, up to {count(most)}, is more than {BAND} faster."
    return f"{said} {critical_words(result)}"


def critical_words(result: ScalingResult) -> str:
    """What sets the useful device count."""
    crit = result.critical_batch_size
    if crit is None or not known(crit):
        return "The critical batch size, past which larger batches save few steps, is not known: no law was fitted."
    if endless(crit):
        return "The critical batch size, past which larger batches save few steps, is not resolved."
    size = told(crit, "examples", NAMED)
    at = next((c for c in result.choices if c.devices == result.most_useful), None)
    if at is not None and no_faster(result, at):
        return (
            "Averaging sets it: twice the devices do not make a step of the same batch shorter. (The critical batch "
            f"size, past which larger batches save few steps, is {size}.)"
        )
    if at is not None and crit.estimate and at.batch_size < crit.estimate / FAR_BELOW:
        return (
            f"Averaging sets it: there the best batch size, {count(at.batch_size)}, is far below the critical "
            f"one, {size}: larger batches would still save steps, but more devices make no step shorter."
        )
    return (
        f"The critical batch size sets it, {size}: larger batches, which would keep more devices busy, save few steps, "
        "and the smaller each device's share, the more of a step is averaging."
    )


# --- what was not measured ---


def no_faster(result: ScalingResult, choice: DeviceChoice) -> bool:
    """Whether a step of the same batch was timed on twice as many devices, and is no faster there."""
    steps = {(r.devices, r.batch_size): r.seconds_per_step.estimate for r in result.rows}
    here, there = (steps.get((n, choice.batch_size)) for n in (choice.devices, 2 * choice.devices))
    return here is not None and there is not None and here <= GAIN * there


def missing_sentence(result: ScalingResult) -> str:
    """What nobody measured: steps to the goal, device counts that are predicted, other machines."""
    return " ".join(s for s in (study_words(result), guess_words(result), coupled_words(result)) if s)


def study_words(result: ScalingResult) -> str:
    """Why seconds to the goal are not known, where they are not."""
    if result.choices:
        return ""
    if result.data.study_id is None:
        return (
            "Steps to the goal are not known, as the store has no study of this task: run `batchscope study`, then "
            "`batchscope scale` again, to see how many devices pay."
        )
    return (
        f"Seconds to the goal are not known: study {plain(result.data.study_id)} has no steps to it that can be used."
    )


def guess_words(result: ScalingResult) -> str:
    """That predictions are guesses, with the error that is assumed for them."""
    n, said = largest_count(result), []
    beyond = [x for x in (*result.predictions, *result.choices) if x.devices > n]
    if beyond:
        said.append(
            f"Beyond {devices_of(n)} nothing was measured: a prediction rests on the fitted model and a guessed error "
            f"of {PERCENT * PER_DOUBLING:.0f} % for each doubling."
        )
    if result.data.question.network is not None:
        said.append("Predictions are for the link that was described, which was not measured.")
    if any(c.extrapolated for c in result.choices):
        said.append("Steps at batch sizes larger than any trained follow the study's law.")
    if result.data.conditions.device == "cpu" and n > 1:
        said.append("The devices are cores of one machine that share its memory; other machines will differ.")
    return " ".join(said)


def coupled_words(result: ScalingResult) -> str:
    """Batch norm per replica."""
    if not result.data.coupled:
        return ""
    return (
        "The model has batch norm, which each device computes on its own part of the batch: steps to the goal measured "
        "on one device are not those of several."
    )
