"""How many steps does a batch size need, once its learning rate is tuned: S(B) = S_min (1 + B_crit / B)?

McCandlish et al. 2018 (arXiv 1812.06162), eqs 2.11-2.12: B_crit = E_min / S_min is where a step count is twice the
least possible, and so is the count of examples. Fitted on the log scale to the tuned policy only:

    y_Bs = log S_Bs = a + log(1 + e^b / B) + u_B + e_Bs,    a = log S_min,  b = log B_crit,
    u_B ~ N(0, tau^2): lack of fit and the choice of learning rate, shared by a batch size's seeds;  e ~ N(0, sigma^2).

With f = a + log(1 + e^b / B), the mean over n seeds is N(f, v), v = tau^2 + sigma^2 / n; v is fitted, sigma is the
pooled spread of `uncertainty`. A batch size with censored seeds gives its probability with u_B integrated out,
int N(u; 0, tau^2) prod phi((y - f - u)/sigma) prod Q((c - f - u)/sigma) du, by Gauss-Hermite quadrature.

Intervals are profile likelihoods. Uncensored, the deviance with v profiled out is D(b) = G log(RSS(b) / RSS_min) for G
batch sizes, and RSS(b)/RSS_min - 1 = F(1, G - 2)/(G - 2) to first order, so  D <= G log(1 + t^2 / (G - 2)),  t at G - 2
degrees of freedom, is the exact interval of a straight line; the same threshold serves the censored case, with G the
batch sizes that hold an uncensored seed. `benchmarks/law_coverage.py` measured 94.8-96.5 % for 8 sizes x 3 seeds,
94.9-97.6 % with 5 sizes or a shift per seed, 94-98.5 % with the largest sizes censored (1000 and 200 repeats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from batchscope.analysis.target import Value, effective_batch_size
from batchscope.analysis.uncertainty import LEVEL, censored_mean, pooled_spread
from batchscope.records import LawFit, Measured

LEAST_SIZES = 3  # two parameters and one degree of freedom for the error
BRACKET = 4.0  # one size at B_crit / 4 or below and one at 4 B_crit or above, else the law has no bend in the data
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)  # of the integral over u_B, weight exp(-u^2 / 2)
LOG_WEIGHTS = np.log(WEIGHTS / WEIGHTS.sum())
FAR = math.log(1000.0)  # b is sought up to this far outside the batch sizes: beyond, the law is 1/B or flat
ROOT = 1e-4  # of the logs at an interval's end: 0.01 %, far below its width
LEAST_VARIANCE = 1e-12  # of log steps: 1e-6 relative, far below one step in any trial


class LawDifference(NamedTuple):
    """How far two fits' log B_crit lie apart, with the joint standard error of that difference."""

    difference: float
    standard_error: float

    @property
    def agree(self) -> bool:
        """|difference| <= 1.96 joint standard errors."""
        return abs(self.difference) <= 1.96 * self.standard_error


@dataclass(frozen=True)
class _Points:
    """The data of one fit, batch sizes ascending: those without censored seeds, and the rest."""

    sizes: np.ndarray  # effective batch sizes without censored seeds
    means: np.ndarray  # their mean log steps
    extra: np.ndarray  # sigma^2 (1/n - 1/n_most): what fewer seeds add to their variance
    censored: tuple[tuple[float, np.ndarray, np.ndarray], ...]  # (effective size, log steps known, log bounds)
    sd: float  # sigma
    seeds: int  # n_most

    @property
    def plain(self) -> bool:
        """Nothing censored and equally many seeds everywhere: then much is in closed form."""
        return not self.censored and not self.extra.any()


