"""Box, ball and batches: against closed forms, corners, a rescaled network and all batches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_hessian import CPU, dense, full_loss, gradient, naive
from torch import nn
from torch.utils.data import Dataset

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues
from batchscope.measure.sharpness import (
    adaptive_eigenvalue,
    adaptive_sharpness,
    batch_sharpness,
    box_sharpness,
    random_columns,
)
from batchscope.task import Task
from batchscope.tasks import noisy_quadratic
from toys import examples, mlp_with_state, toy

EPSILON = 1e-3


def quadratic() -> FullLoss:
    task = noisy_quadratic.task()
    torch.manual_seed(0)
    return FullLoss(task, task.model(), task.train, CPU, examples=64, chunk=64, double=True)


def linear() -> Task:
    """Convex, with 6 parameters."""
    x, y = examples(20)
    return toy(model=lambda: nn.Linear(2, 2), train=(x[:, :2], y % 2))


# --- box ---


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_the_box_of_a_quadratic(scale: float) -> None:
    """Coordinate by coordinate, f is convex: its maximum is at an end. At small weights all gradients are tiny."""
    loss = quadratic()
    loss.model.curvature.copy_(noisy_quadratic.curvature())
    x = scale * loss.point()
    h, mean = loss.model.curvature, torch.cat([b[0] for _, b in loss.chunks()]).mean(0)
    if scale < 1:
        loss.task.train[0].zero_()  # the gradient is then H x
        mean = torch.zeros_like(mean)
    width = EPSILON * (x.abs() + 1)
    ends = torch.stack([h / 2 * (x + s * width) ** 2 + mean * (x + s * width) for s in (1, -1)])
    start = float((h / 2 * x**2 + mean * x).sum())
    exact = 100 * (float(ends.max(0).values.sum()) - start) / (1 + start)
    found = box_sharpness(loss, x, EPSILON, iterations=None)
    assert found.percent == pytest.approx(exact, rel=1e-5)
    assert found.converged
    few = box_sharpness(loss, x, EPSILON)
    assert 0 < few.percent <= exact * (1 + 1e-9)
    assert few.iterations <= 10


@pytest.mark.parametrize("count", [None, 4])
def test_the_box_of_a_convex_loss_is_a_corner(count: int | None) -> None:
    loss, f = full_loss(linear()), naive(linear())
    x = loss.point()
    columns = random_columns(loss, 0, count) if count else None
    to_x = torch.eye(loss.size, dtype=torch.float64) if columns is None else columns.double().T
    width = 0.1 * ((torch.linalg.pinv(to_x) @ x).abs() + 1)
    corners = itertools.product((-1.0, 1.0), repeat=to_x.shape[1])
    highest = max(float(f(x + to_x @ (torch.tensor(c, dtype=torch.float64) * width))) for c in corners)
    found = box_sharpness(loss, x, 0.1, columns=columns, iterations=None)
    assert found.percent == pytest.approx(100 * (highest - float(f(x))) / (1 + float(f(x))), rel=1e-6)
    assert found.space == ("full" if columns is None else "subspace")
    assert found.examples == 20


def test_sharpness_does_not_depend_on_the_chunks() -> None:
    found = []
    for chunk in (5, 46):
        loss = full_loss(toy(), chunk=chunk)
        x = loss.point()
        found.append([box_sharpness(loss, x, e).percent for e in (1e-3, 1e-1)] + [adaptive_sharpness(loss, x)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert min(found[0]) > 0


class Barrier(nn.Module):
    """A domain that ends within the box: f is inf on its edge and nan beyond."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.w, self.edge = nn.Parameter(torch.tensor([0.5, 0.2])), edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (-torch.log(self.edge - self.w.sum())).expand(len(x))


def test_a_loss_that_is_not_finite_within_the_box() -> None:
    task = toy(model=lambda: Barrier(0.8), loss=lambda output, target: output.mean())
    loss = full_loss(task)
    x = loss.point()
    found = box_sharpness(loss, x, 0.05)  # as far as 0.7 + 0.135: beyond the edge
    assert 0 < found.percent < math.inf
    assert not found.converged
    safe = box_sharpness(loss, x, 0.01, iterations=None)
    highest = -math.log(0.1 - 0.027)
    assert safe.percent == pytest.approx(100 * (highest + math.log(0.1)) / (1 - math.log(0.1)), rel=1e-6)
    assert safe.converged


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, -5.0])
def test_a_loss_that_the_metric_is_not_made_for(value: float) -> None:
    loss = full_loss(toy(loss=lambda output, target: output.mean() * 0 + value))
    with pytest.raises(CannotAnswer, match="finite loss above -1"):
        box_sharpness(loss, loss.point(), EPSILON)


def test_columns() -> None:
    loss = full_loss(toy())
    columns = random_columns(loss, 0, 50)
    assert columns is not None
    assert columns.shape == (50, loss.size)
    assert float(columns.std()) == pytest.approx(1, abs=0.05)
    assert random_columns(loss, 0, loss.size + 1) is None


# --- rescaling ---


