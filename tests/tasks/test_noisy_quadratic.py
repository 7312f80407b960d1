"""Are gradient, Hessian and noise of the noisy quadratic exactly what they are said to be, as torch computes them?"""

import numpy as np
import pytest
import torch

from batchscope.tasks import noisy_quadratic as q
from batchscope.tasks.noisy_quadratic_truth import built_in


@pytest.fixture(scope="module")
def task():
    return q.task()


@pytest.fixture
def model(task):
    torch.manual_seed(3)
    return task.model()


def gradient(task, model, rows) -> torch.Tensor:
    """Of the mean loss of these training rows."""
    x, y = task.train
    return torch.autograd.grad(task.batch_loss(model, (x[rows], y[rows])), model.w)[0].double()


def test_the_whole_data_sets_gradient_is_h_w(task, model):
    expected = (model.curvature * model.w).detach().double()
    torch.testing.assert_close(gradient(task, model, slice(None)), expected, atol=1e-6, rtol=1e-5)


def test_one_examples_gradient_is_h_w_plus_its_row(task, model):
    for n in (0, 17, q.TRAIN - 1):
        expected = (model.curvature * model.w).detach() + task.train[0][n]
        torch.testing.assert_close(gradient(task, model, slice(n, n + 1)), expected.double(), atol=1e-6, rtol=1e-5)


def test_the_hessian_is_the_curvature_by_finite_differences_of_the_gradient(task):
    model = q.Quadratic().double()
    x = task.train[0][:7].double()

    def at(w: torch.Tensor) -> torch.Tensor:
        model.w.data.copy_(w)
        return torch.autograd.grad(model(x).mean(), model.w)[0]

    w, v = torch.randn(2, q.DIMENSIONS, dtype=torch.float64)
    torch.testing.assert_close(at(w + v) - at(w), model.curvature * v)


def test_the_noise_has_the_stated_mean_and_variance_in_every_direction(task):
    x = task.train[0].double()
    assert x.mean(0).abs().max() < 1e-8
    torch.testing.assert_close(x.square().mean(0), q.noise_variance(), rtol=1e-6, atol=0.0)
    assert float(x.square().mean(0).sum()) == pytest.approx(q.NOISE_TRACE, rel=1e-6)


def test_the_noise_scale_is_that_of_the_examples_gradients(task, model):
    x, w = task.train[0].double(), model.w.detach().double().numpy()
    true = model.curvature.double() * model.w.detach().double()
    measured = float((x - x.mean(0)).square().sum(1).mean() / true.square().sum())
    assert built_in().noise_scale(w) == pytest.approx(measured, rel=1e-5)


def test_validation_loss_is_the_quadratic_and_the_start_is_known_for_every_seed(task):
    instance = built_in()
    for seed in range(3):
        torch.manual_seed(seed)
        model = task.model()
        w = model.w.detach().double().numpy()
        np.testing.assert_allclose(np.abs(w), instance.start, rtol=1e-6)
        validation = task.batch_loss(model, task.valid).detach()
        assert float(validation) == pytest.approx(q.START_LOSS, rel=1e-5)
        model.w.data.mul_(0.3)
        validation = task.batch_loss(model, task.valid).detach()
        assert float(validation) == pytest.approx(float(instance.loss(0.3 * w)), rel=1e-5)


def test_seeds_differ_in_the_signs_of_the_start_and_the_data_do_not(task):
    torch.manual_seed(0)
    one = task.model().w.detach()
    torch.manual_seed(1)
    other = task.model().w.detach()
    assert not torch.equal(one, other)
    assert torch.equal(task.train[0], q.noise_rows())
