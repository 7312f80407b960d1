"""Is a lost connection told from an error of the task's own, and never made the outcome of a trial?"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from batchscope.records import Arm, StopRule, TrialResult, TrialSpec
from batchscope.training.connection import is_of_connection
from batchscope.training.distributed import Replicas, listening, met, part_ways
from batchscope.training.loop import train
from toys import CPU, toy

PEER = "[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3464"


@pytest.fixture
def alone() -> Generator[Replicas]:
    """A group of one rank, in this process."""
    part_ways()
    yield met(0, 1, CPU, listening())
    part_ways()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(PEER), True),
        (dist.DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error"), True),
        (dist.DistStoreError("Socket Timeout"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError(PEER), False),
        (ConnectionResetError("Connection reset by peer"), False),  # a data set's own
        (dist.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"), False),
    ],
    ids=str,
)
def test_kinds_of_errors(error: Exception, expected: bool) -> None:
    assert is_of_connection(error) == expected


def test_an_error_raised_from_one_counts_as_one() -> None:
    error = KeyError("in the task's own words")
    error.__cause__ = RuntimeError(PEER)
    assert is_of_connection(error)


def test_what_gloo_raises_when_the_other_rank_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks are threads of this process."""
    if Path("/sys/class/net/lo").exists():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as threads:
        joining = [threads.submit(dist.ProcessGroupGloo, store, rank, 2, timedelta(seconds=20)) for rank in (0, 1)]
        stays, leaves = (future.result() for future in joining)
    del joining
    leaves.shutdown()
    del leaves
    with pytest.raises(RuntimeError) as caught:
        stays.allreduce([torch.ones(1)]).wait()
    assert is_of_connection(caught.value)


def trained(replicas: Replicas, error: Exception) -> TrialResult:
    """A trial whose loss raises in its third step."""
    calls = [0]  # with a gradient; the first one is a look for weights that are not used

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls[0] += torch.is_grad_enabled()
        if calls[0] == 4:
            raise error
        return F.cross_entropy(output, target)

    spec = TrialSpec(Arm(8, 0.1, replicas=1), 0, StopRule(64, 32))
    return train(toy(loss=loss), spec, device=CPU, replicas=replicas)


def test_a_trial_that_lost_the_others_has_no_outcome(alone: Replicas) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        trained(alone, RuntimeError(PEER))
    failed = trained(alone, ValueError("its own"))
    assert (failed.outcome, failed.reason) == ("failed", "ValueError: its own")


def test_batches_passes_and_chunks_of_evaluations_are_signs_of_life(alone: Replicas) -> None:
    """Of the first evaluation two chunks, one of each set; then two steps whole, and the third one's batch."""
    trained(alone, ValueError("its own"))
    assert alone.done == 2 + 2 * 2 + 1
    assert alone.waiting is False
