"""Train longer: as many steps as the small batch, and nothing else."""

import dataclasses
import math

import pytest
import torch
from runs import TOY, resumes, spec_of, trains_digits

from batchscope.remedies.base import Case, by_name, together
from batchscope.remedies.scaling import SquareRootScaling
from batchscope.remedies.train_longer import TrainLonger
from batchscope.training.loop import train
from toys import CPU, SIZE, toy


def test_as_many_steps_as_the_small_batch_and_the_schedule_with_them() -> None:
    case = Case(batch_size=23, own_batch_size=2, own_learning_rate=0.05, train_size=SIZE)
    remedy, budget, horizons = TrainLonger(), 3 * SIZE, []

    def schedule(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        horizons.append(total_steps)
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_steps)

    assert remedy.length(case) == case.times == 11.5
    task = remedy.apply(toy(schedule=schedule), case)
    own = spec_of(task, dataclasses.replace(case, batch_size=2), remedy, budget=budget, cadence=budget)
    longer = spec_of(task, case, remedy, budget=round(remedy.length(case) * budget), cadence=budget)
    steps = [train(task, spec, device=CPU).steps for spec in (own, longer)]
    assert steps == horizons == [69, 69]


def test_the_task_is_the_same_but_for_the_rate() -> None:
    own = toy(lr=7.0)
    applied = TrainLonger().apply(own, TOY)
    assert applied is not own
    assert applied == dataclasses.replace(own, lr=TOY.own_learning_rate)


def test_together_lengths_multiply() -> None:
    remedy = together(TrainLonger(times=3.0), SquareRootScaling())
    assert remedy.length(TOY) == 3
    assert remedy.name == by_name(remedy.name).name
    assert "train longer (times=3.0)" in remedy.name
    assert TrainLonger().length(TOY) == 8


@pytest.mark.parametrize("times", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_no_longer_is_refused(times: float) -> None:
    assert "more than once" in (TrainLonger(times=times).why_not(toy(), TOY) or "")


def test_the_small_batch_itself_is_refused() -> None:
    assert TrainLonger().why_not(toy(), TOY) is None
    assert "1 times" in (TrainLonger().why_not(toy(), dataclasses.replace(TOY, batch_size=2)) or "")


def test_it_trains_digits_and_resumes(tmp_path) -> None:
    resumes(TrainLonger(), toy(), tmp_path)
    trains_digits(TrainLonger())
