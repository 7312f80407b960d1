"""How many bytes does a micro-batch size need, and which is the largest that fits? A fit, a prediction, a search.

Peak bytes are affine in the micro-batch size b where nothing switches (a kernel, an algorithm, the allocator's mind):

    peak(b) = F + c b,    F: process, weights, gradients, optimiser state;  c: activations, work space, batch

Measured on a CPU (peak resident size, two networks), c b wobbles by 10 % about the line, so a line is good for choosing
the next size to run, never for the answer: what `conclusion` returns was run.

The search (`next_size`) is a pure function of the probes so far, so it can be stored, resumed and simulated. It keeps a
bracket: the largest size that fits, the smallest larger one that does not (for whatever reason), and ends once they are
within TOLERANCE, or the cap fits. The next size is where the line crosses the limit (regula falsi: between the ends of
the bracket where both have a peak, else beyond the larger of two fitting sizes), a little below it first, since a size
that fits has a usable peak on every device; then TOLERANCE above the fitting one, which is expected not to fit and
closes the bracket. With k probes left, bisection closes a bracket whose ends are a ratio of (1 + TOLERANCE)^(2^k)
apart: once the bracket is as narrow as that, no size is chosen that would break this.

Simulated, 2000-3000 made-up curves of each kind, fixed part 1 MB to 100 GB, largest size 1 to 10^6: within 5 % of
bisection on 99 % or more (3 % wobble, a step, evaluation above training), 96-97 % where peaks jump by half between
neighbouring sizes, 91 % where CUDA's allocator reserves up to 15 % beyond need (99.7 % within 10 %); 4 to 5 probes on
average. Where sizes crash far below the limit six probes cannot find the place: 58 %, and `conclusion` says "probes".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from batchscope.analysis.uncertainty import LEVEL
from batchscope.records import Measured, MemoryFit, MemoryProbe

MOST_PROBES = 6
TOLERANCE = 0.04  # between the size that fits and the one that does not; what bisection finds lies between them
STEP = 1 + TOLERANCE
MARGIN = 0.02  # aim so far below the predicted crossing: half the tolerance, so that one more size closes the bracket
DOUBT = 0.08  # of the distance extrapolated: aim lower by this much more (c b wobbles by 5-10 %)
BACK = STEP**4  # from a size that ran out of memory though the line said it fits: what two bisections close
NOISE = 0.003  # of a peak: two peaks closer than that give no slope: it may be chance (a guess)
LEAP = 8  # factor where nothing tells how far to go: down 512 -> 64 -> 8 -> 1, or up (a guess)
SPACING = 1.5  # two peaks give a slope if their sizes are this far apart: closer ones differ by their wobble (a guess)
SAVED_RATIO = (1.0, 3.0)  # peak bytes per example over those that autograd saves: range seen on small networks
FARTHEST = 4.0  # predictions end at this multiple of the largest probed size
CAUSES = {"out_of_memory": "memory", "crashed": "crash", "timed_out": "time"}


def ran_to_end(probe: MemoryProbe) -> bool:
    """Whether the peak is that of the whole probe: it fits, or was seen through to the checkpoint above the limit."""
    return probe.peak_bytes is not None and (probe.fits or probe.checkpoint_bytes is not None)


# --- the line ---


def fit_memory(probes: Sequence[MemoryProbe]) -> MemoryFit | None:
    """Weighted least squares of peak(b) = F + c b in relative error; None where fewer than two sizes have a peak.

    Minimises sum ((F + c b_i) / p_i - 1)^2. Intervals: t on the residuals, n - 2 degrees of freedom (none at n = 2).
    Probes in which the allocator had to free its cache and try again have a peak cut off at the limit: they are left
    out where the others suffice.
    """
    points = _points([p for p in probes if not p.alloc_retries])
    if len(points) < 2:
        points = _points(probes)
    if len(points) < 2:
        return None
    sizes, peaks = np.array(sorted(points.items()), float).T
    design = np.column_stack([1 / peaks, sizes / peaks])
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones(len(sizes)))
    residuals = design @ (fixed, slope) - 1
    df = len(sizes) - 2
    errors = np.zeros(2)
    if df > 0:
        covariance = np.linalg.inv(design.T @ design) * float(residuals @ residuals) / df
        errors = np.sqrt(np.diag(covariance))
    measured = [_coefficient(float(e), float(s), df) for e, s in zip((fixed, slope), errors, strict=True)]
    largest = float(np.max(np.abs(residuals)))
    return MemoryFit(measured[0], measured[1], largest, tuple(int(b) for b in sizes))


def _coefficient(estimate: float, error: float, df: int) -> Measured:
    if df < 1:
        return Measured(estimate, None, None, df + 2, 0, "none: two sizes determine the line and leave no residual")
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)) * error
    text = f"t on relative residuals of {df + 2} sizes, {df} df"
    return Measured(estimate, estimate - half, estimate + half, df + 2, 0, text)


def predicted_bytes(probes: Sequence[MemoryProbe], micro_batch_size: int) -> int | None:
    """Peak bytes at any micro-batch size: linear between neighbouring peaks of training, the fitted slope beyond them.

    An evaluation needs what it needs at any micro-batch size, and is the peak of small ones: a larger size than the
    smallest probed is predicted no lower peak than that one had.

    None beyond FARTHEST times the largest size with a peak; and, where only one size has one, at every other size.
    """
    points = sorted(_points(probes).items())
    if not points or micro_batch_size > FARTHEST * points[-1][0]:
        return None
    sizes, peaks = np.array(sorted(_points(probes, training=True).items()), float).T
    nearest = min(max(float(micro_batch_size), sizes[0]), sizes[-1])
    least = points[0][1] if micro_batch_size >= points[0][0] else 0.0
    peak, fit = float(np.interp(nearest, sizes, peaks)), fit_memory(probes)
    if nearest == micro_batch_size:
        return round(max(peak, least))
    if fit is None or fit.bytes_per_example.estimate is None:
        return None
    start = points[0][1] if micro_batch_size < points[0][0] else peak
    return round(start + max(0.0, fit.bytes_per_example.estimate) * (micro_batch_size - nearest))


def _points(probes: Sequence[MemoryProbe], training: bool = False) -> dict[int, float]:
    """Micro-batch size -> measured peak, or that of the training steps alone (mean of repeats)."""
    found: dict[int, list[int]] = {}
    for p in probes:
        if p.peak_bytes is not None and ran_to_end(p):
            peak = p.training_bytes if training and p.training_bytes is not None else p.peak_bytes
            found.setdefault(p.micro_batch_size, []).append(peak)
    return {b: float(np.mean(peaks)) for b, peaks in found.items()}


# --- the search ---


@dataclass(frozen=True)
class _Bracket:
    """The largest size that fits (`low`, 0: none) and the smallest larger one that does not (`high`).

    Where nothing above `low` failed, `high` is cap + 1 and `top` None.
    """

    low: int
    high: int
    top: MemoryProbe | None

    @property
    def closed(self) -> bool:
        """Whether nothing between the ends is worth a probe."""
        gap = self.high - self.low
        return gap <= 1 or (self.top is not None and gap <= TOLERANCE * self.low)


def _bracket(probes: Sequence[MemoryProbe], cap: int) -> _Bracket:
    low = max((p.micro_batch_size for p in probes if p.fits), default=0)
    above = [p for p in probes if not p.fits and p.micro_batch_size > low]
    top = min(above, key=lambda p: p.micro_batch_size, default=None)
    return _Bracket(low, cap + 1 if top is None else top.micro_batch_size, top)


def next_size(
    probes: Sequence[MemoryProbe], limit_bytes: int, first: int, cap: int, most: int = MOST_PROBES
) -> int | None:
    """The micro-batch size to probe next, in 1..cap and never one that was probed; None: the search is over.

    `first` is the size to begin with, `cap` the largest allowed, `most` the probes in all. A size that crashed or timed
    out bounds the bracket like one that is out of memory.
    """
    if not probes:
        return max(1, min(first, cap))
    bracket, left = _bracket(probes, cap), most - len(probes)
    if left < 1 or bracket.closed:
        return None
    if bracket.low == 0:
        size = _downwards(probes, bracket, limit_bytes, left)
    else:
        crossing = _crossing(probes, bracket, limit_bytes)
        size = _upwards(probes, bracket, crossing) if bracket.top is None else _between(probes, bracket, crossing, left)
    return min(max(math.floor(size), bracket.low + 1), bracket.high - 1)


def _downwards(probes: Sequence[MemoryProbe], bracket: _Bracket, limit: int, left: int) -> float:
    """Nothing fits yet: below the crossing where peaks tell it, else down by LEAP; the last probe goes to 1.

    Where evaluation or checkpoint alone is above the limit, 1 at once: a smaller micro-batch only helps if what is in
    the way is what training left allocated, and 1 settles that.
    """
    if left == 1 or (bracket.top is not None and above_alone(bracket.top, limit)):
        return 1
    crossing = _crossing(probes, bracket, limit)
    return bracket.high / LEAP if crossing is None else (1 - MARGIN - DOUBT) * min(crossing, bracket.high)


def _upwards(probes: Sequence[MemoryProbe], bracket: _Bracket, crossing: float | None) -> float:
    """Nothing above has failed yet: the cap where the crossing lies beyond it, else towards the crossing."""
    low, cap = bracket.low, bracket.high - 1
    if crossing is None:
        return LEAP * low
    if crossing >= cap:
        return cap
    return _aim(low, crossing) if crossing > low * STEP else low * _stride(probes, low)


def _between(probes: Sequence[MemoryProbe], bracket: _Bracket, crossing: float | None, left: int) -> float:
    """Both ends are known: one tolerance off the end that the crossing is close to, else towards the crossing.

    A crossing at or above `high` is refuted: if memory ran out there the line was a little wrong, else (a crash, no
    line) only bisection is left. At most `widest` apart, two ends can be closed by the probes that come after this one.
    """
    low, high, widest = bracket.low, bracket.high, STEP ** (2 ** (left - 1))
    if crossing is None or crossing >= high:
        memory = crossing is not None and bracket.top is not None and bracket.top.outcome == "out_of_memory"
        size = high / min(widest, BACK) if memory else 0.0
        size = size if size > low else math.sqrt(low * high)
    elif crossing <= low * STEP:
        size = low * _stride(probes, low)
    elif crossing >= high / STEP * (1 - MARGIN / 2):
        size = math.ceil(high / STEP)
    else:
        far = high if bracket.top is not None and ran_to_end(bracket.top) else math.inf
        size = _aim(low, crossing, far)
    return min(max(size, high / widest), low * widest) if high / low <= widest**2 else size


def _aim(low: int, crossing: float, high: float = math.inf) -> float:
    """Below the crossing by MARGIN, and by DOUBT times its distance from the nearer peak (at `low`, at `high`)."""
    return crossing * (1 - MARGIN - DOUBT * (1 - max(low / crossing, crossing / high)))


def _stride(probes: Sequence[MemoryProbe], low: int) -> float:
    """The factor from `low` to a size that should not fit: STEP, its logarithm doubled for each sign of a wrong line.

    Signs are a size that fits just below `low`, and one that fits after the allocator had to try again: CUDA's, out of
    memory, frees what it had reserved beyond need, so that its peaks reach the limit before the need does.
    """
    close = [p for p in probes if p.fits and (p.micro_batch_size >= low / STEP - 1 or p.alloc_retries)]
    return STEP ** (2 ** (len(close) - 1))


def _crossing(probes: Sequence[MemoryProbe], bracket: _Bracket, limit: int) -> float | None:
    """The size at which a line through what was measured reaches the limit; None where there is no line.

    The earlier of two: that of training alone, and that of the peaks once there are two. Evaluation may set the peak at
    small sizes (the line of the peaks is too flat), or add to what training left allocated (that of training is).
    """
    ended = [p for p in probes if ran_to_end(p)]
    peaks = {p.micro_batch_size: p.peak_bytes for p in ended if p.peak_bytes is not None}
    training = {p.micro_batch_size: p.training_bytes for p in ended if p.training_bytes is not None}
    saved = max((p.saved_bytes_per_example or 0.0 for p in probes), default=0.0)

    def either(points: dict[int, int], start: int) -> float | None:
        return _slope(points, start, saved) or _guess(start, probes, saved)

    found = [_line(training or peaks, bracket, limit, either)]
    if len(training) > 1:
        found.append(_line(peaks, bracket, limit, lambda points, start: _slope(points, start, 0.0)))
    return min((x for x in found if x is not None), default=None)


def _line(
    points: dict[int, int], bracket: _Bracket, limit: int, slope_at: Callable[[dict[int, int], int], float | None]
) -> float | None:
    """Where the line through the bracket's ends, or through its lower end with the slope there, reaches `limit`."""
    low, high = bracket.low, bracket.high
    if not points:
        return None
    if low in points and high in points and points[high] > points[low]:
        return low + (limit - points[low]) * (high - low) / (points[high] - points[low])
    start = low if low in points else min(points)
    slope = slope_at(points, start)
    return None if slope is None else max(0.0, start + (limit - points[start]) / slope)


