"""Are lines and slices f along the right paths?"""

from __future__ import annotations

import math

import pytest
import torch
from naive_hessian import CPU, full_loss, naive, seeded
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.landscape import AROUND, GRID, LINE, filter_normalised, line, slice_1d, slice_2d
from batchscope.task import Task
from batchscope.tasks import noisy_quadratic
from toys import mlp_with_state, toy


def both(task: Task) -> tuple[FullLoss, FullLoss]:
    """f over the training and over the validation data."""
    return full_loss(task), FullLoss(task, seeded(task), task.valid, CPU, chunk=16, double=True)


def test_a_line_between_two_points_of_a_quadratic() -> None:
    """The validation loss is 1/2 w' H w exactly, hence a parabola along the straight line."""
    task = noisy_quadratic.task()
    torch.manual_seed(0)
    train, valid = (
        FullLoss(task, task.model(), data, CPU, examples=8, chunk=8, double=True) for data in (task.train, task.valid)
    )
    a, b = train.point(), torch.flip(train.point(), [0])
    h = valid.model.curvature

    def exact(w: torch.Tensor) -> float:
        return float(0.5 * (h * w * w).sum())

    found = line(train, valid, a, b, labels=("small", "large"))
    assert found.places == LINE
    assert (LINE[0], LINE[8], LINE[16], LINE[-1], len(LINE)) == (-1, 0, 1, 2, 25)
    assert found.validation["loss"] == pytest.approx([exact((1 - t) * a + t * b) for t in LINE], rel=1e-12)
    assert (found.validation["loss"][8], found.validation["loss"][16]) == (valid.value(a), valid.value(b))
    assert found.train["loss"][16] == train.value(b)
    curved = line(train, valid, a, b, "curved", (0, 0.5, 1))
    half = exact((a + b) / 2**0.5)
    assert curved.validation["loss"] == pytest.approx([exact(a), half, exact(b)], rel=1e-12)
    assert (curved.kind, curved.labels, found.labels) == ("curved", ("", ""), ("small", "large"))
    with pytest.raises(ValueError, match="straight or curved, got 'bent'"):
        line(train, valid, a, b, "bent")


def test_a_line_has_the_metrics_of_both_data_sets_in_one_mode() -> None:
    task = toy(model=mlp_with_state)
    train, valid = both(task)
    a, b = train.point(), 3 * train.point()
    found = line(train, valid, a, b)
    for t, loss, accuracy in zip(found.places, found.train["loss"], found.train["accuracy"], strict=True):
        assert train.metrics((1 - t) * a + t * b) == {"loss": loss, "accuracy": accuracy}
    assert set(found.validation) == {"loss", "accuracy"}
    assert len(set(found.validation["loss"])) > 20


def test_a_direction_has_the_filters_norms() -> None:
    class Filters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    loss = full_loss(toy(model=Filters))
    x = loss.point()
    d = dict(zip(loss.names, loss.parts(filter_normalised(loss, x, 0)), strict=True))
    w = dict(zip(loss.names, loss.parts(x), strict=True))
    for name in ("conv.weight", "out.weight"):
        norms = [t[name].flatten(1).norm(dim=1) for t in (d, w)]
        torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
    for name in ("conv.bias", "norm.weight", "norm.bias", "out.bias"):
        assert not d[name].any()
    assert torch.equal(filter_normalised(loss, x, 0), filter_normalised(loss, x, 0))
    assert not torch.equal(filter_normalised(loss, x, 0), filter_normalised(loss, x, 1))


def test_a_rescaled_network_has_the_same_slice() -> None:
    """What the normalisation is for."""
    task = toy(model=lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)))
    train, valid = both(task)
    x = train.point()
    rescaled = torch.cat([10 * x[:40], x[40:] / 10])
    one, two = (slice_1d(train, valid, p, seed=3) for p in (x, rescaled))
    assert one.train["loss"] == pytest.approx(two.train["loss"], rel=1e-9)
    assert (one.kind, one.places, len(AROUND), AROUND[12]) == ("slice", AROUND, 25, 0)
    assert one.validation["loss"][12] == valid.value(x)


def test_a_grid_crosses_its_line() -> None:
    heard: list[int] = []
    loss, f = full_loss(toy(), tell=heard.append), naive(toy())
    x = loss.point()
    found = slice_2d(loss, x, places=(-1, 0, 0.5), label="here")
    assert sum(heard) == 9 * loss.examples
    along = slice_1d(loss, loss, x, places=(-1, 0, 0.5))
    assert [row[1] for row in found.losses] == list(along.train["loss"])
    assert found.losses[1][1] == pytest.approx(float(f(x)), rel=1e-12)
    assert found.losses[0][2] != found.losses[2][0]
    assert (len(GRID), GRID[0], GRID[5], GRID[-1], found.label) == (11, -1, 0, 1, "here")


def test_what_is_not_finite_stays_and_no_filter_is_said() -> None:
    def logarithm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -output.log().sum()

    def exact(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert output.isfinite().all()
        return output.mean()

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w * torch.ones(len(x))

    task = toy(model=Scale, loss=logarithm, metrics={"mean": exact})
    train, valid = both(task)
    found = line(train, valid, torch.zeros(1).double(), torch.ones(1).double(), places=(-1, 0, 1))
    assert math.isnan(found.train["loss"][0])
    assert found.train["loss"][1:] == (math.inf, 0)
    assert [math.isnan(v) for v in found.train["mean"]] == [True, True, False]
    with pytest.raises(CannotAnswer, match="with two dimensions or more, got none"):
        filter_normalised(train, train.point(), 0)
