"""Is a Ray that is not to be had refused with one sentence, and soon?"""

from __future__ import annotations

import socket
import sys
import time

import pytest

from batchscope.errors import CannotAnswer, UsageError
from batchscope.sweep.executors.cluster import Cluster, checked


@pytest.mark.parametrize("on", ["", "raw", "ray:", "ray://", "ray://head", "ray://head:port", "ray://:1", "local"])
def test_what_names_no_ray_is_refused_before_anything_is_started(on: str) -> None:
    with pytest.raises(UsageError, match=r"expected --on as a Ray cluster, got .*: write --on ray "):
        checked(on)


@pytest.mark.parametrize("on", ["ray", "ray://head:10001", "ray://10.0.0.1:10001", "ray://[::1]:10001"])
def test_what_names_a_ray_is_taken(on: str) -> None:
    assert checked(on) == on


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CannotAnswer, match=r'pip install "batchscope\[ray\]"'):
        Cluster("ray")


@pytest.mark.processes
def test_an_address_where_nobody_listens_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install batchscope[ray]")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{held.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(CannotAnswer, match=f"expected a Ray cluster at ray://{place}, nothing answers there"):
            Cluster(f"ray://{place}")
        monkeypatch.setenv("RAY_ADDRESS", place)
        with pytest.raises(CannotAnswer, match=f"expected a Ray cluster at {place}, nothing answers there"):
            Cluster("ray")
    assert time.monotonic() - started < 5
