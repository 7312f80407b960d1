"""At which address do ranks meet? At the one that whoever starts them says they reach rank 0 at."""

from __future__ import annotations

import queue
from typing import Any

import pytest
import torch

from batchscope.records import Arm, StopRule, TrialSpec
from batchscope.sweep import jobs
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.executors.launched import OwnWorker
from batchscope.sweep.executors.local import LocalWorker
from batchscope.sweep.executors.seat import Seat
from batchscope.sweep.executors.workers import Said
from batchscope.sweep.launch import Launch
from batchscope.sweep.messages import Job, TaskReference

NOBODY = TaskReference("a task", "", (), "")


class Noting:
    """A worker that keeps what it is given."""

    alive, placed, pid = True, True, 0

    def __init__(self, host: str) -> None:
        self.host, self.job, self.given = host, None, []

    def introduce(self, task: TaskReference) -> None: ...

    def give(self, job: Job) -> None:
        self.given.append(job.details)

    def kill(self) -> None: ...

    def wait(self, seconds: float) -> None: ...


def shared_trial() -> Job:
    spec = TrialSpec(Arm(8, 0.01, replicas=2), 0, StopRule(96, 48))
    return jobs.trial_job("a trial", spec, None, 1, "fp32", None, 0.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "node7"])
def test_all_ranks_are_told_where_rank_zero_is(host: str) -> None:
    workers: list[Noting] = []

    def hire(events: Any) -> Any:
        workers.append(Noting(host if not workers else "elsewhere"))
        return workers[-1]

    with GroupExecutor(NOBODY, 2, hire=hire) as group:
        group.start(shared_trial())
        group._events.put((0, Said("a trial", "port", {"port": 7})))
        group.events(0.1)
    assert [given["host"] for given in workers[0].given] == [host]
    assert [given["meet"] for given in workers[1].given] == [[host, 7]]


def test_a_launched_rank_zero_is_where_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one of our own starting is on this machine."""
    assert LocalWorker.host == "127.0.0.1"
    monkeypatch.setattr(LocalWorker, "__init__", lambda worker, events: None)
    assert OwnWorker(queue.Queue(), Launch(0, 2, 0, "node7", 29500)).host == "node7"


def test_a_ray_actor_says_its_own_node() -> None:
    """Only to rank 0: the driver does not know the node when it gives the job."""
    seat = Seat.__new__(Seat)
    seat._host, seat._worker = "10.0.0.5", Noting("")
    for rank in (0, 1):
        seat.give(Job("a trial", "trial", {"rank": rank, "host": ""}))
    assert [given["host"] for given in seat._worker.given] == ["10.0.0.5", ""]


def test_a_job_of_one_device_leaves_the_group_of_the_last_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """But no group that this process has for other reasons: a notebook's own, say."""
    left, device = [], torch.device("cpu")
    monkeypatch.setattr(jobs, "part_ways", lambda: left.append(1))
    monkeypatch.setattr(jobs, "leave_place", lambda: device)
    monkeypatch.setattr(jobs.Workbench, "_facts", lambda *_: "facts")
    bench = jobs.Workbench(None)
    assert bench.do(Job("a", "facts", {}), print) == "facts"
    assert left == []
    bench._work_on(device, True)
    bench.do(Job("b", "facts", {}), print)
    bench.do(Job("c", "facts", {}), print)
    assert left == [1]
