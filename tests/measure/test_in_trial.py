"""Measurements inside a trial are held to per-example gradients taken one by one; resumed, they go on."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.in_trial import LEAST, TrialNoise
from toys import SIZE, examples, mlp, mlp_with_state

X, Y = examples(SIZE)


def step(model: nn.Module, noise: TrialNoise, chosen: torch.Tensor) -> bool:
    model.zero_grad()
    F.cross_entropy(model(X[chosen]), Y[chosen]).backward()
    return noise.step(len(chosen))


def one_by_one(model: nn.Module, chosen: torch.Tensor) -> tuple[float, float]:
    """(tr(Sigma) with divisor N, |G|^2) of a batch without replacement, from its examples' own gradients."""
    gradients = []
    for i in chosen:
        grads = torch.autograd.grad(F.cross_entropy(model(X[i][None]), Y[i][None]), list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    each = torch.stack(gradients).double()
    spread = float(each.var(0, correction=1).sum())
    mean = float(each.mean(0).square().sum())
    return spread * (SIZE - 1) / SIZE, mean - spread * (1 / len(chosen) - 1 / SIZE)


def batches(count: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(SIZE, generator=generator)[:size] for _ in range(count)]


def test_averages_are_those_of_gradients_taken_one_by_one() -> None:
    torch.manual_seed(0)
    model = mlp()
    noise = TrialNoise(model, every=2, data_size=SIZE)
    drawn = batches(12)
    measured = [step(model, noise, chosen) for chosen in drawn]
    assert measured == [True, False] * 6
    expected = [one_by_one(model, chosen) for chosen in drawn[::2]]
    variances, squares = zip(*expected, strict=True)
    assert noise.averages == pytest.approx((sum(variances) / 6, sum(squares) / 6), rel=1e-4)
    assert noise.scale is None  # too few to divide by


def test_the_scale_is_the_ratio_of_the_averages() -> None:
    torch.manual_seed(0)
    model = mlp()
    noise = TrialNoise(model, every=1, last=20)
    for chosen in batches(LEAST + 9):
        step(model, noise, chosen)
    assert len(noise.norms) == 20
    variance, square = noise.averages or (0.0, 0.0)
    assert noise.scale == (variance / square if square > 0 else math.inf)


def test_a_batch_of_one_is_left_out_and_batch_norm_is_measured_in_halves() -> None:
    torch.manual_seed(0)
    alone = TrialNoise(mlp(), every=1)
    assert not step(alone.model, alone, torch.tensor([3]))
    normed = TrialNoise(mlp_with_state(), every=1)
    seen = [step(normed.model, normed, chosen) for chosen in batches(4)]
    assert seen[-1]
    assert normed.norms[-1].parts == 2


def test_resumed_it_goes_on_with_the_same_measurements() -> None:
    for make in (mlp, mlp_with_state):
        torch.manual_seed(0)
        model = make()
        noise = TrialNoise(model, every=3)
        drawn = batches(30)
        for chosen in drawn[:10]:
            step(model, noise, chosen)
        state, twin = copy.deepcopy(noise.state_dict()), copy.deepcopy(model)
        torch.manual_seed(5)  # of the dropout
        for chosen in drawn[10:]:
            step(model, noise, chosen)
        again = TrialNoise(twin, every=3)
        again.load_state_dict(state)
        torch.manual_seed(5)
        for chosen in drawn[10:]:
            step(twin, again, chosen)
        assert again.state_dict() == noise.state_dict()
        assert len(again.norms) >= 9


def test_weights_and_gradients_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    noise = TrialNoise(model, every=1)
    for chosen in batches(3):
        step(model, noise, chosen)
        twin.zero_grad()
        F.cross_entropy(twin(X[chosen]), Y[chosen]).backward()
        for own, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert own.grad is not None
            assert theirs.grad is not None
            assert torch.equal(own.grad, theirs.grad)
