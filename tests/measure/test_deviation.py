"""Are |g_B - G|^2 what they say, is their mean the exact one, and is nothing of the model changed by looking?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from batchscope.measure import deviation
from batchscope.measure.deviation import cost_of, deviations
from batchscope.training.seeding import seed_everything
from toys import CPU, SIZE, toy


def exact(task, model) -> tuple[float, float]:
    """|G|^2 and tr(Sigma), divisor N, from every example's own gradient: the slow way."""
    x, y = task.train
    gradients = []
    for i in range(len(x)):
        loss = task.batch_loss(model, (x[i : i + 1], y[i : i + 1]))
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]).double())
    g = torch.stack(gradients)
    return float(g.mean(0).square().sum()), float((g - g.mean(0)).square().sum(1).mean())


def test_deviations_have_the_mean_of_a_draw_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deviation, "DRAWS", SIZE)  # all the disjoint batches of an order
    monkeypatch.setattr(deviation, "GROUPS", 5)
    task = toy()
    seed_everything(0)
    model = task.model()
    squared, trace = exact(task, model)
    sums: dict[int, list[float]] = {}
    for seed in range(30):
        found = deviations(task, model, CPU, step=3, examples=24, precision="fp32", seed=seed)
        assert found.squared_gradient == pytest.approx(squared, rel=1e-4)
        assert (found.step, found.examples, found.data_size) == (3, 24, SIZE)
        for size, values in zip(found.batch_sizes, found.squared, strict=True):
            sums.setdefault(size, []).extend(values)
    assert list(sums) == [1, 2, 4, 8, 9, 18]
    for size, values in sums.items():
        drawn = torch.tensor(values)
        expected = trace / size * (SIZE - size) / (SIZE - 1)
        assert abs(float(drawn.mean()) - expected) < 4 * float(drawn.std()) / len(values) ** 0.5 + 1e-6 * expected
    assert sum(sums[1]) / len(sums[1]) == pytest.approx(trace, rel=1e-4)  # every example once per seed: no error


class Counting(nn.Module):
    """Keeps a running statistic, as batch norm does."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += len(x)
        return x


def test_looking_changes_nothing() -> None:
    task = toy(model=lambda: nn.Sequential(nn.Linear(5, 8), Counting(), nn.Dropout(0.3), nn.Linear(8, 3)))
    seed_everything(0)
    model = task.model()
    task.batch_loss(model, (task.train[0][:8], task.train[1][:8])).backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    deviations(task, model, CPU, step=0, examples=0, precision="fp32", seed=0)
    after = model.state_dict(), [p.grad for p in model.parameters()], torch.get_rng_state()
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    assert all(torch.equal(a, b) for a, b in zip(after[1], before[1], strict=True))
    assert torch.equal(after[2], before[2])
    assert all(module.training for module in model.modules())


def test_the_cost_is_an_epoch_and_a_little() -> None:
    assert cost_of(49_152) == 49_152 + 16 * (1 + 2 + 4 + 8 + 16 + 32 + 64 + 128 + 256 + 512)
    assert cost_of(10) == 10  # groups of one example: nothing is smaller
