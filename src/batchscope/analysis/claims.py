"""Do the classic claims about batch size hold for this task?

Rule of measurement 11. Each claim becomes one contrast of logarithms, largest against smallest batch size, paired by
seed (`contrasts`). It *holds* if its interval lies wholly on the claimed side of a 5 % band, *does not hold* if wholly
elsewhere, else it is *not resolved*. Intervals are at Holm's levels over all claims of the study that can be judged.

| claim: larger batches | quantity whose log is compared | claimed side |
|---|---|---|
| 1 lower the training loss more slowly per epoch | mean over common examples of log training loss | above |
| 2 end at a higher minimum validation loss | minimum validation loss | above |
| 3 take less time per epoch | seconds per epoch, timing pass, paired by round | below |
| 4 need more epochs to converge | epoch of the best validation loss | above |
| 5 take longer to converge in total | (4) x (3) | above |
| 6 end nearer to the initial weights | distance at the best validation loss | below |
| 7 re-tuning the learning rate closes the gap | ratio (2) held over ratio (2) tuned | above |

Sources: 1-6 Keskar et al. 2016 and the two-size classic (Chang & Pathak 2020), 7 Shallue et al. 2019; see `references`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from batchscope.analysis import quantities as q
from batchscope.analysis import reasons
from batchscope.analysis.contrasts import ALPHA, BAND, Contrast, Layout, fit_layout, holm_levels, verdict
from batchscope.analysis.target import epochs_to_converge, steps_per_epoch
from batchscope.analysis.uncertainty import seconds_per_step
from batchscope.records import Claim, Effect, Measured, Row, StudyData, TrialRecord

CLAIMS = {
    1: "larger batches lower the training loss more slowly per epoch",
    2: "larger batches end at a higher minimum validation loss",
    3: "larger batches take less time per epoch",
    4: "larger batches need more epochs to converge",
    5: "larger batches take longer to converge in total on one device",
    6: "larger batches end nearer to the initial weights",
    7: "re-tuning the learning rate closes the gap in minimum validation loss",
}
WHAT = {
    1: "training loss at equal examples",
    2: "minimum validation loss",
    3: "seconds per epoch",
    4: "epochs to converge",
    5: "seconds to converge",
    6: "distance from the initial weights",
    7: "minimum validation loss, ratio held over ratio tuned",
}
CLAIMED_SIDE = {1: 1, 2: 1, 3: -1, 4: 1, 5: 1, 6: -1, 7: 1}


@dataclass(frozen=True)
class Case:
    """One claim in one policy before its verdict: its contrast, or the reason why there is none."""

    number: int
    policy: str
    ends: Contrast | None
    slope: Contrast | None = None
    monotone: bool | None = None
    reason: str = ""


def judge(data: StudyData, rows: Sequence[Row]) -> tuple[Claim, ...]:
    """All claims of a study, by policy and number, (7) last; `rows` supply the numbers that the sentences quote."""
    by_policy = {p: cases_of(data, p) for p in data.settings.policies}
    cases = [c for p in data.settings.policies for c in by_policy[p]]
    if {"held", "tuned"} <= set(by_policy):
        cases.append(retuning(by_policy["held"][1], by_policy["tuned"][1]))
    judged = [c for c in cases if c.ends is not None]
    edges = [CLAIMED_SIDE[c.number] * BAND for c in judged]
    levels = holm_levels([c.ends.p_value(edge) for c, edge in zip(judged, edges, strict=True) if c.ends is not None])
    level_of = {(c.number, c.policy): level for c, level in zip(judged, levels, strict=True)}
    claims = [_claim(c, level_of.get((c.number, c.policy), 1 - ALPHA), len(judged)) for c in cases]
    devices = data.settings.conditions.world_size
    if devices > 1:
        claims = [replace(c, claim=c.claim.replace("on one device", f"on {devices} devices")) for c in claims]
    return tuple(replace(c, why=reasons.why(c, claims, data, rows)) for c in claims)


def cases_of(data: StudyData, policy: str) -> list[Case]:
    """Claims 1 to 6 in one policy."""
    trials = q.measured_trials(data, policy)
    sizes = tuple(sorted({t.spec.arm.batch_size for t in trials}))
    if len(sizes) < 2:
        count = "no batch size" if not sizes else f"only batch size {sizes[0]}"
        return [Case(k, policy, None, reason=f"{count} was measured: nothing to compare") for k in range(1, 7)]
    losses, _ = q.mean_log_train_loss(trials)
    seconds = _seconds_case(data, policy, sizes)
    epochs = _epochs_case(data, policy, trials, sizes)
    return [
        _case(1, policy, losses, sizes),
        _case(2, policy, _cells(trials, q.min_validation_loss), sizes),
        seconds,
        epochs,
        _total_case(policy, epochs, seconds),
        _case(6, policy, _cells(trials, q.distance_from_init), sizes),
    ]


def retuning(held: Case, tuned: Case) -> Case:
    """Claim 7: the held policy's gap (claim 2) minus the tuned policy's, in logs."""
    if held.ends is None or tuned.ends is None:
        return Case(7, "both", None, reason=held.reason or tuned.reason)
    slope = None if held.slope is None or tuned.slope is None else held.slope + -tuned.slope
    return Case(7, "both", held.ends + -tuned.ends, slope)


def _claim(case: Case, level: float, judged: int) -> Claim:
    """The verdict at its Holm level; `why` is filled in once all verdicts are known."""
    what, ends = WHAT[case.number], case.ends
    if ends is None:
        nothing = Measured(None, None, None, 0, 0, f"none: {case.reason}")
        effect = Effect(what, nothing, None, None)
        return Claim(case.number, CLAIMS[case.number], case.policy, "not resolved", effect, case.reason)
    ratio = ends.ratio(level, f", Holm over {judged} claims")
    slope = None if case.slope is None else case.slope.ratio(text=", per doubling")
    effect = Effect(what, ratio, slope, case.monotone)
    outcome = verdict(ends, CLAIMED_SIDE[case.number], level)
    return Claim(case.number, CLAIMS[case.number], case.policy, outcome, effect, "")


def _cells(trials: Sequence[TrialRecord], of: Callable[[TrialRecord], float | None]) -> dict[tuple[int, int], float]:
    values = {(t.spec.arm.batch_size, t.spec.seed): of(t) for t in trials}
    return {k: math.log(v) for k, v in values.items() if v is not None and math.isfinite(v) and v > 0}


def _layout(cells: dict[tuple[int, int], float], sizes: tuple[int, ...]) -> Layout | str:
    """The fitted layout, or why not: both ends of the batch sizes must have given a value."""
    for b in (sizes[0], sizes[-1]):
        if not any(key[0] == b for key in cells):
            return f"no seed gave a value at batch size {b}"
    return fit_layout(cells)


def _case(number: int, policy: str, cells: dict[tuple[int, int], float], sizes: tuple[int, ...]) -> Case:
    layout = _layout(cells, sizes)
    if isinstance(layout, str):
        return Case(number, policy, None, reason=layout)
    return Case(number, policy, layout.ends(), layout.slope(), layout.monotone())


def _seconds_case(data: StudyData, policy: str, sizes: tuple[int, ...]) -> Case:
    """Claim 3: the rounds of the timing pass take the place of the seeds."""
    if data.timing is None:
        return Case(3, policy, None, reason="the timing pass was not run")
    typical, n = q.typical_reference(data.timing), data.settings.train_size
    cells = {
        (t.batch_size, i): math.log(s * steps_per_epoch(n, t.batch_size))
        for t in data.timing.timings
        for i, s in enumerate(seconds_per_step(t, typical))
        if t.batch_size in sizes
    }
    return _case(3, policy, cells, sizes)


def _epochs_case(data: StudyData, policy: str, trials: Sequence[TrialRecord], sizes: tuple[int, ...]) -> Case:
    """Claim 4, with censoring: bounds in place of values at one end make the contrast a bound; at both, undetermined.

    Censored seeds between the ends only lose their cells. Epochs are read off evaluations a cadence apart, so each cell
    is uncertain by at least  (spacing / value)^2 / 12  on the log scale, even where all seeds agree.
    """
    s = data.settings
    values = {
        (t.spec.arm.batch_size, t.spec.seed): epochs_to_converge(t.result, s.train_size, s.budget_examples)
        for t in trials
    }
    censored = {k for k, v in values.items() if v.censored}
    at_ends = [sum(k[0] == b for k in censored) for b in (sizes[0], sizes[-1])]
    if all(at_ends):
        why = "trials at both the smallest and the largest batch size had not converged when they ended"
        return Case(4, policy, None, reason=why)
    ends = (sizes[0], sizes[-1])
    cells = {k: math.log(v.value) for k, v in values.items() if v.value > 0 and (k not in censored or k[0] in ends)}
    layout = _layout(cells, sizes)
    if isinstance(layout, str):
        return Case(4, policy, None, reason=layout)
    spacing = {b: max(s.cadence_examples, b) / s.train_size for b in sizes}
    least = max((spacing[k[0]] / math.exp(v)) ** 2 / 12 for k, v in cells.items() if k not in censored or any(at_ends))
    bound = "lower" if at_ends[1] else "upper" if at_ends[0] else ""
    contrast = replace(layout.ends(least), bound=bound, censored=sum(at_ends))
    if censored:
        return Case(4, policy, contrast)
    return Case(4, policy, contrast, layout.slope(least), layout.monotone(least))


def _total_case(policy: str, epochs: Case, seconds: Case) -> Case:
    """Claim 5: epochs to converge times seconds per epoch, errors of both."""
    if epochs.ends is None or seconds.ends is None:
        return Case(5, policy, None, reason=epochs.reason or seconds.reason)
    slope = None if epochs.slope is None or seconds.slope is None else epochs.slope + seconds.slope
    return Case(5, policy, epochs.ends + seconds.ends, slope)
