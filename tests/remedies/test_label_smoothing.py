"""Smoothed cross-entropy against its definition, in training alone: an evaluation gives the task's own numbers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from runs import TOY, resumes, trains_digits
from torch import nn

from batchscope.remedies.base import together
from batchscope.remedies.label_smoothing import LabelSmoothing, smoothed
from batchscope.remedies.lamb import Lamb
from batchscope.training.loop import Evaluator
from batchscope.training.step import evaluate
from toys import CPU, mlp, toy


def test_definition() -> None:
    output, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    wanted = 0.8 * F.one_hot(target, 4) + 0.2 / 4
    expected = -(wanted * output.log_softmax(1)).sum(1).mean()
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        torch.testing.assert_close(smoothed(loss, 0.2)(output, target), expected)
    ignoring = nn.CrossEntropyLoss(ignore_index=3)
    torch.testing.assert_close(smoothed(ignoring, 0.0)(output, target), ignoring(output, target))


def test_training_is_smoothed_and_evaluation_is_not() -> None:
    task = toy()
    applied, model = LabelSmoothing().apply(task, TOY), mlp()
    x, y = task.train
    smooth = F.cross_entropy(model(x), y, label_smoothing=0.1)
    torch.testing.assert_close(applied.batch_loss(model, (x, y)), smooth)
    valid = Evaluator(task, CPU).valid
    assert evaluate(applied, model, valid) == evaluate(task, model, valid)


def test_who_is_refused() -> None:
    remedy = LabelSmoothing()
    assert remedy.why_not(toy(), TOY) is None
    assert "got nll_loss" in (remedy.why_not(toy(loss=F.nll_loss), TOY) or "")
    assert "got MSELoss" in (remedy.why_not(toy(loss=nn.MSELoss()), TOY) or "")
    assert "step" in (remedy.why_not(toy(step=lambda model, batch: model(batch[0]).sum()), TOY) or "")
    assert "already" in (remedy.why_not(toy(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), TOY) or "")
    assert "between" in (dataclasses.replace(remedy, smoothing=1.0).why_not(toy(), TOY) or "")


@pytest.mark.parametrize("remedy", [LabelSmoothing(), together(LabelSmoothing(), Lamb())], ids=lambda r: r.name)
def test_it_trains_digits_and_resumes(remedy, tmp_path) -> None:
    resumes(remedy, toy(), tmp_path)
    trains_digits(remedy)


def test_beside_an_optimiser_the_rate_is_the_optimisers() -> None:
    assert together(LabelSmoothing(), Lamb()).apply(toy(), TOY).lr == Lamb().apply(toy(), TOY).lr
