"""Does a large batch only need more time? Train longer: as many steps as the small batch, over more examples.

At equal epochs a batch k times as large takes 1 / k of the steps, and the weights stay closer to where they began:
Hoffer, Hubara and Soudry 2017 find their distance to grow as the logarithm of the steps. Their regime adaptation makes
every phase of the schedule k times as many epochs long, so that the steps are the same and the gap between the
batch sizes all but closes (with ghost batch norm and a rate scaled by sqrt(k) beside it, which here are remedies of
their own).

It is no remedy where examples or seconds on one device are what counts, and is named so that the others can be told
from it: what trains k times as long may well be better for that alone. A task's schedule follows the longer budget, as
it follows every budget.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from batchscope.remedies.base import Case, Remedy
from batchscope.task import Task


@dataclass(frozen=True)
class TrainLonger(Remedy):
    """More epochs, with nothing else changed.

    Attributes:
        times: as many examples as other candidates may use; None: k, how many times larger the batch is.
    """

    title: ClassVar[str] = "train longer"
    source: ClassVar[str] = "hoffer2017"
    changes: ClassVar[str] = "A trial may use k times as many examples, and so makes as many steps as the small batch."
    cost: ClassVar[str] = "k times the examples, for a batch k times as large."
    sets: ClassVar[tuple[str, ...]] = ("training length",)

    times: float | None = None

    def why_not(self, task: Task, case: Case) -> str | None:
        """A training that is not longer."""
        if not 1 < self.length(case) < math.inf:
            return f"{self.title} expects more than once the examples, got {self.length(case):g} times: leave it out"
        return None

    def apply(self, task: Task, case: Case) -> Task:
        """The same task at the baseline's learning rate; the length is the trial's (`length`)."""
        return dataclasses.replace(task, lr=case.own_learning_rate)

    def length(self, case: Case) -> float:
        """k, or `times`."""
        return case.times if self.times is None else self.times


REMEDIES = (TrainLonger(),)
