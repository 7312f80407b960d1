"""Weight decay averages over as many epochs as before, at every rate; weights that no gradient moves show it."""

import dataclasses
import math

import pytest
import torch
from runs import TOY, resumes, trains_digits

from batchscope.remedies.base import together
from batchscope.remedies.lamb import Lamb
from batchscope.remedies.scaling import LinearScaling
from batchscope.remedies.weight_decay import WeightDecayRescaled, averaging_epochs, rescaled
from batchscope.tasks import digits
from toys import mlp, sgd, toy


def decayed(kind):
    return lambda model, lr: kind(model.parameters(), lr=lr, weight_decay=0.02)


@pytest.mark.parametrize("lr", [0.05, 0.2])
def test_the_averaging_time_in_epochs_stays(lr: float) -> None:
    new = rescaled(0.02, TOY.times, TOY.own_learning_rate, lr)
    before = averaging_epochs(TOY.own_learning_rate, 0.02, TOY.own_batch_size, TOY.train_size)
    assert averaging_epochs(lr, new, TOY.batch_size, TOY.train_size) == pytest.approx(before)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_weights_without_gradient_shrink_alike(kind) -> None:
    """k small steps, and one large step at a rate of its own: the same up to the second order of lr lambda."""
    task = toy(optimizer=decayed(kind))
    applied = WeightDecayRescaled().apply(task, TOY)
    shrunk = []
    for made, lr, steps in ((task, TOY.own_learning_rate, 8), (applied, 0.17, 1)):
        torch.manual_seed(0)
        model = mlp()
        optimizer = made.optimizer(model, lr)
        before = next(model.parameters()).detach().clone()
        for _ in range(steps):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        shrunk.append(float((next(model.parameters()).detach() / before).mean()))
    assert math.log(shrunk[1]) == pytest.approx(math.log(shrunk[0]), rel=0.01)
    assert applied.lr == TOY.own_learning_rate


def test_with_linear_scaling_it_is_what_it_was() -> None:
    both = together(WeightDecayRescaled(), LinearScaling()).apply(toy(optimizer=decayed(torch.optim.SGD)), TOY)
    assert both.lr == pytest.approx(8 * TOY.own_learning_rate)
    assert both.optimizer(mlp(), both.lr).param_groups[0]["weight_decay"] == pytest.approx(0.02)


def test_who_is_refused() -> None:
    assert "without" in (WeightDecayRescaled().why_not(toy(optimizer=sgd), TOY) or "")
    assert "use AdamW" in (WeightDecayRescaled().why_not(toy(optimizer=decayed(torch.optim.Adam)), TOY) or "")
    task = toy(optimizer=decayed(torch.optim.SGD))
    assert WeightDecayRescaled().why_not(task, TOY) is None
    assert "got Lamb" in (together(WeightDecayRescaled(), Lamb()).why_not(task, TOY) or "")


def test_it_trains_digits_and_resumes(tmp_path) -> None:
    resumes(WeightDecayRescaled(), toy(optimizer=decayed(torch.optim.AdamW)), tmp_path)
    trains_digits(
        WeightDecayRescaled(), dataclasses.replace(digits.task(), lr=0.3, optimizer=decayed(torch.optim.AdamW))
    )
