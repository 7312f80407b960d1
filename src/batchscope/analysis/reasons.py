"""Why did a claim come out as it did: one sentence, from what was measured.

Every number in a sentence is an estimate of the study's rows, its timings or its traces, rounded to three digits. A
sentence never repeats the verdict; it says what the quantity consists of, so that a reader can see where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from batchscope.analysis import quantities as q
from batchscope.analysis.target import steps_per_epoch
from batchscope.records import Claim, Measured, Row, StudyData, TimingPass

MOSTLY = 2 / 3  # of a difference, to be called its main part; a choice of words


def why(claim: Claim, claims: Sequence[Claim], data: StudyData, rows: Sequence[Row]) -> str:
    """The sentence of a claim; one that could not be judged keeps its reason, diverged trials are always counted."""
    if claim.why:
        return f"It could not be judged: {claim.why}{_diverged(claim, data)}."
    if claim.number == 7:
        return _retuning(claims)
    own = [r for r in rows if r.policy == claim.policy and r.seeds]
    small, large = own[0], own[-1]
    sentence = {1: _training, 2: _validation, 3: _seconds, 4: _epochs, 5: _total, 6: _distance}[claim.number]
    text = sentence(claim, claims, data, small, large)
    bend = "" if claim.effect.monotone is not False else "; the curve is not monotone"
    return text + bend + _diverged(claim, data) + "."


def affine_step(timing: TimingPass) -> tuple[float, float]:
    """(alpha, beta) >= 0 of t(B) = alpha + beta B seconds per step, least relative squares over all rounds."""
    typical = q.typical_reference(timing)
    rows, ones = [], []
    for t in timing.timings:
        reference = np.asarray(t.reference) if typical is not None else 1.0
        seconds = np.asarray(t.seconds_per_step, float) * ((typical or 1.0) / reference)
        rows += [(1 / s, t.batch_size / s) for s in seconds]
        ones += [1.0] * len(seconds)
    scale = np.abs(np.array(rows)).max(axis=0)
    solution = optimize.nnls(np.array(rows) / scale, np.array(ones))[0] / scale
    return float(solution[0]), float(solution[1])


def short(value: float | None) -> str:
    """Three significant digits, in full up to a million: 0.0123, 12.3, 1230."""
    if value is None or not math.isfinite(value):
        return "an unknown number of"
    return f"{float(f'{value:.3g}'):.10g}" if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:.2e}"


def _of(m: Measured) -> str:
    """An estimate, or `more than` its bound."""
    return f"more than {short(m.low)}" if m.estimate is None and m.low is not None else short(m.estimate)


def _difference(small: Measured, large: Measured) -> float | None:
    return None if small.estimate is None or large.estimate is None else large.estimate - small.estimate


def _rates(small: Row, large: Row) -> str:
    if small.learning_rate == large.learning_rate:
        return f"the same learning rate {short(small.learning_rate)}"
    return f"learning rates {short(small.learning_rate)} and {short(large.learning_rate)}"


def _training(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    n = data.settings.train_size
    _, end = q.mean_log_train_loss(q.measured_trials(data, claim.policy))
    steps = steps_per_epoch(n, small.batch_size), steps_per_epoch(n, large.batch_size)
    epochs = "epoch" if end == n else f"{short(end / n)} epochs"
    return (
        f"Over the first {epochs}, which all trials share, the training loss at batch size "
        f"{large.batch_size} was {short(claim.effect.ratio.estimate)} times that at {small.batch_size}, "
        f"with {steps[1]} steps per epoch in place of {steps[0]} at {_rates(small, large)}"
    )


def _validation(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    text = (
        f"The minimum validation loss was {_of(small.min_validation_loss)} at batch size {small.batch_size} and "
        f"{_of(large.min_validation_loss)} at {large.batch_size}; the training loss there was {_of(small.train_loss)} "
        f"and {_of(large.train_loss)}, the generalisation gap {_of(small.generalization_gap)} and "
        f"{_of(large.generalization_gap)}"
    )
    fit = _difference(small.train_loss, large.train_loss)
    gap = _difference(small.generalization_gap, large.generalization_gap)
    if claim.verdict != "holds" or fit is None or gap is None:
        return text
    if fit >= MOSTLY * (fit + gap):
        return text + ": mostly optimisation, the larger batch fits the training set less well"
    if gap >= MOSTLY * (fit + gap):
        return text + ": mostly generalisation, not a worse fit to the training set"
    return text + ": partly optimisation, partly generalisation"


def _seconds(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    if data.timing is None:
        raise ValueError("expected a timing pass wherever claim 3 is judged")
    n = data.settings.train_size
    alpha, beta = affine_step(data.timing)
    share = alpha / (alpha + beta * small.batch_size)
    return (
        f"Seconds per step fit {short(alpha)} + {short(beta)} B, so {100 * share:.0f} % of a step at batch size "
        f"{small.batch_size} is overhead that does not grow with the batch, paid "
        f"{steps_per_epoch(n, small.batch_size)} times an epoch in place of {steps_per_epoch(n, large.batch_size)}"
    )


def _epochs(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    trials = q.measured_trials(data, claim.policy)
    steps = [
        short(q.geometric_mean(q.steps_at_best(t) for t in trials if t.spec.arm.batch_size == row.batch_size))
        for row in (small, large)
    ]
    text = (
        f"The best validation loss came after {_of(small.epochs_to_converge)} epochs at batch size "
        f"{small.batch_size} and {_of(large.epochs_to_converge)} at {large.batch_size}, "
        f"that is after {steps[0]} and {steps[1]} steps"
    )
    if claim.effect.ratio.censored:
        text += f"; {claim.effect.ratio.censored} of these trials had not converged when they ended, so this is a bound"
    return text


def _total(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    epochs, seconds = (next(c for c in claims if c.number == k and c.policy == claim.policy) for k in (4, 3))
    ratio = epochs.effect.ratio
    first = short(ratio.estimate)
    if ratio.estimate is None:
        first = f"at least {short(ratio.low)}" if ratio.low is not None else f"at most {short(ratio.high)}"
    return (
        f"From batch size {small.batch_size} to {large.batch_size}, {first} times the epochs at "
        f"{short(seconds.effect.ratio.estimate)} times the seconds per epoch: "
        f"{_of(small.seconds_to_converge)} s and {_of(large.seconds_to_converge)} s in total"
    )


def _distance(claim: Claim, claims: Sequence[Claim], data: StudyData, small: Row, large: Row) -> str:
    trials = q.measured_trials(data, claim.policy)
    steps = [
        short(q.geometric_mean(q.steps_at_best(t) for t in trials if t.spec.arm.batch_size == row.batch_size))
        for row in (small, large)
    ]
    return (
        f"The weights moved by {_of(small.distance_from_init)} at batch size {small.batch_size} in {steps[0]} steps "
        f"and by {_of(large.distance_from_init)} at {large.batch_size} in {steps[1]} steps, at {_rates(small, large)}"
    )


def _retuning(claims: Sequence[Claim]) -> str:
    held, tuned = (next(c.effect.ratio for c in claims if c.number == 2 and c.policy == p) for p in ("held", "tuned"))
    if held.estimate is None or tuned.estimate is None:
        raise ValueError("expected claim 2 to be judged in both policies wherever claim 7 is")
    text = (
        f"From the smallest to the largest batch size the minimum validation loss changes by a factor of "
        f"{short(held.estimate)} at the held learning rate and {short(tuned.estimate)} when re-tuned"
    )
    if held.estimate <= 1.0:
        return text + ": at the held learning rate there was no gap to close."
    closed = 1 - math.log(tuned.estimate) / math.log(held.estimate)
    if not 0 <= closed <= 1:
        return text + (": nothing of the gap remains." if closed > 1 else ": re-tuning made the gap no smaller.")
    return text + f": re-tuning removes {100 * closed:.0f} % of the gap, {100 * (1 - closed):.0f} % remain."


def _diverged(claim: Claim, data: StudyData) -> str:
    """How many of the policy's trials at either end diverged; timings have none."""
    policies = data.settings.policies if claim.policy == "both" else (claim.policy,)
    trials = [t for p in policies for t in q.measured_trials(data, p)]
    if not trials or claim.number == 3:
        return ""
    sizes = sorted({t.spec.arm.batch_size for t in trials})
    parts = []
    for b in dict.fromkeys((sizes[0], sizes[-1])):
        at = [t for t in trials if t.spec.arm.batch_size == b]
        if count := sum(t.result.outcome == "diverged" for t in at):
            parts.append(f"{count} of {len(at)} trials at batch size {b} diverged")
    return f"; {' and '.join(parts)}" if parts else ""
