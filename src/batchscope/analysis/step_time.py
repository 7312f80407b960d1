"""How many seconds does a step take against micro-batch size, what are they spent on, and where is the knee?

Everything comes from the windows of one timing pass, round by round. Where the pass drifted, every window of a round is
rescaled by (typical reference window / that round's own); a pass without reference windows (a meter in somebody else's
loop) is taken as it is. Values are medians over rounds with a t interval about them (`uncertainty.of_rounds`).

    data wait = whole step - step on a resident batch     optimiser = step on a resident batch - forward and backward
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from batchscope.analysis.memory import predicted_bytes, ran_to_end
from batchscope.analysis.quantities import typical_reference
from batchscope.analysis.uncertainty import Windows, of_rounds, seconds_per_step
from batchscope.records import FlopCount, Measured, MemoryProbe, StepTimeFit, StepTiming, ThroughputRow, TimingPass

DATA_SHARE = 0.2  # of a step: below it, waiting for data is not called what binds it (a guess)
KNEE_SHARE = 0.95  # of the highest throughput measured: what the knee is defined by
RESAMPLES = 2000  # of the rounds, for the knee's interval
LEAST_ROUNDS = 10  # from which that interval is a bootstrap (rule of measurement 1)
LEAST_SIZES = 4  # three parameters and one degree of freedom for the error
MOST_RESIDUAL = 0.10  # beyond it the fit describes the step badly, and the measured points are used instead
MOST_REFITS = 20  # more rounds are put together in so many blocks, each with its own medians
LEAST_SLOPE = 1e-3  # c is sought down to this part of the least step time over the largest size: flat to measure
PARAMETERS = ("the overhead", "the time per example", "the saturation batch size")

Array = NDArray[np.float64]
Parameters = tuple[float, float, float]  # a, c, s


# --- windows, round by round ---


def drift_factors(timing: Windows, typical: float | None) -> Array:
    """What multiplies each round's windows: typical / own reference; 1 where there is no drift or no reference."""
    rounds = len(timing.seconds_per_step)
    if typical is None or len(timing.reference) != rounds:
        return np.ones(rounds)
    return typical / np.asarray(timing.reference, float)


def whole_steps(timing: Windows, typical: float | None) -> Array:
    """Seconds per whole step of each round, corrected for drift."""
    return seconds_per_step(timing) * drift_factors(timing, typical)


def correction(timing: Windows, typical: float | None) -> str:
    """What a method's name says of the correction for drift."""
    there = typical is not None and len(timing.reference) == len(timing.seconds_per_step)
    return ", corrected for drift" if there else ""


def phase(timing: StepTiming, name: str, typical: float | None) -> Array | None:
    """Seconds per step of one phase, of each round, corrected for drift; None where it was not timed."""
    windows = timing.phases.get(name)
    return None if not windows else np.asarray(windows, float) * drift_factors(timing, typical)


def optimizer_seconds(timing: StepTiming, typical: float | None) -> Array | None:
    """Clipping and optimiser step, of each round: resident step minus forward and backward."""
    resident, backward = phase(timing, "resident", typical), phase(timing, "backward", typical)
    return None if resident is None or backward is None else resident - backward


def by_size(timing: TimingPass) -> list[StepTiming]:
    """The timings that have a window, smallest batch size first."""
    return sorted((t for t in timing.timings if t.seconds_per_step), key=lambda t: t.batch_size)


# --- rows ---


def rows_of(
    timing: TimingPass,
    units_per_example: float = 1.0,
    flops: FlopCount | None = None,
    probes: Sequence[MemoryProbe] = (),
) -> tuple[ThroughputRow, ...]:
    """One row per batch size that was timed, ascending."""
    typical = typical_reference(timing)
    return tuple(_row(t, typical, units_per_example, flops, probes) for t in by_size(timing))


