"""Does a study on two devices train as one device does, go on where it was stopped, and refuse what cannot be?"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import batchscope as bs
from batchscope.errors import CannotAnswer, TaskError, UsageError
from batchscope.records import Engine
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.plan import default_batch_sizes
from batchscope.task import Task
from batchscope.testing.examples import bits
from batchscope.training.distributed import engine_of_several
from batchscope.verbs import machine
from batchscope.verbs.request import prepare
from batchscope.verbs.study import _remember

from .conftest import SMALL, Ask
from .studies import Heard, data_of, hearing, kinds, records

pytestmark = pytest.mark.processes

REFERENCE = f"{SMALL}:task"
SIZES = (64,)  # the reference run is at 16
ASKED = {"policy": "held", "devices": 2, "batch_sizes": SIZES}


@pytest.fixture(autouse=True, scope="module")
def ranks() -> Generator[GroupExecutor]:
    """Two ranks for all studies of this file, which all are of one task: they take seconds to start."""

    class Kept(GroupExecutor):
        def close(self) -> None:
            assert not self.busy

    group = Kept(None, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "GroupExecutor", lambda task, devices: group)
        patch.setattr(machine, "devices_here", lambda: 64)
        yield group
    GroupExecutor.close(group)
    assert group.processes == []


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished study on two devices."""
    path = tmp_path_factory.mktemp("two") / "a.db"
    result = bs.study(REFERENCE, batch_sizes=SIZES, seeds=1, store=path, draw=False, devices=2)
    rows = [(r.policy, r.batch_size, r.devices, r.seeds) for r in result.rows]
    assert rows == [("held", 64, 2, 1), ("tuned", 64, 2, 1)]
    assert all(row.seconds_per_epoch.estimate for row in result.rows)
    assert result.notes == tuple(note for note in result.notes if "Batch norm" not in note)
    return path


def test_all_its_trials_and_its_seconds_are_of_two_devices(two: Path) -> None:
    data = data_of(two)
    assert (data.settings.workers, data.settings.conditions.threads) == (1, 1)
    assert data.timing is not None
    assert {t.batch_size for t in data.timing.timings} == set(SIZES)
    assert data.timing.conditions.world_size == data.settings.conditions.world_size == 2
    for trial in records(data):
        assert (trial.spec.arm.replicas, trial.conditions.world_size, trial.conditions.threads) == (2, 2, 1)
    assert data.reference
    assert data.tuning


def test_one_device_trains_the_same_and_uses_none_of_its_trials(two: Path, small: Task, ask: Ask) -> None:
    """On the very store of the other study; equal seeds, losses equal within what rounding makes of them."""
    heard: Heard = []
    ask(small, policy="held", batch_sizes=SIZES, store=two, listen=hearing(heard))
    assert len(kinds(heard, "finished")) == 2
    assert kinds(heard, "stored") == []
    alone, both = data_of(two), data_of(two, 0)
    assert (alone.settings.conditions.world_size, both.settings.conditions.world_size) == (1, 2)
    pairs = zip((*alone.reference, *alone.held), (*both.reference, *both.held), strict=True)
    for one, many in pairs:
        assert one.spec == dataclasses.replace(many.spec, arm=dataclasses.replace(many.spec.arm, replicas=1))
        for ours, theirs in zip(many.result.trace, one.result.trace, strict=True):
            assert ours.examples == theirs.examples
            assert ours.validation["loss"] == pytest.approx(theirs.validation["loss"], rel=1e-4)
            assert ours.train["loss"] == pytest.approx(theirs.train["loss"], rel=1e-4)


def trained(path: Path, number: int) -> Any:
    """The bits of a study's held trials."""
    data = data_of(path, number)
    return bits(
        [dataclasses.replace(t, attempts=0, result=dataclasses.replace(t.result, seconds=0.0)) for t in data.held]
    )


