"""Does training go on from given weights as it should, and has injected noise the covariance that it claims?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from batchscope.errors import CannotAnswer
from batchscope.records import Evaluation
from batchscope.task import Task
from batchscope.testing.examples import bits
from batchscope.training.continued import NOISE_STREAM, Ended, continue_from, early_states, noisy, part_weights
from batchscope.training.loop import train
from batchscope.training.seeding import mix
from toys import CPU, SIZE, Augmented, examples, mlp, mlp_with_state, sgd, toy, trial

STATEFUL = toy(model=mlp_with_state, schedule=torch.optim.lr_scheduler.CosineAnnealingLR)


def initial(task: Task, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return task.model().state_dict()


def go_on(task: Task, state: dict[str, torch.Tensor], **asked: Any) -> Ended:
    settings: dict[str, Any] = {"batch_size": 8, "lr": 0.05, "examples": 3 * SIZE, "seed": 4, "cadence": 20}
    return continue_from(task, state, device=CPU, **settings | asked)


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- going on ---


def test_from_its_own_initial_weights_it_is_the_trial() -> None:
    """But for dropout, whose stream is the seed's after the model was made."""
    lines: list[Evaluation] = []
    ended = go_on(STATEFUL, initial(STATEFUL, 4), tell=lines.append)
    plain = train(STATEFUL, trial(seed=4), device=CPU)
    assert bits(ended.result.trace) == bits(plain.trace) == bits(tuple(lines))
    assert ended.last.examples == plain.examples
    assert ended.notes == ()


def test_from_other_weights_it_starts_there_with_patience() -> None:
    task = toy()
    first = go_on(task, initial(task, 4), examples=6 * SIZE)
    before = {k: v.clone() for k, v in first.best.state.items()}
    second = go_on(task, first.best.state, batch_size=46, lr=0.5, examples=60 * SIZE, patience_epochs=2.0)
    assert equal(first.best.state, before)
    lowest = min(line.validation["loss"] for line in first.result.trace)
    start = second.result.trace[0]
    assert (start.validation["loss"], start.distance) == (lowest, 0.0)
    assert second.result.ended_by == "patience"
    assert second.result.examples - second.best.examples >= 2 * SIZE
    assert second.result.trace[-1].distance > 0


def test_training_that_fails_is_one_sentence() -> None:
    with pytest.raises(CannotAnswer, match=r"task 'toy': expected training to go on at batch size 8, it failed: Run"):
        go_on(toy(), {"odd": torch.zeros(1)})


@pytest.mark.parametrize(
    "task",
    [STATEFUL, toy(model=mlp_with_state, train=Augmented(), valid=Augmented(20, 1)), toy(test=examples(9))],
    ids=["schedule", "data set", "test set"],
)
def test_early_states_are_those_that_the_trial_went_through(task: Task) -> None:
    """Against trials that were capped there: the same bits, with the schedule's horizon of the whole budget."""
    spec, epochs = trial(8, seed=5, budget=4 * SIZE), (0, 1.5, 0.1, 3)
    states = early_states(task, spec, epochs, device=CPU)
    assert [(s.step, s.examples) for s in states] == [(0, 0), (9, SIZE + 24), (1, 8), (18, 3 * SIZE)]
    assert equal(states[0].state, initial(task, 5))
    for state, e in list(zip(states, epochs, strict=True))[1:]:
        capped = dataclasses.replace(spec, stop=dataclasses.replace(spec.stop, cap_examples=round(e * SIZE)))
        kept: list[Any] = []
        train(task, capped, device=CPU, keep=kept.append)
        assert equal(kept[0].last.state, state.state)
        assert kept[0].last.step == state.step
    (start,) = early_states(task, spec, [0], device=CPU)
    assert equal(start.state, states[0].state)
    with pytest.raises(CannotAnswer, match="expected epochs from 0 to 4, the trial's budget"):
        early_states(task, spec, [5], device=CPU)


# --- noise ---


def test_without_parts_it_is_plain_sgd_bit_for_bit() -> None:
    plain = go_on(STATEFUL, initial(STATEFUL, 4))
    for size in (8, 9, 100):
        assert bits(go_on(STATEFUL, initial(STATEFUL, 4), noise_of=size).result.trace) == bits(plain.result.trace)
    assert bits(go_on(noisy(STATEFUL, 8, seed=0), initial(STATEFUL, 4)).result.trace) == bits(plain.result.trace)


def test_the_noise_follows_from_the_seed_and_is_evaluated_as_before() -> None:
    task = toy()
    state = initial(task, 4)
    plain, one, again, other = (
        go_on(task, state, batch_size=23, **more) for more in ({}, {"noise_of": 4}, {"noise_of": 4}, {"noise_of": 5})
    )
    assert bits(one.result.trace) == bits(again.result.trace) != bits(other.result.trace)
    assert bits(one.result.trace) != bits(plain.result.trace)
    assert bits(one.result.trace[0]) == bits(plain.result.trace[0])
    assert one.result.trace[0].validation.keys() == {"loss", "accuracy"}


