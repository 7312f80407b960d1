"""Averaged weights against their sum, batch norm's statistics against the examples', evaluations against both."""

import copy

import pytest
import torch
from runs import TOY, resumes, spec_of, trains_digits
from torch import nn

from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.remedies.averaging import (
    WeightAveraging,
    averaged,
    decay_of,
    estimate_batch_norm,
    keep_average,
    update_average,
)
from batchscope.remedies.base import Case, together
from batchscope.remedies.label_smoothing import LabelSmoothing
from batchscope.tasks import digits
from batchscope.training.loop import Evaluator, train
from batchscope.training.step import evaluate, make_model, make_step
from toys import CPU, examples, mlp, mlp_with_state, sgd, toy


def test_half_of_an_average_is_forgotten_after_its_half_life() -> None:
    assert decay_of(64, 64) == 0.5
    assert decay_of(512, 4096) == pytest.approx(decay_of(64, 4096) ** 8)


def test_the_average_is_the_weighted_sum() -> None:
    """Plain while 1 / t is above 1 - d = 0.25, then exponential: weights worked out by hand for six steps."""
    model = keep_average(mlp())
    weight, seen = next(model.parameters()), []
    for step in range(6):
        with torch.no_grad():
            weight.add_(step + 1.0)
        seen.append(weight.detach().clone())
        update_average(model, 0.75)
    shares = [1 / 4 * 0.75**2] * 4 + [0.25 * 0.75, 0.25]
    expected = sum(share * w for share, w in zip(shares, seen, strict=True))
    with averaged(model):
        torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(weight.detach(), seen[-1])
    assert model(torch.ones(1, 5)).requires_grad


def test_batch_norms_statistics_are_those_of_the_examples() -> None:
    """Its inputs are the linear map's outputs; dropout draws nothing, and all else is as before."""
    model = keep_average(mlp_with_state())
    x, y = examples(46)
    batches = [(x[:23], y[:23]), (x[23:], y[23:])]
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with averaged(model):
        estimate_batch_norm(model, batches, lambda model, batch: model(batch[0]))
        hidden, norm = model[0](x).detach(), model[1]
        torch.testing.assert_close(norm.running_mean, hidden.mean(0))
        torch.testing.assert_close(norm.running_var, (hidden[:23].var(0) + hidden[23:].var(0)) / 2)
    after = model.state_dict()
    assert all(torch.equal(after[name], old) for name, old in before.items() if not name.startswith("averaged/1"))
    assert torch.equal(torch.get_rng_state(), generator)
    assert model[1].momentum == 0.1
    assert all(module.training for module in model.modules())


def test_evaluations_see_the_average_and_training_does_not() -> None:
    task = toy(optimizer=sgd)
    applied = WeightAveraging(half_life_epochs=0.5).apply(task, TOY)
    decay = decay_of(16, 23)
    torch.manual_seed(0)
    model = make_model(applied, CPU)
    twin = mlp()
    twin.load_state_dict(model.state_dict(), strict=False)
    step, optimizer = make_step(applied, model, applied.optimizer(model, 0.1)), sgd(twin, 0.1)
    average = copy.deepcopy(twin)
    batch = tuple(t[:16] for t in task.train)
    for t in range(1, 8):
        step(batch)
        make_step(task, twin, optimizer)(batch)
        with torch.no_grad():
            for a, p in zip(average.parameters(), twin.parameters(), strict=True):
                a += max(1 - decay, 1 / t) * (p - a)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    valid = Evaluator(task, CPU).valid
    assert evaluate(applied, model, valid) == pytest.approx(evaluate(task, average, valid), rel=1e-6)


def test_frozen_batch_norm_stays_frozen() -> None:
    def frozen() -> nn.Module:
        model = mlp_with_state()
        model[1].eval()
        return model

    applied = WeightAveraging().apply(toy(model=frozen), TOY)
    model = make_model(applied, CPU)
    step = make_step(applied, model, applied.optimizer(model, 0.1))
    step(toy().train)
    evaluate(applied, model, [toy().valid])
    with averaged(model):
        assert torch.equal(model[1].running_mean, torch.zeros(8))


def test_who_is_refused() -> None:
    assert "shard" in (WeightAveraging().why_not(toy(shard=True), TOY) or "")
    assert "half-life" in (WeightAveraging(half_life_epochs=0.0).why_not(toy(), TOY) or "")


def test_the_test_set_is_evaluated_at_the_best_average() -> None:
    """The weights of the best evaluation are put back whole: average, and batch norm's statistics of it."""
    task = toy(model=mlp_with_state, test=examples(20, seed=1))
    applied = WeightAveraging().apply(task, TOY)
    result = train(applied, spec_of(applied, TOY, WeightAveraging(), budget=460, cadence=46), device=CPU)
    best = min(result.trace, key=lambda line: line.validation["loss"])
    assert result.test == best.validation  # the test set of this task is its validation set


@pytest.mark.parametrize(
    "remedy", [WeightAveraging(), together(WeightAveraging(), LabelSmoothing())], ids=lambda r: r.name
)
def test_it_trains_digits_and_resumes(remedy, tmp_path) -> None:
    resumes(remedy, toy(model=mlp_with_state, test=examples(9)), tmp_path)
    trains_digits(remedy)


def test_it_helps_where_steps_are_noisy() -> None:
    """Small batches at a high constant rate: the average's loss is below that of the weights themselves."""
    task = digits.task()
    case = Case(batch_size=8, own_batch_size=8, own_learning_rate=0.4, train_size=1024)
    losses = []
    for made in (task, WeightAveraging().apply(task, case)):
        result = train(made, TrialSpec(Arm(8, 0.4), 1, StopRule(6 * 1024, 1024)), device=CPU)
        losses.append(sum(line.validation["loss"] for line in result.trace[-4:]) / 4)
    assert losses[1] < losses[0]
