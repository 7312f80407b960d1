"""How large is the gradient noise scale B_simple = tr(Sigma) / |G|^2, and how sure is that?

`draw` turns one measurement's squared norms into unbiased estimates of tr(Sigma) and |G|^2; `noise_scale` averages
them separately over a run and puts Fieller's interval on the ratio of the averages. A single estimate of |G|^2 is
often negative and is never clipped: clipping, or averaging single ratios, is biased (McCandlish et al. 2018, A.1).

The estimand is this run's own average: what the true values do from step to step is not an error. At given weights a
batch is a fresh draw, so errors of different steps hardly correlate, and the error of an average is told from
differences of neighbours, which slow change leaves alone (von Neumann 1941). Correlated errors are looked for.

Coverage of the 95 % intervals, bounds included: `benchmarks/noise_coverage.py`, with what is known to miss it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from batchscope.records import GradientNorms, Measured, NoiseScale

Array = NDArray[np.float64]

LEVEL = 0.95
LEAST = 8  # measurements: below, the spread of neighbours has fewer than 5 degrees of freedom
LEAST_TO_CORRELATE = 32  # measurements; a guess: below, an autocorrelation of 0.5 is within its own error
BLOCKS = 32  # of correlated measurements: some 20 degrees of freedom; a guess, calibrated in the benchmark
DETECTED = 2.0  # standard errors
NEIGHBOURS = 16  # on each side: over these the size of the errors may count as constant; a guess


@dataclass(frozen=True)
class _Means:
    """Weighted means of (tr(Sigma), |G|^2), the covariance of the two means, and what it was estimated from."""

    trace: float
    squared: float
    covariance: Array
    df: float
    effective: float
    blocks: str

    @property
    def t(self) -> float:
        return float(stats.t.ppf(0.5 + LEVEL / 2, self.df))


def draw(norms: GradientNorms, data_size: int | None = None) -> tuple[float, float]:
    """(tr(Sigma), |G|^2) as one measurement estimates them, both unbiased, the second of either sign.

    m units drawn without replacement from N have E|g|^2 = |G|^2 + S2 (1/m - 1/N), S2 the trace of the covariance with
    divisor N - 1. With b = part_size and B = batch_size, whatever N is,

        S2         = (parts_squared - mean_squared) / (1/b - 1/B)
        tr(Sigma)  = S2 (N - 1) / N                             the covariance with divisor N, as B_simple has it
        |G|^2      = mean_squared - S2 (1/B - 1/N)

    N = `data_size`, in the units of batch_size; None: drawn afresh from no end of data, 1/N = 0. Unequal parts enter by
    the weighted 1/b = sum_i w_i / m_i and 1/B = sum_i w_i^2 / m_i (`GradientNorms`). McCandlish et al. 2018, A.1.
    Raises ValueError for fewer than two parts, and for a batch larger than the data.
    """
    if norms.parts < 2 or not 0 < norms.part_size < norms.batch_size:
        raise ValueError(
            f"expected at least 2 parts, smaller than the batch, got {norms.parts} of {norms.part_size:g} in a batch "
            f"of {norms.batch_size:g}: split the batch, or leave the measurement out"
        )
    if data_size is not None and norms.batch_size > data_size * (1 + 1e-9):
        raise ValueError(
            f"expected a batch of at most data_size = {data_size} units, got {norms.batch_size:g}: give data_size in "
            "the units of batch_size, or None"
        )
    per_data = 0.0 if data_size is None else 1.0 / data_size
    spread = (norms.parts_squared - norms.mean_squared) / (1 / norms.part_size - 1 / norms.batch_size)
    return spread * (1 - per_data), norms.mean_squared - spread * (1 / norms.batch_size - per_data)


def usable(norms: GradientNorms) -> bool:
    """Whether a measurement gives estimates: finite norms, and parts to compare."""
    finite = math.isfinite(norms.mean_squared) and math.isfinite(norms.parts_squared)
    return finite and norms.parts >= 2 and 0 < norms.part_size < norms.batch_size


def noise_scale(
    measurements: Sequence[GradientNorms],
    *,
    data_size: int | None = None,
    precision: float = 0.2,
    metric: str = "euclidean",
    discarded: int = 0,
) -> NoiseScale:
    """B_simple of a run (or a window of one): mean tr(Sigma) over mean |G|^2, with a 95 % interval or bound.

    `measurements` in the order of the run. Each weighs the steps that it stands for; where that is not told,
    min(1, batch_size / their median), so that an epoch's short last batch does not dominate. Those that are not
    `usable` are left out and added to `discarded`.
    Outcomes: see `NoiseScale`. |G|^2 counts as distinguishable from 0 where its own two-sided interval leaves 0 out.
    """
    kept = [m for m in measurements if usable(m)]
    discarded += len(measurements) - len(kept)
    draws = np.array([draw(m, data_size) for m in kept], float).reshape(-1, 2)
    weights = _weights(kept)
    negative = float(np.mean(draws[:, 1] < 0)) if kept else 0.0
    if len(kept) < LEAST:
        return _too_few(draws, weights, negative, precision, metric, discarded)
    means = _means(draws, weights)
    trace, squared = (_student(means, i, len(kept)) for i in (0, 1))
    outcome, b_simple = _ratio(means, len(kept))
    if metric == "sign" and outcome == "resolved":  # what stands for |G|^2 is too large: see measure/proxies.py
        outcome, b_simple = "at_least", _as_bound(b_simple)
    return NoiseScale(
        outcome=outcome,
        b_simple=b_simple,
        trace=trace,
        squared_gradient=squared,
        measurements=len(kept),
        effective_measurements=means.effective,
        negative_share=negative,
        precision=precision,
        needed=_needed(means, b_simple, precision) if outcome != "not_enough" else None,
        discarded=discarded,
        metric=metric,
        reason=_reason(outcome, metric),
    )


def _weights(kept: Sequence[GradientNorms]) -> Array:
    """Each measurement's weight in an average over steps; their mean is at most 1."""
    steps = [m.steps for m in kept if m.steps is not None]
    if kept and len(steps) == len(kept):
        return np.array(steps, float) / np.mean(steps)
    sizes = np.array([m.batch_size for m in kept], float)
    return np.minimum(1.0, sizes / np.median(sizes)) if kept else sizes


