"""Do N replicas train as one device does: same gradient, same trace, same bits again?"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import Hidden
from test_step import language_model, token_loss, tokens
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.analysis.target import crossing
from batchscope.errors import CannotAnswer
from batchscope.records import Arm, Engine, StopRule, TrialSpec
from batchscope.task import Task
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.distributed import (
    Replicas,
    buffers_apart,
    is_loopback,
    leave_interface,
    listening,
    refuse,
    take_interface,
)
from batchscope.training.loop import train
from batchscope.training.step import make_shared_step, make_step
from ranks import on_ranks
from toys import CPU, VALID, Augmented, examples, mlp_with_state, toy

RANKS = 3
SIZES = (11, 6, 4, 2, 1)  # of batches: ragged parts, and fewer examples than ranks


class Headed(nn.Module):
    """With a weight that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)

    def scored(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A loss that a task's step calls by name."""
        return F.cross_entropy(self.used(x), y)


def cases() -> dict[str, tuple[Task, Any]]:
    """Tasks with their data as one batch."""
    (x, y), (xt, yt) = examples(max(SIZES)), tokens(max(SIZES))
    words: dict[str, Any] = {"model": language_model, "train": (xt, yt), "valid": (xt, yt), "unit": "tokens"}
    return {
        "plain": (toy(), (x, y)),
        "clipped": (toy(clip_norm=0.01), (x, y)),
        "tokens": (toy(**words, metrics={}, loss=token_loss), (xt, yt)),
        "unused": (toy(model=Headed, loss=None, metrics={}, step=lambda m, b: m.scored(*b)), (x, y)),
    }


def weights_after(task: Task, batch: Any, step_of: Any) -> torch.Tensor:
    """All weights after one step."""
    torch.manual_seed(0)
    model = task.model()
    step_of(model, task.optimizer(model, 0.1))(batch)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def steps_of_a_rank(replicas: Replicas, micro: int | None) -> dict[tuple[str, int], torch.Tensor]:
    """The weights after one step of every case and batch size."""
    found = {}
    for name, (task, whole) in cases().items():
        for size in SIZES:
            part = tuple(t[:size][replicas.part(size)] for t in whole)

            def step_of(model: nn.Module, optimizer: Any, task: Task = task, size: int = size) -> Any:
                step = make_shared_step(task, model, optimizer, replicas, micro_batch_size=micro)
                return lambda batch: step(batch, size)

            found[name, size] = weights_after(task, part, step_of)
    return found


@pytest.fixture(scope="module")
def steps() -> list[dict[int | None, Any]]:
    """By rank and micro-batch size: processes take seconds to start."""
    return on_ranks(RANKS, steps_of_both)


def steps_of_both(replicas: Replicas) -> dict[int | None, Any]:
    return {micro: steps_of_a_rank(replicas, micro) for micro in (None, 2)}


@pytest.mark.parametrize("micro", [None, 2])
def test_a_step_is_that_of_one_device(steps: list[dict[int | None, Any]], micro: int | None) -> None:
    """Ragged parts, unequal token counts (an example may count none), empty parts, clipping, accumulation."""
    ranks = [rank[micro] for rank in steps]
    for name, (task, whole) in cases().items():
        for size in SIZES:
            batch = tuple(t[:size] for t in whole)
            alone = weights_after(task, batch, lambda model, optimizer, task=task: make_step(task, model, optimizer))
            for rank in ranks:
                assert torch.equal(rank[name, size], ranks[0][name, size])
            if name == "tokens" and size == 1:  # its only example counts no token: one device's mean is nan
                continue
            assert torch.allclose(ranks[0][name, size], alone, rtol=1e-5, atol=1e-6), (name, size)


# --- whole trials ---


def bits(trace: Any) -> str:
    """A trace as text: equal for equal bits, nan included."""
    return repr(trace)


def spec_of(batch_size: int, budget: int = 138, **arm: Any) -> TrialSpec:
    return TrialSpec(Arm(batch_size, 0.05, **arm), 0, StopRule(budget, 23))


def trained(
    replicas: Replicas | None, task_of: Any, batch_size: int, path: str | None = None, budget: int = 138, **arm: Any
) -> Any:
    """The trial's result."""
    return train(
        task_of(),
        spec_of(batch_size, budget, replicas=replicas.size if replicas is not None else 1, **arm),
        device=CPU,
        crossed=lambda trace, goal: crossing(trace, goal) is not None,
        checkpoint=Checkpoint(path, 0.0) if path is not None else None,
        replicas=replicas,
    )


def as_rows() -> Task:
    return toy(train=Augmented(), valid=Augmented(VALID, 1))


def trials_of_a_rank(replicas: Replicas, folder: str) -> Any:
    """(a trial on tensors, one on a Dataset, and the resumed ones: with dropout, and with a buffer that is read)."""
    apart = resumed(replicas, folder), resumed(replicas, f"{folder}/hidden", hidden)
    return trained(replicas, toy, 9), trained(replicas, as_rows, 9), *apart


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """By rank."""
    return on_ranks(2, trials_of_a_rank, str(tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.parametrize("kind", [0, 1], ids=["tensors", "dataset"])
def test_a_trial_is_that_of_one_device(trials: list[Any], kind: int) -> None:
    first, second = (rank[kind] for rank in trials)
    alone = trained(None, (toy, as_rows)[kind], 9)
    assert bits(first.trace) == bits(second.trace)
    assert first.outcome == second.outcome == alone.outcome
    assert [e.examples for e in first.trace] == [e.examples for e in alone.trace]
    for ours, theirs in zip(first.trace, alone.trace, strict=True):
        assert ours.validation["loss"] == pytest.approx(theirs.validation["loss"], rel=1e-4)
        assert ours.distance == pytest.approx(theirs.distance, rel=1e-4, abs=1e-6)


def stateful() -> Task:
    return toy(model=mlp_with_state, test=examples(10, seed=2))


def hidden() -> Task:
    """Every rank's loss depends on the mean of what that rank has seen."""
    return toy(model=Hidden)


def resumed(replicas: Replicas, folder: str, task_of: Any = stateful) -> Any:
    """The trial without a checkpoint, with one, and gone on with from the last one, an evaluation before its end."""
    whole = trained(replicas, task_of, 10)
    path = str(Path(folder) / "c.pt")
    first = trained(replicas, task_of, 10, path)
    again = trained(replicas, task_of, 10, path)
    return whole, first, again


@pytest.mark.parametrize("kind", [2, 3], ids=["streams", "buffers"])
def test_a_resumed_trial_has_the_same_bits(trials: list[Any], kind: int) -> None:
    """Dropout's streams and the model's buffers differ between ranks, and are all in the checkpoint."""
    whole, first, again = trials[0][kind]
    assert whole.outcome != "failed", whole.reason
    assert bits(whole.trace) == bits(first.trace) == bits(again.trace)
    assert whole.test == again.test


# --- parts ---


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_are_consecutive_and_even(examples: int, size: int) -> None:
    parts = [Replicas(r, size, CPU).part(examples) for r in range(size)]
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(examples))
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) - min(lengths) <= 1


def test_what_replicas_cannot_do_is_refused_before_training() -> None:
    """By the training itself: no process is met for it."""
    with pytest.raises(CannotAnswer, match="a batch of at least 4 examples on 4 devices, got 3"):
        train(toy(), spec_of(3), device=CPU, replicas=Replicas(0, 4, CPU))
    with pytest.raises(CannotAnswer, match="one device for a watched trial"):
        refuse(toy(), 8, 2, Engine(), watched=True)
    with pytest.raises(CannotAnswer, match="graphed"):
        refuse(toy(), 8, 2, Engine(graphed=True))


# --- meeting ---


def test_replicas_keep_their_buffers_with_any_torch() -> None:
    """The keyword has another name since 2.13."""

    def before(module: Any, broadcast_buffers: bool = True) -> None: ...
    def since(module: Any, broadcast_buffers: bool | None = None, forward_sync_buffers: bool | None = None) -> None: ...

    assert buffers_apart(before) == {"broadcast_buffers": False}
    assert buffers_apart(since) == {"forward_sync_buffers": False}
    assert set(buffers_apart(DistributedDataParallel)) <= set(inspect.signature(DistributedDataParallel).parameters)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "::1"])
def test_a_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.7", "node7", "node7.cluster.local", "0.0.0.0", "fe80::1"])
def test_what_others_can_reach_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs Linux's loopback")
def test_gloo_takes_the_loopback_for_a_local_meeting_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgets it at the next one that is not local; what the user has set stays."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    taken = []
    for host in ("127.0.0.1", "node7", "localhost", "127.0.0.1", "10.0.0.7"):
        take_interface(host)
        taken.append(os.environ.get("GLOO_SOCKET_IFNAME"))
    assert taken == ["lo", None, "lo", "lo", None]
    take_interface("127.0.0.1")
    leave_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    for host in ("127.0.0.1", "node7"):
        take_interface(host)
        leave_interface()
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"


def heard_at(port: int) -> set[str]:
    """The addresses at which something listens at a port, as Linux writes them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    at = [address.split(":") for _, address, _, state, *_ in lines if state == "0A"]
    return {host for host, number in at if int(number, 16) == port}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_ranks_of_one_machine_are_heard_by_nobody_else() -> None:
    store = listening()
    assert heard_at(store.port) == {"0100007F"}
    again = listening("localhost")
    assert heard_at(again.port) == {"0100007F"}
    assert store.port != again.port