def fit_law(steps: Mapping[int, Sequence[Value]], train_size: int) -> LawFit:
    """Fits the law to the seeds' steps to goal at each batch size, in the order of the seeds.

    Raises nothing for data that cannot be fitted: the LawFit then has no estimates and a `reason`. Where the seeds are
    the same at every batch size and none is censored, what a seed shifts everywhere (it was lucky in its initial
    weights) is invisible between batch sizes; its variance is estimated from the two-way layout and added to S_min's.
    """
    steps = {b: vs for b, vs in sorted(steps.items()) if vs}
    sizes = tuple(steps)
    effective = tuple(effective_batch_size(train_size, b) for b in sizes)
    logs = {b: [Value(math.log(v.value), v.censored) for v in vs] for b, vs in steps.items()}
    usable = [b for b in sizes if any(not v.censored for v in logs[b])]
    spread = pooled_spread(list(logs.values()))
    means = tuple(_mean_log(logs[b], spread.sd) for b in sizes)
    if len(usable) < LEAST_SIZES:
        why = f"the law needs {LEAST_SIZES} batch sizes that reach the goal, {len(usable)} of {len(sizes)} did"
        return no_fit(why, sizes, effective, means)
    if spread.df < 1 and any(v.censored for b in usable for v in logs[b]):
        why = "some seeds are censored and no batch size has two that reached: run more seeds"
        return no_fit(why, sizes, effective, means)
    points = _points(logs, effective, 0.0 if math.isnan(spread.sd) else spread.sd)
    return _fitted(points, sizes, effective, means, len(usable), _seed_error(logs))


def no_fit(
    reason: str,
    sizes: tuple[int, ...] = (),
    effective: tuple[float, ...] = (),
    means: tuple[float | None, ...] = (),
) -> LawFit:
    """A LawFit without estimates that says why."""
    nothing = Measured(None, None, None, 0, 0, f"none: {reason}")
    return LawFit(nothing, nothing, None, sizes, effective, means, reason)


def predict_steps(fit: LawFit, batch_size: float) -> float:
    """S_min (1 + B_crit / B) at an effective batch size; nan where there is no fit."""
    s_min, b_crit = fit.s_min.estimate, fit.critical_batch_size.estimate
    return math.nan if s_min is None or b_crit is None else s_min * (1.0 + b_crit / batch_size)


def log_b_crit_difference(one: LawFit, other: LawFit) -> LawDifference | None:
    """log B_crit of `one` minus that of `other`, of independent studies: variances add. None without two fits."""
    values = []
    for fit in (one, other):
        if fit.critical_batch_size.estimate is None or fit.joint_covariance is None:
            return None
        values.append((math.log(fit.critical_batch_size.estimate), fit.joint_covariance[1][1]))
    (b1, v1), (b2, v2) = values
    return LawDifference(b1 - b2, math.sqrt(v1 + v2))


def _fitted(
    points: _Points,
    sizes: tuple[int, ...],
    effective: tuple[float, ...],
    means: tuple[float | None, ...],
    groups: int,
    seed_error: tuple[float, float],
) -> LawFit:
    df, n = groups - 2, len(sizes)
    limits = math.log(effective[0]) - FAR, math.log(effective[-1]) + FAR
    lowest, x = _fit(points, limits)
    t = float(stats.t.ppf(0.5 + LEVEL / 2, df))
    threshold = lowest + groups * math.log1p(t * t / df)
    covariance, sd = _covariance(x, points, groups), math.sqrt(math.exp(x[2]) * groups / df)
    ends = []
    for parameter, within in ((0, (x[0] - 2 * FAR, x[0] + 2 * FAR)), (1, limits)):
        step = t * math.sqrt(max(covariance[parameter, parameter], 1e-16))
        ends.append(_crossings(parameter, threshold, x, min(step, 1.0), within, points))
    low, high = (
        e if e is None else math.copysign(math.hypot(e - x[0], seed_error[1]), e - x[0]) + x[0] for e in ends[0]
    )
    covariance[0, 0] += seed_error[0]
    text, runaway = f"profile likelihood, {groups} batch sizes, {df} df", bool(x[1] > limits[1] - 1e-2)
    b_crit = _bounded(x[1], ends[1], n, n - groups, text, runaway)
    s_min = _bounded(x[0], (low, high), n, n - groups, text, runaway)
    cov = ((float(covariance[0, 0]), float(covariance[0, 1])), (float(covariance[1, 0]), float(covariance[1, 1])))
    return LawFit(s_min, b_crit, sd, sizes, effective, means, _limits(b_crit, effective, means), cov)