def test_batch_norm_is_noted() -> None:
    (note,) = go_on(STATEFUL, initial(STATEFUL, 4), batch_size=23, noise_of=4).notes
    assert note.startswith("Batch norm takes the statistics of parts of 4 examples")


D, SIGMA = 6, torch.linspace(0.2, 2.0, 6, dtype=torch.float64)


class Linear(nn.Module):
    """Loss x . w of an example: its gradient is x, whatever w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(D, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w


def rows(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, D) independent examples: mean 1, covariance diag(SIGMA)."""
    return 1 + SIGMA.sqrt() * torch.randn(n, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [32, 29, 9, 8, 5])
def test_the_gradient_is_the_weighted_sum_of_the_parts_own(n: int) -> None:
    """Of three steps running, the last part not full; a batch of at most 8 keeps its own."""
    x, size = rows(n, torch.Generator().manual_seed(n)), 8
    data = x[:2], torch.zeros(2, dtype=torch.float64)
    linear = toy(model=Linear, loss=lambda out, y: (out - y).mean(), train=data, valid=data, metrics={}, batch_size=1)
    task, model, generator = noisy(linear, size, seed=1), Linear(), torch.Generator().manual_seed(mix(1, NOISE_STREAM))
    for _ in range(3):
        (found,) = torch.autograd.grad(task.batch_loss(model, (x, torch.zeros(n, dtype=torch.float64))), [model.w])
        weights = part_weights([len(part) for part in x.split(size)], n / size, generator)
        expected = sum(a * part.mean(0) for a, part in zip(weights, x.split(size), strict=True))
        assert torch.allclose(found, torch.as_tensor(expected), rtol=1e-12)


@pytest.mark.parametrize(("n", "size"), [(32, 8), (29, 8), (9, 8)])
def test_mean_and_covariance_are_those_of_the_smaller_batch(n: int, size: int) -> None:
    """Over independent batches of n examples: mean 1, covariance Sigma / b. Part j's gradient is the mean of its rows.

    The trace within 3 standard errors; of the 6 means and 21 entries each within 4.
    """
    draws, generator, xi = 10_000, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    parts = rows(draws * n, generator).view(draws, n, D).split(size, dim=1)
    gradients = torch.stack([part.mean(1) for part in parts], dim=1)
    units = [part.shape[1] for part in parts]
    weights = torch.tensor([part_weights(units, n / size, xi) for _ in range(draws)], dtype=torch.float64)
    off = (weights[:, :, None] * gradients).sum(1) - 1
    expected = torch.diag(SIGMA) / size
    assert ((off.mean(0)).abs() < 4 * off.std(0) / math.sqrt(draws)).all()
    products = off[:, :, None] * off[:, None, :]
    assert ((products.mean(0) - expected).abs() < 4 * products.std(0) / math.sqrt(draws)).all()
    traces = off.square().sum(1)
    standard_error = float(traces.std()) / math.sqrt(draws)
    assert abs(float(traces.mean() - expected.trace())) < 3 * standard_error < 0.04 * float(expected.trace())


@pytest.mark.parametrize("units", [[8, 8, 8, 8], [8, 8, 8, 5], [8, 1], [3, 9, 0.5]])
def test_the_weights_of_the_parts_have_the_derived_moments(units: list[Any]) -> None:
    """They sum to 1 and have the plain shares as means; sum_j Var-term of the derivation is n / b - 1 exactly."""
    times, u, k = 3.0, torch.tensor(units, dtype=torch.float64), len(units)
    share = u / u.sum()
    generator = torch.Generator().manual_seed(2)
    drawn = torch.tensor([part_weights(units, times, generator) for _ in range(4000)], dtype=torch.float64)
    assert (drawn.sum(1) - 1).abs().max() < 1e-12
    assert ((drawn.mean(0) - share).abs() < 4 * drawn.std(0) / math.sqrt(len(drawn))).all()
    d_squared = share * (times - 1) / (k - 1)
    assert float((d_squared * (1 / u - 1 / u.sum())).sum()) == pytest.approx((times - 1) / float(u.sum()), rel=1e-12)
    exact = d_squared - 2 * d_squared * share + share.square() * d_squared.sum()
    assert drawn.var(0) == pytest.approx(exact, rel=0.1)
    assert part_weights([7], 1.0, generator) == [1.0]


def test_tokens_weigh_the_parts_by_what_they_count() -> None:
    """With xi switched off, the noisy loss is the batch's own mean, whatever the parts count."""
    batch = examples(7)
    batch[1][:5] = -100
    batch[1][6] = -100
    task = toy(model=mlp, unit="tokens", optimizer=sgd)
    model = mlp()
    plain = task.batch_loss(model, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda k, **_: torch.zeros(k, dtype=torch.float64))
        assert float(noisy(task, 2, 0).batch_loss(model, batch).detach()) == pytest.approx(float(plain.detach()))
