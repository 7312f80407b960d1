"""Is Ctrl-C, whenever it comes, one sentence that leaves no process and loses nothing?"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from pathlib import Path

import pytest
from typer.core import TyperGroup

import batchscope as bs
from batchscope.analysis.table import to_json
from batchscope.cli import interrupt
from batchscope.task import load_task
from sweep.processes import alive
from sweep.small_runs import wait_until

from .conftest import ASKED, COMMAND, ROW_KEYS, SMALL, Ended, Here, sentence

PROC = Path("/proc")
IMPORT = "the import of torch"


def children_of(pid: int) -> list[int]:
    found = []
    for entry in PROC.glob("[0-9]*"):
        try:
            of = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(of) == pid:
            found.append(int(entry.name))
    return found


def is_loading_torch(pid: int) -> bool:
    """Its library is mapped, which the import does early on; all the rest of torch is still to come."""
    return b"libtorch" in (PROC / str(pid) / "maps").read_bytes()


def interrupted(folder: Path, after: str) -> tuple[Ended, list[int]]:
    """Start the command, press Ctrl-C in the import of torch or after this line; how it ended, and its workers then."""
    heeds = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has children ignore it
    try:
        command = subprocess.Popen(
            [COMMAND, "study", str(SMALL), *ASKED, "--store", "a.db", "--json", "--checkpoint-seconds", "0"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, heeds)
    assert command.stderr is not None
    said = ""
    if after == IMPORT:
        wait_until(lambda: is_loading_torch(command.pid))
    while after != IMPORT and after not in said:
        line = command.stderr.readline()
        assert line, f"{after!r} was not said: {said}"
        said += line
    workers = children_of(command.pid)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    return Ended(command.returncode, out, said + err), workers


@pytest.mark.usefixtures("one_core")
def test_ctrl_c_at_any_time_is_a_sentence_leaves_nobody_and_loses_nothing(here: Here, tmp_path: Path) -> None:
    """While torch is imported, trials run, steps are timed: one store through all."""
    for after in (IMPORT, "/4 B=16", "timing"):
        ended, workers = interrupted(tmp_path, after)
        assert ended.code == 1, (after, ended)
        sentence(ended, 1, "stopped")
        assert not any(map(alive, workers)), after
        assert workers or after == IMPORT
    ended = here("study", str(SMALL), *ASKED, "--store", "a.db", "--json", "--no-report")
    assert ended.code == 0
    truth = bs.study(load_task(str(SMALL)), batch_sizes=(16, 64), seeds=1, store=tmp_path / "truth.db", draw=False)
    assert still(json.loads(ended.out)) == still(json.loads(json.dumps(to_json(truth))))
    assert not (tmp_path / "a.db.checkpoints").exists()


def test_ctrl_c_that_was_swallowed_by_an_import_stops_at_the_next_event(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def handle_then_swallow(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            interrupt._handle(signal.SIGINT, None)

    monkeypatch.setattr(interrupt, "_seen", False)
    monkeypatch.setattr("batchscope.verbs.study._remember", lambda *_: handle_then_swallow() or [])
    sentence(here("study", str(SMALL), *ASKED), 1, "stopped; everything measured so far is stored")


def test_ctrl_c_while_the_command_line_is_read(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TyperGroup, "parse_args", press)
    sentence(here("list"), 1, "stopped")


def still(answer: dict) -> list[list[object]]:
    """What of an answer depends on no clock."""
    keys = ROW_KEYS - {"seconds_per_epoch", "seconds_to_converge", "seconds_to_goal"}
    return [[row[key] for key in sorted(keys)] for row in answer["rows"]]