def _bounded(x: float, ends: tuple[float | None, ...], n: int, censored: int, text: str, runaway: bool) -> Measured:
    """exp of an estimate and its ends; an end that the likelihood does not give is 0 below and None above."""
    low, high = (None if e is None else math.exp(e) for e in ends)
    if low is None or high is None:
        text += ", one-sided" if (low is None) != (high is None) else ", no end found"
    return Measured(None if runaway else math.exp(x), 0.0 if low is None else low, high, n, censored, text)


def _limits(b_crit: Measured, effective: tuple[float, ...], means: tuple[float | None, ...]) -> str:
    """What limits the fit: a bend that the batch sizes do not show. Empty where nothing does."""
    reached = [e for e, m in zip(effective, means, strict=True) if m is not None]
    estimate = b_crit.estimate
    if estimate is None:
        return f"steps fall as 1/B up to {reached[-1]:.0f}: B_crit lies beyond, only a lower bound is known"
    missing = []
    if reached[0] > estimate / BRACKET:
        missing.append(f"none at or below B_crit/{BRACKET:.0f} = {estimate / BRACKET:.3g}")
    if reached[-1] < estimate * BRACKET:
        missing.append(f"none at or above {BRACKET:.0f} B_crit = {estimate * BRACKET:.3g}")
    if not missing:
        return ""
    return f"B_crit is not bracketed by the batch sizes that reached the goal: {' and '.join(missing)}"


def _mean_log(values: Sequence[Value], sd: float) -> float | None:
    known = [v.value for v in values if not v.censored]
    if not known or (len(known) < len(values) and not sd > 0):
        return None
    return censored_mean(values, sd)


def _points(logs: Mapping[int, Sequence[Value]], effective: Sequence[float], sd: float) -> _Points:
    whole = [(e, vs) for e, vs in zip(effective, logs.values(), strict=True) if not any(v.censored for v in vs)]
    rest = [(e, vs) for e, vs in zip(effective, logs.values(), strict=True) if any(v.censored for v in vs)]
    most = max(len(vs) for vs in logs.values())
    return _Points(
        np.array([e for e, _ in whole]),
        np.array([np.mean([v.value for v in vs]) for _, vs in whole]),
        np.array([sd**2 * (1 / len(vs) - 1 / most) for _, vs in whole]),
        tuple(
            (e, np.array([v.value for v in vs if not v.censored]), np.array([v.value for v in vs if v.censored]))
            for e, vs in rest
        ),
        max(sd, 1e-6),
        most,
    )


def _deviance(x: np.ndarray, points: _Points) -> np.ndarray:
    """-2 log likelihood, constants dropped, at each row (a, b, log v) of x."""
    a, b, v = x[:, 0, None], x[:, 1, None], np.exp(x[:, 2, None])
    variance = v + points.extra
    rest = points.means - a - np.logaddexp(0.0, b - np.log(points.sizes))
    total = np.sum(rest**2 / variance + np.log(variance), axis=1)
    tau = np.sqrt(np.maximum(v - points.sd**2 / points.seeds, 0.0))
    for size, known, bounds in points.censored:
        centre = a + np.logaddexp(0.0, b - math.log(size)) + tau * NODES
        log_p = LOG_WEIGHTS + special.log_ndtr((centre - bounds[:, None, None]) / points.sd).sum(axis=0)
        log_p = log_p - 0.5 * (((known[:, None, None] - centre) / points.sd) ** 2).sum(axis=0)
        top = log_p.max(axis=1)
        total = total - 2.0 * (top + np.log(np.exp(log_p - top[:, None]).sum(axis=1)))
    return total


