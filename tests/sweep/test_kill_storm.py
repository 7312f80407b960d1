"""Do stored records stay the same, bit for bit, under kill -9? A seeded sample of what `make prove` does at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .small_runs import SMALL

STORM = Path(__file__).parents[2] / "benchmarks" / "kill_storm.py"
SEED = "172"  # its moments, 0.625 and 0.629 of the undisturbed run, are when trials run: not before, not too late


@pytest.mark.processes
@pytest.mark.usefixtures("one_core")
def test_killing_the_command_or_a_worker_changes_no_record(folder: Path, tmp_path: Path) -> None:
    """One kill of each kind, of a study whose steps are slowed, so that most of its time is training."""
    (folder / "slow").touch()
    out = tmp_path / "storm.json"
    asked = ["--command", "1", "--worker", "1", "--seed", SEED, "--task", f"{SMALL}:odd", "--batch-sizes", "64"]
    command = [sys.executable, str(STORM), *asked, "--out", str(out), "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(out.read_text())
    assert [(k["kind"], k["differs"], k["checkpoints_left"]) for k in result["kills"]] == [
        ("command", [], []),
        ("worker", [], []),
    ]
    assert "date" in result["environment"]
    again = subprocess.run(
        command, capture_output=True, text=True, env=os.environ, timeout=60
    )  # resumed: nothing to do
    assert again.returncode == 0
    assert json.loads(out.read_text()) == result
