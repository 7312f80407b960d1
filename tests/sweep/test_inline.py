"""Does the executor of one's own process keep the contract, and leave the process as it was?"""

from __future__ import annotations

import pytest
import torch

from batchscope.sweep.executors.base import Executor
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.jobs import Job
from batchscope.task import load_task
from batchscope.testing.executor_contract import ExecutorContract

from .small_runs import SMALL


class TestInlineContract(ExecutorContract):
    def open(self, reference: str) -> Executor:
        return InlineExecutor(load_task(reference))


def test_the_caller_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with InlineExecutor(load_task(f"{SMALL}:task")) as executor:
        executor.start(Job("t", "threads", {"batch_sizes": [16]}))
        executor.events(0.0)
        torch.set_num_threads(3)
    assert torch.get_num_threads() == before


def test_ctrl_c_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with InlineExecutor(load_task(f"{SMALL}:task")) as executor:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("batchscope.sweep.jobs.Workbench.do", stop)
        executor.start(Job("t", "threads"))
        with pytest.raises(KeyboardInterrupt):
            executor.events(0.0)
