"""Does watching a run leave its bits alone, and are the numbers unbiased where the truth is known?"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchscope.measure.follow as follow_module
from batchscope.analysis.noise_scale import draw, noise_scale
from batchscope.errors import CannotAnswer, UnsupportedTask
from batchscope.measure.follow import PASSES, Followed, checkpoint_cost, counts_of, follow, gap_at
from batchscope.records import Arm, Goal, StopRule, TrialSpec
from batchscope.tasks import noisy_quadratic
from batchscope.training.loop import train
from batchscope.training.seeding import seed_everything
from toys import CPU, SIZE, examples, mlp_with_state, toy


def spec_of(task, epochs: float = 6, seed: int = 0, goal: Goal | None = None) -> TrialSpec:
    size = task.train_size
    return TrialSpec(Arm(task.batch_size, task.lr), seed, StopRule(int(epochs * size), size // 2, goal=goal))


def followed(task, every: int = 1, checkpoints: int = 0, **changes) -> Followed:
    return follow(task, spec_of(task, **changes), device=CPU, goal=task.goal, every=every, checkpoints=checkpoints)


@pytest.mark.parametrize("model", ["mlp", "mlp_with_state"])
def test_a_watched_run_has_the_same_bits(model: str) -> None:
    task = toy(model=mlp_with_state) if model == "mlp_with_state" else toy()
    alone = train(task, spec_of(task), device=CPU)
    seen = followed(task, checkpoints=2)
    assert seen.result.trace == alone.trace
    assert (seen.result.steps, seen.result.examples) == (alone.steps, alone.examples)


def test_measurements_are_dense_at_first_dated_and_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "DENSE", 4)
    task = toy()
    seen = followed(task, every=5, epochs=8)
    assert seen.source == "examples"
    at = [m.step for m in seen.measurements]
    assert at == [0, 1, 2, 3, *range(4, 12, 2), *range(12, 28, 4), *range(28, seen.result.steps, 5)]
    assert [m.steps for m in seen.measurements][:-1] == [b - a for a, b in itertools.pairwise(at)]
    assert seen.measurements[1].examples == task.batch_size
    size = SIZE // PASSES  # the own batch size of 8, eight times, is more than there is
    assert [(m.parts, m.part_size, m.batch_size) for m in seen.measurements[:1]] == [(size, 1.0, size)]
    assert seen.measurements[-1].batch_size == 5 * size
    assert seen.examples == sum(m.parts for m in seen.measurements)
    assert set(seen.layers) == {"0", "2"}
    assert checkpoint_cost(SIZE, task.batch_size) == SIZE + 16 * PASSES * size


def test_gaps_double() -> None:
    assert [gap_at(step, 8) for step in (0, 63, 64, 191, 192, 447, 448, 10**6)] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert gap_at(10**6, 3) == 3


def test_batch_norm_is_flagged_and_measured_by_its_passes() -> None:
    seen = followed(toy(model=mlp_with_state), every=4)
    assert seen.source == "micro-batches"
    assert {m.parts for m in seen.measurements} == {2}  # one in four steps at most, at first every one: in two parts
    assert seen.notes[0].startswith("Batch norm (1) mixes the examples of a batch")


def test_adam_has_proxies() -> None:
    seen = followed(toy(optimizer=lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr), lr=0.01))
    assert set(seen.proxies) == {"sign", "adam"}
    assert seen.proxies["sign"].outcome == "at_least"
    assert seen.proxies["adam"].measurements == len(seen.measurements) - 1  # before its first step it has no moments


def test_a_loss_that_compares_examples_is_refused() -> None:
    def contrastive(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output @ output.T, torch.arange(len(output)))

    with pytest.raises(UnsupportedTask, match="task 'toy': expected a loss that is a mean over examples, got one that"):
        followed(toy(loss=contrastive, metrics={}))


def test_a_training_that_fails_has_no_answer() -> None:
    def fails(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such class")

    with pytest.raises(CannotAnswer, match="expected its own point to train, it failed: ValueError: no such class"):
        followed(toy(loss=fails, metrics={}))


def test_ragged_tokens_are_counted_by_example() -> None:
    target = torch.tensor([[1, 2, -100], [1, -100, -100], [1, 2, 0]])
    task = toy(unit="tokens")
    counts = counts_of(task, [(torch.zeros(3, 3), target)])
    assert counts is not None
    assert counts.tolist() == [2, 1, 3]
    assert counts_of(task, [(torch.zeros(3, 3), target.clamp_min(0))]) is None
    assert counts_of(toy(), [(torch.zeros(3, 3), target)]) is None


class Positions(nn.Module):
    """A parameter beside its layers: no formula sees its examples."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.zeros(5)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + self.shift)


def test_both_sources_average_to_the_exact_values_at_given_weights() -> None:
    """With a learning rate of next to nothing the weights stay, and every measurement has the same expectation."""
    x, y = data = examples(160)
    for model, source in ((lambda: nn.Linear(5, 3), "examples"), (Positions, "micro-batches")):
        task = toy(model=model, train=data, lr=1e-12, goal=None)
        seen = followed(task, epochs=20)
        assert seen.source == source
        seed_everything(0)
        start = task.model()
        rows = []
        for i in range(160):
            loss = F.cross_entropy(start(x[i : i + 1]), y[i : i + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(start.parameters()))]))
        g = torch.stack(rows).double()
        exact = (g - g.mean(0)).square().sum(1).mean(), g.mean(0).square().sum()
        draws = torch.tensor([draw(m, 160) for m in seen.measurements])
        error = draws.std(0) / len(draws) ** 0.5
        assert bool(((draws.mean(0) - torch.stack(exact)).abs() < 3 * error).all())


def test_the_noisy_quadratic_has_its_exact_noise_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    task = noisy_quadratic.task()
    h = noisy_quadratic.curvature()
    exact: list[float] = []
    measure = follow_module._Watcher._measure

    def noted(self, epoch: int, readings, steps: int) -> None:
        exact.append(float((h * self.model.w.detach().double()).square().sum()))
        measure(self, epoch, readings, steps)

    monkeypatch.setattr(follow_module._Watcher, "_measure", noted)
    stop = StopRule(task.budget_examples, task.train_size // 4, goal=task.goal)
    spec = TrialSpec(Arm(task.batch_size, task.lr), 5, stop)
    seen = follow(task, spec, device=CPU, goal=task.goal, every=PASSES, checkpoints=0)
    before = [m for m in seen.measurements if m.examples < seen.crossed_at]
    scale = noise_scale(before, data_size=task.train_size)
    weights = [m.steps for m in before]
    mean = sum(w * g for w, g in zip(weights, exact, strict=False)) / sum(weights)
    assert scale.outcome == "resolved"
    assert scale.b_simple.low < noisy_quadratic.NOISE_TRACE / mean < scale.b_simple.high
    assert scale.trace.estimate == pytest.approx(noisy_quadratic.NOISE_TRACE, rel=3e-3)
