"""What does a worker process read and write? Lines of JSON, and nothing else, until its input ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from batchscope.records import TrialResult, from_plain
from batchscope.sweep.jobs import Job, TaskReference, refusal, trial_job
from batchscope.task import load_task
from batchscope.training.fingerprint import fingerprint

from .processes import gone_within
from .small_runs import SMALL, spec

COMMAND = [sys.executable, "-m", "batchscope.sweep.worker"]


def test_jobs_in_results_out_and_the_end_of_the_input_ends_it(folder: Path) -> None:
    (folder / "print").touch()
    reference = f"{SMALL}:odd"
    task = TaskReference.here(reference, fingerprint(load_task(reference))[0])
    jobs = [Job("0", "dancing"), trial_job("1", spec(), None, 1, "fp32", None, 1e9)]
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for message in (task, *jobs):
            print(json.dumps(asdict(message)), file=worker.stdin, flush=True)
        replies = [json.loads(worker.stdout.readline())]
        while replies[-1]["kind"] != "done":
            replies.append(json.loads(worker.stdout.readline()))
        assert worker.poll() is None  # it waits for more
        worker.stdin.close()
        assert worker.stdout.read() == ""
        assert worker.wait(10) == 0  # not the leader of its group: the shell that it was started in lives on
    assert [reply["kind"] for reply in replies] == ["refused", *["line"] * (len(replies) - 2), "done"]
    result = from_plain(TrialResult, replies[-1]["content"])
    assert len(result.trace) == len(replies) - 2
    assert [line.examples for line in result.trace] == [reply["content"]["examples"] for reply in replies[1:-1]]


def test_a_worker_that_is_given_nothing_ends_with_its_input() -> None:
    worker = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (worker.returncode, worker.stdout, worker.stderr) == (0, b"", b"")


def test_children_of_a_worker_end_with_it() -> None:
    """A data loader's processes: a worker that leads its group takes the group with it."""
    script = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True);"
        "from batchscope.sweep.worker import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        child = int(worker.stdout.readline())
        worker.stdin.close()
        worker.wait(60)
    assert gone_within(3, child)
    assert os.getpgid(0) != worker.pid


def test_a_refusal_is_one_line() -> None:
    said = refusal(Job("1", "timing"), RuntimeError("first\nsecond"))
    assert said["error"] == "TaskError"
    assert said["sentence"].startswith("the task's timing job raised RuntimeError: first: run")
