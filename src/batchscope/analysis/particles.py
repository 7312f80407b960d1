"""How are a few parameters distributed, given data? Draws from a posterior by sequential Monte Carlo with tempering.

    pi_k(x)  ~  prior(x) * likelihood(x)^beta_k,      0 = beta_0 < beta_1 < ... = 1

Draws from the prior are carried along: each beta is the largest that keeps the effective number of draws at a half,
(sum w)^2 / sum w^2 = N / 2 with w = likelihood^(beta_k - beta_(k-1)); then they are resampled (systematically) and
moved by random-walk Metropolis steps with the draws' own covariance. Unlike one Markov chain this needs no start, finds
several modes, and works on all draws at once. Del Moral, Doucet & Jasra, Sequential Monte Carlo samplers, J. R.
Statist. Soc. B 68 (2006); the choice of beta: Jasra et al., Scand. J. Statist. 38 (2011).

Parameters are standardised: the prior is standard normal in every dimension, and whoever asks transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

EFFECTIVE = 0.5  # of the draws, after each step of the temperature
MOVES = 4  # Metropolis steps at each temperature (a guess), and LAST_MOVES at the last
LAST_MOVES = 12
ACCEPTED = 0.25  # the share of moves that is aimed at: near the best for several dimensions (Roberts et al. 1997)
MOST_STEPS = 100


def posterior_draws(log_likelihood: Callable[[Array], Array], dimensions: int, draws: int, seed: int = 0) -> Array:
    """(draws, dimensions) standardised parameters, equally likely under the posterior.

    `log_likelihood` takes (draws, dimensions) and gives (draws,); -inf is allowed. The same seed gives the same draws.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((draws, dimensions))
    value, beta, scale = _finite(log_likelihood(x)), 0.0, 2.38 / np.sqrt(dimensions)
    for _ in range(MOST_STEPS):
        step = _next(value, 1.0 - beta)
        beta = min(1.0, beta + step)
        keep = _resampled(step * (value - value.max()), rng)
        x, value = x[keep], value[keep]
        for _ in range(LAST_MOVES if beta >= 1.0 else MOVES):
            x, value, accepted = _moved(log_likelihood, x, value, beta, scale, rng)
            scale *= np.exp(accepted - ACCEPTED)
        if beta >= 1.0:
            break
    return x


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, -1e100)


def _next(value: Array, most: float) -> float:
    """The largest step of beta that keeps the effective number of draws, by bisection."""

    def effective(step: float) -> float:
        w = np.exp(step * (value - value.max()))
        return float(w.sum() ** 2 / (w**2).sum()) / len(value)

    if effective(most) >= EFFECTIVE:
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= EFFECTIVE else (low, middle)
    return max(low, 1e-12)


def _resampled(log_weights: Array, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices, each as often as its weight says, give or take one."""
    w = np.exp(log_weights)
    places = (rng.random() + np.arange(len(w))) / len(w)
    return np.minimum(np.searchsorted(np.cumsum(w / w.sum()), places), len(w) - 1)


def _moved(
    log_likelihood: Callable[[Array], Array],
    x: Array,
    value: Array,
    beta: float,
    scale: float,
    rng: np.random.Generator,
) -> tuple[Array, Array, float]:
    """One Metropolis step of every draw: (draws, their log likelihoods, share accepted)."""
    spread = np.cov(x.T).reshape(x.shape[1], -1) + 1e-10 * np.eye(x.shape[1])
    proposed = x + scale * rng.standard_normal(x.shape) @ np.linalg.cholesky(spread).T
    new = _finite(log_likelihood(proposed))
    gain = beta * (new - value) - 0.5 * ((proposed**2).sum(1) - (x**2).sum(1))
    taken = np.log(rng.random(len(x))) < gain
    return np.where(taken[:, None], proposed, x), np.where(taken, new, value), float(taken.mean())
