"""Does a command that a launcher started on two ranks run as one: one answer, one exit code, a bad rank named?"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchscope.cli import launcher
from batchscope.errors import UsageError
from batchscope.store.sqlite import open_store
from batchscope.sweep.control import Control
from batchscope.sweep.executors.launched import end, serve
from batchscope.sweep.launch import Launch, launch_in

from .processes import gone_within, workers_of

SMALL = Path(__file__).parent / "small_task.py"
RANKED = Path(__file__).parent / "rank_task.py"
IN_TIME = 30.0  # seconds from a rank's end to that of the command
HERE = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
STUDY = ("-m", "batchscope", "study")
ASKED = ("--policy", "held", "--seeds", "1", "--store", "a.db", "--no-report")


@pytest.mark.processes
def test_under_torchrun_two_ranks_give_one_answer(tmp_path: Path) -> None:
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *run, *STUDY, f"{SMALL}:task", "--batch-sizes", "16", *ASKED, "--json"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=os.environ | HERE, check=False
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert [(row["batch_size"], row["devices"], row["reached"]) for row in answer["rows"]] == [(16, 2, 1)]
    assert answer["settings"]["conditions"]["world_size"] == 2
    assert answer["timing"]["conditions"]["world_size"] == 2
    assert ended.stderr.count("reference ...") == 1
    with open_store(tmp_path / "a.db", read_only=True) as store:
        (study,) = store.studies()
        assert study.finished_trials == study.trials == 2
        assert {t.spec.arm.replicas for t in store.study_data(study.id).held} == {2}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launched(folder: Path, *arguments: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes as Kubernetes would start them: rank 0 opens the store that they meet at."""
    command = [sys.executable, *STUDY, *arguments, *ASKED]
    around = os.environ | HERE | {"MASTER_PORT": free_port(), "WORLD_SIZE": "2"} | environment
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, cwd=folder, env=around | {"RANK": str(rank)}, **pipes) for rank in (0, 1)]


@pytest.mark.processes
def test_a_rank_that_raises_is_named_and_all_end_with_one_code(tmp_path: Path) -> None:
    """In the run that the goal is taken from: without it there is no answer."""
    told = tmp_path / "do-raise"
    told.touch()
    task = f"{RANKED}:open_goal"
    ranks = launched(tmp_path, task, "--batch-sizes", "8", BATCHSCOPE_TEST_FOLDER=str(tmp_path))
    try:
        workers: list[int] = []
        while told.exists() and ranks[0].poll() is None:
            workers = [pid for rank in ranks for pid in workers_of(rank.pid)] or workers
            time.sleep(0.2)
        raised = time.monotonic()
        first, second = (rank.communicate(timeout=240) for rank in ranks)
        assert time.monotonic() - raised < IN_TIME
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert (first[0], second[0]) == ("", "")
    said = [line for line in (first[1] + second[1]).splitlines() if line.startswith("batchscope: ")]
    assert len(said) == 1
    assert "it failed (rank 1 of 2: ValueError: the eleventh is too much): give a goal, or mend it" in said[0]
    assert len(workers) == 2
    assert gone_within(5.0, *workers)


def test_messages_come_in_order_and_the_end_has_rank_zeros_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RANK and WORLD_SIZE, as in a Slurm step; the two ranks are threads here."""
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    with ThreadPoolExecutor(2) as threads:
        joining = [threads.submit(Control, Launch(rank, 2, rank, "127.0.0.1", 0)) for rank in (0, 1)]
        first, second = (future.result() for future in joining)
        for number in range(3):
            first.say("a channel", {"number": number})
        assert [second.hear("a channel") for _ in range(4)] == [{"number": 0}, {"number": 1}, {"number": 2}, None]
        serving = threads.submit(serve, second)
        end(first, 3)
        assert serving.result(timeout=10) == 3


# --- who is it? ---

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}
MEETING = {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch(1, 4, 1, "node7", 29500)),
        ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, Launch(1, 4, None, "node7", 29500)),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "4"}, None),
        (SLURM | MEETING, Launch(3, 4, 1, "node7", 29500)),
        (SLURM | TORCHRUN, Launch(1, 4, 1, "node7", 29500)),  # torchrun in a Slurm step
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}, None),  # the job's script itself
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "9"}, None),  # a shell of salloc
    ],
    ids=str,
)
def test_a_launcher_is_recognised_by_its_variables(environment: dict[str, str], expected: Launch | None) -> None:
    assert launch_in(environment) == expected


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        (SLURM, ["expected MASTER_ADDR and MASTER_PORT where SLURM_NTASKS says 4", "export them", "node of rank 0"]),
        (SLURM | {"MASTER_ADDR": "node7"}, ["expected MASTER_PORT where"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["expected MASTER_ADDR and MASTER_PORT where WORLD_SIZE says 2"]),
        (TORCHRUN | {"RANK": "4"}, ["expected RANK below WORLD_SIZE, got 4 and 4"]),
        (TORCHRUN | {"MASTER_PORT": "any"}, ["expected MASTER_PORT as a whole number, got 'any'"]),
        (TORCHRUN | {"WORLD_SIZE": "-2"}, ["expected WORLD_SIZE as a whole number, got '-2'"]),
    ],
    ids=str,
)
def test_half_a_launch_is_refused(environment: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        launch_in(environment)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_devices_are_those_that_were_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anybody is met; only rank 0 says it."""
    assert (launcher.joined(None), launcher.joined(3)) == (1, 3)
    for name, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="expected --devices 4, as many as the processes that were launched, got 2"):
        launcher.joined(2)
    with pytest.raises(UsageError, match=r"expected one process of `profile`, .*, got 4 from a launcher"):
        launcher.alone("profile")
    monkeypatch.setenv("RANK", "1")
    for refuse in (lambda: launcher.joined(2), lambda: launcher.alone("profile")):
        with pytest.raises(SystemExit) as ended:
            refuse()
        assert ended.value.code == 2
