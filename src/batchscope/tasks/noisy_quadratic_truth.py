"""How many steps does SGD need on the noisy quadratic, in expectation? An exact recursion of moments, no sampling.

One step with the batch's mean row xb_t is, for every coordinate by itself (H is diagonal),

    w_(t+1) = a w_t - eta xb_t,      a = 1 - eta h.

Batches are cut from one fresh random permutation of the N rows per epoch. With s2 the variance of a column (mean 0,
divisor N), sampling without replacement gives within an epoch (W. G. Cochran, Sampling Techniques, 3rd ed., 2.5-2.7)

    Var(xb_t) = s2 (1/B_t - 1/N) N/(N-1),      Cov(xb_s, xb_t) = -s2/(N-1)  for s != t,

whatever the batch sizes B_t, the last short one included; epochs are independent. Hence with m = E w and v = Var w

    m_(t+1) = a m_t
    v_(t+1) = a^2 v_t + eta^2 Var(xb_t) - 2 a eta Cov(w_t, xb_t),   Cov(w_t, xb_t) = eta s2/(N-1) g_t,

where g_t = sum_(j < k) a^j, k batches into the epoch: each earlier batch s left -eta a^(t-1-s) xb_s in w_t. Then
E f(w_t) = 1/2 sum h (m_t^2 + v_t), exactly. Only the first two moments of the rows enter, and w0 only by its square.

*Expected steps* here are the steps at which the expected loss crosses the goal, by the same rule as a trial's own loss
(`analysis.target.crossing`). The mean crossing of many trials differs from it by what the crossing's curvature makes of
the trials' spread; `simulate` measures that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from batchscope.analysis.target import Crossing, crossing, effective_batch_size
from batchscope.records import Evaluation, Goal

DIVERGED = 1e3  # times the first loss: beyond it a run is given up (a = |1 - eta h| > 1 never comes back)


@dataclass(frozen=True)
class Instance:
    """A noisy quadratic: arrays (d,) float64 of H's eigenvalues, w0's absolute values and Sigma's diagonal; N."""

    curvature: np.ndarray
    start: np.ndarray
    noise_variance: np.ndarray
    train_size: int

    def loss(self, w: np.ndarray) -> np.ndarray:
        """f(w) = 1/2 w' H w over the last axis."""
        return 0.5 * np.square(w) @ self.curvature

    def noise_scale(self, w: np.ndarray) -> float:
        """tr(Sigma) / |G|^2 at w, with G = H w: the simple noise scale, in examples (McCandlish 2018, eq. 2.9)."""
        return float(self.noise_variance.sum() / np.square(self.curvature * w).sum())


@dataclass(frozen=True)
class Law:
    """S(B) = s_min (1 + critical_batch_size / B), fitted to log steps; `residuals` are log steps minus the fit."""

    s_min: float
    critical_batch_size: float
    residuals: np.ndarray


def built_in() -> Instance:
    """The instance that the task `noisy-quadratic` trains on."""
    from batchscope.tasks import noisy_quadratic as q

    return Instance(q.curvature().numpy(), q.start().numpy(), q.noise_variance().numpy(), q.TRAIN)


def batch_lengths(train_size: int, batch_size: int) -> list[int]:
    """The lengths of an epoch's batches, the last short one kept."""
    whole, rest = divmod(train_size, batch_size)
    return [batch_size] * whole + [rest] * (rest > 0)


def expected_losses(instance: Instance, batch_size: int, learning_rate: float) -> Iterator[float]:
    """E f(w_t) for t = 0, 1, 2, ... without end."""
    h, s2, n = instance.curvature, instance.noise_variance, instance.train_size
    a = 1 - learning_rate * h
    noise = learning_rate**2 * s2 / (n - 1) if n > 1 else np.zeros_like(s2)
    m2, v = np.square(instance.start), np.zeros_like(h)
    yield float(0.5 * h @ m2)
    while True:
        g = np.zeros_like(h)
        for length in batch_lengths(n, batch_size):
            v = a * a * v + noise * (n / length - 1) - 2 * a * noise * g
            m2 = a * a * m2
            g = 1 + a * g
            yield float(0.5 * h @ (m2 + v))


def expected_loss(instance: Instance, batch_size: int, learning_rate: float, steps: int) -> np.ndarray:
    """(steps + 1,) array of E f(w_t), t = 0 .. steps."""
    losses = expected_losses(instance, batch_size, learning_rate)
    return np.array([next(losses) for _ in range(steps + 1)])


def expected_crossing(
    instance: Instance, batch_size: int, learning_rate: float, goal: float, cadence_examples: int, budget_examples: int
) -> Crossing | None:
    """Where the expected loss crosses the goal, by the trials' own rule; None if not within the budget."""
    losses = expected_losses(instance, batch_size, learning_rate)
    return _crossing(losses, instance.train_size, batch_size, goal, cadence_examples, budget_examples)


def expected_steps(
    instance: Instance, batch_size: int, learning_rate: float, goal: float, cadence_examples: int, budget_examples: int
) -> float | None:
    """The steps of `expected_crossing`; None if the budget does not suffice."""
    found = expected_crossing(instance, batch_size, learning_rate, goal, cadence_examples, budget_examples)
    return None if found is None else found.steps


def expected_steps_table(
    instance: Instance,
    batch_sizes: Sequence[int],
    learning_rates: Sequence[float],
    goal: float,
    cadence_examples: int,
    budget_examples: int,
) -> np.ndarray:
    """(batch sizes, learning rates) expected steps; nan where the goal is not crossed within the budget."""
    rows = [
        [expected_steps(instance, b, lr, goal, cadence_examples, budget_examples) for lr in learning_rates]
        for b in batch_sizes
    ]
    return np.array(rows, dtype=float)


