"""Are steps and all-reduces of several ranks timed as they say: whole, alone, together, and the same on every rank?"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.distributed as dist

from batchscope.measure.scaling import BUCKET, FIRST_BUCKET, GroupClock, Together, buckets_of, time_scaling
from batchscope.records import Conditions, ScalingPass
from batchscope.training.distributed import Replicas
from ranks import on_ranks
from toys import CPU, toy

RANKS, SIZES, ROUNDS = 2, (1, 8, 24), 5
PARAMETERS = sum(p.numel() for p in toy().model().parameters())


def on_a_rank(everyone: Replicas) -> dict[str, Any]:
    """Everything that these tests look at, of one rank."""
    task, lines = toy(), []
    timing = time_scaling(task, SIZES, (1, 2), everyone, Conditions(threads=1), ROUNDS, tell=lines.append)
    together = Together(task, (1, 2), everyone, "fp32", Conditions().engine)
    weights = {}
    for averages in (True, False):
        clock = together.clocks[2]
        clock.window(8, 3, averages)
        weights[averages] = torch.cat([p.grad.flatten() for p in clock.parameters]).tolist()
    return {"timing": timing, "lines": lines, "clocks": sorted(together.clocks), "gradients": weights}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return on_ranks(RANKS, on_a_rank)


@pytest.fixture(scope="module")
def timing(found: list[dict[str, Any]]) -> ScalingPass:
    return found[0]["timing"]


def test_the_pass_is_the_same_on_every_rank(found: list[dict[str, Any]]) -> None:
    assert found[0]["timing"] == found[1]["timing"]


def test_every_count_has_its_sizes_rounds_and_conditions(timing: ScalingPass) -> None:
    assert [p.conditions.world_size for p in timing.passes] == [1, 2]
    assert [[t.batch_size for t in p.timings] for p in timing.passes] == [[1, 8, 24], [8, 24]]
    for p in timing.passes:
        for t in p.timings:
            assert len(t.seconds_per_step) == len(t.reference) == ROUNDS
            assert min(t.seconds_per_step) > 0
            assert set(t.phases) == ({"alone"} if p.conditions.world_size > 1 else set())
            assert all(len(windows) == ROUNDS for windows in t.phases.values())


def test_the_reference_is_one_device_at_the_tasks_own_batch(timing: ScalingPass) -> None:
    """Shared by all device counts: as fast beside two devices as beside one, within what a busy machine does."""
    assert {p.reference_batch_size for p in timing.passes} == {toy().batch_size}
    one, two = (min(w for t in p.timings for w in t.reference) for p in timing.passes)
    assert 0.2 < one / two < 5.0


def test_all_reduces_have_the_gradients_own_size_among_them(timing: ScalingPass) -> None:
    assert timing.gradient_bytes == 4 * PARAMETERS
    assert timing.buckets == (4 * PARAMETERS,)
    sizes = [t.bytes for t in timing.all_reduces]
    assert 4 * PARAMETERS in sizes
    assert sizes == sorted(sizes)
    assert {t.devices for t in timing.all_reduces} == {2}
    assert all(len(t.seconds) == ROUNDS and min(t.seconds) > 0 for t in timing.all_reduces)


def test_only_the_first_ranks_train_and_one_device_is_rank_0_alone(found: list[dict[str, Any]]) -> None:
    assert [f["clocks"] for f in found] == [[1, 2], [2]]


def test_averaging_makes_gradients_alike_and_alone_they_are_each_ranks_own(found: list[dict[str, Any]]) -> None:
    averaged, alone = ([f["gradients"][how] for f in found] for how in (True, False))
    assert averaged[0] == averaged[1]
    assert alone[0] != alone[1]


def test_windows_are_heard_of_with_what_they_cost(found: list[dict[str, Any]]) -> None:
    lines = found[0]["lines"]
    assert {(line["devices"], line["batch_size"]) for line in lines} == {(1, 1), (1, 8), (1, 24), (2, 8), (2, 24)} | {
        (1, toy().batch_size)
    }
    assert sum(line["steps"] for line in lines) > ROUNDS * 8
    assert all(line["examples"] >= line["steps"] for line in lines)


@pytest.mark.parametrize("seed", range(5))
def test_buckets_are_those_of_torch(seed: int) -> None:
    """torch's own assignment, once it knows that gradients come last parameter first."""
    rng = random.Random(seed)
    numbers = [rng.choice((10, 10**4, 10**6, 8 * 10**6)) for _ in range(rng.randint(1, 30))]
    tensors = [torch.empty(n) for n in numbers]
    indices, _ = dist._compute_bucket_assignment_by_size(tensors[::-1], [FIRST_BUCKET, BUCKET])
    ours = buckets_of([4 * n for n in numbers])
    assert sorted(ours) == sorted(sum(4 * numbers[::-1][i] for i in bucket) for bucket in indices)


def test_a_group_of_one_is_a_plain_step() -> None:
    clock = GroupClock(toy(), CPU, "fp32", Conditions().engine, Replicas(0, 1, CPU))
    assert clock.window(8, 2, True) > 0
    assert sum(clock.gradient_bytes) == 4 * PARAMETERS