def _slope(points: dict[int, int], start: int, saved: float) -> float | None:
    """Bytes per example at `start` against the nearest size SPACING away (else the nearest); None where nothing tells.

    A rise within NOISE of the total says nothing: then what autograd saves per example is the slope's lower bound.
    """
    others = [b for b in points if b != start]
    if not others:
        return None
    apart = [b for b in others if max(b, start) >= SPACING * min(b, start)] or others
    other = min(apart, key=lambda b: abs(math.log(b / start)))
    rise = (points[start] - points[other]) / (start - other)
    clear = abs(points[start] - points[other]) > NOISE * points[start]
    return max(rise, 0.0 if clear else saved) or None


def _guess(start: int, probes: Sequence[MemoryProbe], saved: float) -> float | None:
    """Bytes per example from one probe: its activations over its size, and SAVED_RATIO of what autograd saves.

    Work space that does not grow makes the first too large, recomputed activations make the second too small: where the
    first is the larger, their geometric mean.
    """
    parts = next(p.parts for p in probes if p.micro_batch_size == start)
    activations = parts.activations / start if parts else 0.0
    low, high = (ratio * saved for ratio in SAVED_RATIO)
    if saved <= 0 or not activations:
        return activations or (low + high) / 2 or None
    return math.sqrt(high * activations) if activations > high else max(activations, low)


