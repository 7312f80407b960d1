"""Do the growth rules follow their closed forms? On numbers, and on the noisy quadratic's exact noise scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchscope.errors import UsageError
from batchscope.remedies.growing import OnPlateau, PowerOfSteps, Rule, Seen, WithNoiseScale, fitted, rate_factor
from batchscope.tasks.noisy_quadratic_truth import built_in


def sizes(rule: Rule, steps: int, first: int = 32, most: int | None = None, **heard: list[float]) -> list[int]:
    """The batch sizes of so many steps, where the rule hears these numbers after each."""
    found = [first]
    for t in range(1, steps):
        seen = Seen(t, found[-1], first, 1, **{name: values[t - 1] for name, values in heard.items()})
        wanted = rule.wanted(seen)
        size = found[-1] if wanted is None else fitted(wanted[0], unit=1, most=most)
        found.append(size if rule.may_shrink else max(size, found[-1]))
    return found


# --- on plateau ---


def test_plateau() -> None:
    losses = [1.0, 0.9, 0.9, 0.95, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7]
    assert sizes(OnPlateau(patience=2), 11, loss=losses) == [32, 32, 32, 32, 64, 64, 64, 128, 128, 256, 256]
    assert sizes(OnPlateau(patience=2), 11, most=100, loss=losses)[-3:] == [100, 100, 100]
    assert sizes(OnPlateau(patience=9), 11, loss=losses) == [32] * 11


def test_plateau_asks_for_a_gain() -> None:
    losses = [1.0, 0.99, 0.98, 0.97]
    assert sizes(OnPlateau(patience=3), 5, loss=losses)[-1] == 32
    assert sizes(OnPlateau(patience=3, least_gain=0.05), 5, loss=losses)[-1] == 64


def test_plateau_only_counts_looks() -> None:
    losses = [1.0, math.nan, math.nan, math.inf, 1.0]
    assert sizes(OnPlateau(patience=2), 6, loss=losses) == [32] * 6


def test_plateau_grows_by_a_unit_at_least() -> None:
    wanted = OnPlateau(patience=1, factor=1.1)
    wanted.wanted(Seen(1, 16, 16, 16, loss=1.0))
    assert wanted.wanted(Seen(2, 16, 16, 16, loss=1.0)) == (32, "the loss has not been below 1 for 1 look")


# --- with the noise scale ---


def descent(steps: int, learning_rate: float = 0.4) -> np.ndarray:
    """(steps,) exact B_simple along gradient descent on the noisy quadratic: tr(Sigma) / sum h^2 w0^2 (1 - lr h)^2t."""
    q = built_in()
    h, t = q.curvature, np.arange(steps)[:, None]
    return q.noise_variance.sum() / (np.square(h * q.start) * (1 - learning_rate * h) ** (2 * t)).sum(1)


def test_noise_scale_path() -> None:
    exact = descent(200)
    assert exact[0] == pytest.approx(built_in().noise_scale(built_in().start))
    path = np.maximum(32, np.floor(exact + 0.5))
    assert sizes(WithNoiseScale(smoothing=0), 201, noise_scale=list(exact))[1:] == list(path)
    assert path[-1] > 4 * path[0]
    limited = sizes(WithNoiseScale(smoothing=0, times=2.5), 201, most=1000, noise_scale=list(exact))[1:]
    assert limited == list(np.clip(np.floor(2.5 * exact + 0.5), 32, 1000))


def test_noise_scale_is_smoothed_as_a_logarithm() -> None:
    exact, s = descent(50), 0.8
    rule = WithNoiseScale(smoothing=s)
    for n in range(1, 51):
        wanted = rule.wanted(Seen(n, 1, 1, 1, noise_scale=exact[n - 1]))
        weights = s ** (n - 1 - np.arange(n))
        assert wanted is not None
        assert wanted[0] == pytest.approx(math.exp(weights @ np.log(exact[:n]) / weights.sum()))


def test_noise_scale_shrinks_only_if_asked() -> None:
    readings = [100.0, 50.0, 200.0, 40.0]
    assert sizes(WithNoiseScale(smoothing=0), 5, noise_scale=readings) == [32, 100, 100, 200, 200]
    assert sizes(WithNoiseScale(smoothing=0, may_shrink=True), 5, noise_scale=readings) == [32, 100, 50, 200, 40]


@pytest.mark.parametrize("reading", [math.nan, -3.0, 0.0, math.inf])
def test_noise_scale_that_is_no_number_is_not_heard(reading: float) -> None:
    rule = WithNoiseScale()
    assert rule.wanted(Seen(1, 32, 32, 1, noise_scale=reading)) is None
    assert rule.weight == 0


def test_a_lower_bound_only_raises() -> None:
    rule = WithNoiseScale(smoothing=0.5)
    rule.wanted(Seen(1, 32, 32, 1, noise_scale=100.0))
    assert rule.wanted(Seen(2, 32, 32, 1, noise_scale=60.0, bound=True)) is None
    raised = rule.wanted(Seen(3, 32, 32, 1, noise_scale=800.0, bound=True))
    assert raised == (pytest.approx(100 ** (1 / 3) * 800 ** (2 / 3)), "the noise scale is at least 400, smoothed")


# --- power of the steps ---


@pytest.mark.parametrize(("t0", "c"), [(50.0, 0.5), (20.0, 1.0), (100.0, 2.0)])
def test_power_path_and_its_integral(t0: float, c: float) -> None:
    steps, first = 400, 32
    path = sizes(PowerOfSteps(t0, c), steps + 1, first)
    exact = first * (1 + np.arange(steps + 1) / t0) ** c
    assert np.abs(path - exact).max() <= 0.5
    integral = first * t0 / (c + 1) * ((1 + steps / t0) ** (c + 1) - 1)
    # a left sum of a rising path: less than the integral, by at most its rise; and half an example a step by rounding
    assert integral - (exact[-1] - first) - steps / 2 <= sum(path[:-1]) <= integral + steps / 2
    assert sum(path[:-1]) == pytest.approx(integral, rel=0.02)


# --- sizes and rates ---


@pytest.mark.parametrize(
    ("wanted", "unit", "most", "size"),
    [(40, 32, None, 32), (48, 32, None, 64), (3, 32, None, 32), (1000, 32, 500, 480), (math.inf, 32, 500, 480)],
)
def test_fitted(wanted: float, unit: int, most: int | None, size: int) -> None:
    assert fitted(wanted, unit=unit, most=most) == size


def test_rates() -> None:
    assert [rate_factor(scale, 9.0) for scale in ("linear", "square root", "held")] == [9, 3, 1]


def test_rules_go_on() -> None:
    """A rule that is loaded half-way wants what one wants that never stopped."""
    losses, readings = [1.0, 1.0, 1.0, 0.5] * 5, list(np.geomspace(30, 300, 20))
    for make in (lambda: OnPlateau(patience=3), WithNoiseScale, lambda: PowerOfSteps(10)):
        whole, half = make(), make()
        for t in range(20):
            if t == 7:
                state, half = half.state_dict(), make()
                half.load_state_dict(state)
            seen = Seen(t + 1, 32, 32, 1, losses[t], readings[t])
            assert half.wanted(seen) == whole.wanted(seen)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OnPlateau(patience=0),
        lambda: OnPlateau(factor=1),
        lambda: OnPlateau(least_gain=1),
        lambda: WithNoiseScale(times=0),
        lambda: WithNoiseScale(smoothing=1),
        lambda: PowerOfSteps(0),
        lambda: PowerOfSteps(10, c=-1),
    ],
)
def test_refusals(make: type) -> None:
    with pytest.raises(UsageError, match=r"expected .*, got .*: write "):
        make()