def relu() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_rescaled_network_is_as_sharp_where_it_should_be() -> None:
    torch.manual_seed(0)
    model, other, scale = relu().double(), relu().double(), 10
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other[0].weight.mul_(scale)
        other[0].bias.mul_(scale)
        other[2].weight.div_(scale)
    one, two = (full_loss(toy(model=relu), m) for m in (model, other))
    x, rescaled = one.point(), two.point()
    assert two.value(rescaled) == pytest.approx(one.value(x), rel=1e-12)
    assert adaptive_sharpness(two, rescaled) == pytest.approx(adaptive_sharpness(one, x), rel=1e-4)
    assert adaptive_sharpness(one, x) > 0.01
    invariant = [adaptive_eigenvalue(f, p).estimate for f, p in ((one, x), (two, rescaled))]
    assert invariant[1] == pytest.approx(invariant[0], rel=1e-4)
    largest = [eigenvalues(f, p)[0].estimate for f, p in ((one, x), (two, rescaled))]
    assert largest[1] > 10 * largest[0]
    assert box_sharpness(two, rescaled, EPSILON).percent != pytest.approx(
        box_sharpness(one, x, EPSILON).percent, rel=0.1
    )


# --- the adaptive ball ---


def test_the_adaptive_eigenvalue_is_that_of_the_scaled_hessian() -> None:
    loss = full_loss(toy())
    x = loss.point()
    scale = x.abs() + 0.1
    exact = torch.linalg.eigvalsh(scale[:, None] * dense(naive(toy()), x) * scale)[-1]
    assert adaptive_eigenvalue(loss, x, eta=0.1).estimate == pytest.approx(float(exact), rel=1e-4)


def test_adaptive_sharpness_reaches_the_ball_of_a_quadratic() -> None:
    """max f over the ball, by the secular equation: u = (c I - A)^-1 g with |u| = rho, A = T H T, g = T grad."""
    loss, radius = quadratic(), 0.5
    x = loss.point()
    start, slope = loss.gradient(x)
    a, g = (x.square() * noisy_quadratic.curvature()).numpy(), (x.abs() * slope).numpy()
    low, high = a.max() + 1e-12, a.max() + np.linalg.norm(g) / radius
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(g / (middle - a)) > radius else (low, middle)
    u = g / (high - a)
    exact = float(g @ u + 0.5 * u @ (a * u))
    found = adaptive_sharpness(loss, x, radius=radius)
    assert found == pytest.approx(exact, rel=1e-4)
    assert loss.value(x) == start


def test_adaptive_sharpness_of_flat_and_broken_losses() -> None:
    flat = full_loss(toy(loss=lambda output, target: output.mean() * 0))
    assert adaptive_sharpness(flat, flat.point()) == 0
    broken = full_loss(toy(loss=lambda output, target: output.mean() * math.nan))
    assert math.isnan(adaptive_sharpness(broken, broken.point()))


# --- batches ---


def test_batch_sharpness_is_the_mean_over_all_batches() -> None:
    x, y = examples(6)
    task = toy(train=(x, y), batch_size=2)
    loss = full_loss(task)
    point, ratios = loss.point(), []
    for pair in itertools.combinations(range(6), 2):
        f = naive(toy(train=(x[list(pair)], y[list(pair)]), batch_size=2))
        g = gradient(f, point)
        ratios.append(float(g @ dense(f, point) @ g / (g @ g)))
    found = batch_sharpness(loss, point, 2, draws=300)
    assert found.n == 300
    assert abs(found.estimate - np.mean(ratios)) < 3 * (found.high - found.low) / 2 / 1.96
    assert found.high - found.low < 0.2 * found.estimate


def test_batch_sharpness_of_one_batch_in_chunks_and_with_batch_norm() -> None:
    f = naive(toy())
    for chunk in (8, 64):
        loss = full_loss(toy(), chunk=chunk)
        x = loss.point()
        g = gradient(f, x)
        found = batch_sharpness(loss, x, 1000, draws=2)
        assert found.estimate == pytest.approx(float(g @ dense(f, x) @ g / (g @ g)), rel=1e-9)
        assert (found.n, found.interval) == (1, "none: the batch is all of the training data")
    normed = full_loss(toy(model=mlp_with_state), chunk=8)
    whole = full_loss(toy(model=mlp_with_state), chunk=46)
    slope, product = normed.along_gradient(tuple(t[whole._indices] for t in toy().train))
    torch.testing.assert_close(slope, whole.gradient(whole.point())[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(product, whole.products(slope[None])[0], rtol=1e-9, atol=1e-12)


class Views(Dataset):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return examples(9)[0][index], examples(9)[1][index]


def test_batches_whose_rows_are_not_their_examples() -> None:
    """Two views of each, from a collate_fn."""

    def twice(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = (torch.stack(part) for part in zip(*items, strict=True))
        return torch.cat([x, -x]), torch.cat([y, y])

    loss = full_loss(toy(train=Views(), collate_fn=twice, batch_size=4))
    assert batch_sharpness(loss, loss.point(), 4, draws=5).n == 5
    silent = full_loss(toy(loss=lambda output, target: output.mean() * 0))
    assert batch_sharpness(silent, silent.point(), 4, draws=3).estimate is None
    broken = full_loss(toy(loss=lambda output, target: F.cross_entropy(output * math.inf, target)))
    assert batch_sharpness(broken, broken.point(), 4, draws=3).interval == "none: a batch's gradient is not finite"
