"""Is the noise scale beside a trial that of its gradients, and the trial the same without it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from batchscope.measure.beside import MOST_MEASUREMENTS, NoiseBeside
from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.task import Batch, Task
from batchscope.tasks import noisy_quadratic
from batchscope.testing.examples import bits
from batchscope.training.loop import train
from toys import CPU, mlp_with_state, toy, trial

BUDGET = 8192  # examples: two epochs


def spec(batch_size: int) -> TrialSpec:
    return TrialSpec(Arm(batch_size, 0.2), 0, StopRule(BUDGET, BUDGET))


@pytest.mark.parametrize(("batch_size", "every"), [(8, 2), (32, 1), (128, 1)])
def test_the_scale_is_the_exact_one_along_the_run(batch_size: int, every: int) -> None:
    """tr(Sigma) over the mean of |H w|^2 at the weights of every step; a tenth more or less is left by the batches."""
    task = noisy_quadratic.task()
    beside, squares = NoiseBeside(task, spec(batch_size)), []

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
        assert isinstance(model, noisy_quadratic.Quadratic)
        measure = beside(model, optimizer)

        def step(batch: Batch) -> None:
            squares.append(float((model.curvature * model.w.detach()).square().sum()))
            measure(batch)

        return step

    train(task, spec(batch_size), device=CPU, watch=watch)
    scale, exact = beside.scale(), noisy_quadratic.NOISE_TRACE * len(squares) / sum(squares)
    assert beside.every == every == max(1, len(squares) // MOST_MEASUREMENTS)
    assert scale is not None
    assert scale.estimate == pytest.approx(exact, rel=0.2)
    assert scale.low is not None
    assert scale.high is not None
    assert scale.low / 1.2 <= exact <= scale.high * 1.2


@pytest.mark.parametrize("task", [toy(), toy(model=mlp_with_state)], ids=["plain", "batch norm and dropout"])
def test_the_trial_is_the_same_bits(task: Task) -> None:
    asked = trial()
    watched = train(task, asked, device=CPU, watch=NoiseBeside(task, asked))
    assert bits(dataclasses.replace(watched, seconds=0.0)) == bits(
        dataclasses.replace(train(task, asked, device=CPU), seconds=0.0)
    )


def test_micro_batches_are_watched_too() -> None:
    task, asked = toy(), trial(budget=20 * 46, micro=2)
    beside = NoiseBeside(task, asked)
    train(task, asked, device=CPU, watch=beside)
    assert beside.scale() is not None


def test_no_hook_is_left_in_the_model() -> None:
    task, asked, models = toy(), trial(), []
    beside = NoiseBeside(task, asked)

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Batch], None]:
        models.append(model)
        return beside(model, optimizer)

    train(task, asked, device=CPU, watch=watch)
    beside.scale()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in models[0].modules()]
    assert sum(hooks) == 0


def test_nothing_measured_is_none() -> None:
    task = noisy_quadratic.task()
    assert NoiseBeside(task, spec(32)).scale() is None
    one_step = TrialSpec(Arm(4096, 0.2), 0, StopRule(4096, 4096))
    beside = NoiseBeside(task, one_step)
    train(task, one_step, device=CPU, watch=beside)
    assert beside.scale() is None
