"""Do jobs on worker processes end as they should, and records come out the same, whatever the task does to them?"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from batchscope.records import StopRule, TrialSpec
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Died, Done, Refused
from batchscope.sweep.executors.inline import InlineExecutor
from batchscope.sweep.executors.local import LocalExecutor
from batchscope.sweep.jobs import Job
from batchscope.task import load_task

from .small_runs import SMALL, ends, facts, run, runner, spec, trial


def test_its_trials_are_the_workers_bit_for_bit(tmp_path: Path, pair: LocalExecutor) -> None:
    specs = [spec(seed, b) for seed in (0, 1) for b in (8, 16, 64)]
    with InlineExecutor(load_task(f"{SMALL}:task")) as executor:
        here = run(tmp_path / "here.db", executor, specs)
    assert run(tmp_path / "there.db", pair, specs) == here


# --- one job ---


@pytest.mark.parametrize(
    ("act", "reason"),
    [("exit", "the worker process exited with status 7"), ("crash", "the worker process was ended by SIGSEGV")],
)
def test_a_worker_that_ends_by_itself_is_reported(act: str, reason: str, folder: Path, pair: LocalExecutor) -> None:
    (folder / act).touch()
    pair.start(trial("1"))
    assert ends(pair) == [Died("1", reason)]
    (folder / act).unlink()
    pair.start(trial("2"))
    assert isinstance(ends(pair)[0], Done)


def test_a_worker_killed_while_idle_costs_nothing(pair: LocalExecutor) -> None:
    pair.start(trial("a"))
    assert isinstance(ends(pair)[0], Done)
    for worker in pair._workers:
        worker.process.kill()
        worker.process.wait()
    pair.start(trial("b"))
    assert isinstance(ends(pair)[0], Done)


def test_what_a_task_prints_does_not_break_the_protocol(
    tmp_path: Path, folder: Path, pair: LocalExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    quiet = run(tmp_path / "quiet.db", pair, [spec()])
    (folder / "print").touch()
    assert run(tmp_path / "noisy.db", pair, [spec()]) == quiet
    assert capfd.readouterr().out == ""


def test_a_job_that_raises_is_refused_with_a_sentence(folder: Path, pair: LocalExecutor) -> None:
    (folder / "raise").touch()
    pair.start(Job("t", "timing", {"batch_sizes": [16], "threads": 1}))
    (refused,) = ends(pair)
    assert isinstance(refused, Refused)
    assert refused.sentence.startswith("the task's timing job raised IndexError: pop from empty list: run")


# --- a run of trials ---


def kill_once(executor: LocalExecutor, after_lines: int, times: int = 1):
    """A listener that kills the worker of a trial with seed 0 after so many of its lines, so many times."""
    lines, killed = [0], []

    def listen(kind: str, details: dict) -> None:
        if kind == "line" and details["spec"].seed == 0:
            lines[0] += 1
            if lines[0] >= after_lines and len(killed) < times:
                (worker,) = [w for w in executor._workers if w.job == str(details["trial"])]
                os.kill(worker.process.pid, signal.SIGKILL)
                killed.append(details["trial"])
                lines[0] = 0

    return listen, killed


LONG = StopRule(6 * 256, 64)
PAIR = [spec(0, 16, stop=LONG), spec(1, 16, stop=LONG)]


def test_a_killed_worker_costs_its_own_attempt_only(tmp_path: Path, folder: Path, pair: LocalExecutor) -> None:
    (folder / "slow").touch()
    with open_store(tmp_path / "a.db") as store:
        listen, killed = kill_once(pair, after_lines=6)
        run_ = runner(store, pair, listen)
        begun: list[Any] = []
        plain = run_._job

        def job(trial_id: int, spec: TrialSpec) -> Job:
            path = run_._checkpoint(spec).path
            begun.append((trial_id, torch.load(path, weights_only=True)["position"][0] if path.exists() else 0))
            return plain(trial_id, spec)

        run_._job = job
        found = run_.run({"held": PAIR})["held"]
        assert len(killed) == 1
        assert [r.attempts for r in found] == [2, 1]
        ids = store.add_trials(None, "held", "f" * 16, run_.conditions, PAIR)
        first, second = store.attempts(ids[0])
        assert (first.how, second.how) == ("died", "finished")
        assert first.reason == "the worker process was ended by SIGKILL (often the system's memory killer)"
        ((_, step),) = [b for b in begun[2:] if b[0] == ids[0]]
        assert step >= 4 * 4  # it went on from its checkpoint, 4 steps to an evaluation
        assert not list((tmp_path / "checkpoints").iterdir())
    (folder / "slow").unlink()
    assert [facts(r) for r in found] == run(tmp_path / "truth.db", pair, PAIR)


def test_a_worker_killed_twice_makes_its_trial_failed(tmp_path: Path, folder: Path, pair: LocalExecutor) -> None:
    (folder / "slow").touch()
    with open_store(tmp_path / "a.db") as store:
        listen, killed = kill_once(pair, after_lines=3, times=2)
        lost, fine = runner(store, pair, listen).run({"held": PAIR})["held"]
    assert len(killed) == 2
    assert (lost.result.outcome, lost.attempts) == ("failed", 2)
    assert "SIGKILL" in lost.result.reason
    assert (fine.result.outcome, fine.attempts) == ("not_reached", 1)


def test_a_task_that_leaves_the_process_is_retried_and_then_failed(
    tmp_path: Path, folder: Path, pair: LocalExecutor
) -> None:
    (folder / "exit").touch()
    with open_store(tmp_path / "a.db") as store:
        (record,) = runner(store, pair).run({"held": [spec(0, 16)]})["held"]
    assert (record.result.outcome, record.attempts) == ("failed", 2)
    assert record.result.reason == "the worker process exited with status 7"
