"""Is the shape that is named the one that the learning rates have?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchscope.analysis.rate_curve import NAMED, halves, rate_curve, shapes
from batchscope.analysis.surface import FALL, PARAMETERS, RISE, Posterior, Prior, Run, parameters

SIZES = (8, 32, 128, 512, 2048)
AT_RISE, AT_FALL = 3, 4  # columns of the standardised parameters


def posterior(rise: float, fall: float, knee: float, spread: float = 0.05, seed: int = 0) -> Posterior:
    """400 draws about eta(B) ~ 1 / ((K/B)^rise + (B/K)^fall), through (32, 0.1)."""
    x = spread * np.random.default_rng(seed).standard_normal((400, PARAMETERS))
    x[:, AT_RISE] += (rise - RISE[0]) / RISE[1]
    x[:, AT_FALL] += (fall - FALL[0]) / FALL[1]
    prior = Prior(32, 0.1, 11.0, (math.log(knee), 1.0))
    return Posterior(x, parameters(x, prior), tuple(Run(b, 0.1, 11.0) for b in SIZES), 0)


@pytest.mark.parametrize(
    ("rise", "fall", "knee", "shape"),
    [
        (1.0, 0.0, 1e6, "linear"),
        (0.5, 0.0, 1e6, "square root"),
        (0.0, 0.0, 100.0, "constant"),
        (1.0, 0.0, 100.0, "saturating"),
        (0.5, 0.5, 60.0, "falling"),
    ],
)
def test_each_shape_is_named(rise: float, fall: float, knee: float, shape: str) -> None:
    """Each as the literature has it: McCandlish's linear, then saturating rule, Li's surge for Adam."""
    curve = rate_curve(SIZES, posterior(rise, fall, knee), 5)
    assert curve.shape == shape
    assert sum(curve.probabilities.values()) == pytest.approx(1.0)
    assert curve.probabilities[shape] > NAMED
    assert (curve.rise.estimate, curve.fall.estimate) == pytest.approx((rise, fall), abs=0.02)


def test_the_learning_rates_are_those_of_the_formula() -> None:
    """Every draw alike: through the own point, up by (K/B)^rise + (B/K)^fall."""
    curve = rate_curve(SIZES, posterior(0.8, 0.2, 100.0, 0.0), 5)

    def shape(b: float) -> float:
        return (100.0 / b) ** 0.8 + (b / 100.0) ** 0.2

    for size, rate in zip(curve.batch_sizes, curve.learning_rates, strict=True):
        assert rate.estimate == pytest.approx(0.1 * shape(32) / shape(size))
        assert rate.low == pytest.approx(rate.high)


def test_without_agreement_no_shape_is_named() -> None:
    x = np.concatenate([posterior(1.0, 0.0, 1e6).x, posterior(0.0, 0.0, 1e6).x])
    both = Posterior(x, parameters(x, Prior(32, 0.1, 11.0, (math.log(1e6), 1.0))), (), 0)
    curve = rate_curve(SIZES, both, 0)
    assert curve.shape == "not resolved"
    assert curve.probabilities["linear"] == pytest.approx(0.5, abs=0.02)
    assert curve.probabilities["constant"] == pytest.approx(0.5, abs=0.02)


def test_every_draw_has_one_shape() -> None:
    low, high = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1.5, 41), np.linspace(-1, 1.5, 41)))
    assert np.array_equal(sum(is_it.astype(int) for is_it in shapes(low, high).values()), np.ones(41 * 41))


def test_the_halves_are_one_octave_wide_together_at_least() -> None:
    (a, b), (c, d) = halves(np.log([16.0, 64.0, 256.0]))
    assert (a, b, c, d) == pytest.approx(tuple(np.log([16.0, 64.0, 64.0, 256.0])))
    (a, b), (c, d) = halves(np.log([32.0]))
    assert d - a == pytest.approx(math.log(2.0))
    assert b == c
