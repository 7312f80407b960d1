"""How many seconds does a step of B examples take on n devices, measured or not?

    t(B, n) = ( C^g + (f r(n))^g )^(1/g),        C = d + k_n c(B / n)        (1 device: t = c(B))

    c(b)   seconds of a step of b examples on one device: between the sizes timed, and beyond, along straight lines
    k_n    how much slower n devices that compute at once are than one (they share memory; 1 where they do not)
    d      what the replicas' wrapper adds to a step, averaging or not
    r(n)   all-reduces of the gradient's pieces, as timed bare (`network`)
    f      how much longer they take in a step: gradients are not in the cache, and those that wait have to be woken
    g      how much of it hides behind the backward pass: 1 nothing, 10 nearly all (a p-norm, as Qiao et al., OSDI 2021)

k_n and d come from steps without averaging, then f and g from those with, both by least squares on log seconds over the
medians of windows. Intervals: every round is fitted by itself.

A device count that was not measured is predicted, with an error that grows with its distance, and between the faster of
ring and tree and the slower of both, as it is not known which a library will take there.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from batchscope.analysis.network import Array, Reduce, about, fit_link, in_round, medians
from batchscope.analysis.quantities import typical_reference
from batchscope.analysis.step_time import by_size, inverse, not_below_zero, phase, whole_steps
from batchscope.analysis.target import steps_per_epoch
from batchscope.analysis.uncertainty import LEVEL, of_rounds
from batchscope.records import (
    Measured,
    Network,
    ScalingFit,
    ScalingPass,
    ScalingPrediction,
    ScalingRow,
    TimingPass,
)

Place = tuple[int, int]  # (devices, global batch size)
MOST_OVERLAP = 10.0  # g; beyond it all that can hide does
PER_DOUBLING = 0.05  # of log seconds: how wrong an extrapolation to twice the devices may be (a guess)
LOG_FACTOR = math.log(1e4)  # f is sought between its exponentials
LEAST_SLOWDOWN, MOST_SLOWDOWN = 0.8, 16.0  # k: caches may help a little (guesses)
UNKNOWN_SD = 0.1  # of log seconds, where there are as many parameters as places (a guess)
UNKNOWN_OVERLAP = 10.0**0.5  # where no step with averaging was timed; the interval goes from none to all


@dataclasses.dataclass(frozen=True)
class Steps:
    """One set of windows, medians or those of a round: seconds per step."""

    single: Mapping[int, float]  # on one device, by batch size
    whole: Mapping[Place, float]  # on several, gradients averaged
    alone: Mapping[Place, float]  # and not
    reduce: Reduce


@dataclasses.dataclass(frozen=True)
class Model:
    """The fitted parameters; see the header."""

    slowdown: Mapping[int, float]
    wrapper: float
    factor: float
    overlap: float


# --- what was measured ---


def rows_of(timing: ScalingPass, train_size: int) -> tuple[ScalingRow, ...]:
    """One row for every device count and batch size that was timed."""
    seconds = _windows(timing)
    found = []
    for (n, b), (whole, alone) in sorted(seconds.items()):
        per_step = of_rounds(whole)
        exposed = Measured(0.0, None, None, len(whole), 0, "exact: one device averages nothing")
        if alone is not None:
            exposed = not_below_zero(of_rounds(whole - alone, False))
        at_one, at_share = seconds.get((1, b)), seconds.get((1, b // n)) if b % n == 0 else None
        steps = steps_per_epoch(train_size, b)
        found.append(
            ScalingRow(
                devices=n,
                batch_size=b,
                seconds_per_step=per_step,
                exposed=exposed,
                seconds_per_epoch=of_rounds(whole * steps),
                examples_per_second=inverse(per_step, b),
                strong_speedup=of_rounds(at_one[0] / whole) if at_one is not None else None,
                weak_efficiency=of_rounds(at_share[0] / whole) if at_share is not None else None,
            )
        )
    return tuple(found)


def _windows(timing: ScalingPass) -> dict[Place, tuple[Array, Array | None]]:
    """(whole, alone) seconds per step of every round, drift divided out by the reference that all counts share."""
    typical = typical_of(timing)
    return {
        (p.conditions.world_size, t.batch_size): (whole_steps(t, typical), phase(t, "alone", typical))
        for p in timing.passes
        for t in by_size(p)
    }


def rounds_of(timing: ScalingPass) -> dict[Place, Array]:
    """Seconds per whole step of every round, by (devices, batch size)."""
    return {place: whole for place, (whole, _) in _windows(timing).items()}


def typical_of(timing: ScalingPass) -> float | None:
    """The median reference window of the whole pass; None where it did not drift."""
    everything = tuple(t for p in timing.passes for t in p.timings)
    drift = max((p.drift for p in timing.passes), default=0.0)
    first: TimingPass = timing.passes[0]
    return typical_reference(dataclasses.replace(first, timings=everything, drift=drift))


def steps_of(timing: ScalingPass) -> tuple[Steps, list[Steps]]:
    """(medians, rounds)."""
    windows = _windows(timing)
    count = min(len(whole) for whole, _ in windows.values())
    link = fit_link(medians(timing.all_reduces)) if timing.all_reduces else Network(math.nan, math.nan)

    def steps(pick: slice, reduced: dict[Place, float], over: Network) -> Steps:
        middle = {place: float(np.median(whole[pick])) for place, (whole, _) in windows.items()}
        return Steps(
            single={b: s for (n, b), s in middle.items() if n == 1},
            whole={place: s for place, s in middle.items() if place[0] > 1},
            alone={p: float(np.median(a[pick])) for p, (_, a) in windows.items() if a is not None},
            reduce=Reduce(over, reduced),
        )

    rounds = []
    for k in range(count):
        reduced = in_round(timing.all_reduces, k)
        rounds.append(steps(slice(k, k + 1), reduced, fit_link(reduced) if reduced else link))
    return steps(slice(None), medians(timing.all_reduces), link), rounds


# --- the model ---


def compute_seconds(single: Mapping[int, float], examples: float) -> float:
    """c(b): straight lines between the sizes timed; beyond them, through the two nearest, at least 0."""
    sizes = np.array(sorted(single), float)
    seconds = np.array([single[int(b)] for b in sizes])
    if len(sizes) == 1:
        return float(seconds[0])
    if sizes[0] <= examples <= sizes[-1]:
        return float(np.interp(examples, sizes, seconds))
    i, j = (0, 1) if examples < sizes[0] else (-2, -1)
    slope = max(0.0, (seconds[j] - seconds[i]) / (sizes[j] - sizes[i]))
    nearest = 0 if examples < sizes[0] else -1
    return max(0.0, float(seconds[nearest] + slope * (examples - sizes[nearest])))


def joined(compute: float, averaging: float, overlap: float) -> float:
    """(C^g + A^g)^(1/g), scaled so that nothing overflows."""
    most = max(compute, averaging)
    if most <= 0:
        return 0.0
    return most * ((compute / most) ** overlap + (averaging / most) ** overlap) ** (1.0 / overlap)


def step_seconds(model: Model, steps: Steps, place: Place, buckets: Sequence[int], tree: bool = False) -> float:
    """t(B, n); `k` of the nearest device count that was measured."""
    n, b = place
    if n == 1:
        return compute_seconds(steps.single, b)
    nearest = min(model.slowdown, key=lambda m: abs(math.log(m / n)), default=None)
    slower = 1.0 if nearest is None else model.slowdown[nearest]
    compute = model.wrapper + slower * compute_seconds(steps.single, b / n)
    return joined(compute, model.factor * steps.reduce.seconds(n, buckets, tree), model.overlap)


def fit_model(steps: Steps, buckets: Sequence[int], near: Model | None = None) -> Model:
    """k_n and d from the steps without averaging, then f and g from those with; `near`: where to begin.

    Where no all-reduce was timed, r is 1 s, and f the seconds themselves.
    """
    counts = sorted({n for n, _ in steps.whole})
    if not counts:
        return Model({}, 0.0, 1.0, UNKNOWN_OVERLAP)
    scale = min(steps.whole.values())
    slowdown, wrapper = _fit_alone(steps, counts, scale)
    bare = {n: steps.reduce.seconds(n, buckets) for n in counts}
    compute = {p: wrapper + slowdown[p[0]] * compute_seconds(steps.single, p[1] / p[0]) for p in steps.whole}
    logs, unit = np.log(list(steps.whole.values())), 1.0 if steps.reduce.known else scale

    def residuals(x: Array) -> Array:
        factor, overlap = unit * float(np.exp(x[0])), float(np.exp(x[1]))
        return np.log([joined(compute[p], factor * bare[p[0]], overlap) for p in steps.whole]) - logs

    low, high = np.array([-LOG_FACTOR, 0.0]), np.array([LOG_FACTOR, math.log(MOST_OVERLAP)])
    starts = [(f, g) for f in (-1.0, 1.0) for g in (0.05, 1.0)]
    if near is not None:
        starts = [(math.log(near.factor / unit), math.log(near.overlap))]
    inside = [np.clip(x, low + 1e-3, high - 1e-3) for x in starts]
    found = min((optimize.least_squares(residuals, x, bounds=(low, high)) for x in inside), key=lambda f: f.cost)
    return Model(slowdown, wrapper, unit * float(np.exp(found.x[0])), float(np.exp(found.x[1])))


def _fit_alone(steps: Steps, counts: Sequence[int], scale: float) -> tuple[dict[int, float], float]:
    """(k_n by device count, d): d + k_n c(B / n) to the steps without averaging."""
    places = list(steps.alone)
    c = {p: compute_seconds(steps.single, p[1] / p[0]) for p in places}
    logs = np.log([steps.alone[p] for p in places])

    def residuals(x: Array) -> Array:
        slower = dict(zip(counts, np.exp(x[1:]), strict=True))
        return np.log([x[0] * scale + slower[p[0]] * c[p] for p in places]) - logs

    low = np.array([0.0, *[math.log(LEAST_SLOWDOWN)] * len(counts)])
    high = np.array([100.0, *[math.log(MOST_SLOWDOWN)] * len(counts)])
    found = optimize.least_squares(residuals, np.array([0.05, *[0.0] * len(counts)]), bounds=(low, high))
    return dict(zip(counts, map(float, np.exp(found.x[1:])), strict=True)), float(found.x[0]) * scale


def fit_scaling(timing: ScalingPass) -> ScalingFit:
    """The model with intervals and residuals, for people to see."""
    middle, rounds = steps_of(timing)
    if not middle.whole:
        why = "no step on several devices was timed: how averaging overlaps with computing is not known"
        nothing = Measured(None, None, None, 0, 0, f"none: {why}")
        return ScalingFit({}, nothing, nothing, nothing, math.nan, (), why)
    model = fit_model(middle, timing.buckets)
    refits = [fit_model(r, timing.buckets, model) for r in rounds]
    misses = misses_of(model, middle, timing.buckets)
    return ScalingFit(
        {
            str(n): within(about(k, [r.slowdown[n] for r in refits]), LEAST_SLOWDOWN, MOST_SLOWDOWN)
            for n, k in model.slowdown.items()
        },
        _plain(model.wrapper, [r.wrapper for r in refits]),
        about(model.factor, [r.factor for r in refits]),
        within(about(model.overlap, [r.overlap for r in refits]), 1.0, MOST_OVERLAP),
        residual_spread(model, middle, timing.buckets)[0],
        tuple((n, b, x) for (n, b), x in sorted(misses.items())),
    )


def misses_of(model: Model, steps: Steps, buckets: Sequence[int]) -> dict[Place, float]:
    """Relative: what the model says over what was timed, less 1, of every place on several devices."""
    return {place: step_seconds(model, steps, place, buckets) / seconds - 1 for place, seconds in steps.whole.items()}


def residual_spread(model: Model, steps: Steps, buckets: Sequence[int]) -> tuple[float, int]:
    """(standard deviation of log seconds, degrees of freedom): places less the parameters d, f, g and each k_n.

    nan where that leaves none.
    """
    logs = [math.log1p(miss) for miss in misses_of(model, steps, buckets).values()]
    df = len(logs) - len(model.slowdown) - 3
    return (math.sqrt(sum(x * x for x in logs) / df), df) if df > 0 else (math.nan, 0)


def within(m: Measured, least: float, most: float) -> Measured:
    """An estimate that was sought between two bounds, with its interval cut off at them."""
    low, high = (None if end is None else min(max(end, least), most) for end in (m.low, m.high))
    return dataclasses.replace(m, low=low, high=high)


def _plain(estimate: float, refits: Sequence[float]) -> Measured:
    """An estimate that may be 0, with the spread of the rounds' fits about it."""
    m = of_rounds(np.array(refits), log=False)
    if m.low is None or m.high is None or m.estimate is None:
        return dataclasses.replace(m, estimate=estimate)
    half = m.high - m.estimate
    method = f"t on the fits of {len(refits)} single rounds, {len(refits) - 1} df, cut off at 0"
    return Measured(estimate, max(0.0, estimate - half), estimate + half, len(refits), 0, method)