def _profile(fixed: int, at: float, start: np.ndarray, points: _Points) -> tuple[float, np.ndarray]:
    """(deviance, (a, b, log v)) at the best of the two other parameters, with parameter `fixed` (0: a, 1: b) held."""
    x = start.copy()
    x[fixed] = at
    if points.plain:
        x = _closed(fixed, x, points)
        return float(_deviance(x[None], points)[0]), x
    return _newton(x, [i for i in range(3) if i != fixed], points)


def _closed(fixed: int, x: np.ndarray, points: _Points) -> np.ndarray:
    """The same where nothing is censored and all n agree: a and v in closed form given b, one search in b given a."""
    sizes, means = np.log(points.sizes), points.means

    def rest(b: float) -> np.ndarray:
        return means - np.logaddexp(0.0, b - sizes)

    if fixed == 0:
        a = x[0]
        b = _minimum(lambda b: float(np.sum((rest(b) - a) ** 2)), sizes[0] - FAR, sizes[-1] + FAR)
    else:
        b, a = x[1], float(rest(x[1]).mean())
    return np.array([a, b, math.log(max(float(np.mean((rest(b) - a) ** 2)), LEAST_VARIANCE))])


def _newton(start: np.ndarray, free: Sequence[int], points: _Points, most: int = 60) -> tuple[float, np.ndarray]:
    """Newton's method with differences for derivatives; curvature is made positive and steps are at most 1."""
    k, x = len(free), start.copy()
    least = math.log(max(LEAST_VARIANCE, 1e-2 * points.sd**2 / points.seeds))
    unit = np.zeros((k, 3))
    unit[np.arange(k), list(free)] = 1.0
    pairs = [(i, j) for i in range(k) for j in range(i)]
    x[2] = max(x[2], least)
    value = float(_deviance(x[None], points)[0])
    for _ in range(most):
        h = np.where(np.array(free) == 2, 1e-2, 0.05 * math.exp(x[2] / 2))
        moves = unit * h[:, None]
        stencil = np.concatenate([moves, -moves, *[(moves[i] + moves[j])[None] for i, j in pairs]])
        f = _deviance(x + stencil, points)
        up, down = f[:k], f[k : 2 * k]
        hessian = np.diag((up - 2 * value + down) / h**2)
        for (i, j), both in zip(pairs, f[2 * k :], strict=True):
            hessian[i, j] = hessian[j, i] = (both - up[i] - up[j] + value) / (h[i] * h[j])
        roots, vectors = np.linalg.eigh(hessian)
        step = -vectors @ ((vectors.T @ ((up - down) / (2 * h))) / np.maximum(np.abs(roots), 1e-3))
        step *= min(1.0, 1.0 / max(float(np.max(np.abs(step))), 1e-12))
        tries = x + np.array([1.0, 0.5, 0.2, 0.05, 0.01])[:, None] * (step @ unit)
        tries[:, 2] = np.maximum(tries[:, 2], least)
        values = _deviance(tries, points)
        best = int(np.argmin(values))
        if not values[best] < value - 1e-6:
            break
        value, x = float(values[best]), tries[best]
    return value, x


