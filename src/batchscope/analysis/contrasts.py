"""How large is an effect of the batch size, and is it resolved against a 5 % band?

Rule of measurement 11. A quantity's logarithms lie in a layout of batch sizes x seeds (rounds, for timings),

    y_Bs = alpha_B + beta_s + e_Bs,   e ~ N(0, sigma^2),

fitted by least squares over the cells that exist, so that a missing cell (a diverged trial) costs only itself. Every
effect is a contrast c' alpha: largest minus smallest batch size, or the slope on log2 B. Seeds are paired, beta_s drops
out; with no cell missing the contrast is the mean of the paired differences. sigma^2 is pooled over the whole layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from batchscope.records import Measured

BAND = math.log(1.05)  # design section 5, rule 11
ALPHA = 0.05

Cells = Mapping[tuple[int, int], float]  # (batch size, seed or round) -> log of the quantity


@dataclass(frozen=True)
class Contrast:
    """A difference of logs with its standard error; `bound`: "lower" or "upper" where it is only known to one side."""

    difference: float
    standard_error: float
    df: float
    n: int  # seeds (rounds) that entered
    bound: str = ""
    censored: int = 0

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """t interval of the difference; a bound is open on its other side."""
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.standard_error
        low = -math.inf if self.bound == "upper" else self.difference - half
        high = math.inf if self.bound == "lower" else self.difference + half
        return low, high

    def p_value(self, edge: float) -> float:
        """Two-sided p of `difference = edge`: below alpha exactly where the 1 - alpha interval leaves the edge out."""
        away = self.difference - edge
        if (self.bound == "lower" and away <= 0) or (self.bound == "upper" and away >= 0):
            return 1.0
        if self.standard_error == 0:
            return 0.0 if away else 1.0
        return float(2 * stats.t.sf(abs(away) / self.standard_error, self.df))

    def ratio(self, level: float = 1 - ALPHA, text: str = "") -> Measured:
        """As a ratio with its interval; no estimate for a bound."""
        low, high = (math.exp(e) if math.isfinite(e) else None for e in self.interval(level))
        about = f"{100 * level:.4g} % t on paired logs, {self.df:.3g} df{text}"
        return Measured(None if self.bound else math.exp(self.difference), low, high, self.n, self.censored, about)

    def __neg__(self) -> Contrast:
        return replace(
            self, difference=-self.difference, bound={"lower": "upper", "upper": "lower"}.get(self.bound, "")
        )

    def __add__(self, other: Contrast) -> Contrast:
        """Of independent contrasts: variances add, degrees of freedom by Welch and Satterthwaite."""
        v1, v2 = self.standard_error**2, other.standard_error**2
        weight = v1**2 / self.df + v2**2 / other.df
        df = (v1 + v2) ** 2 / weight if weight > 0 else min(self.df, other.df)
        bounds = {self.bound, other.bound} - {""}
        if len(bounds) > 1:
            raise ValueError("a lower and an upper bound have no known sum: compare them before adding")
        return Contrast(
            self.difference + other.difference,
            math.sqrt(v1 + v2),
            df,
            min(self.n, other.n),
            bounds.pop() if bounds else "",
            self.censored + other.censored,
        )


@dataclass(frozen=True)
class Layout:
    """The fitted two-way layout: batch sizes ascending, their effects, and the unscaled covariance of those."""

    sizes: tuple[int, ...]
    effects: np.ndarray
    covariance: np.ndarray  # (X'X)^-1 restricted to the effects; times variance
    variance: float
    df: int
    seeds: int

    def contrast(self, weights: np.ndarray, least_variance: float = 0.0) -> Contrast:
        """c' alpha; `least_variance` is what the cells' own resolution adds to each, at the least."""
        scale = max(self.variance, least_variance)
        error = math.sqrt(max(float(weights @ self.covariance @ weights) * scale, 0.0))
        return Contrast(float(weights @ self.effects), error, self.df, self.seeds)

    def ends(self, least_variance: float = 0.0) -> Contrast:
        """Largest minus smallest batch size."""
        weights = np.zeros(len(self.sizes))
        weights[0], weights[-1] = -1.0, 1.0
        return self.contrast(weights, least_variance)

    def slope(self, least_variance: float = 0.0) -> Contrast:
        """Least-squares slope of the effects on log2 B: change of the log per doubling."""
        x = np.log2(self.sizes)
        x = x - x.mean()
        return self.contrast(x / float(x @ x), least_variance)

    def monotone(self, least_variance: float = 0.0) -> bool:
        """Whether the effects run one way: no reversal is larger than the 95 % half-width of its own difference."""
        sign = 1.0 if self.effects[-1] >= self.effects[0] else -1.0
        for i in range(len(self.sizes)):
            for j in range(i + 1, len(self.sizes)):
                weights = np.zeros(len(self.sizes))
                weights[i], weights[j] = -sign, sign
                if self.contrast(weights, least_variance).interval()[1] < 0:
                    return False
        return True


def fit_layout(cells: Cells) -> Layout | str:
    """Least squares over the cells; a sentence instead where there is no comparison or no error to judge it by."""
    cells = {k: v for k, v in cells.items() if math.isfinite(v)}
    sizes, seeds = sorted({b for b, _ in cells}), sorted({s for _, s in cells})
    if len(sizes) < 2:
        return "fewer than two batch sizes gave a value"
    x = np.zeros((len(cells), len(sizes) + len(seeds)))
    for row, (b, s) in enumerate(cells):
        x[row, sizes.index(b)] = x[row, len(sizes) + seeds.index(s)] = 1.0
    y = np.array(list(cells.values()))
    inverse = np.linalg.pinv(x.T @ x, hermitian=True)
    rank = int(np.linalg.matrix_rank(x))
    if rank < len(sizes) + len(seeds) - 1:
        return "no chain of common seeds connects all batch sizes"
    df = len(cells) - rank
    if df < 1:
        return "one seed per batch size leaves no spread to judge by"
    solution = inverse @ (x.T @ y)
    variance = float(np.sum((y - x @ solution) ** 2)) / df
    k = len(sizes)
    return Layout(tuple(sizes), solution[:k], inverse[:k, :k], variance, df, len(seeds))


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """The confidence level at which each of m claims is judged (Holm 1979).

    In ascending order of p the k-th is tested at alpha / (m - k + 1). The first that fails ends the procedure: it and
    all later ones are judged at its level, where none of them is resolved.
    """
    m = len(p_values)
    levels, failed = [0.0] * m, None
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        at = alpha / (m - rank) if failed is None else failed
        if failed is None and p_values[i] > at:
            failed = at
        levels[i] = 1 - at
    return levels


def verdict(contrast: Contrast, claimed: int, level: float) -> str:
    """Of a claim that the log ratio lies beyond the band on side `claimed` (+1 or -1), at a confidence level."""
    low, high = (contrast if claimed > 0 else -contrast).interval(level)
    if low > BAND:
        return "holds"
    return "does not hold" if high < BAND else "not resolved"
