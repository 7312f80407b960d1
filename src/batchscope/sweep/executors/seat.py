"""What does a Ray actor do? It keeps one worker process on its node, passes jobs in, and hands out what it says.

The worker gets its node's environment, but those variables that decide bits or say where data lies (`CARRIED`) from the
driver. Whoever is imported here is imported by the actor: no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import queue
import socket
import struct
import sys
from typing import Any

from batchscope.sweep.executors.base import Event
from batchscope.sweep.executors.local import LocalWorker
from batchscope.sweep.executors.workers import CLOSE_SECONDS, Said
from batchscope.sweep.messages import Job, TaskReference

CARRIED = (
    "BATCHSCOPE_",
    "CUBLAS_",
    "GLIBC_TUNABLES",
    "MKL_",
    "NUMEXPR_",
    "OMP_",  # Ray sets OMP_NUM_THREADS for its workers
    "OPENBLAS_",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "PYTORCH_",
    "TORCH",
)
MEETING = "GLOO_SOCKET_IFNAME"  # gloo's choice otherwise is the host name's address, on many machines the loopback
_ADDRESS_OF = 0x8915  # SIOCGIFADDR, Linux's ioctls.h


def carried() -> dict[str, str]:
    """The variables of this process that its workers get, wherever they are."""
    return {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}


class Seat:
    """The actor. Its methods run on a few threads, as `news` waits."""

    def __init__(self, task: TaskReference, variables: dict[str, str]) -> None:
        ray: Any = importlib.import_module("ray")  # an extra: whoever runs this has it
        self._host = ray.util.get_node_ip_address()
        for name in carried():
            del os.environ[name]
        os.environ.update(variables)
        if (name := interface_of(self._host)) is not None:
            os.environ.setdefault(MEETING, name)
        self._events: queue.Queue[Event | Said] = queue.Queue()
        self._worker = LocalWorker(self._events)
        self._worker.introduce(task)

    def where(self) -> tuple[str, int]:
        """The node's address, and the worker's process there."""
        return self._host, self._worker.pid

    def give(self, job: Job) -> None:
        """Pass a job in; as rank 0 the worker listens at this node's address."""
        if job.details.get("rank") == 0:
            job = dataclasses.replace(job, details=job.details | {"host": self._host})
        self._worker.give(job)

    def news(self, seconds: float) -> tuple[list[Event | Said], bool]:
        """What the worker said since the last call, waited for up to `seconds`; whether it is alive."""
        found: list[Event | Said] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
        alive = self._worker.alive
        if not alive:
            self._worker.wait(CLOSE_SECONDS)  # all that it said is there then, its death included
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found, alive

    def stop(self) -> None:
        """End the worker at once, with what it has started; `news` need not wait any longer."""
        self._worker.kill()
        self._worker.wait(CLOSE_SECONDS)
        self._events.put(Said("", "end", {}))


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None where none is found, and elsewhere than on Linux."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(asking, _ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
