"""Does parallelising pay as the classic says? Claims 8 and 9, of the device counts that were measured.

    8   on N devices small-batch epochs take longer than on one, and large-batch epochs less time
    9   the large batch on N devices still takes longer to converge than the small batch on one

N is the largest count measured; small and large are the smallest and the largest batch size of the timing pass for
claim 8, those of claim 4 (of the policy's trials) for claim 9. Seconds are paired by round. Claim 8 has two parts: it
*holds* if both lie beyond the 5 % band on the claimed side, *does not hold* if one lies wholly elsewhere (at half the
error each, as either may). Claim 9 joins the epochs to converge of claim 4 with seconds per epoch, errors of both.
Levels are Holm's over these claims: a family of their own, beside a study's seven, as they come from another timing.

Sources: as of claims 1 to 6 (`claims`).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from batchscope.analysis.claims import Case, cases_of
from batchscope.analysis.contrasts import ALPHA, BAND, Contrast, holm_levels, verdict
from batchscope.analysis.network import Array
from batchscope.analysis.quantities import measured_trials
from batchscope.analysis.scaling import Place, rounds_of
from batchscope.analysis.target import steps_per_epoch
from batchscope.records import Claim, Effect, Measured, ScalingData, StudyData

CLAIMS = {
    8: "parallelising makes small-batch epochs slower and large-batch epochs faster",
    9: "the large batch on several devices still takes longer to converge than the small batch on one",
}


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A claim before its level: its parts, each with the side on which it is claimed to lie."""

    number: int
    policy: str
    what: str
    parts: tuple[tuple[Contrast, int], ...]
    reason: str = ""
    devices: int = 0

    @property
    def p_value(self) -> float:
        """Of what is clearest: that all parts hold (the least clear one's), or that one does not (each may be it)."""
        found = [(c.p_value(side * BAND), side * c.difference > BAND) for c, side in self.parts]
        holds = max(p for p, _ in found) if all(beyond for _, beyond in found) else 1.0
        refuted = min((p for p, beyond in found if not beyond), default=1.0)
        return min(holds, len(self.parts) * refuted, 1.0)


def judge_scaling(data: ScalingData, study: StudyData | None) -> tuple[Claim, ...]:
    """Claims 8 and 9; without several devices measured there is neither, without a study no claim 9."""
    seconds = rounds_of(data.timing)
    counts = sorted({n for n, _ in seconds if n > 1})
    if not counts:
        return ()
    found = [_epochs_claim(seconds, counts[-1])]
    if study is not None:
        found += [_total_claim(data, study, policy, seconds, counts[-1]) for policy in study.settings.policies]
    judged = [j for j in found if j.parts]
    levels = dict(zip(map(id, judged), holm_levels([j.p_value for j in judged]), strict=True))
    return tuple(_claim(j, levels.get(id(j), 1 - ALPHA), len(judged)) for j in found)


def _epochs_claim(seconds: dict[Place, Array], devices: int) -> _Judged:
    """Claim 8; the number of steps of an epoch drops out."""
    sizes = sorted(b for n, b in seconds if n == devices and (1, b) in seconds)
    what = f"seconds per epoch, {devices} devices over one"
    if len(sizes) < 2:
        return _Judged(8, "both", what, (), "fewer than two batch sizes were timed on one device and on several")
    small, large = (paired(seconds[devices, b], seconds[1, b]) for b in (sizes[0], sizes[-1]))
    what += f", batch size {sizes[-1]}"
    return _Judged(8, "both", what, ((large, -1), (small, 1)), devices=devices)


def _total_claim(
    data: ScalingData, study: StudyData, policy: str, seconds: dict[Place, Array], devices: int
) -> _Judged:
    """Claim 9: the study's epochs to converge, largest over smallest, and the seconds of an epoch of each."""
    epochs: Case = next(case for case in cases_of(study, policy) if case.number == 4)
    sizes = sorted({t.spec.arm.batch_size for t in measured_trials(study, policy)})
    if len(sizes) < 2:
        return _Judged(9, policy, "seconds to converge", (), epochs.reason)
    small, large = sizes[0], sizes[-1]
    what = f"seconds to converge, batch size {large} on {devices} devices over {small} on one"
    if epochs.ends is None:
        return _Judged(9, policy, what, (), epochs.reason)
    if (devices, large) not in seconds or (1, small) not in seconds:
        return _Judged(9, policy, what, (), f"batch size {large} or {small} was not timed: give --batch-sizes")
    of_epoch = [steps_per_epoch(data.train_size, b) for b in (large, small)]
    timed = paired(seconds[devices, large] * of_epoch[0], seconds[1, small] * of_epoch[1])
    return _Judged(9, policy, what, ((epochs.ends + timed, 1),), devices=devices)


def paired(one: Array, other: Array) -> Contrast:
    """log one - log other over the rounds, with the standard error of their mean."""
    logs = np.log(one) - np.log(other)
    n = len(logs)
    error = float(np.std(logs, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Contrast(float(np.mean(logs)), error, max(1, n - 1), n)


def _claim(judged: _Judged, level: float, of: int) -> Claim:
    """The verdict at its Holm level; the effect is that of the first part."""
    text = CLAIMS[judged.number]
    if not judged.parts:
        nothing = Measured(None, None, None, 0, 0, f"none: {judged.reason}")
        effect = Effect(judged.what, nothing, None, None)
        return Claim(judged.number, text, judged.policy, "not resolved", effect, judged.reason)
    outcome = _verdict(judged, level)
    ratios = [contrast.ratio(level, f", Holm over {of} claims") for contrast, _ in judged.parts]
    effect = Effect(judged.what, ratios[0], None, None)
    return Claim(judged.number, text, judged.policy, outcome, effect, _why(judged, ratios))


def _verdict(judged: _Judged, level: float) -> str:
    """Of all parts together."""
    share = 1 - (1 - level) / len(judged.parts)
    if any(verdict(contrast, side, share) == "does not hold" for contrast, side in judged.parts):
        return "does not hold"
    holds = all(verdict(contrast, side, level) == "holds" for contrast, side in judged.parts)
    return "holds" if holds else "not resolved"


def _why(judged: _Judged, ratios: list[Measured]) -> str:
    """What was measured, in one sentence."""
    on = f"On {judged.devices} devices"
    if judged.number == 8:
        large, small = (_times(r) for r in ratios)
        return f"{on} an epoch takes {small} as long at the smallest batch size and {large} at the largest."
    return f"{on} the large batch takes {_times(ratios[0])} as long to converge as the small one on one."


def _times(ratio: Measured) -> str:
    if ratio.estimate is None:
        return f"more than {ratio.low:.3g} times" if ratio.low is not None else f"less than {ratio.high:.3g} times"
    return f"{ratio.estimate:.3g} times ({ratio.low:.3g} to {ratio.high:.3g})"
