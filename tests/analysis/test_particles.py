"""Are the draws distributed as the posterior is, where that has a closed form?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from batchscope.analysis.particles import Array, posterior_draws

DRAWS = 3000
SLACK = 5.0 / math.sqrt(DRAWS / 2)  # five standard errors, half of the draws taken for copies of others


def test_a_gaussian_likelihood_gives_the_conjugate_posterior() -> None:
    """y = A x + e, x ~ N(0, I), e ~ N(0, s^2): precision I + A'A / s^2, mean its inverse times A'y / s^2."""
    design, y, s = np.array([[1.0, 0.5, 0.0], [0.2, -1.0, 2.0]]), np.array([1.5, -0.7]), 0.3

    def log_likelihood(x: Array) -> Array:
        return -0.5 * (((y - x @ design.T) / s) ** 2).sum(1)

    covariance = np.linalg.inv(np.eye(3) + design.T @ design / s**2)
    mean = covariance @ design.T @ y / s**2
    x = posterior_draws(log_likelihood, 3, DRAWS)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((x.mean(0) - mean) / sd).max() < SLACK
    assert np.abs(np.cov(x.T) - covariance).max() < 2.0 * SLACK * sd.max() ** 2


def test_without_data_the_draws_are_the_prior() -> None:
    x = posterior_draws(lambda x: np.zeros(len(x)), 2, DRAWS)
    assert np.abs(x.mean(0)).max() < SLACK
    assert np.abs(np.cov(x.T) - np.eye(2)).max() < 2.0 * SLACK


def test_both_modes_are_found_with_their_shares() -> None:
    """A mixture 0.3 : 0.7 of N(-2, 0.2^2) and N(2, 0.2^2): by symmetry of the prior the posterior has the same shares,
    about the conjugate means -+2 / 1.04."""

    def log_likelihood(x: Array) -> Array:
        return np.logaddexp(
            math.log(0.3) + stats.norm.logpdf(x[:, 0], -2, 0.2), math.log(0.7) + stats.norm.logpdf(x[:, 0], 2, 0.2)
        )

    x = posterior_draws(log_likelihood, 2, DRAWS)[:, 0]
    assert np.mean(x < 0) == pytest.approx(0.3, abs=SLACK)  # resampling moves the shares a little at every temperature
    sd = math.sqrt(0.04 / 1.04)
    for mode in (x[x < 0], x[x > 0]):
        assert abs(mode).mean() == pytest.approx(2 / 1.04, abs=2 * SLACK * sd)
        assert mode.std() == pytest.approx(sd, rel=2 * SLACK)


@pytest.mark.parametrize("bound", [-1.0, 0.0, 2.5])
def test_a_bound_gives_a_truncated_normal(bound: float) -> None:
    """y = x + s e is known to lie above c: x | y is N(y / (1 + s^2), s^2 / (1 + s^2)), and y a truncated normal."""
    s = 0.5
    wide = math.sqrt(1 + s**2)
    x = posterior_draws(lambda x: special.log_ndtr((x[:, 0] - bound) / s), 1, DRAWS)[:, 0]
    y_mean, y_variance = stats.truncnorm.stats(bound / wide, math.inf, scale=wide, moments="mv")
    mean, variance = y_mean / wide**2, s**2 / wide**2 + y_variance / wide**4
    assert x.mean() == pytest.approx(mean, abs=SLACK * math.sqrt(variance))
    assert x.var() == pytest.approx(variance, rel=2 * SLACK)


def test_what_is_impossible_is_left() -> None:
    """The prior cut at 1: the likelihood is 0 below."""
    x = posterior_draws(lambda x: np.where(x[:, 0] > 1.0, 0.0, -np.inf), 2, DRAWS)
    assert x[:, 0].min() > 1.0
    assert x[:, 0].mean() == pytest.approx(stats.truncnorm.mean(1.0, math.inf), abs=SLACK * 0.45)
    assert x[:, 1].std() == pytest.approx(1.0, rel=2 * SLACK)


def test_data_that_are_thousands_of_times_sharper_than_the_prior_are_followed() -> None:
    x = posterior_draws(lambda x: -0.5 * (((x - np.array([1.7, -0.4])) / 1e-4) ** 2).sum(1), 2, 500)
    assert np.abs(x.mean(0) - [1.7, -0.4]).max() < 5e-5
    assert x.std(0) == pytest.approx([1e-4, 1e-4], rel=0.3)


def test_a_seed_gives_the_same_draws_again_and_another_one_others() -> None:
    first, again, other = (posterior_draws(lambda x: -((x[:, 0] - 1.0) ** 2), 2, 200, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
