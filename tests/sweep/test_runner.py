"""Do records come out the same whatever happens to workers, leases and processes in between?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from batchscope.errors import TaskError
from batchscope.records import TrialResult, from_plain
from batchscope.store.owner import Owner
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Died, Done, Executor, Line, Refused
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.jobs import Job, Workbench
from batchscope.task import load_task
from batchscope.testing.examples import bits

from .small_runs import NEVER, SMALL, facts, run, runner, spec


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench(load_task(f"{SMALL}:task"))


class Scripted(Executor):
    """Does every job in this process at once, and then what a script says about it: "die", "wait" or nothing."""

    slots = 2

    def __init__(self, bench: Workbench, *script: str) -> None:
        self.bench, self.script, self.jobs = bench, list(script), []
        self.waiting: list[Job] = []

    def start(self, job: Job) -> None:
        self.waiting.append(job)

    def events(self, timeout: float) -> list[Any]:
        found: list[Any] = []
        for job in self.waiting:
            self.jobs.append(job)
            what = self.script.pop(0) if self.script else ""
            if what == "die":
                found.append(Died(job.id, "the worker process was ended by a script"))
            else:
                found += [Line(job.id, {"examples": 0, "loss": 1.0}), Done(job.id, self.bench.do(job, lambda _: None))]
        self.waiting = []
        return found

    def close(self) -> None:
        self.waiting = []


@pytest.fixture(scope="module")
def truth(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The small task's records, undisturbed."""
    return run(tmp_path_factory.mktemp("truth") / "a.db", Scripted(bench), SPECS, checkpoint_seconds=NEVER)


SPECS = [spec(seed, b) for seed in (0, 1) for b in (8, 16, 64)]


def heard(into: list[tuple[str, dict]]):
    return lambda kind, details: into.append((kind, details))


# --- on scripted executors ---


def test_records_come_in_the_order_asked_for_and_are_not_run_again(
    bench: Workbench, truth: list[Any], tmp_path: Path
) -> None:
    executor, events = Scripted(bench), []
    with open_store(tmp_path / "a.db") as store:
        run_ = runner(store, executor, heard(events), checkpoint_seconds=NEVER)
        found = run_.run({"held": SPECS[:4], "tuned": SPECS[2:]})
        assert [r.spec for r in found["held"]] == SPECS[:4]
        assert [facts(r) for r in found["held"]] == truth[:4]
        assert [facts(r) for r in found["tuned"]] == truth[2:]
        assert len(executor.jobs) == 6  # shared ones once
        assert [k for k, _ in events].count("finished") == 6
        events.clear()
        again = runner(store, executor, heard(events)).run({"held": SPECS[:4], "tuned": SPECS[2:]})
        assert bits(list(again.values())) == bits(list(found.values()))
    assert [k for k, _ in events] == ["phase", *["stored"] * 6]
    assert len(executor.jobs) == 6


def test_the_longest_trials_start_first(bench: Workbench, tmp_path: Path) -> None:
    executor = Scripted(bench)
    run(tmp_path / "a.db", executor, SPECS[::-1], checkpoint_seconds=NEVER)
    assert [job.details["spec"]["arm"]["batch_size"] for job in executor.jobs] == [8, 8, 16, 16, 64, 64]


def test_a_first_death_costs_an_attempt_and_a_second_the_trial(
    bench: Workbench, truth: list[Any], tmp_path: Path
) -> None:
    events: list[tuple[str, dict]] = []
    with open_store(tmp_path / "a.db") as store:
        run_ = runner(store, Scripted(bench, "die", "", "die"), heard(events))
        failed, fine = run_.run({"held": [SPECS[0], SPECS[3]]})["held"]
        assert (failed.result.outcome, failed.result.ended_by, failed.attempts) == ("failed", "failure", 2)
        assert failed.result.reason == "the worker process was ended by a script"
        assert (facts(fine), fine.attempts) == (truth[3], 1)
        ids = store.add_trials(None, "held", "f" * 16, run_.conditions, [SPECS[0], SPECS[3]])
        assert [(a.how, a.reason) for a in store.attempts(ids[0])] == [
            ("died", "the worker process was ended by a script"),
            ("finished", "the worker process was ended by a script"),
        ]
        assert [k for k, _ in events].count("died") == 2
    with open_store(tmp_path / "b.db") as store:
        (record,) = runner(store, Scripted(bench, "die")).run({"held": SPECS[:1]})["held"]
    assert (facts(record), record.attempts) == (truth[0], 2)


def test_a_refusal_ends_the_run_and_gives_the_leases_back(bench: Workbench, tmp_path: Path) -> None:
    class Refusing(Scripted):
        def events(self, timeout: float) -> list[Any]:
            return [Refused(self.waiting[0].id, "TaskError", "expected this, got that: do so")]

    with open_store(tmp_path / "a.db") as store:
        run_ = runner(store, Refusing(bench))
        with pytest.raises(TaskError, match="expected this, got that: do so"):
            run_.run({"held": SPECS})
        ids = store.add_trials(None, "held", "f" * 16, run_.conditions, SPECS)
        assert [store.lease(i, Owner.here("other"), 60).state for i in ids] == ["leased"] * 6
        assert [a.how for a in store.attempts(ids[0])] == ["interrupted", None]


