"""Is what cannot be studied refused in a sentence, and what was measured before kept?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from batchscope.errors import CannotAnswer, TaskError, UsageError
from batchscope.sweep.executors.base import Died
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.jobs import Job
from batchscope.task import Task
from batchscope.verbs.machine import call

from .conftest import Ask
from .studies import Heard, hearing, kinds


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"policy": "best"}, 'expected policy "held", "tuned" or "both", got \'best\''),
        ({"seeds": 0}, "expected at least one seed, got 0"),
        ({"seeds": 801}, "expected at most 800 seeds, got 801"),
        ({"seed": -1}, "expected a seed from 0 up, got -1"),
        ({"patience": 0}, "expected patience in epochs above 0, got 0"),
        ({"patience": math.nan}, "expected patience in epochs above 0, got nan"),
        ({"budget": 0}, "expected a budget in reference runs above 0, got 0"),
        ({"budget": math.nan}, "expected a budget in reference runs above 0, got nan"),
        ({"batch_sizes": ()}, "expected at least one batch size, got none"),
        ({"batch_sizes": (0,)}, "got 0: remove it"),
        ({"batch_sizes": (16, 16)}, "expected each batch size once, got 16 2 times"),
        ({"batch_sizes": (257,)}, "expected batch sizes up to the 256 training examples of 'small', got 257"),
    ],
    ids=str,
)
def test_a_malformed_call_is_refused_before_anything_is_stored(
    small: Task, ask: Ask, path: Path, asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ask(small, **asked)
    assert expected in str(caught.value)
    assert not path.exists()


def test_something_else_than_a_task_is_refused(ask: Ask) -> None:
    with pytest.raises(UsageError, match=r"expected a task reference or a bs.Task, got int: write study\('digits'\)"):
        ask(3)


def test_a_job_whose_worker_dies_twice_is_no_answer(small: Task) -> None:
    class Dying(InlineExecutor):
        deaths = 0

        def events(self, timeout: float) -> list[Any]:
            (job, self._job), self.deaths = (self._job, None), self.deaths + 1
            assert job is not None
            return [Died(job.id, "it was too large")]

    executor = Dying(small)
    with pytest.raises(CannotAnswer, match="do the task's timing job, it died twice: it was too large"):
        call(executor, Job("timing", "timing"))
    assert executor.deaths == 2


def test_a_task_that_cannot_be_timed_keeps_its_trials(small: Task, ask: Ask, path: Path) -> None:
    """The user's code raises in a job that is not a trial: a sentence, and everything measured is there."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchscope.sweep.jobs.time_steps", broken)
        with pytest.raises(TaskError, match="the task's timing job raised RuntimeError: no such kernel"):
            ask(small, policy="held")
    heard: Heard = []
    ask(small, policy="held", listen=hearing(heard))
    assert kinds(heard, "started") == []