def _row(
    timing: StepTiming,
    typical: float | None,
    units_per_example: float,
    flops: FlopCount | None,
    probes: Sequence[MemoryProbe],
) -> ThroughputRow:
    b, corrected = timing.batch_size, correction(timing, typical)
    whole, resident = whole_steps(timing, typical), phase(timing, "resident", typical)
    backward, joules = phase(timing, "backward", typical), np.asarray(timing.joules_per_step, float)
    seconds = of_rounds(whole, note=corrected)
    examples = inverse(seconds, b)
    wait = None if resident is None else not_below_zero(of_rounds(whole - resident, False, corrected))
    spent = optimizer_seconds(timing, typical)
    optimizer = None if spent is None else not_below_zero(of_rounds(spent, False, corrected))
    compute = None if backward is None else of_rounds(backward, note=corrected)
    peak = flops.peak_per_second if flops is not None else None
    peaks = [p.peak_bytes for p in probes if p.micro_batch_size == b and ran_to_end(p) and p.peak_bytes is not None]
    return ThroughputRow(
        micro_batch_size=b,
        seconds_per_step=seconds,
        examples_per_second=examples,
        units_per_second=scaled(examples, units_per_example),
        data_wait=wait,
        copy=_copy(timing, typical),
        compute=compute,
        optimizer=optimizer,
        bound_by=bound_by(seconds, wait, compute, optimizer),
        flops_utilization=scaled(examples, flops.per_example / peak) if flops is not None and peak else None,
        joules_per_example=scaled(of_rounds(joules), 1 / b) if len(joules) and np.all(joules > 0) else None,
        peak_bytes=max(peaks, default=None),
        predicted_peak_bytes=predicted_bytes(probes, b),
    )


def bound_by(seconds: Measured, wait: Measured | None, compute: Measured | None, optimizer: Measured | None) -> str:
    """What binds a step: "data", "compute" or "optimizer"; "" where phases were not all timed.

    "data" where the wait is the largest share, and its interval lies above DATA_SHARE of the step (without an interval:
    its estimate) or its estimate is more than half of the step: bursts of a loader make the interval wide, and calling
    such a step bound by compute would be wrong more surely. Else the larger of the other two.
    """
    if wait is None or compute is None or optimizer is None:
        return ""
    shares = {"data": wait.estimate or 0.0, "compute": compute.estimate or 0.0, "optimizer": optimizer.estimate or 0.0}
    surely = wait.low if wait.low is not None else shares["data"]
    step = seconds.estimate or 0.0
    if shares["data"] >= max(shares.values()) and (surely > DATA_SHARE * step or shares["data"] > step / 2):
        return "data"
    return "compute" if shares["compute"] >= shares["optimizer"] else "optimizer"


def scaled(m: Measured, factor: float) -> Measured:
    """The same value in another unit: `factor` > 0 times it."""
    ends = {k: None if (v := getattr(m, k)) is None else v * factor for k in ("estimate", "low", "high")}
    return dataclasses.replace(m, **ends)


def inverse(m: Measured, numerator: float) -> Measured:
    """numerator / m, of a positive value: the interval's ends change places."""
    ends = {to: None if (v := getattr(m, k)) is None else numerator / v for k, to in _SWAPPED.items()}
    return dataclasses.replace(m, **ends)


_SWAPPED = {"estimate": "estimate", "low": "high", "high": "low"}


def not_below_zero(m: Measured) -> Measured:
    """A difference of two timings that cannot be negative: estimate and ends are cut off at 0, and `interval` says so.

    Noise takes a difference near 0 to either side of it; nothing can take less than no time.
    """
    ends = {k: None if (v := getattr(m, k)) is None else max(0.0, v) for k in ("estimate", "low", "high")}
    changed = any(ends[k] != getattr(m, k) for k in ends)
    return dataclasses.replace(m, **ends, interval=f"{m.interval}, cut off at 0") if changed else m


def _copy(timing: StepTiming, typical: float | None) -> Measured | None:
    """Host to device: 0 where phases were timed and there was nothing to copy."""
    windows = phase(timing, "copy", typical)
    if windows is not None:
        return of_rounds(windows, False, correction(timing, typical))
    if not timing.phases.get("resident"):
        return None
    return Measured(0.0, None, None, len(timing.seconds_per_step), 0, "none: the data are on the device")


# --- the knee ---


def knee(timing: TimingPass, ceiling: int | None = None) -> Measured:
    """The smallest size with at least KNEE_SHARE of the highest throughput measured at sizes up to `ceiling`.

    Throughput is batch size over the median window. Interval: the rounds are resampled, the same rounds for all sizes
    (a bootstrap, percentiles that are sizes of the grid); with fewer than LEAST_ROUNDS the least and the greatest knee
    of single rounds. Windows that are not rounds of one pass (a meter's) are resampled for each size by itself.
    """
    timings = [t for t in by_size(timing) if ceiling is None or t.batch_size <= ceiling]
    if not timings:
        below = "" if ceiling is None else f" up to the ceiling of {ceiling:,}"
        return Measured(None, None, None, 0, 0, f"none: no batch size{below} was timed")
    sizes = np.array([t.batch_size for t in timings])
    typical = typical_reference(timing)
    windows = [whole_steps(t, typical) for t in timings]
    rate = sizes / np.array([np.median(w) for w in windows])
    estimate = float(sizes[np.argmax(rate >= KNEE_SHARE * rate.max())])
    low, high, method = _knee_interval(sizes, windows, paired=all(t.reference for t in timings))
    edge = ""
    if len(sizes) > 1 and rate.argmax() == len(sizes) - 1:
        edge = f"; the highest throughput is at the largest size measured, {sizes[-1]:,}: the knee may lie beyond"
    return Measured(estimate, low, high, min(map(len, windows)), 0, method + edge)


