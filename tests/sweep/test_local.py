"""Do worker processes keep the executor's contract, and is none of them left behind, whatever ends first?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from batchscope.errors import TaskError
from batchscope.sweep.executors.base import Died, Done, Executor, Refused
from batchscope.sweep.executors.local import LocalExecutor, _how
from batchscope.sweep.jobs import Job, TaskReference, trial_job
from batchscope.sweep.runner import as_error
from batchscope.task import load_task
from batchscope.testing.executor_contract import ExecutorContract
from batchscope.training.fingerprint import fingerprint

from .processes import alive, gone_within, workers_of
from .small_runs import SMALL, ends, run, spec, wait_until, workers


class TestLocalContract(ExecutorContract):
    def open(self, reference: str) -> LocalExecutor:
        return LocalExecutor(TaskReference.here(reference, fingerprint(load_task(reference))[0]), 2)

    has_workers = True

    def kill_worker(self, executor: Executor, job: str) -> None:
        assert isinstance(executor, LocalExecutor)
        (worker,) = [w for w in executor._workers if w.job == job]
        os.kill(worker.process.pid, signal.SIGKILL)


def trial(name: str, batch_size: int = 16) -> Job:
    """A trial of the small task, which saves nothing."""
    return trial_job(name, spec(batch_size=batch_size), None, 1, "fp32", None, 1e9)


def test_nothing_is_left_after_close(folder: Path) -> None:
    """Of two workers, one between steps and one in the middle of a step of minutes; no process and no thread."""
    threads = threading.active_count()
    with workers("odd") as executor:
        executor.start(trial("stuck"))
        wait_until(lambda: executor.events(0.1))
        (folder / "stick").touch()
        time.sleep(0.5)
        executor.start(trial("starting"))
        pids = [w.process.pid for w in executor._workers]
        assert set(pids) <= set(workers_of(os.getpid()))
        started = time.monotonic()
    assert time.monotonic() - started < 4
    assert not any(map(alive, pids))
    assert not set(pids) & set(workers_of(os.getpid()))
    assert threading.active_count() == threads


PARENT = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(SMALL.parents[1])!r})
from sweep.test_local import trial
from sweep.small_runs import wait_until, workers
from sweep.small_task import folder
executor = workers("odd")
lines = []
def both_run():
    lines.extend(event.job for event in executor.events(0.1))
    return set(lines) == {{"between", "within"}}
executor.start(trial("within", 64))
executor.start(trial("between", 8))
wait_until(both_run)
print(*[w.process.pid for w in executor._workers], flush=True)
time.sleep(600)
"""


def test_workers_die_with_their_parent(folder: Path) -> None:
    """Kill -9 of the parent: one worker is idle or between steps by then, one in the middle of a step of minutes."""
    (folder / "stick").touch()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    assert gone_within(3, *pids)


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


def test_a_task_that_is_another_one_in_the_worker_is_refused(tmp_path: Path) -> None:
    """Its file changed after the command had loaded it."""
    file = tmp_path / "changing.py"
    file.write_text(SMALL.read_text())
    before = fingerprint(load_task(str(file)))[0]
    file.write_text(SMALL.read_text().replace("0.3 * noise", "0.4 * noise"))
    with LocalExecutor(TaskReference.here(str(file), before), 1) as executor:
        executor.start(trial("1"))
        (refused,) = ends(executor)
    assert isinstance(refused, Refused)
    error = as_error(refused)
    assert isinstance(error, TaskError)
    assert f"expected the same task as when the study began ({before})" in str(error)
    assert "run the study again" in str(error)


def test_a_job_that_raises_is_refused_with_a_sentence(folder: Path, pair: LocalExecutor) -> None:
    (folder / "raise").touch()
    pair.start(Job("t", "timing", {"batch_sizes": [16], "threads": 1}))
    (refused,) = ends(pair)
    assert isinstance(refused, Refused)
    assert refused.sentence.startswith("the task's timing job raised IndexError: pop from empty list: run")


def test_an_exit_status_in_words() -> None:
    assert _how(3) == "the worker process exited with status 3"
    assert _how(-9) == "the worker process was ended by SIGKILL (often the system's memory killer)"
    assert _how(-250) == "the worker process was ended by signal 250"
