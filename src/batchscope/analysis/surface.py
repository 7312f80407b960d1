"""How many examples does a batch size at a learning rate need, given a few runs? A posterior over the whole surface.

    log E(B, eta) = log S_min + log(B + B_crit) + P(log2 eta - m(B)) + g(B, eta) + e,        e ~ N(0, sigma^2)

- The law of `tradeoff`, in examples: E = B S(B).
- m(B) = log2 of the best learning rate: m(B) - m(own) = f(B) - f(own), f = -log2((K/B)^rise + (B/K)^fall). rise = 1,
  fall = 0 is McCandlish's saturating rule for SGD, rise = fall = 1/2 Li's for Adam (arXiv 2405.14578), rise = fall = 0
  a constant one; K lies near B_crit, by a factor that is fitted.
- P(v), v octaves beside the best: below it log 2 v^2 / (|v| + d), far below 1/eta, as steps are then; above it c v^2.
  On a quadratic a step gains r (2 - r) of the best with r = 2^v, which d = 1.3 follows within 0.02 down to r = 1/8.
- g: what the smooth form does not say, a Gaussian process of standard deviation tau: so measured points are believed
  where the form fails. Its correlation falls over two octaves of batch size and of learning rate.
- Where the lowest loss L in a given time is asked for instead of the time to a goal: with V = log E + log w(B), and
  loss a power law of the progress made, log L = offset + gain (V - V(own)) + g + e (`Prior.log_weights`).
- A run is lost with a probability that rises from 0 to 1 about v = D, give or take a fifth of an octave. One that
  diverged was lost; one that did not reach the goal was, or has E above its bound; one that reached was not.

Priors are wide guesses and stand beside their parameters. No point, the user's own included, is assumed to be good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from batchscope.analysis.particles import Array, posterior_draws

LN2 = math.log(2.0)
LENGTH = 2.0  # octaves over which the misfit g stays alike, of batch size and of learning rate (a guess)
DIVERGES_WITHIN = 0.2  # octaves (a guess: the edge of stability is sharp)
LAPSE = 0.03  # of runs diverge, or do not, whatever the learning rate (a guess)
NO_NOISE_SCALE = (math.log(100.0), 2.0)  # mean and sd of log B_crit where nothing is known
NOISE_SCALE_SD = 1.5  # of log(B_simple / B_crit): 0.05 to 8 over McCandlish's tasks, 0.3 to 6 over the built-in ones

# Priors: (mean, standard deviation) of
RISE, FALL = (0.75, 0.3), (0.15, 0.25)
LOG_KNEE = (0.0, 1.0)  # log(K / B_crit)
OWN_RATE_SD = 2.5  # octaves, of the best learning rate about the user's own
LOG_BELOW, LOG_ABOVE = (math.log(1.3), 0.35), (math.log(0.4), 0.7)  # log d, log c
LOG_DIVERGED = (math.log(1.5), 0.6)  # log D; on a quadratic, steps diverge one octave above the best rate
LOG_SIGMA = (math.log(0.1), 0.75)  # between seeds: 0 to 0.23 at the best of 13 tasks, half above 0.1
LOG_TAU = (math.log(0.06), 0.6)
LOG_GAIN, OFFSET_SD = (math.log(0.2), 0.8), 0.5  # d log L / d log(time), and of log L at the own point at its best
LOSS_SPREAD = 0.15  # sigma and tau of log loss, in those of log examples (a guess)
EXAMPLES_SD = 1.5  # of log E at the own batch size and its best learning rate, about the first run's
PARAMETERS = 12


class Run(NamedTuple):
    """One training run: log of the examples it needed, or of a bound on them where `censored`; or of its loss."""

    batch_size: int
    learning_rate: float
    log_value: float
    censored: bool = False
    diverged: bool = False


class Prior(NamedTuple):
    """Where the search begins: the own point, log E (or log L) about there, and (mean, sd) of log B_crit.

    `log_weights`: runs are losses, and this is log w(B) at every batch size.
    """

    batch_size: int
    learning_rate: float
    log_value: float
    log_b_crit: tuple[float, float] = NO_NOISE_SCALE
    log_weights: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Parameters:
    """Draws of the parameters, each (N, 1)."""

    log_s_min: Array
    log_b_crit: Array
    own_rate: Array  # m(own), log2
    rise: Array
    fall: Array
    log_knee: Array  # log K
    below: Array
    above: Array
    diverged: Array
    sigma: Array
    tau: Array
    own: float  # log of the own batch size
    gain: Array  # with weights: of log loss
    offset: Array
    weights: tuple[Array, Array] | None = None  # (log batch sizes, log w)

    def law(self, log_size: Array) -> Array:
        """(N, n) log examples at the best learning rate, by the law alone."""
        return self.log_s_min + np.logaddexp(log_size, self.log_b_crit)

    def best_rate(self, log_size: Array) -> Array:
        """(N, n) log2 of the best learning rate."""
        return self.own_rate + self._shape(log_size) - self._shape(np.array([self.own]))

    def penalty(self, beside: Array) -> Array:
        """P: log examples that octaves beside the best learning rate cost."""
        low, high = np.maximum(-beside, 0.0), np.maximum(beside, 0.0)
        return LN2 * low**2 / (low + self.below) + self.above * high**2

    def mean(self, log_size: Array, rate: Array) -> Array:
        """(N, n) log examples (log loss) by law and learning rate (log2), without the misfit g."""
        return self.mean_beside(log_size, rate - self.best_rate(log_size))

    def mean_beside(self, log_size: Array, beside: Array) -> Array:
        """The same at so many octaves beside the best learning rate, (N, n)."""
        examples = self.law(log_size) + self.penalty(beside)
        if self.weights is None:
            return examples
        own = np.array([self.own])
        beside = examples + np.interp(log_size, *self.weights) - self.law(own) - np.interp(own, *self.weights)
        return self.offset + self.gain * beside

    def slope(self, log_size: Array) -> Array:
        """d log2 eta / d log2 B of the best learning rate: 1 linear, 1/2 square root, 0 saturated, below 0 falling."""
        up, down = self.rise * (self.log_knee - log_size), self.fall * (log_size - self.log_knee)
        share = special.expit(up - down)
        return self.rise * share - self.fall * (1.0 - share)

    def _shape(self, log_size: Array) -> Array:
        up, down = self.rise * (self.log_knee - log_size), self.fall * (log_size - self.log_knee)
        return -np.logaddexp(up, down) / LN2


def parameters(x: Array, prior: Prior) -> Parameters:
    """Standardised draws (N, PARAMETERS) as parameters: the prior is standard normal in x."""
    e, b, own, rise, fall, knee, below, above, diverged, sigma, tau, gain = (x[:, k, None] for k in range(PARAMETERS))
    log_b_crit = prior.log_b_crit[0] + prior.log_b_crit[1] * b
    log_own = math.log(prior.batch_size)
    loss = prior.log_weights is not None
    log_e, scale = (0.0 if loss else prior.log_value) + EXAMPLES_SD * e, LOSS_SPREAD if loss else 1.0
    return Parameters(
        log_s_min=log_e - np.logaddexp(log_own, log_b_crit),
        log_b_crit=log_b_crit,
        own_rate=math.log2(prior.learning_rate) + OWN_RATE_SD * own,
        rise=RISE[0] + RISE[1] * rise,
        fall=FALL[0] + FALL[1] * fall,
        log_knee=log_b_crit + LOG_KNEE[0] + LOG_KNEE[1] * knee,
        below=np.exp(LOG_BELOW[0] + LOG_BELOW[1] * below),
        above=np.exp(LOG_ABOVE[0] + LOG_ABOVE[1] * above),
        diverged=np.exp(LOG_DIVERGED[0] + LOG_DIVERGED[1] * diverged),
        sigma=scale * np.exp(LOG_SIGMA[0] + LOG_SIGMA[1] * sigma),
        tau=scale * np.exp(LOG_TAU[0] + LOG_TAU[1] * tau),
        own=log_own,
        gain=np.exp(LOG_GAIN[0] + LOG_GAIN[1] * gain),
        offset=prior.log_value + OFFSET_SD * e,
        weights=None if prior.log_weights is None else _table(prior.log_weights),
    )


def _table(log_weights: Mapping[int, float]) -> tuple[Array, Array]:
    """(log batch sizes, log w), ascending."""
    sizes = sorted(log_weights)
    return np.log(np.array(sizes, float)), np.array([log_weights[b] for b in sizes])


@dataclass(frozen=True)
class Posterior:
    """Equally likely draws of the parameters, and the runs that they rest on."""

    x: Array  # standardised
    p: Parameters
    runs: tuple[Run, ...]
    seed: int

    def examples(self, points: Sequence[tuple[int, float]]) -> Array:
        """(N, points) draws of log examples to goal (log loss) at (batch size, learning rate), the mean over seeds,
        of runs that are not lost.

        The misfit g is drawn along with it, given the runs (Matheron's rule: a draw from the prior of g at runs and
        points, plus what the runs' remaining residuals say); a run that only gave a bound is given a value above it.
        """
        rng = np.random.default_rng(self.seed + 1)
        p, count = self.p, len(self.x)
        sizes, rates = _places(points)
        seen = Seen(self.runs)
        k = np.concatenate([seen.sizes, sizes]), np.concatenate([seen.rates, rates])
        joint = _alike(*k, *k)
        lower = np.linalg.cholesky(joint + 1e-6 * np.eye(len(joint)))
        g = p.tau * (rng.standard_normal((count, len(joint))) @ lower.T)
        n = len(seen.sizes)
        found = p.mean(sizes, rates) + g[:, n:]
        if n:  # the residuals that law, learning rate and this draw of g leave
            roots, vectors = np.linalg.eigh(joint[:n, :n])
            rest = seen.completed(p, rng) - p.mean(seen.sizes, seen.rates) - g[:, :n]
            rest = rest - p.sigma * rng.standard_normal(rest.shape)
            weighed = (rest @ vectors) / (p.tau**2 * np.maximum(roots, 0.0) + p.sigma**2)
            found = found + p.tau**2 * (weighed @ (joint[n:, :n] @ vectors).T)
        return found

    def lost(self, points: Sequence[tuple[int, float]]) -> Array:
        """(N, points) probability that a run is lost, lapses aside."""
        sizes, rates = _places(points)
        beside = rates - self.p.best_rate(sizes)
        return special.ndtr((beside - self.p.diverged) / DIVERGES_WITHIN)


def fit_surface(runs: Sequence[Run], prior: Prior, draws: int = 1000, seed: int = 0) -> Posterior:
    """The posterior given these runs; the same seed gives the same draws."""
    seen = Seen(tuple(runs))

    def log_likelihood(x: Array) -> Array:
        return seen.log_likelihood(parameters(x, prior))

    x = posterior_draws(log_likelihood, PARAMETERS, draws, seed)
    return Posterior(x, parameters(x, prior), tuple(runs), seed)


class Seen:
    """The runs as arrays; those that reached first, then those that only gave a bound; those that diverged apart."""

    def __init__(self, runs: Sequence[Run]) -> None:
        known = [r for r in runs if not r.censored and not r.diverged]
        bounds = [r for r in runs if r.censored and not r.diverged]
        self.known = len(known)
        self.sizes, self.rates = _places([(r.batch_size, r.learning_rate) for r in (*known, *bounds)])
        self.logs = np.array([r.log_value for r in (*known, *bounds)])
        lost_sizes, lost_rates = _places([(r.batch_size, r.learning_rate) for r in runs if r.diverged])
        self.all_sizes = np.concatenate([self.sizes, lost_sizes])
        self.all_rates = np.concatenate([self.rates, lost_rates])
        k = self.known
        alike = _alike(self.sizes, self.rates, self.sizes, self.rates)
        roots, vectors = np.linalg.eigh(alike[:k, :k]) if k else (np.zeros(0), np.zeros((0, 0)))
        self.roots, self.vectors = np.maximum(roots, 0.0), vectors
        self.across = alike[k:, :k] @ vectors

    def log_likelihood(self, p: Parameters) -> Array:
        """(N,): known runs jointly normal with covariance tau^2 alike + sigma^2; bounds given those, one by one.

        Up to the factors of sqrt(2 pi), which are the same for all draws.
        """
        beside, k, n = self.all_rates - p.best_rate(self.all_sizes), self.known, len(self.sizes)
        mean = p.mean_beside(self.sizes, beside[:, :n])
        rest = (self.logs[:k] - mean[:, :k]) @ self.vectors
        variance = p.tau**2 * self.roots + p.sigma**2
        total = -0.5 * np.sum(rest**2 / variance + np.log(variance), axis=1)
        lost = self._chance(p, beside)
        stayed, unknown, diverged = lost[:, :k], lost[:, k:n], lost[:, n:]
        total = total + np.sum(np.log1p(-stayed), axis=1) + np.sum(np.log(diverged), axis=1)
        return total + np.sum(np.log(unknown + (1.0 - unknown) * self._above(p, mean)), axis=1)

    def _above(self, p: Parameters, mean: Array) -> Array:
        """(N, bounds) probability that a run that was not lost has log examples above its bound."""
        centre, sd = self._given_known(p, mean)
        return special.ndtr((centre - self.logs[self.known :]) / sd)

    def completed(self, p: Parameters, rng: np.random.Generator) -> Array:
        """(N, n) log examples of the runs: those that only gave a bound drawn from above it, unless they were lost."""
        beside = self.rates - p.best_rate(self.sizes)
        mean = p.mean_beside(self.sizes, beside)
        centre, sd = self._given_known(p, mean)
        bounds = self.logs[self.known :]
        above, lost = special.ndtr((centre - bounds) / sd), self._chance(p, beside[:, self.known :])
        share = np.clip(above * rng.random(centre.shape), 1e-300, 1.0 - 1e-12)  # of the upper tail, at the drawn value
        drawn = np.maximum(bounds, centre - sd * special.ndtri(share))
        gone = rng.random(centre.shape) * (lost + (1.0 - lost) * above) < lost
        drawn = np.where(gone, centre + sd * rng.standard_normal(centre.shape), drawn)
        known = np.broadcast_to(self.logs[: self.known], (len(mean), self.known))
        return np.concatenate([known, drawn], axis=1)

    def _given_known(self, p: Parameters, mean: Array) -> tuple[Array, Array]:
        """Mean and sd of the log examples of runs that only gave a bound, given the known ones."""
        rest = (self.logs[: self.known] - mean[:, : self.known]) @ self.vectors
        variance = p.tau**2 * self.roots + p.sigma**2
        centre = mean[:, self.known :] + p.tau**2 * ((rest / variance) @ self.across.T)
        left = p.tau**2 + p.sigma**2 - p.tau**4 * ((1.0 / variance) @ (self.across**2).T)
        return centre, np.sqrt(np.maximum(left, p.sigma**2))

    @staticmethod
    def _chance(p: Parameters, beside: Array) -> Array:
        """(N, n) probability that a run is lost, so many octaves beside the best learning rate."""
        return LAPSE + (1.0 - 2.0 * LAPSE) * special.ndtr((beside - p.diverged) / DIVERGES_WITHIN)


def _places(points: Sequence[tuple[int, float]]) -> tuple[Array, Array]:
    """(log batch size, log2 learning rate) of points."""
    return np.array([math.log(b) for b, _ in points]), np.array([math.log2(rate) for _, rate in points])


def _alike(sizes: Array, rates: Array, other_sizes: Array, other_rates: Array) -> Array:
    """Correlation of the misfit g between points."""
    octaves = (sizes[:, None] - other_sizes) / LN2, rates[:, None] - other_rates
    return np.exp(-0.5 * sum((d / LENGTH) ** 2 for d in octaves))
