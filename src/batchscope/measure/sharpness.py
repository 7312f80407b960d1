"""How much does the loss rise near a point? Keskar's box, ASAM's scaled ball, and what a batch's own gradient sees.

    box        phi = 100 (max_{y in C} f(x + A y) - f(x)) / (1 + f(x)),  C = { |y_i| <= eps (|(A+ x)_i| + 1) }
               (Keskar et al. 2016, metric 2.1; A the identity, or n x p with a random subspace's columns). The
               maximum is what L-BFGS-B reaches in so many iterations: a lower bound.
    adaptive   max_{|T^-1 d|_2 <= rho} f(x + d) - f(x),  T = diag(|x| + eta)  (Kwon et al. 2021, ASAM). In u =
               T^-1 d a maximum over a ball, and f of u does not change where a network is rescaled and eta = 0.
    batch      E[ g'H g / |g|^2 ], g and H of a random batch's own loss (Andreyev & Beneventano 2024): at the edge of
               stochastic stability it is 2 / learning rate.

The box is not invariant to rescaling, and grows with the number of parameters: compare it within one model.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy import optimize, stats

from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import LEVEL, eigenvalue, extremes, product_of, random_start
from batchscope.records import BoxSharpness, Measured
from batchscope.training.batches import examples_in, make_source

ITERATIONS = 10  # Keskar et al. 2016, section 2.2.2
SUBSPACE = 100  # columns of A, the same
MOST_EVALUATIONS = 15_000  # scipy's own limit; iterations end the search first
CONVERGED = 1e-9  # scipy's ftol, where iterations do not count
RADIUS = 0.5  # rho of ASAM's experiments on CIFAR-10 (Kwon et al. 2021, section 5), where the perturbation is a share
ASCENT = 20  # steps of the ascent (a guess: it has flattened by then)
EPOCH = 2_000_000  # the first epoch number of the orders drawn here: training does not get there
SUBSPACE_BYTES = 1 << 31  # of A in float32; a larger model gets no subspace


def box_sharpness(
    loss: FullLoss,
    x: torch.Tensor,
    epsilon: float,
    *,
    columns: torch.Tensor | None = None,
    iterations: int | None = ITERATIONS,
) -> BoxSharpness:
    """Keskar's metric, as a percentage.

    Args:
        x: (n,) float64.
        columns: (p, n), A transposed: see `random_columns`; None: the full space.
        iterations: of L-BFGS-B; None: until it has converged.
    """
    start = loss.value(x)
    if columns is None:
        of_x, dimension = x, loss.size
    else:
        of_x, dimension = torch.linalg.lstsq(columns.T.double(), x[:, None]).solution[:, 0], len(columns)
    width = (epsilon * (of_x.abs() + 1)).cpu().numpy()

    def falling(y: np.ndarray) -> tuple[float, np.ndarray]:
        step = torch.from_numpy(y).to(x)
        value, gradient = loss.gradient(x + (step if columns is None else columns.T.double() @ step))
        if columns is not None:
            gradient = columns.double() @ gradient
        return -value, -gradient.cpu().numpy()

    limits = {"maxiter": ITERATIONS * 100, "ftol": CONVERGED, "maxfun": MOST_EVALUATIONS}
    if iterations is not None:
        limits = {"maxiter": iterations, "maxfun": MOST_EVALUATIONS}
    bounds = optimize.Bounds(-width, width)
    found = optimize.minimize(falling, np.zeros(dimension), jac=True, method="L-BFGS-B", bounds=bounds, options=limits)
    risen = max(0.0, -float(found.fun) - start)
    return BoxSharpness(
        space="full" if columns is None else "subspace",
        epsilon=epsilon,
        percent=100 * risen / (1 + start),
        iterations=int(found.nit),
        evaluations=int(found.nfev),
        converged=bool(found.success),
        examples=loss.examples,
    )


def random_columns(loss: FullLoss, seed: int, count: int = SUBSPACE) -> torch.Tensor | None:
    """(p, n) float32: A transposed, with independent standard normal entries; None where it would be too large.

    The paper does not say how A is drawn. With entries of size 1 the values are of the size of its Table 4; columns of
    length 1 would move x by a thousandth of that.
    """
    if count > loss.size or 4 * count * loss.size > SUBSPACE_BYTES:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, loss.size, generator=generator).to(loss.device)


# --- adaptive ---


def adaptive_sharpness(
    loss: FullLoss, x: torch.Tensor, *, radius: float = RADIUS, eta: float = 0.0, steps: int = ASCENT
) -> float:
    """The largest f(x + T u) - f(x) found with |u|_2 <= radius, by conditional gradients from ASAM's own step.

    Each step goes to the end of the ball where the linearised loss is largest, u = radius g_u / |g_u|, g_u = T g. The
    largest value on the way counts: a lower bound of the maximum, as the search is local. nan where f is.
    """
    scale = x.abs() + eta
    start, gradient = loss.gradient(x)
    best = 0.0
    for _ in range(steps):
        scaled = scale * gradient
        length = float(torch.linalg.vector_norm(scaled))
        if length == 0:
            break
        value, gradient = loss.gradient(x + scale * scaled * (radius / length))
        if not math.isfinite(value):
            return math.nan
        if value - start <= best * (1 + 1e-6):
            best = max(best, value - start)
            break
        best = value - start
    return best


def adaptive_eigenvalue(
    loss: FullLoss, x: torch.Tensor, *, eta: float = 0.0, seed: int = 0, most: int = 60, tolerance: float = 1e-3
) -> Measured:
    """The largest eigenvalue of T H T, T = diag(|x| + eta): the curvature of f in u, untouched by rescaling."""
    loss.move(x)
    scale, product = x.abs() + eta, product_of(loss)
    found = extremes(
        lambda u: scale * product(scale * u), random_start(loss, seed), most=most, tolerance=tolerance, both=False
    )
    return eigenvalue(found, -1)


# --- batches ---


def batch_sharpness(loss: FullLoss, x: torch.Tensor, batch_size: int, *, draws: int = 64, seed: int = 0) -> Measured:
    """E[ g'H g / |g|^2 ] over random batches of that size, with a 95 % t interval over the draws.

    Batches are cut from permutations of the task's training data, as in training; each is a draw, without replacement.
    """
    loss.move(x)
    source, size = make_source(loss.task, seed, loss.device), min(batch_size, loss.task.train_size)
    batches = (b for k in itertools.count() for b in source.epoch(EPOCH + k, size) if examples_in(b) == size)
    ratios = []
    for batch in itertools.islice(batches, draws):
        gradient, product = loss.along_gradient(batch)
        squared = float(gradient @ gradient)
        if squared > 0:
            ratios.append(float(gradient @ product) / squared)
    if not ratios:
        return Measured(None, None, None, 0, 0, "none: no batch had a gradient")
    n, mean = len(ratios), float(np.mean(ratios))
    if n < 2:
        return Measured(mean, None, None, n, 0, "none: one batch has no spread")
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(ratios, ddof=1)) / math.sqrt(n)
    return Measured(mean, mean - half, mean + half, n, 0, f"t on {n} batches of {batch_size}")