def _knee_interval(sizes: NDArray, windows: list[Array], paired: bool) -> tuple[float | None, float | None, str]:
    """(low, high, method) of the knee."""
    rounds = min(map(len, windows))
    if rounds < 2:
        return None, None, "none: one round of timing has no spread"
    if rounds < LEAST_ROUNDS:
        found = knees_of(sizes, np.array([w[:rounds] for w in windows]).T)
        return float(found.min()), float(found.max()), f"least and greatest of {rounds} single rounds"
    rng = np.random.default_rng(0)
    joint = paired and len({len(w) for w in windows}) == 1
    together = rng.integers(rounds, size=(RESAMPLES, rounds))
    draw: Callable[[Array], NDArray] = (
        (lambda w: together) if joint else (lambda w: rng.integers(len(w), size=(RESAMPLES, len(w))))
    )
    medians = np.array([np.median(w[draw(w)], axis=1) for w in windows]).T
    low, high = np.percentile(knees_of(sizes, medians), (2.5, 97.5), method="inverted_cdf")
    how = "jointly" if joint else "for each size"
    return float(low), float(high), f"bootstrap of {rounds} rounds, resampled {how}, {RESAMPLES:,} times"


def knees_of(sizes: NDArray, seconds: Array) -> NDArray:
    """The knee of each row of seconds per step, shape (rows, sizes)."""
    rate = sizes / seconds
    return sizes[np.argmax(rate >= KNEE_SHARE * rate.max(axis=1, keepdims=True), axis=1)]


# --- the fit ---


def fit_step_time(timing: TimingPass) -> StepTimeFit:
    """t(b) = a + c (b^4 + s^4)^(1/4): an overhead, a device that is full from s examples on, then c for each example.

    Least squares on log t over the medians of drift-corrected windows, a >= 0, c > 0, 0 <= s <= the largest size, from
    several starts. Intervals: each round is fitted by itself, and t over the rounds' parameters (log c) about the
    estimate, widened by sqrt(pi/2) as the estimate comes from medians; none for a parameter at its bound. Coverage of
    the 95 % intervals, 100 passes of 10 sizes and 10 rounds at each of three settings: 94-99 %.
    Fewer than LEAST_SIZES sizes: no estimates, and a `reason`.
    """
    timings, typical = by_size(timing), typical_reference(timing)
    sizes = np.array([t.batch_size for t in timings], float)
    if len(timings) < LEAST_SIZES:
        return _no_fit(f"a fit of step time needs {LEAST_SIZES} batch sizes, {len(timings)} were timed")
    windows = [whole_steps(t, typical) for t in timings]
    seconds = np.array([np.median(w) for w in windows])
    best = min((_least_squares(sizes, seconds, start) for start in _starts(sizes, seconds)), key=lambda fit: fit[0])[1]
    refits = np.array([_least_squares(sizes, t, best)[1] for t in _blocks(windows)])
    best, bounds = _at_bounds(best, sizes, seconds)
    residuals = step_seconds(best, sizes) / seconds - 1
    rounds = min(map(len, windows))
    measured = [_parameter(best[k], refits[:, k], k == 1, rounds, bounds[k]) for k in range(3)]
    reasons = [f"{name} is {bound}" for name, bound in zip(PARAMETERS, bounds, strict=True) if bound]
    worst = int(np.argmax(np.abs(residuals)))
    if abs(residuals[worst]) > MOST_RESIDUAL:
        where = f"{100 * abs(residuals[worst]):.0f} %, at batch size {int(sizes[worst]):,}"
        reasons.insert(0, f"the largest residual is {where}: measured points are used instead of the fit")
    return StepTimeFit(*measured, tuple(float(r) for r in residuals), tuple(int(b) for b in sizes), "; ".join(reasons))


def holds(fit: StepTimeFit) -> bool:
    """Whether there is a fit, and no residual beyond MOST_RESIDUAL."""
    return bool(fit.residuals) and max(map(abs, fit.residuals)) <= MOST_RESIDUAL