def _minimum(f: Callable[[float], float], low: float, high: float, starts: int = 25) -> float:
    """Where f is least on an interval: the best of a grid, then Brent around it."""
    grid = np.linspace(low, high, starts)
    values = [f(float(x)) for x in grid]
    k = int(np.argmin(values))
    ends = float(grid[max(k - 1, 0)]), float(grid[min(k + 1, starts - 1)])
    found = optimize.minimize_scalar(f, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return float(found.x) if found.fun <= values[k] else float(grid[k])


def _fit(points: _Points, limits: tuple[float, float]) -> tuple[float, np.ndarray]:
    """(deviance, (a, b, log v)) at the maximum of the likelihood: least squares, then Newton where that is not it."""
    known = [(size, float(values.mean())) for size, values, _ in points.censored if len(values)]
    sizes = np.append(points.sizes, [size for size, _ in known])
    means = np.append(points.means, [mean for _, mean in known])
    plain = _Points(sizes, means, np.zeros(len(sizes)), (), points.sd, points.seeds)
    start = np.zeros(3)
    b = _minimum(lambda b: _profile(1, b, start, plain)[0], *limits)
    found = _profile(1, b, start, plain)
    if points.plain:
        return found
    x = found[1]
    x[2] = max(x[2], 2 * math.log(points.sd) - math.log(points.seeds))
    starts = [x + np.array([-d, d, 0.0]) for d in (0.0, 1.0, -1.0)]
    value, x = min((_newton(y, (0, 1, 2), points) for y in starts), key=lambda r: r[0])
    return value, x


def _crossings(
    parameter: int, threshold: float, x: np.ndarray, step: float, limits: tuple[float, float], points: _Points
) -> tuple[float | None, float | None]:
    """Where the profile deviance of a parameter rises through the threshold on either side; None where it does not.

    Each profile starts from the optimum of the last place inside, so that both ends of a search keep their signs.
    """
    ends: list[float | None] = []
    for sign, limit in ((-1.0, limits[0]), (1.0, limits[1])):
        inside, width, near, end = float(x[parameter]), max(step, 1e-7), x, None
        while sign * (limit - inside) > 0:
            outside = min(inside + width, limit) if sign > 0 else max(inside - width, limit)
            value, far = _profile(parameter, outside, near, points)
            if value >= threshold:
                end = _root(
                    lambda at, start=near: _profile(parameter, at, start, points)[0] - threshold, inside, outside
                )
                break
            inside, width, near = outside, 2 * width, far
        ends.append(end)
    return ends[0], ends[1]


def _root(f: Callable[[float], float], inside: float, outside: float) -> float:
    return float(optimize.brentq(f, inside, outside, xtol=ROOT))


def _covariance(x: np.ndarray, points: _Points, groups: int) -> np.ndarray:
    """Of (a, b): twice the inverse Hessian of the deviance at the fitted v, times G / (G - 2) for two parameters."""
    h = 0.1 * math.exp(x[2] / 2)
    signs = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)], float)
    f = _deviance(x + h * np.column_stack([signs, np.zeros(9)]), points)
    mixed = (f[5] - f[6] - f[7] + f[8]) / 4
    hessian = np.array([[f[1] - 2 * f[0] + f[2], mixed], [mixed, f[3] - 2 * f[0] + f[4]]]) / h**2
    return np.linalg.pinv(hessian, hermitian=True) * 2.0 * groups / (groups - 2)


def _seed_error(logs: Mapping[int, Sequence[Value]]) -> tuple[float, float]:
    """(variance, half-width of the 95 % interval) that seeds common to all batch sizes add to log S_min.

    Two-way layout y_Bs without censored cells: E[MS_seed] = sigma^2 + G sigma_seed^2, so the mean over n seeds of their
    common shifts has variance max(0, MS_seed - MS_rest) / (G n); t at n - 1 degrees of freedom. (0, 0) if not a layout.
    """
    rows = list(logs.values())
    n = len(rows[0])
    if n < 2 or len(rows) < 2 or any(len(r) != n or any(v.censored for v in r) for r in rows):
        return 0.0, 0.0
    y = np.array([[v.value for v in r] for r in rows])
    g = len(rows)
    seeds = y.mean(axis=0) - y.mean()
    rest = y - y.mean(axis=1, keepdims=True) - seeds
    ms_seed, ms_rest = g * float(np.sum(seeds**2)) / (n - 1), float(np.sum(rest**2)) / ((g - 1) * (n - 1))
    variance = max(0.0, ms_seed - ms_rest) / (g * n)
    return variance, float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * math.sqrt(variance)
