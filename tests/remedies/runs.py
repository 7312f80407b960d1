"""How are remedies tried? The case of a batch eight times as large, and a trial stopped and resumed at evaluations."""

from __future__ import annotations

from pathlib import Path

from batchscope.records import Arm, Evaluation, StopRule, TrialResult, TrialSpec
from batchscope.remedies.base import Case, Remedy
from batchscope.task import Task
from batchscope.tasks import digits
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.loop import Evaluator, train
from toys import CPU, SIZE

TOY = Case(batch_size=16, own_batch_size=2, own_learning_rate=0.05, train_size=SIZE)
DIGITS = Case(batch_size=256, own_batch_size=32, own_learning_rate=0.1, train_size=1024)


class Stopped(BaseException):
    """What a kill does, as far as a test can: nothing in the loop may catch it."""


def spec_of(task: Task, case: Case, remedy: Remedy, budget: int, cadence: int, seed: int = 1) -> TrialSpec:
    """A trial at the rate that the remedy begins with."""
    return TrialSpec(Arm(case.batch_size, task.lr, remedy=remedy.name), seed, StopRule(budget, cadence))


def interrupted(task: Task, spec: TrialSpec, path: Path, evaluator: Evaluator) -> tuple[TrialResult, int]:
    """The trial, stopped at every second evaluation and resumed; and how often it was."""
    stops = 0
    while True:
        seen = 0

        def stop_at_the_third(line: Evaluation) -> None:
            nonlocal seen
            seen += 1
            if seen == 3:
                raise Stopped

        try:
            result = train(
                task,
                spec,
                device=CPU,
                evaluator=evaluator,
                on_evaluation=stop_at_the_third,
                checkpoint=Checkpoint(path, seconds=0),
            )
        except Stopped:
            stops += 1
        else:
            return result, stops


def resumes(remedy: Remedy, task: Task, path: Path, case: Case = TOY) -> None:
    """A trial with the remedy that is stopped and resumed is the same bits as one that was not."""
    applied = remedy.apply(task, case)
    spec = spec_of(applied, case, remedy, budget=8 * case.train_size, cadence=case.train_size)
    evaluator = Evaluator(applied, CPU)
    straight = train(applied, spec, device=CPU, evaluator=evaluator)
    assert straight.outcome == "not_reached", straight.reason
    again, stops = interrupted(remedy.apply(task, case), spec, path / "trial.pt", evaluator)
    assert stops > 2
    assert repr(again.trace) == repr(straight.trace)
    assert again.test == straight.test


def trains_digits(remedy: Remedy, task: Task | None = None) -> TrialResult:
    """Eight epochs of digits with the remedy: data untouched, and the loss falls."""
    own = task or digits.task()
    assert remedy.why_not(own, DIGITS) is None
    applied = remedy.apply(own, DIGITS)
    assert applied is not own
    for part in ("train", "valid", "test", "goal", "name", "metrics", "unit", "batch_size"):
        assert getattr(applied, part) is getattr(own, part)
    spec = spec_of(applied, DIGITS, remedy, budget=8 * 1024, cadence=1024)
    result = train(applied, spec, device=CPU)
    assert result.outcome == "not_reached", result.reason
    assert result.trace[-1].validation["loss"] < 0.95 * result.trace[0].validation["loss"]
    return result
