"""How do launched processes hear from each other while nothing is trained? Messages, over the launcher's own store.

torchrun keeps a store for its processes; elsewhere rank 0 opens one at MASTER_ADDR and MASTER_PORT, as torch's own
`env://` does. No port is guessed. A channel is a row of numbered messages with one writer and one reader.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from batchscope.errors import CannotAnswer
from batchscope.sweep.launch import Launch

JOIN_SECONDS = 300.0  # for the last process to come: torch's import on a busy file system takes minutes
POLL_SECONDS = 0.05
BEAT_SECONDS = 1.0


class Control:
    """This process's end of the channels. Any thread may use it; no call waits for another process."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self._lock = launch, threading.Lock()
        self.present: frozenset[int] = frozenset()  # ranks that rank 0 has heard of
        self.lost = ""  # which rank has been given up, and why
        self._said: dict[str, int] = {}
        self._heard: dict[str, int] = {}
        patience = timedelta(seconds=JOIN_SECONDS)
        try:
            store, *_ = next(rendezvous("env://", launch.rank, launch.size, timeout=patience))
        except (RuntimeError, OSError) as error:  # torch's errors of a store are RuntimeErrors
            where = f"{launch.address}:{launch.port} in {JOIN_SECONDS:g} s"
            raise CannotAnswer(
                f"expected {launch.size} processes to meet at {where}, got {_first_line(error)}: see that all of them "
                "run, and that the port is free"
            ) from error
        self._store = dist.PrefixStore("batchscope", store)

    def say(self, channel: str, message: dict[str, Any]) -> None:
        """One more message; raises RuntimeError where the store is gone."""
        with self._lock:
            number = self._said.get(channel, 0)
            self._store.set(f"{channel}/{number}", json.dumps(message))
            self._said[channel] = number + 1

    def hear(self, channel: str) -> dict[str, Any] | None:
        """The next message of the channel, if there is one."""
        with self._lock:
            number = self._heard.get(channel, 0)
            key = f"{channel}/{number}"
            if not self._store.check([key]):
                return None
            message = json.loads(self._store.get(key))
            self._store.delete_key(key)
            self._heard[channel] = number + 1
            return message

    def wait(self, channel: str, seconds: float) -> dict[str, Any] | None:
        """The next message, waited for."""
        deadline = time.monotonic() + seconds
        while (message := self.hear(channel)) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return message


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