def _means(draws: Array, weights: Array) -> _Means:
    """Means over K >= 8 draws (K, 2) and their covariance, from differences of neighbours.

    Neighbouring blocks of weight W_b and mean y_b, n = M - 1 differences d_b (von Neumann 1941, with weights):

        Cov(mean) = M / n * sum_b W_b W_(b+1) d_b d_b' / 2 / (sum_b W_b)^2

    d_b less their local mean (`_steps`): steady drift cancels. Blocks are single draws, unless those correlate:
    `_autocorrelation` phi > 0 of the residual tr(Sigma) - ratio |G|^2, along which the ratio errs. Then the draws are
    prewhitened, u_k = y_k - phi y_(k-1), blocks are of K / 32, and the covariance is that of u over (1 - phi)^2
    (Andrews & Monahan 1992).

    Degrees of freedom: differences with a common draw have the correlation -1/2, so the sum of s_b = (W d)_b^2 has the
    variance 2 v^2 (n + 2 (n - 1) / 4), hence df = n^2 / (1.5 n - 0.5) = 2 (M - 1)^2 / (3 M - 4); where the errors' size
    changes along the run, Satterthwaite's (sum s)^2 / (1.5 sum s^2 / 3), if that is less, as E s^2 = 3 v^2.
    An estimated phi in (1 - phi)^-2 adds at least 2 (1 + phi) / ((1 - phi) K) to 1/df, from its least variance,
    (1 - phi^2) / K; it errs to either side by more, and what that leaves of 95 % is in the benchmark.
    """
    average = weights @ draws / weights.sum()
    along = np.array([1.0, -average[0] / average[1]]) if average[1] > 0 else np.array([0.0, 1.0])
    phi = _autocorrelation(draws @ along)
    white = draws[1:] - phi * draws[:-1] if phi else draws
    length = math.ceil(len(draws) / BLOCKS) if phi else 1
    differences, count = _differences(white, weights[-len(white) :], length)
    n = count - 1
    covariance = differences.T @ differences * count / n / (1 - phi) ** 2
    squares = (differences @ along) ** 2
    df = n * n / (1.5 * n - 0.5)
    if squares.sum() > 0:
        scaled = squares / squares.max()
        df = min(df, float(2 * scaled.sum() ** 2 / (scaled @ scaled)))
    effective = float(min(weights.sum(), weights.sum() ** 2 / (weights @ weights)))  # short batches; Kish
    if phi:
        df = 1 / (1 / df + 2 * (1 + phi) / ((1 - phi) * len(draws)))
        single, k = _differences(draws, weights, 1)  # its variance is 1 - phi of that of independent draws
        independent = float(np.sum((single @ along) ** 2)) * k / (k - 1) / (1 - phi)
        effective *= min(1.0, independent / float(along @ covariance @ along))
    about = f"blocks of {length}, autocorrelation {phi:.2f}" if phi else "neighbouring measurements"
    return _Means(float(average[0]), float(average[1]), covariance, max(df, 1.0), max(effective, 1.0), about)


