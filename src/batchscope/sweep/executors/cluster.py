"""Which Ray do trials run on, and how many actors has it room for?

`--on ray` is the cluster that RAY_ADDRESS names, or else a Ray of this machine's own, which ends with the command;
`--on ray://HOST:PORT` is a cluster's client server. A Ray that this process is connected to already is used as it is.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import warnings
from types import ModuleType
from typing import Any

from batchscope.errors import CannotAnswer, UsageError

CONNECT_SECONDS = 10.0
LOCAL, CLIENT = "ray", "ray://"
STORE_BYTES = 128 * 1024**2  # of a Ray of our own: what it carries are jobs and results of kilobytes
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would pack the working folder for every worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what becomes Ray's default, with a warning until then
}
HOW_TO_WRITE = "write --on ray (a Ray of this machine, or RAY_ADDRESS's) or --on ray://HOST:PORT"


def checked(on: str) -> str:
    """`on`, if it names a Ray; UsageError otherwise. Nothing is connected yet."""
    if on != LOCAL and not _is_place(on.removeprefix(CLIENT) if on.startswith(CLIENT) else ""):
        raise UsageError(f"expected --on as a Ray cluster, got {on!r}: {HOW_TO_WRITE}")
    return on


def reachable(on: str) -> None:
    """Raise CannotAnswer where Ray is not installed or nobody listens at the address; connects to nothing."""
    if _imported().is_initialized():
        return
    address = _address(on)
    if _is_place(place := address.removeprefix(CLIENT)):
        _knock(place, address)


def _address(on: str) -> str:
    return os.environ.get("RAY_ADDRESS") or "local" if on == LOCAL else on


def _is_place(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65536


class Cluster:
    """A connection to Ray. Raises CannotAnswer with a sentence where there is none to be had."""

    def __init__(self, on: str = LOCAL) -> None:
        reachable(checked(on))
        self.ray = _imported()
        self._ours = not self.ray.is_initialized()
        if self._ours:
            self._connect(_address(on))
        self.has_cards = self.ray.cluster_resources().get("GPU", 0) >= 1

    def _connect(self, address: str) -> None:
        alone: dict[str, Any] = {}
        if address == "local":
            from batchscope.training.device import cores

            alone = {"include_dashboard": False, "num_cpus": cores(), "object_store_memory": STORE_BYTES}
        try:
            with warnings.catch_warnings():  # the client warns of what it then raises
                warnings.filterwarnings("ignore", "Ray Client connection timed out", UserWarning)
                self.ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **alone)
        except Exception as error:  # of many kinds: the connection, unlike versions of Ray or Python, a missing grpcio
            first = str(error).strip().split("\n")[0][:300]
            raise CannotAnswer(
                f"expected a Ray cluster at {address}, got {type(error).__name__}: {first}: see that it runs, has "
                "this machine's versions of Ray and Python, and knows you (RAY_AUTH_MODE and RAY_AUTH_TOKEN as it has "
                "them), or leave --on out"
            ) from error

    def request(self, threads: int) -> dict[str, float]:
        """What an actor asks of its node: a core for each thread, and a card where the cluster has cards."""
        return {"CPU": threads} | ({"GPU": 1} if self.has_cards else {})

    def room(self, threads: int, devices: int = 1) -> int:
        """How many jobs of so many actors can run at once, if nobody else uses the cluster."""
        wanted = self.request(threads).items()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(int(min(has.get(kind, 0) // count for kind, count in wanted)) for has in nodes) // devices

    def close(self) -> None:
        """Leave the cluster; a Ray of our own ends."""
        if self._ours and self.ray.is_initialized():
            self.ray.shutdown()
        self._ours = False


def _imported() -> ModuleType:
    """Ray, quiet; CannotAnswer where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise CannotAnswer(
            'expected Ray to be installed for --on ray, it is not: run pip install "batchscope[ray]", or leave --on out'
        ) from error


def _knock(place: str, address: str) -> None:
    """Whether somebody listens there at all: Ray itself would try for minutes."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise CannotAnswer(
            f"expected a Ray cluster at {address}, nothing answers there ({error}): start it with "
            "ray start --head, correct the address, or leave --on out"
        ) from error
