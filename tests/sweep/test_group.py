"""Does a trial on several ranks end on all of them when one dies, raises or hangs, and does it say which?"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from batchscope.records import Arm, StopRule, TrialResult, TrialSpec, from_plain
from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.jobs import Job, TaskReference, trial_job
from batchscope.task import load_task
from batchscope.testing.examples import bits
from batchscope.testing.executor_contract import ExecutorContract
from batchscope.training.fingerprint import fingerprint

from .processes import alive

TASK = str(Path(__file__).parent / "rank_task.py")
IN_TIME = 30.0  # seconds from a rank's end to that of the trial
STALL = 4.0
LONG = 96 * 30  # examples of a trial that is killed on its way


class TestGroupContract(ExecutorContract):
    """Jobs that are not of several ranks."""

    def open(self, reference: str) -> GroupExecutor:
        return GroupExecutor(reference_of(reference), 2)

    has_workers = True

    def kill_worker(self, executor: Executor, job: str) -> None:
        assert isinstance(executor, GroupExecutor)
        os.kill(executor.processes[0], signal.SIGKILL)


def reference_of(name: str) -> TaskReference:
    return TaskReference.here(name, fingerprint(load_task(name))[0])


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Generator[GroupExecutor]:
    """Two ranks for all tests: they take seconds to start, and start again after an end."""
    folder = tmp_path_factory.mktemp("told")
    before = os.environ.get("BATCHSCOPE_TEST_FOLDER")
    os.environ["BATCHSCOPE_TEST_FOLDER"] = str(folder)
    with GroupExecutor(reference_of(TASK), 2, stall=STALL) as executor:
        yield executor
    os.environ.pop("BATCHSCOPE_TEST_FOLDER")
    if before is not None:
        os.environ["BATCHSCOPE_TEST_FOLDER"] = before


def job(name: str, budget: int = 96 * 20, checkpoint: str | None = None) -> Job:
    spec = TrialSpec(Arm(8, 0.01, replicas=2), 0, StopRule(budget, 48))
    return trial_job(name, spec, None, 1, "fp32", checkpoint, 0.0)


def end(executor: GroupExecutor, seconds: float = 90.0) -> Event:
    """The job's last event."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for event in executor.events(0.5):
            if not isinstance(event, Line):
                return event
    raise AssertionError(f"no end within {seconds} s")


def tell(what: str) -> None:
    (Path(os.environ["BATCHSCOPE_TEST_FOLDER"]) / f"do-{what}").touch()


def result(event: Event) -> TrialResult:
    assert isinstance(event, Done), event
    return dataclasses.replace(from_plain(TrialResult, event.result), seconds=0.0)


def test_a_trial_runs_on_both_ranks_and_again_with_the_same_bits(group: GroupExecutor) -> None:
    found = []
    for name in ("first", "again"):
        group.start(job(name))
        found.append(result(end(group)))
    assert len(group.processes) == 2
    assert bits(found[0]) == bits(found[1])
    assert len(found[0].trace) == 41
    assert found[0].trace[-1].validation["loss"] < 0.1 * found[0].trace[0].validation["loss"]


def test_a_killed_rank_ends_the_trial_on_all_and_is_named(group: GroupExecutor, tmp_path: Path) -> None:
    """And tried again from its checkpoint it has the same bits as in one go."""
    group.start(job("whole", LONG))
    whole, path = result(end(group)), str(tmp_path / "c.pt")
    group.start(job("killed", LONG, path))
    while not Path(path).exists():
        group.events(0.01)
    ranks = group.processes
    os.kill(ranks[1], signal.SIGKILL)
    event = end(group, IN_TIME)
    assert isinstance(event, Died)
    assert event.reason.startswith("rank 1 of 2: the worker process was ended by SIGKILL")
    assert not any(map(alive, ranks))
    group.start(job("again", LONG, path))
    assert bits(result(end(group))) == bits(whole)


def test_a_rank_that_raises_ends_the_trial_on_all_and_is_named(group: GroupExecutor) -> None:
    group.start(job("well"))  # so that both ranks are there
    end(group)
    ranks = group.processes
    tell("raise")
    group.start(job("raises"))
    found = result(end(group, IN_TIME))
    assert (found.outcome, found.reason) == ("failed", "rank 1 of 2: ValueError: the eleventh is too much")
    assert not any(map(alive, ranks))


def test_a_rank_that_sleeps_for_ever_ends_the_trial_on_all_and_is_named(group: GroupExecutor) -> None:
    tell("sleep")
    group.start(job("sleeps"))
    event = end(group, IN_TIME + 20.0)  # with the start of both ranks
    assert isinstance(event, Died)
    assert "rank 1 of 2 at rank_task.py:" in event.reason
    assert "(misbehave)" in event.reason
    assert "rank 0" not in event.reason


def test_a_rank_that_computes_for_long_is_not_taken_for_one_that_hangs(group: GroupExecutor) -> None:
    tell(f"think-{STALL + 2.0}")
    group.start(job("thinks"))
    assert result(end(group)).outcome == "not_reached"
