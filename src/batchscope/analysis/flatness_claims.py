"""Do larger batches end in sharper minima, and nearer to the initial weights? Claims 10 and 6, by each measure.

    10  largest over smallest batch size, of each measure of flatness at the measured weights          claimed above 1
    6   the same of the distance from the initial weights: at the measured weights, and by the study's traces at equal
        epochs, at equal steps and at equal training loss                                              claimed below 1

Each is a contrast of logs paired by seed, judged against the 5 % band (`contrasts`), held and tuned, at Holm's levels
over all that can be judged here: a family of its own, beside a study's seven claims. A value that is not positive has
no logarithm: its cell is left out, and the sentence counts it.

Sources: Keskar et al. 2016 for both; see `references`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from batchscope.analysis import claims
from batchscope.analysis.contrasts import ALPHA, BAND, Contrast, fit_layout, holm_levels, verdict
from batchscope.analysis.flatness_measures import DISTANCE, EDGE, LARGEST, TRAIN_LOSS, Measure, measures_of
from batchscope.analysis.growth import Cells, Equal, equals_of
from batchscope.analysis.quantities import geometric_mean, measured_trials
from batchscope.analysis.reasons import short
from batchscope.records import Claim, Effect, Measured, PointSharpness, SharpnessData, StudyData

CLAIMS = {6: claims.CLAIMS[6], 10: "larger batches end in sharper minima"}
CLAIMED_SIDE = {6: -1, 10: 1}
AT_WEIGHTS = "distance at the measured weights"


@dataclasses.dataclass(frozen=True)
class _Case:
    """A claim by one measure in one policy, before its level: its contrast, or the reason why there is none."""

    number: int
    policy: str
    what: str
    ends: Contrast | None = None
    slope: Contrast | None = None
    monotone: bool | None = None
    why: str = ""


def judge_flatness(data: SharpnessData, study: StudyData | None) -> tuple[Claim, ...]:
    """Claim 10 by each measure of flatness, claim 6 by each distance, of every policy that has batch sizes."""
    cases = [case for policy in policies_of(data) for case in _cases(data, study, policy)]
    judged = [c for c in cases if c.ends is not None]
    p_values = [c.ends.p_value(CLAIMED_SIDE[c.number] * BAND) for c in judged if c.ends is not None]
    levels = dict(zip(map(id, judged), holm_levels(p_values), strict=True))
    ordered = sorted(cases, key=lambda c: -c.number)
    return tuple(_claim(c, levels.get(id(c), 1 - ALPHA), len(judged)) for c in ordered)


def policies_of(data: SharpnessData) -> list[str]:
    """The policies whose trials were measured; weights that came as files have none."""
    return list(dict.fromkeys(p.policy for p in data.points if p.batch_size is not None))


def _cases(data: SharpnessData, study: StudyData | None, policy: str) -> list[_Case]:
    points = [p for p in data.points if p.policy == policy and p.batch_size is not None]
    known = measures_of(points)
    found = [_by_measure(10, m.name, m, points) for m in known if m.flatness]
    found += [_by_measure(6, AT_WEIGHTS, m, points) for m in known if m.name == DISTANCE]
    if study is not None:
        found += [_by_trace(equal, study, policy) for equal in equals_of(study, policy)]
    return found


# --- one claim ---


def _by_measure(number: int, what: str, measure: Measure, points: Sequence[PointSharpness]) -> _Case:
    """Of a measure at the measured weights."""
    cells: Cells = {}
    for p in points:
        value = measure.of(p)
        if p.batch_size is not None and p.seed is not None and value is not None and value.estimate is not None:
            cells[p.batch_size, p.seed] = value.estimate
    sizes = sorted({p.batch_size for p in points if p.batch_size is not None})
    policy = points[0].policy
    ends = _ends_of(sizes, cells)
    if isinstance(ends, str):
        return _Case(number, policy, what, why=ends)
    small, large = (_means(cells, b) for b in ends)
    if number == 6:
        taken = [short(geometric_mean(float(p.step) for p in points if p.batch_size == b)) for b in ends]
        why = (
            f"The weights had moved by {small} at batch size {ends[0]} in {taken[0]} steps and by {large} at "
            f"{ends[1]} in {taken[1]} steps, at {_rates(points, ends)}"
        )
    else:
        losses = [short(geometric_mean(p.loss for p in points if p.batch_size == b)) for b in ends]
        edge = _times_rate(points, ends) if measure.name == LARGEST else ""
        why = (
            f"It was {small} at batch size {ends[0]} and {large} at {ends[1]}, at {_rates(points, ends)}{edge}; the "
            f"{TRAIN_LOSS} there was {losses[0]} and {losses[1]}"
        )
    return _judged(_Case(number, policy, what, why=why), cells)


def _by_trace(found: Equal, study: StudyData, policy: str) -> _Case:
    """Of the distance at something equal, over the study's own trials."""
    what = f"distance at equal {found.equal}"
    sizes = sorted({t.spec.arm.batch_size for t in measured_trials(study, policy)})
    ends = _ends_of(sizes, found.distances)
    if isinstance(ends, str):
        return _Case(6, policy, what, why=ends)
    place = f"training loss {short(found.at)}" if found.equal == "training loss" else f"{short(found.at)} {found.equal}"
    parts = [f"{_means(found.distances, b)} at batch size {b} (step {short(_mean(found.steps, b))})" for b in ends]
    why = f"At {place}, which all of these trials reach, the weights had moved by {parts[0]} and by {parts[1]}"
    return _judged(_Case(6, policy, what, why=why), found.distances)


