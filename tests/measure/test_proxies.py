"""Are the proxies what they say: squared norms in Adam's metric, and sums of absolute values and deviations?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from batchscope.analysis.noise_scale import draw
from batchscope.measure.proxies import proxies_of
from batchscope.records import GradientNorms

WIDTH, SIZES = 2000, (6.0, 6.0)


def norms(parts_squared: torch.Tensor, mean_squared: torch.Tensor, sizes: tuple[float, float] = SIZES) -> GradientNorms:
    return GradientNorms(
        step=0,
        examples=0,
        parts=2,
        part_size=sum(s * s for s in sizes) / sum(sizes),  # weights are the shares of the sizes
        batch_size=sum(sizes),
        mean_squared=float(mean_squared),
        parts_squared=float(parts_squared),
    )


def optimised(steps: int) -> tuple[nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-3)
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_adam_is_the_norm_of_gradients_over_the_root_of_the_second_moment() -> None:
    """P from its definition: the moving average of the squares that went in, corrected for its start."""
    model, _ = optimised(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-3)
    seen: list[list[torch.Tensor]] = []
    for _ in range(7):
        model.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        seen.append([p.grad.double() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    parameters = list(model.parameters())
    first, second = ([torch.randn_like(p) for p in parameters] for _ in range(2))
    weights = [0.25, 0.75]
    whole = [0.25 * a + 0.75 * b for a, b in zip(first, second, strict=True)]
    parts_squared, mean_squared = proxies_of(optimizer, parameters)(whole, [first, second], weights, [2, 6])["adam"]
    expected_parts = expected_mean = 0.0
    for i in range(len(parameters)):
        decay = [0.95 ** (6 - t) for t in range(7)]
        v = torch.stack([d * g[i].square() for d, g in zip(decay, seen, strict=True)]).sum(0) / sum(decay)
        p = 1 / (v.sqrt() + 1e-3)
        expected_parts += float((p * (first[i].square() + 9 * second[i].square()) / 10).sum())  # weights squared
        expected_mean += float((p * whole[i].square()).sum())
    assert (float(parts_squared), float(mean_squared)) == pytest.approx((expected_parts, expected_mean), rel=1e-4)


def test_no_adam_before_its_first_step_or_without_it() -> None:
    model, optimizer = optimised(0)
    gradient = [torch.randn_like(p) for p in model.parameters()]
    for other in (optimizer, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)):
        found = proxies_of(other, list(model.parameters()))(gradient, [gradient, gradient], [0.5, 0.5], SIZES)
        assert set(found) == {"sign"}


def test_what_adam_does_not_move_does_not_count() -> None:
    model, optimizer = optimised(3)
    parameters = list(model.parameters())
    gradient = [torch.randn_like(p) for p in parameters]
    expected = proxies_of(optimizer, parameters)(gradient, [gradient, gradient], [0.5, 0.5], SIZES)["adam"]
    extra = nn.Parameter(torch.randn(7))
    more = [*gradient, torch.randn(7)]
    found = proxies_of(optimizer, [*parameters, extra])(more, [more, more], [0.5, 0.5], SIZES)["adam"]
    assert [float(f) for f in found] == pytest.approx([float(e) for e in expected])


@pytest.mark.parametrize("sizes", [(6.0, 6.0), (2.0, 10.0)])
def test_sign_estimates_the_sum_of_standard_deviations(sizes: tuple[float, float]) -> None:
    """Normal noise of known sigma in each coordinate: (sum sigma)^2 comes out, and a signal that noise lengthens."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(WIDTH))]
    sigma, mean = torch.rand(WIDTH, dtype=torch.float64) + 0.5, torch.randn(WIDTH, dtype=torch.float64)
    squared = proxies_of(torch.optim.SGD(parameters, lr=1.0), parameters)
    traces, signals = [], []
    weights = [s / sum(sizes) for s in sizes]
    for _ in range(200):
        halves = [[mean + sigma * torch.randn(WIDTH, dtype=torch.float64) / math.sqrt(s)] for s in sizes]
        whole = [weights[0] * halves[0][0] + weights[1] * halves[1][0]]
        trace, signal = draw(norms(*squared(whole, halves, weights, sizes)["sign"], sizes))
        traces.append(trace)
        signals.append(signal)
    assert sum(traces) / len(traces) == pytest.approx(float(sigma.sum()) ** 2, rel=0.01)
    assert sum(signals) / len(signals) >= float(mean.abs().sum()) ** 2


def test_a_loss_scale_comes_out_squared() -> None:
    model, optimizer = optimised(3)
    parameters = list(model.parameters())
    squared = proxies_of(optimizer, parameters)
    first, second = ([torch.randn_like(p) for p in parameters] for _ in range(2))
    whole = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    plain = squared(whole, [first, second], [0.5, 0.5], SIZES)
    scaled = squared([8 * g for g in whole], [[8 * g for g in half] for half in (first, second)], [0.5, 0.5], SIZES)
    for metric in ("adam", "sign"):
        assert [float(s) for s in scaled[metric]] == pytest.approx([64 * float(s) for s in plain[metric]], rel=1e-4)
