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
from collections.abc import Iterator

import numpy as np
import torch
from scipy import optimize, stats

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import LEVEL, eigenvalue, extremes, product_of, random_start
from batchscope.records import BoxSharpness, Measured
from batchscope.task import Batch
from batchscope.training.batches import make_source

EPSILONS = (1e-3, 5e-4)  # half-widths of the box in Keskar et al. 2016, Table 3
ITERATIONS = 10  # Keskar et al. 2016, section 2.2.2
SUBSPACE = 100  # columns of A, the same
MOST_EVALUATIONS = 15_000  # scipy's own limit; iterations end the search first
CONVERGED = 1e-9  # of the rise so far: where iterations do not count, a step that adds less ends the search (a guess)
ACROSS = 1e3  # widths of the box that a gradient of the usual size is then scaled to (a guess)
ROWS = 1 << 16  # of A that are in double precision at once
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
    """Keskar's metric, as a percentage, of the largest f that the search came by.

    scipy's test of the gradient's size is off: at weights that were trained well, every entry is below its 1e-5, and
    the search would end where it began. Values that are not finite are stepped back from: the search has not converged
    then. Where the gradient is exactly 0 the search cannot begin, and finds 0.

    Args:
        x: (n,) float64.
        columns: (p, n), A transposed: see `random_columns`; None: the full space.
        iterations: of L-BFGS-B; None: until it has converged, with f scaled so that it gets there. (Its first step is
            as long as the gradient, and one after that ends where the first coordinate meets the box.)

    Raises CannotAnswer where f(x) is not a number above -1, as the metric needs it to be.
    """
    start = loss.value(x)
    if not (math.isfinite(start) and start > -1):
        raise CannotAnswer(
            f"task {loss.task.name!r}: expected a finite loss above -1, as Keskar's metric divides by 1 + f, got "
            f"{start:.4g}: use the eigenvalues"
        )
    of_x = x if columns is None else _coordinates(columns, x)
    width = (epsilon * (of_x.abs() + 1)).cpu().numpy()
    search = _Search(loss, x, columns, start)
    limits = {"maxiter": iterations, "maxfun": MOST_EVALUATIONS, "gtol": 0.0, "ftol": 0.0}
    if iterations is None:
        limits |= {"maxiter": ITERATIONS * 100, "ftol": CONVERGED}
        search.scale_to(width)
    found = optimize.minimize(
        search,
        np.zeros(len(width)),
        jac=True,
        method="L-BFGS-B",
        bounds=optimize.Bounds(-width, width),
        options=limits,
    )
    return BoxSharpness(
        space="full" if columns is None else "subspace",
        epsilon=epsilon,
        percent=100 * (search.largest - start) / (1 + start),
        iterations=int(found.nit),
        evaluations=int(found.nfev),
        converged=bool(found.success) and not search.broken,
        examples=loss.examples,
    )


class _Search:
    """scale (f(x) - f(x + A y)) and its gradient in y, for a minimiser; remembers the largest f."""

    def __init__(self, loss: FullLoss, x: torch.Tensor, columns: torch.Tensor | None, start: float) -> None:
        self.loss, self.x, self.columns = loss, x, columns
        self.start = self.largest = start
        self.scale = 1.0
        self.broken = False  # a value or a gradient was not finite

    def __call__(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        step = torch.from_numpy(y).to(self.x)
        value, gradient = self.loss.gradient(self.x + (step if self.columns is None else _combined(self.columns, step)))
        if not (math.isfinite(value) and bool(gradient.isfinite().all())):
            self.broken = True
            return self.scale, np.zeros_like(y)  # worse than where a line search begins: it steps back
        self.largest = max(self.largest, value)
        if self.columns is not None:
            gradient = torch.stack([column.to(gradient) @ gradient for column in self.columns])
        return self.scale * (self.start - value), -self.scale * gradient.cpu().numpy()

    def scale_to(self, width: np.ndarray) -> None:
        """So that the first step, of the gradient's size, crosses the box in all but the flattest directions."""
        _, slope = self(np.zeros_like(width))
        size = float(np.sqrt(np.mean(np.square(slope))))
        self.scale = ACROSS * float(width.max()) / size if size > 0 else 1.0


def _combined(columns: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(n,) float64: A y, without a copy of A in double precision."""
    total = torch.zeros(columns.shape[1], dtype=y.dtype, device=y.device)
    for column, share in zip(columns, y.tolist(), strict=True):
        total.add_(column, alpha=share)
    return total


def _coordinates(columns: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(p,) float64: A+ x = (A'A)+ A'x, a block of rows at a time."""
    squared = torch.zeros(len(columns), len(columns), dtype=x.dtype, device=x.device)
    onto = torch.zeros(len(columns), dtype=x.dtype, device=x.device)
    for block, part in zip(columns.split(ROWS, dim=1), x.split(ROWS), strict=True):
        wide = block.to(x)
        squared += wide @ wide.T
        onto += wide @ part
    return torch.linalg.pinv(squared, hermitian=True) @ onto


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


def adaptive_eigenvalue(loss: FullLoss, x: torch.Tensor, *, eta: float = 0.0, seed: int = 0) -> Measured:
    """The largest eigenvalue of T H T, T = diag(|x| + eta): the curvature of f in u, untouched by rescaling."""
    loss.move(x)
    scale, product = x.abs() + eta, product_of(loss)
    found = extremes(lambda u: scale * product(scale * u), random_start(loss, seed), both=False)
    return eigenvalue(found, -1)


# --- batches ---


def batch_sharpness(loss: FullLoss, x: torch.Tensor, batch_size: int, *, draws: int = 64, seed: int = 0) -> Measured:
    """E[ g'H g / |g|^2 ] over random batches of that size, with a 95 % t interval over the draws.

    Batches are cut from permutations of the task's training data, as in training; each is a draw, without replacement.
    All batches of tensors' full size are the same, and one is drawn.
    """
    loss.move(x)
    task, ratios = loss.task, []
    whole = batch_size >= task.train_size and isinstance(task.train, (tuple, list))
    draws = 1 if whole else draws
    for batch in itertools.islice(_full_batches(loss, batch_size, seed), draws):
        gradient, product = loss.along_gradient(batch)
        squared = float(gradient @ gradient)
        if squared > 0:
            ratios.append(float(gradient @ product) / squared)
        elif math.isnan(squared):
            ratios.append(math.nan)
    if not ratios:
        return Measured(None, None, None, 0, 0, "none: no batch had a gradient")
    n, mean = len(ratios), float(np.mean(ratios))
    if not math.isfinite(mean):
        return Measured(None, None, None, n, 0, "none: a batch's gradient is not finite")
    if n < 2:
        why = "the batch is all of the training data" if whole else "one batch has no spread"
        return Measured(mean, None, None, n, 0, f"none: {why}")
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(ratios, ddof=1)) / math.sqrt(n)
    return Measured(mean, mean - half, mean + half, n, 0, f"t on {n} batches of {batch_size}")


def _full_batches(loss: FullLoss, batch_size: int, seed: int) -> Iterator[Batch]:
    """Training batches without end, the last short one of an epoch left out."""
    source, size = make_source(loss.task, seed, loss.device), min(batch_size, loss.task.train_size)
    for k in itertools.count():
        yield from itertools.islice(source.epoch(EPOCH + k, size), source.size // size)
