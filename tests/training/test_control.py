"""A trial whose batch size changes is held to a hand-written loop; capped, it goes on as if it had not been."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import Arm, Engine, Evaluation, StopRule, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.control import Controlled
from batchscope.training.loop import train
from batchscope.training.seeding import permutation
from toys import CPU, SIZE, Augmented, examples, mlp_with_state, toy

SPEC = TrialSpec(Arm(16, 0.05, remedy="growing"), 3, StopRule(budget_examples=5 * SIZE, cadence_examples=20))


class Growing:
    """One example more after every second step; the schedule halves the rate after ten of its own."""

    def __init__(self, made: Controlled) -> None:
        self.made, self.steps, self.size = made, 0, 3
        self.heard: list[Any] = []
        self.scheduler = made.schedule(10)

    @property
    def batch_size(self) -> int:
        return self.size

    def complete(self, batch: Batch) -> None:
        assert all(p.grad is not None for p in self.made.model.parameters())
        self.heard.append(len(batch[0]))

    def stepped(self, examples: int) -> None:
        self.steps += 1
        assert self.heard[-1] == examples
        self.size += self.steps % 2 == 0
        if self.scheduler is not None:
            self.scheduler.step()

    def looked(self, validation_loss: float) -> None:
        self.heard.append(validation_loss)
        if self.steps > 12:
            self.size = 5

    def state_dict(self) -> dict[str, Any]:
        inner = self.scheduler.state_dict() if self.scheduler is not None else None
        return {"steps": self.steps, "size": self.size, "inner": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.size = state["steps"], state["size"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["inner"])


def task_with(schedule: bool) -> Task:
    halving = (lambda o, n: torch.optim.lr_scheduler.StepLR(o, n, 0.5)) if schedule else None
    return toy(schedule=halving)


def by_hand(task: Task, trace: tuple[Evaluation, ...]) -> tuple[list[torch.Tensor], list[int]]:
    """The weights at the end, and the sizes of all batches; `trace` says at which steps there was an evaluation."""
    (x, y), looks = task.train, {line.step for line in trace if line.step}
    torch.manual_seed(SPEC.seed)
    model = task.model()
    optimizer = task.optimizer(model, SPEC.arm.learning_rate)
    scheduler = task.schedule(optimizer, 10) if task.schedule is not None else None
    sizes, size, used, epoch = [], 3, 0, 0
    while used < SPEC.stop.budget_examples:
        order, offset = permutation(SPEC.seed, epoch, SIZE), 0
        while offset < SIZE and used < SPEC.stop.budget_examples:
            alone = size > 1 and SIZE - offset == size + 1  # the last example would be left by itself
            chosen = order[offset : offset + size + alone]
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            sizes.append(len(chosen))
            offset, used = offset + len(chosen), used + len(chosen)
            size += len(sizes) % 2 == 0
            if len(sizes) in looks and len(sizes) > 12:
                size = 5
        epoch += 1
    return list(model.parameters()), sizes


@pytest.mark.parametrize("schedule", [False, True])
def test_batches_and_weights_are_those_of_a_loop_by_hand(schedule: bool) -> None:
    task, made, kept = task_with(schedule), [], []

    def control(how: Controlled) -> Growing:
        made.append(Growing(how))
        return made[-1]

    result = train(task, SPEC, device=CPU, control=control, keep=kept.append)
    weights, sizes = by_hand(task, result.trace)
    assert result.steps == len(sizes)
    assert result.examples == sum(sizes)
    assert [n for n in made[0].heard if isinstance(n, int)] == sizes
    assert len(set(sizes)) > 5
    for own, theirs in zip(kept[0].last.state.values(), weights, strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize("data", [examples(SIZE), Augmented()], ids=["tensors", "dataset"])
def test_capped_it_goes_on_bit_for_bit(tmp_path: Path, data: Any) -> None:
    task = dataclasses.replace(task_with(True), train=data)
    straight = train(task, SPEC, device=CPU, control=Growing)
    path = tmp_path / "trial.pt"
    for cap in (20, 100, None):
        spec = dataclasses.replace(SPEC, stop=dataclasses.replace(SPEC.stop, cap_examples=cap))
        begun = path.exists()
        result = train(task, spec, device=CPU, control=Growing, checkpoint=Checkpoint(path, seconds=1e9, at_cap=True))
        assert result.ended_by == ("cap" if cap else "budget")
        assert begun == (cap != 20)
    assert repr(result.trace) == repr(straight.trace)


def test_a_cap_leaves_a_checkpoint_only_where_it_is_asked_for(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, stop=dataclasses.replace(SPEC.stop, cap_examples=20))
    train(toy(), spec, device=CPU, checkpoint=Checkpoint(tmp_path / "trial.pt", seconds=1e9))
    assert not (tmp_path / "trial.pt").exists()


def test_what_it_cannot_go_with_is_refused() -> None:
    with pytest.raises(UsageError, match="expected one device and plain steps"):
        train(toy(), SPEC, device=CPU, control=Growing, engine=Engine(graphed=True))


class Steady(Growing):
    """Always nine examples: 46 of them leave one."""

    def __init__(self, made: Controlled) -> None:
        super().__init__(made)
        self.size = 9

    @property
    def batch_size(self) -> int:
        return 9


def test_no_example_is_left_by_itself() -> None:
    made: list[Steady] = []

    def control(how: Controlled) -> Steady:
        made.append(Steady(how))
        return made[-1]

    train(toy(model=mlp_with_state), SPEC, device=CPU, control=control)  # batch norm has no variance of one example
    assert [n for n in made[0].heard if isinstance(n, int)][:10] == [9, 9, 9, 9, 10] * 2


class Stuck(Growing):
    """Cannot measure what it needs."""

    def complete(self, batch: Batch) -> None:
        raise CannotAnswer("expected steps that can be measured, got none: leave the remedy out")


def test_a_control_that_cannot_go_on_fails_the_trial_only() -> None:
    result = train(toy(), SPEC, device=CPU, control=Stuck)
    assert (result.outcome, result.steps) == ("failed", 0)
    assert "expected steps that can be measured" in result.reason
