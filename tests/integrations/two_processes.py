"""Does each of two processes that train together see what it must? They are torchrun's, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BEFORE = """
import sys
sys.path.insert(0, {tests!r})
from exact import *
"""
SECONDS = 240


def assert_as_expected(script: str, folder: Path) -> None:
    """Both processes run `script` in `folder` and say "as expected"; it has the names of `exact`."""
    file = folder / "two.py"
    file.write_text(BEFORE.format(tests=str(Path(__file__).parent)) + script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as expected") == 2