def step_seconds(parameters: Parameters, batch_sizes: Array) -> Array:
    """a + c (b^4 + s^4)^(1/4)."""
    a, c, s = parameters
    return a + c * np.hypot(batch_sizes**2, s**2) ** 0.5


def _no_fit(reason: str) -> StepTimeFit:
    nothing = Measured(None, None, None, 0, 0, f"none: {reason}")
    return StepTimeFit(nothing, nothing, nothing, (), (), reason)


def _starts(sizes: Array, seconds: Array) -> list[Parameters]:
    """Little and much overhead; saturation below the sizes, and over their range."""
    saturations = [0.3 * float(sizes[0]), *(float(sizes[int(q * len(sizes))]) for q in (0.0, 0.3, 0.6, 0.9))]
    return [(a * float(seconds.min()), float(seconds[-1] / sizes[-1]), s) for a in (0.1, 0.7) for s in saturations]


def _least_squares(sizes: Array, seconds: Array, start: Parameters) -> tuple[float, Parameters]:
    """(sum of squared log residuals, parameters) from one start; scaled so that all three are of order one."""
    t, b = float(seconds.min()), float(np.sqrt(sizes[0] * sizes[-1]))

    def parameters(x: Array) -> Parameters:
        return float(x[0]) * t, float(np.exp(x[1])) * t / b, float(x[2]) * b

    def residuals(x: Array) -> Array:
        return np.log(step_seconds(parameters(x), sizes) / seconds)

    def slopes(x: Array) -> Array:
        _, c, s = parameters(x)
        full = np.hypot(sizes**2, s**2) ** 0.5
        columns = np.stack([np.full(len(sizes), t), c * full, c * b * (s / full) ** 3], axis=1)
        return columns / step_seconds(parameters(x), sizes)[:, None]

    lower = np.array([0.0, np.log(LEAST_SLOPE * b / sizes[-1]), 0.0])
    upper = np.array([float(seconds.max()) / t, np.log(2.0 * b * seconds.max() / (t * sizes[0])), sizes[-1] / b])
    x0 = np.clip([start[0] / t, np.log(start[1] * b / t), start[2] / b], lower + 1e-9, upper - 1e-9)
    found = optimize.least_squares(residuals, x0, jac=slopes, bounds=(lower, upper), ftol=1e-7, xtol=1e-7, max_nfev=100)
    return float(found.cost), parameters(found.x)


def _at_bounds(parameters: Parameters, sizes: Array, seconds: Array) -> tuple[Parameters, list[str]]:
    """The parameters, those that ran into 0 set to it; and which bound each ran into ("" for none).

    s below a quarter of the smallest size changes no step by more than 0.1 %: that is 0.
    """
    a, c, s = parameters
    least = float(seconds.min())
    no_overhead, no_saturation = a < 1e-3 * least, s < sizes[0] / 4
    flat, never_full = c < 2 * LEAST_SLOPE * least / sizes[-1], s > 0.999 * sizes[-1]
    saturation = "at its bound, the largest size: none was full" if never_full else ""
    bounds = [
        "at its bound 0" if no_overhead else "",
        "at its lower bound: steps take equally long at every size" if flat else "",
        "at its bound 0: no size is small enough to show it" if no_saturation else saturation,
    ]
    return (0.0 if no_overhead else a, c, 0.0 if no_saturation else s), bounds


def _blocks(windows: list[Array]) -> list[Array]:
    """Seconds per step of all sizes, round by round; many rounds as the medians of MOST_REFITS blocks."""
    rounds = min(map(len, windows))
    parts = np.array_split(np.arange(rounds), min(rounds, MOST_REFITS))
    return [np.array([np.median(w[part]) for w in windows]) for part in parts]


def _parameter(estimate: float, refits: Array, log: bool, rounds: int, bound: str) -> Measured:
    """The estimate with the interval of its refits; the ends of what cannot be negative are cut off at 0."""
    n = len(refits)
    if bound or n < 2:
        return Measured(estimate, None, None, n, 0, f"none: {bound or 'one round of timing has no spread'}")
    about = of_rounds(np.log(refits) if log else refits, log=False)
    half = 0.0 if about.high is None or about.estimate is None else about.high - about.estimate
    ends = (estimate * np.exp(-half), estimate * np.exp(half)) if log else (max(0.0, estimate - half), estimate + half)
    grouped = f" in {n} blocks" if n < rounds else ""
    text = f"t on {'logs of ' if log else ''}the fits of {rounds} single rounds{grouped}, {n - 1} df"
    return Measured(estimate, float(ends[0]), float(ends[1]), n, 0, text)
