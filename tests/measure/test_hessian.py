"""Are eigenvalues, trace and density those of the dense Hessian?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from naive_hessian import CPU, dense, full_loss, mean_and_error, naive
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import Tridiagonal, density, eigenvalues, extremes, hutch_plus_plus, trace
from batchscope.tasks import noisy_quadratic
from toys import toy

SEEDS = 60
H = noisy_quadratic.curvature()


@pytest.fixture(scope="module")
def quadratic() -> FullLoss:
    """On some of its rows: every one has the same Hessian."""
    task = noisy_quadratic.task()
    torch.manual_seed(0)
    return FullLoss(task, task.model(), task.train, CPU, examples=40, chunk=16, double=True)


@pytest.fixture(scope="module")
def network() -> tuple[FullLoss, torch.Tensor]:
    """(f, its dense Hessian): indefinite, with large entries beside the diagonal."""
    loss = full_loss(toy())
    return loss, dense(naive(toy()), loss.point())


# --- eigenvalues ---


def test_eigenvalues_of_the_quadratic(quadratic: FullLoss) -> None:
    largest, _ = eigenvalues(quadratic, quadratic.point())
    assert largest.estimate == pytest.approx(float(H.max()), rel=1e-4)
    _, smallest = eigenvalues(quadratic, quadratic.point(), most=120, tolerance=1e-6)
    assert smallest.estimate == pytest.approx(float(H.min()), abs=1e-4 * float(H.max()))


def test_eigenvalues_of_a_network(network: tuple[FullLoss, torch.Tensor]) -> None:
    loss, hessian = network
    values = torch.linalg.eigvalsh(hessian)
    for found, exact in zip(eigenvalues(loss, loss.point()), (values[-1], values[0]), strict=True):
        assert found.estimate == pytest.approx(float(exact), rel=1e-4)
        assert found.low <= float(exact) <= found.high
    loss.move(loss.point())
    operator = LinearOperator((loss.size,) * 2, matvec=lambda v: loss.products(torch.from_numpy(v).view(1, -1))[0])
    oracle = eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0]
    assert oracle == pytest.approx(float(values[-1]), rel=1e-8)


def test_eigenvalues_do_not_depend_on_the_chunks() -> None:
    found = []
    for chunk in (5, 16, 46):
        loss = full_loss(toy(), chunk=chunk)
        found.append([v.estimate for v in eigenvalues(loss, loss.point(), tolerance=1e-8, most=75)])
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-8)


def test_the_largest_is_algebraic_and_residuals_are_true() -> None:
    spectrum = torch.cat([torch.tensor([-50.0]), torch.linspace(0, 3, 60)]).double()
    start = torch.ones(61, dtype=torch.float64)
    found = extremes(lambda v: spectrum * v, start, most=12)
    (largest, _), (smallest, _) = found.end(-1), found.end(0)
    assert (largest, smallest) == (pytest.approx(3, rel=1e-2), pytest.approx(-50, rel=1e-9))
    for which in (-1, 0):
        value, residual = found.end(which)
        y = found.vector(which)
        assert float(torch.linalg.vector_norm(spectrum * y - value * y)) == pytest.approx(residual, rel=1e-6, abs=1e-12)


def test_an_exhausted_space_ends_the_search() -> None:
    lanczos = Tridiagonal(torch.arange(1.0, 6).double())
    spectrum = torch.tensor([2.0, 2.0, 2.0, 7.0, 7.0]).double()
    while lanczos.extend(lambda v: spectrum * v):
        pass
    assert lanczos.ritz()[0] == pytest.approx([2, 7])
    assert lanczos.end(-1)[1] == 0
    nothing = Tridiagonal(torch.ones(3).double())
    assert not nothing.extend(torch.zeros_like)
    assert nothing.end(0) == (0, 0)


def test_products_that_are_not_finite_are_refused() -> None:
    loss = full_loss(toy(loss=lambda output, target: (output.exp() * math.inf).mean()))
    for measure in (eigenvalues, trace, hutch_plus_plus, density):
        with pytest.raises(CannotAnswer, match="finite products with the Hessian"):
            measure(loss, loss.point())


class Detached(torch.autograd.Function):
    """tanh, with a backward pass that torch does not look into."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.slope = 1 - x.tanh().square()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> torch.Tensor:
        return (d * ctx.slope).detach()


def test_a_hessian_of_which_a_part_is_missing_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(Detached.apply(self.first(x)))

    loss = full_loss(toy(model=Model))
    with pytest.raises(CannotAnswer, match="symmetric"):
        eigenvalues(loss, loss.point())


# --- trace ---


def test_the_trace_of_a_diagonal_hessian_is_exact(quadratic: FullLoss) -> None:
    found = trace(quadratic, quadratic.point())
    assert found.estimate == pytest.approx(float(H.sum()), rel=1e-7)
    assert found.high - found.low <= 1e-6 * float(H.sum())


@pytest.mark.parametrize("measure", [trace, hutch_plus_plus])
def test_the_trace_of_a_network_within_its_standard_errors(
    measure: object, network: tuple[FullLoss, torch.Tensor]
) -> None:
    loss, hessian = network
    exact, x = float(hessian.trace()), loss.point()
    found = [measure(loss, x, seed=2 * seed) for seed in range(SEEDS)]
    mean, error = mean_and_error([m.estimate for m in found])
    assert abs(mean - exact) < 3 * error
    covered = sum(m.low <= exact <= m.high for m in found) / SEEDS
    assert abs(covered - 0.95) < 3 * 0.028  # binomial, SEEDS trials


def test_the_trace_goes_on_until_its_error_is_small(network: tuple[FullLoss, torch.Tensor]) -> None:
    loss, hessian = network
    rough, fine = (trace(loss, loss.point(), relative_error=e, most=200) for e in (1.0, 0.03))
    assert fine.n > 2 * rough.n
    assert fine.low <= float(hessian.trace()) <= fine.high
    assert trace(loss, loss.point(), relative_error=1e-9, most=30).n <= 30 * 3
    with pytest.raises(ValueError, match="at least 2 vectors"):
        trace(loss, loss.point(), probes=1)


def test_hutch_plus_plus_is_exact_on_a_whole_range() -> None:
    """A model of 6 parameters, and as many directions."""
    task = toy(model=lambda: torch.nn.Linear(5, 1), loss=lambda output, target: output.exp().mean())
    loss = full_loss(task)
    found = hutch_plus_plus(loss, loss.point(), products=12)
    assert found.estimate == pytest.approx(float(dense(naive(task), loss.point()).trace()), rel=1e-9)


# --- density ---


def test_density_has_the_moments_and_the_shares_of_the_spectrum() -> None:
    task = toy(model=lambda: nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 3)))
    loss = full_loss(task, chunk=46)
    values = torch.linalg.eigvalsh(dense(naive(task), loss.point())).numpy()
    starts = density(loss, loss.point(), steps=12, starts=30)
    assert all(sum(weights) == pytest.approx(1, rel=1e-12) for _, weights in starts)
    for power in (1, 2, 3, 4):
        moments = [float(np.dot(weights, np.power(nodes, power))) for nodes, weights in starts]
        mean, error = mean_and_error(moments)
        assert abs(mean - float((values**power).mean())) < 3 * error
    whole = density(loss, loss.point(), steps=loss.size, starts=30)  # every eigenvalue is found
    for edge in (values[4:6].mean(), values[11:13].mean(), values[18:20].mean()):
        below = [float(sum(w for node, w in zip(*start, strict=True) if node < edge)) for start in whole]
        mean, error = mean_and_error(below)
        assert abs(mean - float((values < edge).mean())) < 3 * error