def _ends_of(sizes: Sequence[int], cells: Cells) -> tuple[int, int] | str:
    """The smallest and the largest batch size, or why they cannot be compared."""
    if len(sizes) < 2:
        count = f"only batch size {sizes[0]}" if sizes else "no batch size"
        return f"{count} was measured: nothing to compare"
    for b in (sizes[0], sizes[-1]):
        if not any(size == b and v > 0 for (size, _), v in cells.items()):
            return f"no seed gave a positive value at batch size {b}"
    return sizes[0], sizes[-1]


def _judged(case: _Case, cells: Cells) -> _Case:
    """The case with its contrast, or with the reason why it has none."""
    logs = {k: math.log(v) for k, v in cells.items() if v > 0}
    layout = fit_layout(logs)
    if isinstance(layout, str):
        return dataclasses.replace(case, why=layout)
    monotone = layout.monotone()
    bend = "" if monotone else "; the curve is not monotone"
    lost = len(cells) - len(logs)
    gone = f"; {lost} of {len(cells)} values are not positive, have no logarithm and are left out" if lost else ""
    return dataclasses.replace(
        case, ends=layout.ends(), slope=layout.slope(), monotone=monotone, why=f"{case.why}{bend}{gone}."
    )


def _claim(case: _Case, level: float, judged: int) -> Claim:
    """The verdict at its Holm level."""
    text = CLAIMS[case.number]
    if case.ends is None:
        nothing = Measured(None, None, None, 0, 0, f"none: {case.why}")
        why = f"It could not be judged: {case.why}."
        return Claim(case.number, text, case.policy, "not resolved", Effect(case.what, nothing, None, None), why)
    ratio = case.ends.ratio(level, f", Holm over {judged} claims")
    slope = None if case.slope is None else case.slope.ratio(text=", per doubling")
    outcome = verdict(case.ends, CLAIMED_SIDE[case.number], level)
    return Claim(case.number, text, case.policy, outcome, Effect(case.what, ratio, slope, case.monotone), case.why)


# --- what sentences quote ---


def _mean(cells: Cells, size: int) -> float | None:
    return geometric_mean(v for (b, _), v in cells.items() if b == size)


def _means(cells: Cells, size: int) -> str:
    return short(_mean(cells, size))


def rates_at(points: Sequence[PointSharpness], size: int) -> float | None:
    """The learning rate of a batch size's points, where they share one."""
    found = {p.learning_rate for p in points if p.batch_size == size}
    return found.pop() if len(found) == 1 else None


def _rates(points: Sequence[PointSharpness], ends: tuple[int, int]) -> str:
    small, large = (rates_at(points, b) for b in ends)
    if small is None or large is None:
        return "learning rates that are not known"
    if small == large:
        return f"the same learning rate {short(small)}"
    return f"learning rates {short(small)} and {short(large)}"


def _times_rate(points: Sequence[PointSharpness], ends: tuple[int, int]) -> str:
    """The largest eigenvalue in units of the learning rate, against the edge of stability."""
    found = []
    for b in ends:
        rate = rates_at(points, b)
        values = [p.largest_eigenvalue.estimate for p in points if p.batch_size == b and p.largest_eigenvalue]
        mean = geometric_mean(values)
        if rate is None or mean is None:
            return ""
        found.append(short(rate * mean))
    return f", {found[0]} and {found[1]} times 1 / learning rate (the edge of stability is {EDGE:g})"
