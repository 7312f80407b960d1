"""Which batch size is best on each number of devices, what does it take to the goal, and when do more buy nothing?

    seconds to goal (B, n) = steps to goal (B) x seconds per step (B, n)

Steps are the study's: of the tuned policy where it was run, else of the held one. Beyond the batch sizes that were
trained they follow the law S_min (1 + B_crit / B) of the tuned policy, and are marked as extrapolated. Every device
count takes the batch size with the least seconds. As n grows, a step can only be shortened until averaging binds, and
larger batches only save steps until B_crit: the device count past which nothing is gained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from scipy import stats

from batchscope.analysis.scaling import Predictor
from batchscope.analysis.step_time import inverse, scaled
from batchscope.analysis.table import law_of
from batchscope.analysis.table import rows_of as study_rows
from batchscope.analysis.target import effective_batch_size
from batchscope.analysis.tradeoff import predict_steps
from batchscope.analysis.uncertainty import LEVEL, product
from batchscope.records import DeviceChoice, LawFit, Measured, StudyData

GAIN = 1.05  # times faster: less is no gain (the width of the 5 % band)


@dataclasses.dataclass(frozen=True)
class GoalSteps:
    """Steps to goal by batch size; `extrapolated` ones come from the law."""

    measured: Mapping[int, Measured]
    extrapolated: Mapping[int, Measured]
    critical_batch_size: Measured | None


def goal_steps(study: StudyData) -> GoalSteps:
    """Of the tuned policy, else of the held one, without a law."""
    policy = "tuned" if "tuned" in study.settings.policies else study.settings.policies[0]
    rows = {row.batch_size: row.steps_to_goal for row in study_rows(study, policy)}
    measured = {b: steps for b, steps in rows.items() if steps.estimate is not None and steps.estimate > 0}
    law = law_of(study)
    if law.critical_batch_size.estimate is None or not measured:
        return GoalSteps(measured, {}, None)
    n, largest = study.settings.train_size, max(rows)
    if largest not in measured:  # it was trained, and no seed reached: the law says nothing of larger ones
        return GoalSteps(measured, {}, law.critical_batch_size)
    beyond = [2**k for k in range(1, n.bit_length()) if largest < 2**k <= n]
    return GoalSteps(measured, {b: law_steps(law, b, n) for b in beyond}, law.critical_batch_size)


def law_steps(law: LawFit, batch_size: int, train_size: int) -> Measured:
    """S(B) of the law with its interval: log S = a + log(1 + e^b / B), the errors of a and b and its residuals."""
    effective = effective_batch_size(train_size, batch_size)
    estimate = predict_steps(law, effective)
    b_crit = law.critical_batch_size.estimate
    if law.joint_covariance is None or law.residual_sd is None or b_crit is None:
        return Measured(estimate, None, None, law.s_min.n, 0, "none: the law has no interval")
    bend = b_crit / (effective + b_crit)  # d log S / db
    (aa, ab), (_, bb) = law.joint_covariance
    variance = aa + 2 * bend * ab + bend**2 * bb + law.residual_sd**2
    df = max(1, len(law.batch_sizes) - 2)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * math.sqrt(max(variance, 0.0))
    method = f"law of {len(law.batch_sizes)} batch sizes, t on {df} df, its residuals included"
    return Measured(estimate, estimate * math.exp(-half), estimate * math.exp(half), law.s_min.n, 0, method)


def choices_of(predictor: Predictor, steps: GoalSteps, counts: Sequence[int]) -> tuple[DeviceChoice, ...]:
    """The best batch size of each device count, ascending; counts of which nothing can be said are left out."""
    found: list[DeviceChoice] = []
    for n in sorted({1, *counts}):
        best = min(_candidates(predictor, steps, n), key=lambda c: c.seconds_to_goal.estimate or math.inf, default=None)
        if best is not None:
            found.append(_beside(best, found[0] if found else best))
    return tuple(found)


def _candidates(predictor: Predictor, steps: GoalSteps, devices: int) -> Iterable[DeviceChoice]:
    for batch_size, to_goal in {**steps.measured, **steps.extrapolated}.items():
        if predictor.can(devices, batch_size):
            seconds, timed = predictor.seconds(devices, batch_size)
            whole = product(to_goal, seconds)
            beyond = batch_size in steps.extrapolated
            yield DeviceChoice(devices, batch_size, timed, beyond, seconds, to_goal, whole, whole, whole)


def _beside(choice: DeviceChoice, one: DeviceChoice) -> DeviceChoice:
    """With its speed-up over one device and what it costs."""
    return dataclasses.replace(
        choice,
        speedup=_speedup(one, choice),
        device_seconds=scaled(choice.seconds_to_goal, choice.devices),
    )


def _speedup(one: DeviceChoice, several: DeviceChoice) -> Measured:
    """Seconds to goal of `one` over those of `several`; steps that both share drop out of the error."""
    if one.devices == several.devices:
        return Measured(1.0, 1.0, 1.0, one.seconds_to_goal.n, 0, "exact: this is the one device")
    same = one.batch_size == several.batch_size
    a, b = (one.seconds_per_step, several.seconds_per_step) if same else (one.seconds_to_goal, several.seconds_to_goal)
    return product(a, inverse(b, 1.0))


def most_useful(choices: Sequence[DeviceChoice]) -> int | None:
    """The fewest devices that no other count beats by more than 5 %; None where the most of all still does."""
    seconds = {c.devices: c.seconds_to_goal.estimate or math.inf for c in choices}
    if len(seconds) < 2:
        return None
    least = min(seconds.values())
    enough = min(n for n, s in seconds.items() if s <= GAIN * least)
    return None if enough == max(seconds) else enough