# --- what was found ---


def above_alone(probe: MemoryProbe, limit_bytes: int) -> str:
    """ "evaluation" or "checkpoint" where that went above the limit though training stayed below it; else "".

    Training was over if what follows it was measured, or its parts were.
    """
    training = probe.training_bytes
    if probe.outcome != "out_of_memory" or training is None or training > limit_bytes:
        return ""
    if probe.evaluation_bytes is None:
        return "evaluation" if probe.parts is not None else ""
    if probe.evaluation_bytes > limit_bytes:
        return "evaluation"
    return "checkpoint" if probe.checkpoint_bytes is None or probe.checkpoint_bytes > limit_bytes else ""


def conclusion(
    probes: Sequence[MemoryProbe], limit_bytes: int, first: int, cap: int, cap_is: str = "data set"
) -> tuple[int | None, str, str]:
    """(largest micro-batch size that ran below the limit, what binds, one sentence).

    What binds is one of "memory", "crash", "time" (what the next larger size ran into), `cap_is` ("data set" or "batch
    size asked for"), "probes" (they were used up before the bracket closed). None: not even the smallest tried fits.
    """
    bracket = _bracket(probes, cap)
    low, top = bracket.low, bracket.top
    if low == 0 and top is None:
        return None, "probes", "No micro-batch size was probed."
    if top is None:
        if low >= cap:
            return low, cap_is, f"A micro-batch of {low:,} fits, and the {cap_is} allows no larger one."
        return low, "probes", f"A micro-batch of {low:,} fits; the probes ended before a larger one failed."
    cause, what = CAUSES[top.outcome], _what_happened(top, limit_bytes)
    if low == 0:
        helpless = ", where a smaller micro-batch does not help" if above_alone(top, limit_bytes) else ""
        said = f"Not even a micro-batch of {bracket.high:,} fits: {what}{helpless}."
        return None, cause if bracket.closed else "probes", said
    if bracket.closed:
        return low, cause, f"A micro-batch of {low:,} fits, {bracket.high:,} does not: {what}."
    untried = f"the {len(probes)} probes left the sizes between untried"
    return low, "probes", f"A micro-batch of {low:,} fits, {bracket.high:,} does not ({what}); {untried}."


def _what_happened(probe: MemoryProbe, limit_bytes: int) -> str:
    """Why a size does not fit, without a full stop."""
    alone = above_alone(probe, limit_bytes)
    said = probe.reason.rstrip(". ") or f"{probe.outcome.replace('_', ' ')}"
    if not alone:
        return said
    return f"training stays below the limit, the {alone} alone goes above it ({said})"
