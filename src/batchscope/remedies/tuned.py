"""What does re-tuning the learning rate do by itself? The plain large batch: the candidate that all others must beat.

Many remedies only beat a large batch at the small one's learning rate. Shallue et al. 2019 find no loss of quality at a
large batch size where the learning rate is tuned again for it (and momentum and schedule, which stay here).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from batchscope.remedies.base import Case, Remedy
from batchscope.task import Task


@dataclass(frozen=True)
class Tuned(Remedy):
    """No remedy but tuning. Its trials are a study's own at that batch size, and have the same name in the store."""

    title: ClassVar[str] = "none"  # Arm.remedy's default
    source: ClassVar[str] = "shallue2019"
    changes: ClassVar[str] = "Nothing but the learning rate, which is tuned again."
    cost: ClassVar[str] = "Nothing."
    sets: ClassVar[tuple[str, ...]] = ()

    def apply(self, task: Task, case: Case) -> Task:
        """The same task; tuning begins at the baseline's learning rate."""
        return dataclasses.replace(task, lr=case.own_learning_rate)


REMEDIES = (Tuned(),)
