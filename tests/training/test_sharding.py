"""Does a model in pieces train as a whole one does: same losses, and the same bits again?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_distributed import Headed, as_rows, bits, resumed, spec_of, trained
from test_step import language_model, token_loss, tokens
from torch import nn

from batchscope.errors import CannotAnswer, TaskError
from batchscope.records import Engine
from batchscope.task import Task
from batchscope.training.distributed import Replicas, listening, met, part_ways, refuse
from batchscope.training.loop import train
from batchscope.training.sharding import sharded, units_of
from batchscope.training.step import make_shared_model, make_shared_step
from ranks import on_ranks
from toys import CPU, SIZE, examples, mlp_with_state, toy

pytestmark = pytest.mark.processes

RANKS = 2
LAST = 9  # leaves a last batch of one example, so that a rank has none
BUDGET = 2 * SIZE
COMPARED = ("plain", "rows", "adam", "micro", "tokens", "unused", "tied", "norm")


class Tied(nn.Module):
    """Two blocks with one weight, a block used twice, and one of a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)])
        self.blocks[1].weight = self.blocks[0].weight
        self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.blocks, self.blocks[2]):
            x = x + torch.tanh(block(x))
        return self.head(self.scale * x)


def mlp_with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr / 5)


def task_of(name: str, shard: bool) -> Task:
    """The tasks that are compared; `shard`: in pieces."""
    words: dict[str, Any] = {"train": tokens(SIZE), "valid": tokens(20), "unit": "tokens", "metrics": {}}
    fields: dict[str, dict[str, Any]] = {
        "plain": {"test": examples(10, seed=2)},
        "rows": {"train": as_rows().train, "valid": as_rows().valid},
        "adam": {"optimizer": adam, "clip_norm": 0.5},
        "micro": {"optimizer": adam, "clip_norm": 0.5},
        "tokens": {"model": language_model, "loss": token_loss, **words},
        "unused": {"model": Headed, "loss": None, "metrics": {}, "step": lambda m, b: m.scored(*b)},
        "tied": {"model": Tied},
        "norm": {"model": mlp_with_norm, "batch_norm": "synchronised"},
    }
    return toy(shard=shard, **fields[name])


def how(name: str) -> tuple[int, dict[str, Any]]:
    """Batch size (batch norm has no variance over one example) and micro-batch."""
    return 10 if name == "norm" else LAST, {"micro_batch_size": 2} if name == "micro" else {}


def stateful() -> Task:
    """Dropout's streams and the statistics of batch norm differ between ranks; Adam keeps moments and steps."""
    return toy(model=mlp_with_state, test=examples(10, seed=2), optimizer=adam, shard=True)


def timed_alone(replicas: Replicas) -> str:
    """What is said where ranks are to step without the others."""
    task = task_of("plain", True)
    model = make_shared_model(task, CPU, Engine(), replicas)
    alone = dataclasses.replace(replicas, averages=False)
    try:
        make_shared_step(task, model, task.optimizer(model, 0.1), alone)(task.train, SIZE)
    except CannotAnswer as error:
        return str(error)
    return ""


def second_meeting(replicas: Replicas) -> Any:
    """A trial by ranks that have met before: as a worker's second one."""
    port = replicas.from_lead((store := listening()).port if replicas.leads else None)
    part_ways()
    again = met(replicas.rank, replicas.size, CPU, store if replicas.leads else ("127.0.0.1", port))
    return trained(again, lambda: task_of("plain", True), LAST, budget=BUDGET)


def everything(replicas: Replicas, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in COMPARED:
        size, arm = how(name)
        found[name] = trained(replicas, lambda name=name: task_of(name, True), size, budget=BUDGET, **arm)
    found["resumed"] = resumed(replicas, folder, stateful)
    found["alone"] = timed_alone(replicas)
    found["again"] = second_meeting(replicas)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank: processes take seconds to start."""
    return on_ranks(RANKS, everything, str(tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.parametrize("name", COMPARED)
def test_a_trial_is_that_of_one_device(ranks: list[dict[str, Any]], name: str) -> None:
    """Losses, distances, lengths of steps; ragged and empty parts, unequal token counts, clipping, accumulation."""
    first, second = (rank[name] for rank in ranks)
    size, arm = how(name)
    alone = trained(None, lambda: task_of(name, False), size, budget=BUDGET, **arm)
    assert alone.outcome == first.outcome != "failed", first.reason
    assert bits(first.trace) == bits(second.trace)
    assert first.initial_norm == pytest.approx(alone.initial_norm, rel=1e-6)
    assert len(first.trace) == len(alone.trace)
    for ours, theirs in zip(first.trace, alone.trace, strict=True):
        assert (ours.step, ours.examples) == (theirs.step, theirs.examples)
        assert ours.train == pytest.approx(theirs.train, rel=1e-4)
        assert ours.validation == pytest.approx(theirs.validation, rel=1e-4)
        assert ours.distance == pytest.approx(theirs.distance, rel=1e-4, abs=1e-6)
        assert ours.update_norm == pytest.approx(theirs.update_norm, rel=1e-3, nan_ok=True)
    assert first.test == (pytest.approx(alone.test, rel=1e-4) if alone.test is not None else None)


def test_a_resumed_trial_has_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    whole, first, again = ranks[0]["resumed"]
    assert whole.outcome != "failed", whole.reason
    assert bits(whole.trace) == bits(first.trace) == bits(again.trace)
    assert whole.test == again.test is not None


def test_ranks_meet_again(ranks: list[dict[str, Any]]) -> None:
    """What torch keeps of the first group is not used in the next."""
    assert bits(ranks[0]["again"].trace) == bits(ranks[0]["plain"].trace)


def test_ranks_cannot_be_timed_without_the_others(ranks: list[dict[str, Any]]) -> None:
    assert "expected whole weights to time a rank by itself" in ranks[0]["alone"]


# --- in one process ---


def test_units_are_the_children_of_containers() -> None:
    body = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])
    model = nn.Sequential(nn.Embedding(2, 4), body, nn.Tanh(), nn.Linear(4, 1))
    assert units_of(model) == [model[0], *body, model[3]]
    assert units_of(nn.Linear(4, 4)) == []
    tied = Tied()
    assert units_of(tied) == [tied.blocks[2]]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(())), nn.Linear(5, 3)


def test_what_cannot_be_sharded_is_refused_before_training() -> None:
    with pytest.raises(CannotAnswer, match="a first dimension to shard, got the scalar 'scale'"):
        sharded(Scaled(), Replicas(0, 2, CPU))
    for engine, switch in ((Engine(compiled=True), "compiled"), (Engine(channels_last=True), "channels_last")):
        with pytest.raises(CannotAnswer, match=f"no {switch} engine with shard=True on several devices"):
            refuse(toy(shard=True), 8, 2, engine)
    with pytest.raises(TaskError, match="expected shard to be True or False"):
        toy(shard="yes")


def test_on_one_device_the_field_changes_nothing() -> None:
    both = [train(toy(shard=shard), spec_of(LAST), device=CPU) for shard in (False, True)]
    assert bits(both[0].trace) == bits(both[1].trace)
