"""What does batch size do where the answer is known? A quadratic loss in 2,048 dimensions with a known gradient noise.

    loss of example n at w:   l_n(w) = 1/2 w' H w + x_n . w,      H = diag((1 + i/96)^-2),  i = 0 .. d - 1

The rows x_n have column means exactly 0, so the training loss is f(w) = 1/2 w' H w, its gradient G = H w and its
Hessian H; the gradient of one example is H w + x_n, so the gradient noise has covariance Sigma = Cov(x), whose
diagonal is set exactly: proportional to H, as near a minimum of a likelihood. The validation rows are zero: the
validation loss is f(w) itself. `noisy_quadratic_truth` gives the expected loss at every step, and the expected steps.

The model: G. Zhang et al., Which Algorithmic Choices Matter at Which Batch Sizes? Insights From a Noisy Quadratic
Model, arXiv 1907.04164. The spectrum, the noise's scale and the goal are ours, chosen so that tuned runs take 100 to
1,000 steps, that B_crit lies well between the batch sizes 8 and 1,024, that tuned steps follow the law within a tenth,
and that the noise is shared by so many directions ((sum h)^2 / sum h^2 = 262) that one trial is close to the mean.
"""

import torch
from torch import nn

from batchscope.task import Goal, Task

DIMENSIONS = 2048
BEND = 96  # of the spectrum: about so many directions are steep, the others fall off as 1/i^2
TRAIN = 4096
VALID = 512  # rows of zeros: one would do, but the training loss is measured on as many rows as there are here
START_LOSS = 1.0  # f(w0), whatever the seed
NOISE_TRACE = 5.0  # tr(Sigma)
GOAL = 0.1
DATA_SEED = 0


def curvature() -> torch.Tensor:
    """(d,) float64: the eigenvalues of H, from 1 down to 1/498."""
    return (1 + torch.arange(DIMENSIONS, dtype=torch.float64) / BEND) ** -2


def start() -> torch.Tensor:
    """(d,) float64: the absolute values of w0, such that every direction holds an equal share of f(w0)."""
    return (2 * START_LOSS / (DIMENSIONS * curvature())).sqrt()


def noise_variance() -> torch.Tensor:
    """(d,) float64: the diagonal of Sigma, the variance of each column of x over the N training rows (divisor N)."""
    h = curvature()
    return NOISE_TRACE * h / h.sum()


class Quadratic(nn.Module):
    """w, and the loss of each example at it."""

    curvature: torch.Tensor

    def __init__(self) -> None:
        """w0: the signs are drawn from torch's generator, the absolute values are known."""
        super().__init__()
        self.register_buffer("curvature", curvature().float())
        signs = torch.randint(0, 2, (DIMENSIONS,)) * 2 - 1
        self.w = nn.Parameter(signs * start().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d) rows -> (B,) losses 1/2 w' H w + x . w."""
        return 0.5 * (self.curvature * self.w) @ self.w + x @ self.w


def noise_rows() -> torch.Tensor:
    """(N, d) float32 rows x_n: normal numbers, centred and rescaled in float64 to the exact mean 0 and variance."""
    x = torch.randn(TRAIN, DIMENSIONS, generator=torch.Generator().manual_seed(DATA_SEED), dtype=torch.float64)
    x -= x.mean(0)
    x *= (noise_variance() / x.square().mean(0)).sqrt()
    return x.float()


def task() -> Task:
    """The task. Its targets are the examples' losses at w = 0, all 0, so that the loss is a function of both.

    Its own point needs 20,700 examples (5 epochs, 0.4 s on one core). Over the batch sizes 8 to 1,024 and learning
    rates of 1/2 to 4 times its own, the least expected steps have S_min = 135 and B_crit = 48 (exact, see the truth).
    The budget is 8 reference runs, so that the largest of these batch sizes reaches the goal too.
    """
    valid = torch.zeros(VALID, DIMENSIONS)
    return Task(
        name="noisy-quadratic",
        model=Quadratic,
        loss=lambda losses, at_minimum: (losses - at_minimum).mean(),
        train=(noise_rows(), torch.zeros(TRAIN)),
        valid=(valid, torch.zeros(len(valid))),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.4,
        batch_size=32,
        goal=Goal("loss", at_most=GOAL),
        budget=40 * TRAIN,
    )
