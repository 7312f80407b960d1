"""Do worker processes keep the executor's contract, and is none of them left behind, whatever ends first?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from batchscope.errors import TaskError
from batchscope.sweep.executors.base import Executor, Refused
from batchscope.sweep.executors.local import LocalExecutor, _how
from batchscope.sweep.jobs import TaskReference
from batchscope.sweep.runner import as_error
from batchscope.task import load_task
from batchscope.testing.executor_contract import ExecutorContract
from batchscope.training.fingerprint import fingerprint

from .processes import alive, gone_within, workers_of
from .small_runs import SMALL, ends, trial, wait_until, workers


class TestLocalContract(ExecutorContract):
    def open(self, reference: str) -> LocalExecutor:
        return LocalExecutor(TaskReference.here(reference, fingerprint(load_task(reference))[0]), 2)

    has_workers = True

    def kill_worker(self, executor: Executor, job: str) -> None:
        assert isinstance(executor, LocalExecutor)
        (worker,) = [w for w in executor._workers if w.job == job]
        os.kill(worker.process.pid, signal.SIGKILL)


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
from sweep.small_runs import trial, wait_until, workers
executor = workers("odd", fingerprinted=sys.argv[1])
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
    name, _ = fingerprint(load_task(f"{SMALL}:odd"))
    (folder / "stick").touch()
    with subprocess.Popen([sys.executable, "-c", PARENT, name], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    assert gone_within(3, *pids)


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


def test_an_exit_status_in_words() -> None:
    assert _how(3) == "the worker process exited with status 3"
    assert _how(-9) == "the worker process was ended by SIGKILL (often the system's memory killer)"
    assert _how(-250) == "the worker process was ended by signal 250"
