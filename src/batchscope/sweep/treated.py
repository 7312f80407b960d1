"""What is trained where an arm names a remedy? The task with the remedy, and who decides during the trial."""

from __future__ import annotations

from batchscope.errors import UsageError
from batchscope.records import Arm
from batchscope.records.matching import NO_REMEDY
from batchscope.remedies.base import Case, by_name
from batchscope.task import Task
from batchscope.training.control import MakeControl


def case_of(task: Task, arm: Arm) -> Case:
    """The large batch and the small one. Raises UsageError for an arm that does not say which the small one is."""
    if arm.own_batch_size is None or arm.own_learning_rate is None:
        raise UsageError(
            f"expected the baseline's batch size and learning rate of an arm with the remedy {arm.remedy!r}, got none: "
            "write Arm(..., own_batch_size=64, own_learning_rate=0.1)"
        )
    return Case(arm.batch_size, arm.own_batch_size, arm.own_learning_rate, task.train_size)


def treated(task: Task, arm: Arm) -> tuple[Task, MakeControl | None]:
    """The task as the arm's remedy makes it (its learning rate is the arm's all the same), and its control."""
    if arm.remedy == NO_REMEDY:
        return task, None
    remedy, case = by_name(arm.remedy), case_of(task, arm)
    return remedy.apply(task, case), remedy.control(task, case)


def grows(arm: Arm) -> bool:
    """Whether its batch changes during a trial."""
    return arm.remedy != NO_REMEDY and "batch size" in by_name(arm.remedy).sets