def test_ctrl_c_gives_the_leases_back_and_the_next_run_goes_on(
    bench: Workbench, truth: list[Any], tmp_path: Path
) -> None:
    done: list[int] = []

    def listen(kind: str, details: dict) -> None:
        if kind == "finished":
            done.append(details["trial"])
            if len(done) == 3:
                raise KeyboardInterrupt

    executor = Scripted(bench)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.db", executor, SPECS, listen, checkpoint_seconds=NEVER)
    assert run(tmp_path / "a.db", executor, SPECS, checkpoint_seconds=NEVER) == truth
    assert len(executor.jobs) <= 6 + 2  # what was stored is not run again


def test_a_trial_that_another_process_runs_is_waited_for(bench: Workbench, truth: list[Any], tmp_path: Path) -> None:
    """The other one finishes it while we poll; ours is never started."""
    other = Owner.here("other")
    with open_store(tmp_path / "a.db") as store:
        executor = Scripted(bench)
        run_ = runner(store, executor)
        (theirs,) = store.add_trials(None, "held", "f" * 16, run_.conditions, SPECS[:1])
        store.lease(theirs, other, 60)
        polls = []

        class Polled(Scripted):
            def events(self, timeout: float) -> list[Any]:
                found = super().events(0.0)
                polls.append(len(found))
                if len(polls) == 4:
                    done = bench.do(run_._job(theirs, SPECS[0]), lambda _: None)
                    run_.store.finish(theirs, other, _result(done))
                return found

        run_.executor = Polled(bench)
        found = run_.run({"held": SPECS[:2]})["held"]
        assert [facts(r) for r in found] == truth[:2]
        assert [job.id for job in run_.executor.jobs] == ["2"]
        assert len(store.attempts(theirs)) == 1


def test_a_lease_that_was_lost_is_no_error(bench: Workbench, truth: list[Any], tmp_path: Path) -> None:
    """A laptop sleeps past the lease; another process takes the trial, and finishes it after us."""
    other = Owner.here("other")
    with open_store(tmp_path / "a.db") as store:

        class Asleep(Scripted):
            polls = 0

            def events(self, timeout: float) -> list[Any]:
                self.polls += 1
                found = super().events(0.0)
                if self.polls == 1:
                    store.renew([1], run_.owner, -1.0)  # ran out
                    assert store.lease(1, other, 60).state == "leased"
                if self.polls == 3:
                    store.finish(1, other, _result(bench.do(run_._job(1, SPECS[0]), lambda _: None)))
                return found

        run_ = runner(store, Asleep(bench))
        (record,) = run_.run({"held": SPECS[:1]})["held"]
        assert (facts(record), record.attempts) == (truth[0], 2)
        assert [a.how for a in store.attempts(1)] == ["interrupted", "finished"]


def test_the_lease_is_renewed_while_a_trial_runs_in_this_process(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchscope.sweep.runner.LEASE_SECONDS", 0.0)
    events: list[tuple[str, dict]] = []
    with open_store(tmp_path / "a.db") as store, InlineExecutor(load_task(f"{SMALL}:task")) as executor:
        renewed: list[Any] = []
        plain = store.renew
        monkeypatch.setattr(store, "renew", lambda *a: renewed.append(a[0]) or plain(*a))
        runner(store, executor, heard(events)).run({"held": SPECS[:1]})
    lines = [details for kind, details in events if kind == "line"]
    assert len(lines) > 10
    assert len(renewed) >= len(lines)
    assert all(details["spec"] == SPECS[0] and details["trial"] == 1 for details in lines)


def _result(plain: Any) -> TrialResult:
    return from_plain(TrialResult, plain)


# --- checkpoints ---


def test_a_checkpoint_left_by_another_task_is_not_used(bench: Workbench, truth: list[Any], tmp_path: Path) -> None:
    """The store was deleted and its checkpoints were not: the same trial of a changed task begins anew."""

    class Stopped(Scripted):
        def events(self, timeout: float) -> list[Any]:
            self.bench.do(self.waiting[0], stop_at_the_fifth)
            return []

    lines: list[object] = []

    def stop_at_the_fifth(line: object) -> None:
        lines.append(line)
        if len(lines) == 5:
            raise KeyboardInterrupt

    with open_store(tmp_path / "a.db") as store, pytest.raises(KeyboardInterrupt):
        runner(store, Stopped(bench), fingerprint="0" * 16).run({"held": SPECS[:1]})
    (left,) = (tmp_path / "checkpoints").iterdir()
    state = torch.load(left, weights_only=True)
    assert state["position"][0] > 0
    for name in state["parts"]["model"]:
        state["parts"]["model"][name] += 1.0  # as another task would have trained it
    torch.save(state, left)
    (tmp_path / "a.db").unlink()
    assert run(tmp_path / "a.db", Scripted(bench), SPECS[:1]) == truth[:1]
    assert list((tmp_path / "checkpoints").iterdir()) == [left]
    with open_store(tmp_path / "b.db") as store:  # its own trial does go on from there
        (record,) = runner(store, Scripted(bench), fingerprint="0" * 16).run({"held": SPECS[:1]})["held"]
    assert facts(record)["result"] != truth[0]["result"]


def test_what_is_left_of_checkpoints_goes_with_the_trial(bench: Workbench, tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        run_ = runner(store, Scripted(bench))
        whole = run_._checkpoint(SPECS[0]).path
        other = run_._checkpoint(SPECS[1]).path
        whole.parent.mkdir()
        for path in (whole, whole.with_suffix(".12345.tmp"), other):
            path.write_bytes(b"half a checkpoint")
        run_.run({"held": SPECS[:1]})
    assert list(whole.parent.iterdir()) == [other]