def true_law(
    batch_sizes: Sequence[int], table: np.ndarray, train_size: int, indices: Sequence[int] | None = None
) -> Law:
    """The law that tuned runs follow: least expected steps over the learning rates, fitted in log steps.

    `table` is what `expected_steps_table` gives. Batch sizes count as examples per step averaged over an epoch,
    N / ceil(N/B). `indices` picks one learning rate per batch size instead of the least. ValueError with fewer than
    three batch sizes that reach the goal: two would fit any two parameters.
    """
    chosen = _least(table) if indices is None else table[np.arange(len(table)), list(indices)]
    reached = np.isfinite(chosen)
    if reached.sum() < 3:
        raise ValueError(
            f"expected at least three batch sizes that reach the goal, got {reached.sum()}: raise the budget"
        )
    sizes = np.array([effective_batch_size(train_size, b) for b in batch_sizes])[reached]
    logs = np.log(chosen[reached])

    def residuals(p: np.ndarray) -> np.ndarray:
        return logs - p[0] - np.log1p(np.exp(p[1]) / sizes)

    fit = least_squares(residuals, [logs.min(), math.log(np.median(sizes))], xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return Law(float(np.exp(fit.x[0])), float(np.exp(fit.x[1])), residuals(fit.x))


def simulate(
    instance: Instance,
    batch_size: int,
    learning_rate: float,
    seed: int,
    goal: float,
    cadence_examples: int,
    budget_examples: int,
) -> Crossing | None:
    """One random trial of the same process, in numpy: normal rows of the instance's exact moments, never stored.

    The sum of a batch given those before it in its epoch is drawn directly: the rows not yet used are, for normal
    rows conditioned on their exact mean 0, exchangeable with the moments at the top of this file, so a bridge gives
    the batch sums of one permutation: with r rows left whose sum is R, a batch of b has mean b R / r and variance
    s2 N/(N-1) b (1 - b/r). Equal to training in its first two moments, in every coordinate; the sample correlations
    between the training rows' columns, of order 1/sqrt(N), are left out.
    """
    trace = simulated_trace(instance, batch_size, learning_rate, seed, goal, cadence_examples, budget_examples)
    return crossing(trace, Goal("loss", at_most=goal))


def simulated_trace(
    instance: Instance,
    batch_size: int,
    learning_rate: float,
    seed: int,
    goal: float,
    cadence_examples: int,
    budget_examples: int,
) -> tuple[Evaluation, ...]:
    """The evaluations of one `simulate`d trial, up to its crossing, its divergence or its budget; losses alone."""
    losses = _simulated_losses(instance, batch_size, learning_rate, np.random.default_rng(seed))
    return _trace(losses, instance.train_size, batch_size, goal, cadence_examples, budget_examples)


def _simulated_losses(
    instance: Instance, batch_size: int, learning_rate: float, rng: np.random.Generator
) -> Iterator[float]:
    """f(w_t) of one random run, t = 0, 1, 2, ... without end."""
    h, n = instance.curvature, instance.train_size
    scale = np.sqrt(instance.noise_variance * n / max(n - 1, 1))
    a, w = 1 - learning_rate * h, instance.start.copy()
    yield float(instance.loss(w))
    while True:
        left, rest = n, np.zeros_like(h)  # rows not yet used in this epoch, and their sum
        for length in batch_lengths(n, batch_size):
            spread = math.sqrt(length * (1 - length / left))
            total = rest * (length / left) + spread * scale * rng.standard_normal(len(h))
            left, rest = left - length, rest - total
            w = a * w - learning_rate * total / length
            yield float(instance.loss(w))


def _crossing(
    losses: Iterator[float], train_size: int, batch_size: int, goal: float, cadence_examples: int, budget_examples: int
) -> Crossing | None:
    """The crossing of a run's losses within its budget."""
    trace = _trace(losses, train_size, batch_size, goal, cadence_examples, budget_examples)
    return crossing(trace, Goal("loss", at_most=goal))


def _trace(
    losses: Iterator[float], train_size: int, batch_size: int, goal: float, cadence_examples: int, budget_examples: int
) -> tuple[Evaluation, ...]:
    """A run's losses, read at the first step at or past each multiple of the cadence, up to its crossing or its end."""
    wanted = Goal("loss", at_most=goal)
    lengths = batch_lengths(train_size, batch_size)
    first = next(losses)
    trace, examples, step, next_look = [_evaluation(0, 0, first)], 0, 0, cadence_examples
    while examples < budget_examples:
        loss = next(losses)
        examples, step = examples + lengths[step % len(lengths)], step + 1
        if not loss < DIVERGED * first:
            break
        if examples >= next_look or examples >= budget_examples:
            next_look = (examples // cadence_examples + 1) * cadence_examples
            trace.append(_evaluation(step, examples, loss))
            if crossing(trace, wanted) is not None:
                break
    return tuple(trace)


def _evaluation(step: int, examples: int, loss: float) -> Evaluation:
    """A trace line that holds the loss alone."""
    return Evaluation(step, examples, {"loss": loss}, {"loss": loss}, math.nan, math.nan)


def _least(table: np.ndarray) -> np.ndarray:
    """The least of each row; nan where the row has none."""
    least = np.where(np.isfinite(table), table, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, np.nan)
