"""Scaled rates against their closed forms, at every step, over any schedule beneath."""

import dataclasses
import math

import pytest
import torch
from runs import TOY, resumes, trains_digits
from torch.optim import lr_scheduler as schedules

from batchscope.remedies.scaling import LinearScaling, SquareRootScaling, WarmUp, linear, square_root
from toys import mlp, mlp_with_state, sgd, toy

BENEATH = {
    "constant": None,
    "cosine": schedules.CosineAnnealingLR,  # each rate from the last one
    "milestones": lambda optimizer, steps: schedules.MultiStepLR(optimizer, [3, 9]),
    "exponential": lambda optimizer, steps: schedules.ExponentialLR(optimizer, 0.9),
    "one cycle": lambda optimizer, steps: schedules.OneCycleLR(optimizer, 0.4, total_steps=steps),
    "lambda": lambda optimizer, steps: schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


def rates(schedule, lr, steps):
    """The rate of each step of a schedule, None: a constant one."""
    optimizer = sgd(mlp(), lr)
    scheduler = schedule(optimizer, steps) if schedule is not None else None
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return seen


def test_rules() -> None:
    assert linear(0.1, 16) == pytest.approx(1.6)
    assert square_root(0.1, 16) == pytest.approx(0.4)
    assert LinearScaling().apply(toy(), TOY).lr == pytest.approx(8 * TOY.own_learning_rate)
    assert SquareRootScaling().apply(toy(), TOY).lr == pytest.approx(math.sqrt(8) * TOY.own_learning_rate)


@pytest.mark.parametrize("name", BENEATH)
def test_every_rate_is_the_schedules_times_the_factor(name: str) -> None:
    """46 examples in batches of 16: 3 steps an epoch, so 5 epochs are 15 steps, of which a tenth of 100 is left."""
    task = toy(schedule=BENEATH[name])
    applied = LinearScaling().apply(task, TOY)
    beneath = rates(task.schedule, applied.lr, 100)
    factors = [1 / 8 + 7 / 8 * t / 10 if t < 10 else 1.0 for t in range(100)]
    assert rates(applied.schedule, applied.lr, 100) == pytest.approx(
        [f * r for f, r in zip(factors, beneath, strict=True)]
    )


def test_it_begins_at_the_small_batchs_rate_and_lasts_five_epochs() -> None:
    applied = SquareRootScaling().apply(toy(), TOY)
    seen = rates(applied.schedule, applied.lr, 1000)
    assert seen[0] == pytest.approx(TOY.own_learning_rate)
    assert [rate == applied.lr for rate in seen].index(True) == 15


def test_no_warm_up_where_the_rate_does_not_grow() -> None:
    smaller = dataclasses.replace(TOY, batch_size=1)
    assert LinearScaling().apply(toy(), smaller).schedule is None
    assert LinearScaling(warm_up_epochs=0.0).apply(toy(), TOY).schedule is None
    assert "warm-up" in (LinearScaling(warm_up_share=2.0).why_not(toy(), TOY) or "")


def test_rates_that_are_tensors_stay_so() -> None:
    optimizer = torch.optim.Adam(mlp().parameters(), lr=torch.tensor(0.25))
    tensor = optimizer.param_groups[0]["lr"]
    warm = WarmUp(optimizer, steps=2, first=0.5)
    assert (float(tensor), warm.get_last_lr()) == (0.125, [0.125])
    optimizer.step()
    warm.step()
    assert float(tensor) == 0.1875
    assert optimizer.param_groups[0]["lr"] is tensor


@pytest.mark.parametrize("name", ["constant", "cosine", "one cycle"])
def test_interrupted_in_the_warm_up_it_goes_on_with_the_same_bits(name, tmp_path) -> None:
    remedy = LinearScaling(warm_up_share=0.7)
    resumes(remedy, toy(model=mlp_with_state, schedule=BENEATH[name], batch_size=2), tmp_path)


@pytest.mark.parametrize("remedy", [LinearScaling(), SquareRootScaling()], ids=lambda r: r.name)
def test_it_trains_digits(remedy) -> None:
    trains_digits(remedy)
