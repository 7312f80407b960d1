"""A batch that grows inside a trial: by each rule, from the baseline's to the large one, stopped and resumed alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from runs import DIGITS, TOY

from batchscope.errors import UsageError
from batchscope.records import Arm, StopRule, TrialResult, TrialSpec
from batchscope.remedies.base import Case, by_name
from batchscope.remedies.growing_batch import RULES, GrowingBatch, GrowingControl, path_to
from batchscope.task import Task
from batchscope.tasks import digits
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.control import Controlled
from batchscope.training.loop import train
from toys import CPU, SIZE, toy

EPOCHS = 12


def trained(
    task: Task, case: Case, remedy: GrowingBatch, checkpoint: Checkpoint | None = None, cap: int | None = None
) -> tuple[TrialResult, GrowingControl]:
    made: list[GrowingControl] = []
    applied = remedy.apply(task, case)
    make = remedy.control(applied, case)

    def control(how: Controlled) -> GrowingControl:
        found = make(how)
        assert isinstance(found, GrowingControl)
        made.append(found)
        return found

    arm = Arm(case.batch_size, applied.lr, remedy=remedy.name)
    stop = StopRule(EPOCHS * case.train_size, case.batch_size, cap_examples=cap)
    result = train(applied, TrialSpec(arm, 1, stop), device=CPU, checkpoint=checkpoint, control=control)
    assert result.outcome in ("reached", "not_reached"), result.reason
    return result, made[0]


@pytest.mark.parametrize("rule", RULES)
def test_from_the_small_batch_to_the_large_one(rule: str) -> None:
    remedy = GrowingBatch(rule=rule)
    assert by_name(remedy.name) == remedy
    result, control = trained(digits.task(), DIGITS, remedy)
    changes = control.controller.changes
    least, most = EPOCHS * 1024 // DIGITS.batch_size, EPOCHS * 1024 // DIGITS.own_batch_size
    assert least < result.steps <= most
    assert all(change.after > change.before for change in changes)
    assert all(change.after <= DIGITS.batch_size for change in changes)
    assert result.trace[-1].validation["loss"] < 0.5 * result.trace[0].validation["loss"]
    if rule != "on plateau":  # twelve epochs of digits have none
        assert changes[0].before == DIGITS.own_batch_size


def test_the_learning_rate_follows_the_optimiser() -> None:
    assert isinstance(digits.task().optimizer(digits.task().model(), 0.1), torch.optim.SGD)
    _, control = trained(digits.task(), DIGITS, GrowingBatch(rule="power of the steps"))
    change = control.controller.changes[-1]
    assert change.learning_rate == pytest.approx(0.1 * change.after / DIGITS.own_batch_size)
    adam = dataclasses.replace(digits.task(), optimizer=lambda m, lr: torch.optim.Adam(m.parameters(), lr=0.01 * lr))
    _, control = trained(adam, DIGITS, GrowingBatch(rule="power of the steps"))
    change = control.controller.changes[-1]
    assert change.learning_rate == pytest.approx(0.001 * (change.after / DIGITS.own_batch_size) ** 0.5)


@pytest.mark.parametrize("rule", RULES)
def test_resumes_bit_for_bit(rule: str, tmp_path: Path) -> None:
    task = toy(schedule=lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n))
    remedy, path = GrowingBatch(rule=rule), tmp_path / "trial.pt"
    straight, _ = trained(task, TOY, remedy)
    for cap in (6 * TOY.batch_size, 15 * TOY.batch_size, None):  # where there are evaluations anyway
        result, _ = trained(task, TOY, remedy, Checkpoint(path, seconds=0, at_cap=True), cap)
    assert repr(result.trace) == repr(straight.trace)


@pytest.mark.parametrize("times", [2.0, 16.0, 64.0])
def test_the_path_uses_the_examples_and_arrives(times: float) -> None:
    first, examples = 32, 2_000_000
    path = path_to(times * first, first, examples)
    used, t = 0.0, 0
    while used < examples:
        size = first * (1 + t / path.t0) ** path.c
        used, t = used + size, t + 1
    assert size == pytest.approx(times * first, rel=0.02)


def test_what_cannot_grow_is_refused() -> None:
    remedy = GrowingBatch()
    assert "expected a batch larger" in (remedy.why_not(toy(), Case(8, 8, 0.05, SIZE)) or "")
    assert remedy.why_not(toy(), TOY) is None
    with pytest.raises(UsageError, match="expected a rule of"):
        GrowingBatch(rule="by the moon")
    with pytest.raises(UsageError, match="expected a rule of"):
        by_name("growing batch (rule='by the moon')")
