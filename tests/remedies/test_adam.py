"""Adam's constants against their closed forms, and a scaled Adam against a naive one with those constants."""

import dataclasses
import math

import pytest
import torch
from naive_optimizers import adam as naive_adam
from runs import TOY, resumes, trains_digits

from batchscope.remedies.adam import (
    AdamScaled,
    HalfLifeInExamples,
    half_life,
    held_beta,
    hold_half_life,
    scale_constants,
    scaled_beta,
)
from batchscope.remedies.base import together
from batchscope.remedies.scaling import SquareRootScaling
from batchscope.tasks import digits
from toys import mlp_with_state, sgd, toy


def adamw(model, lr):
    """Two groups, so that both have to be changed."""
    weights = list(model.parameters())
    groups = [{"params": weights[:1]}, {"params": weights[1:], "betas": (0.95, 0.99)}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-3)


def test_closed_forms() -> None:
    assert scaled_beta(0.999, 8) == pytest.approx(0.992)
    assert half_life(held_beta(0.999, 8), 8 * 32) == pytest.approx(half_life(0.999, 32))
    assert half_life(0.5, 10) == pytest.approx(10)
    assert held_beta(0.9999, 4) == pytest.approx(scaled_beta(0.9999, 4), abs=1e-7)  # to first order the same


def test_every_group_is_changed() -> None:
    scaled = AdamScaled().apply(toy(optimizer=adamw), TOY)
    optimizer = scaled.optimizer(mlp_with_state(), scaled.lr)
    assert scaled.lr == pytest.approx(math.sqrt(8) * TOY.own_learning_rate)
    assert [group["betas"] for group in optimizer.param_groups] == [
        pytest.approx((0.2, 0.992)),
        pytest.approx((0.6, 0.92)),
    ]
    assert [group["eps"] for group in optimizer.param_groups] == [pytest.approx(1e-3 / math.sqrt(8))] * 2
    held = HalfLifeInExamples().apply(toy(optimizer=adamw), TOY)
    betas = [group["betas"] for group in held.optimizer(mlp_with_state(), held.lr).param_groups]
    assert betas == [pytest.approx((0.9, 0.999**8)), pytest.approx((0.95, 0.99**8))]
    assert held.lr == TOY.own_learning_rate


@pytest.mark.parametrize(
    ("change", "betas", "eps"),
    [(scale_constants, (0.6, 0.996), 0.005), (hold_half_life, (0.9, 0.999**4), 0.01)],
)
def test_it_is_adam_with_those_constants(change, betas, eps) -> None:
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.999), eps=0.01)
    change(optimizer, 4)
    gradients = [torch.randn(3, generator=torch.Generator().manual_seed(t), dtype=torch.float64) for t in range(20)]
    naive = naive_adam(start, gradients, lr=0.1, betas=betas, eps=eps)
    for gradient, expected in zip(gradients, naive, strict=True):
        weight.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_it_says_where_it_cannot_apply() -> None:
    large = dataclasses.replace(TOY, batch_size=20)
    assert "below 1, got 1" in (AdamScaled().why_not(toy(optimizer=adamw), large) or "")
    assert AdamScaled().why_not(toy(optimizer=adamw), TOY) is None
    assert HalfLifeInExamples().why_not(toy(optimizer=adamw), large) is None
    for remedy in (AdamScaled(), HalfLifeInExamples()):
        assert "got SGD" in (remedy.why_not(toy(optimizer=sgd), TOY) or "")
    with pytest.raises(ValueError, match="smaller batch"):
        scale_constants(adamw(mlp_with_state(), 0.1), 10)


@pytest.mark.parametrize(
    "remedy",
    [AdamScaled(), HalfLifeInExamples(), together(HalfLifeInExamples(), SquareRootScaling())],
    ids=lambda r: r.name,
)
def test_it_trains_digits_and_resumes(remedy, tmp_path) -> None:
    resumes(remedy, toy(optimizer=adamw, model=mlp_with_state, lr=0.01), tmp_path)
    own = digits.task()
    trains_digits(
        remedy, dataclasses.replace(own, optimizer=lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr / 30))
    )