# --- predictions ---


class Predictor:
    """Seconds per step anywhere: of what was measured, and of device counts and links that are not here."""

    def __init__(self, timing: ScalingPass, network: Network | None = None) -> None:
        self.buckets, self.network = timing.buckets, network
        self.steps, self.rounds = steps_of(timing)
        self.model = fit_model(self.steps, timing.buckets)
        self.refits = [fit_model(r, timing.buckets, self.model) for r in self.rounds]
        self.sd, self.df = residual_spread(self.model, self.steps, timing.buckets)
        self.largest = max((n for n, _ in self.steps.whole), default=1)
        self.counts = sorted({p.conditions.world_size for p in timing.passes})
        self.known = {(r.devices, r.batch_size): r.seconds_per_step for r in rows_of(timing, 1)}

    def of_another(self, timing: ScalingPass, buckets: Sequence[int]) -> Predictor:
        """Of another model on this hardware: its steps on one device, and averaging as it was fitted here."""
        other = copy.copy(self)
        steps, rounds = steps_of(timing)
        other.buckets, other.known = tuple(buckets), {}
        other.steps = dataclasses.replace(self.steps, single=steps.single)
        pairs = zip(self.rounds, rounds, strict=False)
        other.rounds = [dataclasses.replace(own, single=theirs.single) for own, theirs in pairs]
        other.refits = self.refits[: len(other.rounds)]
        return other

    def seconds(self, devices: int, batch_size: int) -> tuple[Measured, bool]:
        """(seconds per step, whether they were measured)."""
        place = devices, batch_size
        if place in self.known and (self.network is None or devices == 1):
            return self.known[place], True
        return self.predicted(place), False

    def predicted(self, place: Place, trees: tuple[bool, ...] = (False, True)) -> Measured:
        """From the model: rounds' spread, its residuals and the distance in quadrature; ring and tree at the ends.

        `trees`: which of ring (False) and tree (True) are thought possible.
        """
        ends = [self._at(self.model, self.steps, place, tree) for tree in trees]
        if place[0] in {n for n, _ in self.steps.whole} and self.network is None:
            ends = ends[:1]
        estimate = min(ends)
        logs = np.log([self._at(m, s, place, False) for m, s in zip(self.refits, self.rounds, strict=True)])
        n = len(logs)
        t = float(stats.t.ppf(0.5 + LEVEL / 2, max(1, n - 1)))
        spread = float(np.std(logs, ddof=1)) * math.sqrt(math.pi / 2 / n) if n > 1 else 0.0
        distance = PER_DOUBLING * math.log2(max(1.0, place[0] / self.largest))
        misses = float(stats.t.ppf(0.5 + LEVEL / 2, self.df)) * self.sd if self.df > 0 else 1.96 * UNKNOWN_SD
        half = math.hypot(t * spread, misses, 1.96 * distance)
        low, high = min(ends), max(ends)
        if not self.model.slowdown and place[0] > 1:  # the overlap is not known: from all to none
            low, high = (
                end(self._at(dataclasses.replace(self.model, overlap=g), self.steps, place, t) for t in trees)
                for end, g in ((min, MOST_OVERLAP), (max, 1.0))
            )
        method = f"model: t on {n} rounds' fits, its residuals and {PER_DOUBLING:.0%} for each doubling of the devices"
        return Measured(estimate, low * math.exp(-half), high * math.exp(half), n, 0, method)

    def _at(self, model: Model, steps: Steps, place: Place, tree: bool) -> float:
        """A link that is described is taken at its word."""
        if self.network is not None:
            steps, model = (
                dataclasses.replace(steps, reduce=Reduce(self.network)),
                dataclasses.replace(model, factor=1.0),
            )
        return step_seconds(model, steps, place, self.buckets, tree)

    def can(self, devices: int, batch_size: int) -> bool:
        """Whether anything can be said of this place.

        It was timed; or two batch sizes were on one device, so that it is known what a part of a batch takes, and
        either so many devices were timed, or a link was measured or described.
        """
        if (devices, batch_size) in self.known and (self.network is None or devices == 1):
            return True
        reaches = devices in self.counts or self.network is not None or self.steps.reduce.known
        return batch_size >= devices and len(self.steps.single) > 1 and reaches


def predictions_of(
    timing: ScalingPass, counts: Sequence[int], batch_sizes: Sequence[int], network: Network | None
) -> tuple[ScalingPrediction, ...]:
    """Every batch size at every device count that was not measured."""
    predictor = Predictor(timing, network)
    link = "the link described" if network is not None else "the link measured here"
    return tuple(
        ScalingPrediction(n, b, seconds, f"predicted over {link}")
        for n in counts
        for b in batch_sizes
        if predictor.can(n, b)
        for seconds, measured in [predictor.seconds(n, b)]
        if not measured
    )
