"""Does an executor keep its contract (`batchscope.sweep.executors.base`)? Subclass, say how to open one, run pytest.

    class TestMyExecutor(ExecutorContract):
        def open(self, reference):
            return MyExecutor(reference)

Jobs are trials of the built-in task `noisy-quadratic`: short ones of 16 steps, and an endless one to be killed in.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator

import pytest

from batchscope import load_task
from batchscope.records import Arm, StopRule, TrialResult, TrialSpec, from_plain
from batchscope.sweep.executors.base import Died, Done, Event, Executor, Line, Refused
from batchscope.sweep.jobs import Job, Workbench, trial_job
from batchscope.testing.examples import bits

TASK = "noisy-quadratic"
SHORT = StopRule(budget_examples=1024, cadence_examples=256)
SLOW = StopRule(budget_examples=1024 * 64, cadence_examples=1024 * 16)  # still running when the next jobs are given
ENDLESS = StopRule(budget_examples=10**9, cadence_examples=256)
PATIENCE_SECONDS = 120.0  # a worker that says nothing for so long on a busy machine is broken


class ExecutorContract:
    """The tests. `open` is the one method to write; where jobs run in processes of their own, `kill_worker` too."""

    def open(self, reference: str) -> Executor:
        """An executor for the task that this reference names."""
        raise NotImplementedError("a subclass of ExecutorContract says how to open its executor")

    has_workers = False  # whether jobs run in processes of their own

    def kill_worker(self, executor: Executor, job: str) -> None:
        """Kill -9 the process that does this job."""
        raise NotImplementedError("a subclass of ExecutorContract that has workers says how to kill one")

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls) -> Generator[Executor]:
        """One for all tests but those that close it: workers may take seconds to start."""
        with cls().open(TASK) as executor:
            yield executor

    def job(self, name: str, seed: int = 0, stop: StopRule = SHORT) -> Job:
        """One trial."""
        return trial_job(name, TrialSpec(Arm(64, 0.4), seed, stop), None, 1, "fp32", None, 1e9)

    def ends(self, executor: Executor, count: int) -> dict[str, Event]:
        """Wait for the ends of so many jobs: job -> its last event."""
        found: dict[str, Event] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found) < count:
            assert time.monotonic() < deadline, f"{found} and no more within {PATIENCE_SECONDS} s"
            for event in executor.events(1.0):
                assert event.job not in found, f"{event} after the end of its job"
                if not isinstance(event, Line):
                    found[event.job] = event
        return found

    def result(self, event: Event) -> TrialResult:
        """What a `Done` trial gave, without its clock reading."""
        assert isinstance(event, Done), event
        return dataclasses.replace(from_plain(TrialResult, event.result), seconds=0.0)

    def test_trials_are_done_one_after_another_and_are_the_same_bits_as_anywhere(self, executor: Executor) -> None:
        bench = Workbench(load_task(TASK))
        for seed in (0, 1):
            executor.start(self.job(f"{seed}", seed))
            result = self.result(self.ends(executor, 1)[f"{seed}"])
            truth = from_plain(TrialResult, bench.do(self.job("truth", seed), lambda line: None))
            assert bits(result) == bits(dataclasses.replace(truth, seconds=0.0))
            assert len(result.trace) == 5

    def test_every_slot_takes_one_job(self, executor: Executor) -> None:
        for slot in range(executor.slots):
            executor.start(self.job(f"{slot}", stop=SLOW))
        with pytest.raises(RuntimeError, match="busy"):
            executor.start(self.job("one too many"))
        assert set(self.ends(executor, executor.slots)) == {f"{slot}" for slot in range(executor.slots)}
        executor.start(self.job("another"))
        self.result(self.ends(executor, 1)["another"])

    def test_a_job_that_cannot_be_done_is_refused_and_costs_nothing_else(self, executor: Executor) -> None:
        executor.start(Job("wrong", "dancing"))
        refused = self.ends(executor, 1)["wrong"]
        assert isinstance(refused, Refused)
        assert (refused.error, "KeyError" in refused.sentence, "\n" in refused.sentence) == ("TaskError", True, False)
        executor.start(self.job("right"))
        self.result(self.ends(executor, 1)["right"])

    def test_lines_are_heard_of_with_their_trial(self, executor: Executor) -> None:
        heard: list[Event] = []
        executor.meanwhile = heard.append
        executor.start(self.job("a"))
        while not any(isinstance(event, Done) for event in heard):
            heard += executor.events(1.0)
        lines = [event.line for event in heard if isinstance(event, Line)]
        assert [line["examples"] for line in lines] == [0, 256, 512, 768, 1024]
        assert all(isinstance(line["loss"], float) for line in lines)
        assert {event.job for event in heard} == {"a"}

    def test_without_a_job_nothing_happens(self, executor: Executor) -> None:
        assert executor.events(0.01) == []

    def test_closing_ends_everything_and_may_be_done_twice(self) -> None:
        executor = self.open(TASK)
        executor.start(self.job("endless", stop=ENDLESS))
        started = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - started < 10
        assert not [event for event in executor.events(0.01) if not isinstance(event, Line)]

    def test_a_killed_worker_costs_its_own_job_only(self, executor: Executor) -> None:
        if not self.has_workers:
            pytest.skip("jobs run in the caller's own process: there is no worker to kill")
        executor.start(self.job("endless", stop=ENDLESS))
        while not any(isinstance(event, Line) for event in executor.events(1.0)):
            pass
        self.kill_worker(executor, "endless")
        died = self.ends(executor, 1)["endless"]
        assert isinstance(died, Died)
        assert "SIGKILL" in died.reason
        for slot in range(executor.slots):
            executor.start(self.job(f"{slot}"))
        for event in self.ends(executor, executor.slots).values():
            self.result(event)
