"""What does a rank say of its life, and of a connection to the others that broke?"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import torch

from batchscope.sweep.jobs import Job, refusal
from batchscope.sweep.messages import CONNECTION_LOST
from batchscope.sweep.ranks import Pulse, cpu_seconds
from batchscope.sweep.watch import LOADING
from batchscope.training.distributed import Replicas

SPIN = "import time; end = time.time() + 30\nwhile time.time() < end: pass"


def test_a_pulse_beats_before_the_task_is_loaded_and_no_more_after_its_end() -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    with Pulse(lambda kind, content: said.append((kind, content))):
        deadline = time.monotonic() + 10.0
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    kind, beat = said[0]
    assert (kind, beat["phase"], beat["done"], beat["waits"], beat["marked"]) == ("beat", LOADING, 0, False, False)
    assert len(said) == 1


def test_a_pulse_tells_how_far_the_replica_is_and_that_it_waits() -> None:
    pulse = Pulse(lambda kind, content: None)
    pulse.replicas = Replicas(0, 2, torch.device("cpu"), done=4)
    beat = pulse.beat()
    assert (beat["done"], beat["waits"]) == (4, False)
    assert beat["at"].startswith("test_ranks.py:")
    with pulse.replicas._waits():
        assert (pulse.beat()["waits"], pulse.beat()["marked"]) == (True, True)
    assert pulse.beat()["marked"] is False


def test_work_of_a_child_counts_while_it_lives_and_after() -> None:
    """A data loader's processes work while the rank sleeps."""
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", SPIN]) as child:
        if sys.platform == "linux":
            deadline = time.monotonic() + 20.0
            while (living := cpu_seconds()) < before + 0.3 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert living >= before + 0.3
        child.kill()
    assert cpu_seconds() >= before + 0.3


def test_a_lost_connection_is_not_told_of_as_the_tasks_error() -> None:
    for error in (
        torch.distributed.DistNetworkError("The client socket has timed out"),
        RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer\nmore"),
    ):
        said = refusal(Job("1", "scaling"), error)
        assert said["error"] == CONNECTION_LOST
        assert said["sentence"] == f"{type(error).__name__}: {error}".split("\n")[0]
