"""Measurements inside a trial are held to the gradients of both halves; resumed, they go on. (See also AdaScale's.)"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchscope.measure.in_trial import LEAST, TrialNoise
from toys import SIZE, examples, mlp, mlp_with_state, sgd, toy

X, Y = examples(SIZE)


def noise_of(model: nn.Module, every: int, last: int = 64) -> TrialNoise:
    return TrialNoise(toy(), model, sgd(model, 0.05), every, last)


def step(model: nn.Module, noise: TrialNoise, chosen: torch.Tensor) -> bool:
    model.zero_grad()
    F.cross_entropy(model(X[chosen]), Y[chosen]).backward()
    return noise.step((X[chosen], Y[chosen]))


def by_hand(model: nn.Module, chosen: torch.Tensor) -> tuple[float, float]:
    """(tr(Sigma), |G|^2) from the two halves' own gradients: |g1 - g2|^2 m / 4 and g1 . g2, of m examples."""
    halves = []
    for part in chosen.chunk(2):
        grads = torch.autograd.grad(F.cross_entropy(model(X[part]), Y[part]), list(model.parameters()))
        halves.append(torch.cat([g.flatten() for g in grads]).double())
    a, b = halves
    return float((a - b).square().sum()) * len(chosen) / 4, float(a @ b)


def batches(count: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(SIZE, generator=generator)[:size] for _ in range(count)]


def test_averages_are_those_of_the_halves_by_hand() -> None:
    torch.manual_seed(0)
    model = mlp()
    noise = noise_of(model, every=2)
    drawn = batches(12)
    measured = [step(model, noise, chosen) for chosen in drawn]
    assert measured == [False, True, True, *[False, True] * 4, False]  # the first tells that there is one pass a step
    expected = [by_hand(model, chosen) for chosen, seen in zip(drawn, measured, strict=True) if seen]
    variances, squares = zip(*expected, strict=True)
    assert noise.averages == pytest.approx((sum(variances) / 6, sum(squares) / 6), rel=1e-4)
    assert noise.scale is None  # too few to divide by


def test_the_scale_is_the_ratio_of_the_averages() -> None:
    torch.manual_seed(0)
    model = mlp()
    noise = noise_of(model, every=1, last=20)
    for chosen in batches(LEAST + 9):
        step(model, noise, chosen)
    assert len(noise.found) == 20
    variance, square = noise.averages or (0.0, 0.0)
    assert noise.scale == (variance / square if square > 0 else math.inf)


def test_a_batch_of_one_is_left_out() -> None:
    torch.manual_seed(0)
    model = mlp()
    noise = noise_of(model, every=1)
    seen = [step(model, noise, chosen) for chosen in (*batches(3), torch.tensor([3]), *batches(1))]
    assert seen == [False, True, True, False, True]


@pytest.mark.parametrize("make", [mlp, mlp_with_state])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stopped", [1, 10])
def test_resumed_it_goes_on_with_the_same_measurements(make, every: int, stopped: int) -> None:
    torch.manual_seed(0)
    model, twin = make(), make()
    noise = noise_of(model, every)
    drawn = batches(30)
    for chosen in drawn[:stopped]:
        step(model, noise, chosen)
    state = copy.deepcopy(noise.state_dict())
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(5)  # of the dropout
    for chosen in drawn[stopped:]:
        step(model, noise, chosen)
    again = noise_of(twin, every)
    again.load_state_dict(state)
    torch.manual_seed(5)
    for chosen in drawn[stopped:]:
        step(twin, again, chosen)
    assert again.state_dict() == noise.state_dict()
    assert len(again.found) >= 9


def test_weights_and_gradients_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    noise = noise_of(model, every=1)
    for chosen in batches(3):
        step(model, noise, chosen)
        twin.zero_grad()
        F.cross_entropy(twin(X[chosen]), Y[chosen]).backward()
        for own, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert own.grad is not None
            assert theirs.grad is not None
            assert torch.equal(own.grad, theirs.grad)