def _differences(draws: Array, weights: Array, length: int) -> tuple[Array, int]:
    """sqrt(W_b W_(b+1) / 2) (y_(b+1) - y_b) / sum W of neighbouring blocks, and the number of blocks."""
    count = len(draws) // length
    starts = np.linspace(0, len(draws), count + 1).round().astype(int)[:-1]
    total = np.add.reduceat(weights, starts)
    means = np.add.reduceat(weights[:, None] * draws, starts, axis=0) / total[:, None]
    return np.sqrt(total[1:] * total[:-1] / 2)[:, None] * _steps(means) / total.sum(), count


def _steps(series: Array) -> Array:
    """Differences of neighbours less the mean of those around them, along the first axis.

    A mean of h differences is the drift per step plus (x_(k+h) - x_k) / h, whose noise is 1 / h^2 of a difference's.
    From few differences, where h would be below 15, the mean is not taken.
    """
    steps = np.diff(series, axis=0)
    if len(series) < LEAST_TO_CORRELATE:
        return steps
    return steps - np.stack([_around(column) for column in steps.T], axis=1)


def _around(values: Array) -> Array:
    """The mean of the values around each, up to 16 on each side."""
    window = np.ones(2 * min(NEIGHBOURS, len(values) // 4) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _autocorrelation(series: Array) -> float:
    """The lag-1 autocorrelation phi of AR(1) errors around a slow drift; 0 where it is not detected.

    Successive differences of AR(1) errors have the lag-1 correlation rho = -(1 - phi) / 2, so phi = 1 + 2 rho, and no
    mean has to be known, whose removal would bias phi. Of independent errors n differences give rho with the variance
    (1 - 3 rho^2 + 4 rho^4) / n = 1 / (2 n) (Bartlett 1946, rho = -1/2), phi with 2 / n. Differences are first divided
    by their local size, lest a stormy start of the run decide.
    """
    if len(series) < LEAST_TO_CORRELATE:
        return 0.0
    steps = _steps(series[:, None])[:, 0]
    local = _around(steps**2)
    if not np.all(local > 0):
        return 0.0
    scaled = steps / np.sqrt(local)
    phi = 1 + 2 * float(scaled[1:] @ scaled[:-1]) / float(scaled @ scaled)
    return min(phi, 0.97) if phi > DETECTED * math.sqrt(2 / len(steps)) else 0.0  # beyond 0.97 it is a drift


def _ratio(means: _Means, n: int) -> tuple[str, Measured]:
    """(outcome, B_simple): Fieller's set (1954) of the theta > 0 with |trace - theta squared| <= t se(theta).

    se^2 = C_00 - 2 theta C_01 + theta^2 C_11. With s, g the two means, a = g^2 - t^2 C_11, b = s g - t^2 C_01 and
    c = s^2 - t^2 C_00 the ends are the roots of a theta^2 - 2 b theta + c, the lower one c / (b + sqrt(b^2 - a c)), the
    upper one (b + sqrt(b^2 - a c)) / a. c > 0: tr(Sigma) is told from 0. a > 0: so is |G|^2, and both roots are ends;
    else only the lower one is, and the set has no upper end. Where the mean of |G|^2 is even significantly negative
    the set is empty, and the bound given is that of a mean of 0, lower than one from g < 0: conservative.
    """
    t, c = means.t, means.covariance
    scale = np.array([abs(means.trace), max(abs(means.squared), math.sqrt(c[1, 1]))])  # keeps squares in range
    about = f"Fieller, {means.df:.3g} df, {means.blocks}"
    if means.trace <= t * math.sqrt(c[0, 0]):
        return "not_enough", Measured(None, None, None, n, 0, "none: tr(Sigma) is not distinguishable from 0")
    if means.squared <= 0 and c[1, 1] == 0:
        return "at_least", Measured(None, None, None, n, n, "none: no estimate of |G|^2 is above 0, and all are equal")
    (c00, c01), (_, c11) = t * t * c / np.outer(scale, scale)
    g = means.squared / scale[1]
    if g <= -math.sqrt(c11):
        g = 0.0
    a, b, unit = g * g - c11, g - c01, float(scale[0] / scale[1])
    root = b + math.sqrt(max(b * b - a * (1 - c00), 0.0))
    low = float((1 - c00) / root) * unit
    if a <= 0 or g <= 0:
        return "at_least", Measured(None, low, None, n, n, f"bound: {about}")
    return "resolved", Measured(means.trace / means.squared, low, float(root / a) * unit, n, 0, about)


def _student(means: _Means, index: int, n: int) -> Measured:
    """The mean of tr(Sigma) (0) or |G|^2 (1) with its t interval."""
    estimate = (means.trace, means.squared)[index]
    half = means.t * math.sqrt(float(means.covariance[index, index]))
    return Measured(estimate, estimate - half, estimate + half, n, 0, f"t, {means.df:.3g} df, {means.blocks}")


def _needed(means: _Means, b_simple: Measured, precision: float) -> int | None:
    """Further measurements until half the log interval is `precision`; None where mean |G|^2 <= 0.

    With K measurements the half width is t se(log ratio) in the limit, se^2 = Var(s - theta g) / s^2 at theta = s / g,
    and falls as 1 / sqrt(K). Fieller's own half width is wider as long as |G|^2 is barely told from 0.
    """
    low, high = b_simple.low, b_simple.high
    if low and high and math.log(high / low) / 2 <= precision:
        return 0
    if means.squared <= 0:
        return None
    along = np.array([1 / means.trace, -1 / means.squared])
    half = means.t * math.sqrt(max(float(along @ means.covariance @ along), 0.0))
    return max(1, math.ceil(b_simple.n * ((half / precision) ** 2 - 1)))


def _as_bound(ratio: Measured) -> Measured:
    """A ratio whose denominator is too large by an unknown amount: its lower end is a bound."""
    return Measured(None, ratio.low, None, ratio.n, ratio.n, f"bound: {ratio.interval}")


def _reason(outcome: str, metric: str) -> str:
    if outcome == "at_least" and metric == "sign":
        return "the noise of a batch lengthens |g_i|, so that the ratio is a lower bound: larger batches raise it"
    if outcome == "at_least":
        return "|G|^2 is not distinguishable from 0: measure for longer, or with larger batches"
    if outcome == "not_enough":
        return "tr(Sigma) is not distinguishable from 0: measure for longer, or with smaller or more parts"
    return ""


def _too_few(
    draws: Array, weights: Array, negative: float, precision: float, metric: str, discarded: int
) -> NoiseScale:
    """Fewer than `LEAST` measurements: averages, and no interval."""
    n, why = len(draws), f"none: {len(draws)} usable measurements"
    average = weights @ draws / weights.sum() if n else (None, None)
    trace, squared = (Measured(None if v is None else float(v), None, None, n, 0, why) for v in average)
    return NoiseScale(
        outcome="not_enough",
        b_simple=Measured(None, None, None, n, 0, why),
        trace=trace,
        squared_gradient=squared,
        measurements=n,
        effective_measurements=float(np.sum(weights)),
        negative_share=negative,
        precision=precision,
        discarded=discarded,
        metric=metric,
        reason=f"an interval needs {LEAST} usable measurements and there are {n}: measure for longer, or more often",
    )