def test_stopped_it_goes_on_and_repeated_it_spends_nothing(two: Path, ask: Ask, path: Path) -> None:
    """The same conditions are found again, in a store where one device's were chosen too."""
    finished: list[int] = []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "finished":
            finished.append(details["trial"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(REFERENCE, listen=stop, **ASKED)
    heard: Heard = []
    ask(REFERENCE, listen=hearing(heard), **ASKED)
    assert not {details["trial"] for details in kinds(heard, "started")} & set(finished)
    assert trained(path, -1) == trained(two, 0)
    heard.clear()
    ask(REFERENCE, listen=hearing(heard), **ASKED)
    assert kinds(heard, "started") == []


# --- refused ---


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"devices": 0}, "a number of devices from 1 up, got 0: write --devices 2"),
        ({"devices": 1.5}, "a number of devices from 1 up, got 1.5"),
        ({"devices": True}, "a number of devices from 1 up, got True"),
        ({"batch_sizes": (1, 16)}, "batch sizes of at least 2 examples on 2 devices, got 1: remove it"),
    ],
    ids=str,
)
def test_a_malformed_call_is_refused_before_anything_is_stored(
    ask: Ask, path: Path, asked: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ask(REFERENCE, **ASKED | asked)
    assert expected in str(caught.value)
    assert not path.exists()


def test_devices_that_are_not_there_and_batches_too_small_for_them_are_refused(ask: Ask, path: Path) -> None:
    with pytest.raises(CannotAnswer, match="at most 64 devices on this machine, a processor core each, got 65: write"):
        ask(REFERENCE, devices=65)
    with pytest.raises(CannotAnswer, match="a batch of at least 17 examples on 17 devices, got 16"):
        ask(REFERENCE, devices=17, batch_sizes=(64,))  # the reference run is at 16
    assert not path.exists()


def test_a_task_in_memory_is_refused(small: Task, ask: Ask) -> None:
    with pytest.raises(UsageError, match=r'got a Task object, .*: put the task into a file and write "path.py'):
        ask(small, devices=2)


# --- what several devices change ---


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


def test_batch_norm_is_noted_where_it_sees_a_devices_own_part(small: Task, path: Path) -> None:
    task = dataclasses.replace(small, model=normed)
    whole = dataclasses.replace(task, batch_norm="synchronised")
    with open_store(path) as store:
        (note,) = [n for n in _remember(store, prepare(task, batch_sizes=(16,), devices=2)) if "Batch norm" in n]
        assert "(1 layer) sees a device's own part of a batch, one of 2" in note
        for other in (prepare(task, batch_sizes=(16,)), prepare(whole, batch_sizes=(16,), devices=2)):
            assert not [n for n in _remember(store, other) if "Batch norm" in n]


def test_batch_norm_over_one_example_of_a_batch_is_refused(small: Task) -> None:
    """A part of one example; the last batch of an epoch counts too: 256 = 5 x 51 + 1 = 2 x 127 + 2."""
    task = dataclasses.replace(small, model=normed)
    with pytest.raises(TaskError, match="a batch size of 3 on 2 devices, so that one of them gets 1 example"):
        prepare(task, batch_sizes=(3,), devices=2)
    with pytest.raises(
        TaskError, match=r"batch size 127 \(its last batch of an epoch is 2 of 256 examples\) on 2 devi"
    ):
        prepare(task, batch_sizes=(127,), devices=2)
    assert prepare(task, batch_sizes=(4, 64), devices=2).batch_sizes == (4, 64)


def test_default_batch_sizes_begin_with_an_example_for_every_device() -> None:
    assert default_batch_sizes(256) == default_batch_sizes(256, 8) == (8, 16, 32, 64)
    assert default_batch_sizes(256, 9) == (16, 32, 64)
    assert default_batch_sizes(256, 64) == (64,)
    assert default_batch_sizes(256, 65) == (128,)
    assert default_batch_sizes(100, 65) == (100,)


def test_switches_that_several_devices_cannot_have_are_left_out(small: Task) -> None:
    every = Engine(channels_last=True, compiled=True, graphed=True, prefetched=True)
    assert engine_of_several(small, every) == dataclasses.replace(every, graphed=False)
    sharded = dataclasses.replace(small, shard=True)
    assert engine_of_several(sharded, every) == Engine(prefetched=True)


def test_nothing_was_drawn_from_the_callers_generator(ask: Ask, two: Path) -> None:
    before = torch.random.get_rng_state()
    ask(REFERENCE, store=two, **ASKED)
    assert torch.equal(torch.random.get_rng_state(), before)
