"""Do replicas give the squared norms of their own gradients? Two real processes, and a naive twin."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from naive_gradients import (
    BATCH,
    CLOSE,
    DATA,
    Parts,
    data_set,
    estimates,
    exact,
    mean_and_error,
    measured,
    naive,
    sized,
)
from small_models import Net, cross_entropy, hooks, rows
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from batchscope.measure.accumulated import Buckets, MicroBatches
from batchscope.measure.gradients import Reading
from batchscope.measure.monitor import NoiseMonitor

WORLD = 2
SECONDS = 60
SIZES = {0: 6, 1: 4}  # of unequal replicas
COUNTS = {0: [5, 1], 1: [2, 6]}
BUCKET_MB = 1e-3  # 1 kB: several buckets


# --- what each process does ---


def step_of(ddp: DistributedDataParallel, parts: Parts, weights: list[float] | None = None, sync: bool = False) -> Any:
    """One process's step: all micro-batches but the last without averaging, unless `sync`."""
    shares = weights or [1 / len(parts)] * len(parts)

    def step() -> None:
        for i, ((x, y), share) in enumerate(zip(parts, shares, strict=True)):
            if i + 1 < len(parts) and not sync:
                with ddp.no_sync():
                    (cross_entropy(ddp, x, y) * share).backward()
            else:
                (cross_entropy(ddp, x, y) * share).backward()

    return step


def plain(reading: Reading | None) -> dict[str, Any]:
    assert reading is not None
    return {
        "squares": torch.stack([reading.parts_squared, reading.mean_squared]).tolist(),
        "sizes": sized(reading),
    }


def replica(rank: int, store: str, out: str) -> None:
    """One of two processes: every case, one after the other, its readings into a file."""
    torch.set_num_threads(1)
    shared = dist.FileStore(store, WORLD)
    wait = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=WORLD, timeout=wait)
    try:
        torch.save(dict(cases(rank)), f"{out}.{rank}")
    finally:
        dist.destroy_process_group()


def cases(rank: int) -> Iterator[tuple[str, Any]]:
    one, two = rows(6, rank), rows(6, 10 + rank)
    model = Net()
    ddp, source = DistributedDataParallel(model), MicroBatches(model, dist.group.WORLD)
    yield "equal", [plain(r) for r in measured(source, step_of(ddp, [one]))]
    yield "no sync", [plain(r) for r in measured(source, step_of(ddp, [one, two]))]
    yield "sync", [plain(r) for r in measured(source, step_of(ddp, [one, two], sync=True))]
    short = (one[0][: SIZES[rank]], one[1][: SIZES[rank]])
    yield "unequal replicas", [plain(r) for r in measured(source, step_of(ddp, [short]))]
    parts, counts = [rows(c, 20 + rank) for c in COUNTS[rank]], COUNTS[rank]
    shares = [c / sum(counts) for c in counts]
    yield "unequal", [plain(r) for r in measured(source, step_of(ddp, parts, shares))]
    yield "counts", [plain(r) for r in measured(source, step_of(ddp, parts, shares), counts=counts)]
    yield "unused", unused(one)
    yield "buckets", buckets(None, [one])
    yield "buckets, no sync", buckets(None, [one, two])
    yield "buckets, sync", buckets(None, [one, two], sync=True)
    yield "buckets, fp16", buckets(fp16_compress_hook, [one])
    yield "estimates", random_batches(rank)
    for hooked in (False, True):
        yield f"monitor, hooked {hooked}", monitored(rank, hooked=hooked)


def random_batches(rank: int) -> torch.Tensor:
    """(K, 2): estimates of (tr(Sigma), |G|^2) from batches of the fixed data set, a half of each to a process."""
    model, x, y = data_set()
    ddp, source = DistributedDataParallel(model), MicroBatches(model, dist.group.WORLD)
    generator, readings = torch.Generator().manual_seed(5), []
    for _ in range(150):
        mine = torch.randperm(DATA, generator=generator)[:BATCH].chunk(WORLD)[rank]
        readings += measured(source, step_of(ddp, [(x[mine], y[mine])]), times=1)
    return estimates(readings)


def unused(one: tuple[torch.Tensor, torch.Tensor]) -> list[dict[str, Any]]:
    model = Net()
    model.used = False
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    return [plain(r) for r in measured(MicroBatches(model, dist.group.WORLD), step_of(ddp, [one]))]


def buckets(inner: Any, parts: Parts, sync: bool = False) -> list[dict[str, Any]]:
    model = Net()
    ddp, source = DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB), Buckets(model, dist.group.WORLD)
    ddp.register_comm_hook(None, source.hook_around(inner))
    return [plain(r) for r in measured(source, step_of(ddp, parts, sync=sync), times=3)]


def monitored(rank: int, *, hooked: bool) -> dict[str, Any]:
    """A loop with the monitor; its clock runs unlike in the two processes, its choice must not."""
    model = Net()
    ddp = DistributedDataParallel(model)
    seconds = [0.0]
    monitor = NoiseMonitor(ddp, clock=lambda: seconds[0])
    if hooked:
        ddp.register_comm_hook(None, monitor.communication_hook())
    for i in range(40):
        ddp.zero_grad()
        seconds[0] += 1.0 + (0.5 + rank if hooks(model) else 0.0)
        loss = cross_entropy(ddp, *rows(6, 30 + 2 * i + rank))
        loss.backward()
        monitor.step(loss)
    report = monitor.report()
    monitor.remove()
    norms = [(n.step, n.examples, n.parts, n.part_size, n.mean_squared, n.parts_squared) for n in report.measurements]
    return {"every": report.every, "source": report.source, "norms": norms, "left": hooks(model)}


# --- what they must have measured ---


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes measured."""
    folder = tmp_path_factory.mktemp("replicas")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GLOO_SOCKET_IFNAME", "lo")
        start = multiprocessing.get_context("spawn")
        out = str(folder / "found")
        running = [start.Process(target=replica, args=(rank, str(folder / "store"), out)) for rank in range(WORLD)]
        for process in running:
            process.start()
    for process in running:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    assert [process.exitcode for process in running] == [0, 0]
    return [torch.load(Path(f"{out}.{rank}")) for rank in range(WORLD)]


def replicated(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """One case's readings, which must be the same in both processes."""
    for a, b in zip(found[0][name], found[1][name], strict=True):
        assert a == b
    return found[0][name]


def holds(readings: list[dict[str, Any]], parts: Parts, weights: list[float] | None, sizes: Any, rtol: float) -> None:
    model = Net()
    model.used = sizes[0] != "unused"
    expected = torch.stack(naive(model, cross_entropy, parts, weights))
    for reading in readings:
        squares = torch.tensor(reading["squares"], dtype=torch.float64)
        wanted = expected.sum(1, keepdim=True) if squares.shape[1] == 1 else expected
        torch.testing.assert_close(squares, wanted, rtol=rtol, atol=rtol * 1e-3)
        assert tuple(reading["sizes"]) == pytest.approx(sizes[-3:])


@pytest.mark.parametrize("name", ["equal", "buckets"])
def test_replicas(found: list[dict[str, Any]], name: str) -> None:
    holds(replicated(found, name), [rows(6, 0), rows(6, 1)], None, (2, 6, 12), CLOSE)


@pytest.mark.parametrize("name", ["no sync", "sync"])
def test_replicas_that_accumulate(found: list[dict[str, Any]], name: str) -> None:
    parts = [rows(6, seed) for seed in (0, 10, 1, 11)]
    holds(replicated(found, name), parts, None, (4, 6, 24), CLOSE)


def test_buckets_hold_a_replicas_sum(found: list[dict[str, Any]]) -> None:
    """With accumulation the parts are the replicas; a loop that averages every micro-batch cannot be told."""
    parts = []
    for rank in range(WORLD):
        (x, y), (more, those) = rows(6, rank), rows(6, 10 + rank)
        parts.append((torch.cat([x, more]), torch.cat([y, those])))
    holds(replicated(found, "buckets, no sync"), parts, None, (2, 12, 24), CLOSE)
    for readings in (found[0]["buckets, sync"], found[1]["buckets, sync"]):
        assert all(math.isnan(reading["squares"][0][0]) for reading in readings)


def test_buckets_around_a_compression(found: list[dict[str, Any]]) -> None:
    """float16 keeps 11 bits of the averaged gradient."""
    holds(replicated(found, "buckets, fp16"), [rows(6, 0), rows(6, 1)], None, (2, 6, 12), 1e-2)


def test_replicas_of_unequal_size(found: list[dict[str, Any]]) -> None:
    """They count alike, as DistributedDataParallel averages them: 1 / part_size is the mean of 1 / m_r."""
    parts = [(x[: SIZES[r]], y[: SIZES[r]]) for r, (x, y) in enumerate([rows(6, 0), rows(6, 1)])]
    part_size = 2 / (1 / 6 + 1 / 4)
    holds(replicated(found, "unequal replicas"), parts, None, (2, part_size, 2 * part_size), CLOSE)


def test_unequal_micro_batches_of_replicas(found: list[dict[str, Any]]) -> None:
    for readings in (found[0]["unequal"], found[1]["unequal"]):
        assert all(math.isnan(square) for reading in readings for square in reading["squares"][0])
    parts = [rows(c, 20 + rank) for rank in range(WORLD) for c in COUNTS[rank]]
    counts = [c for rank in range(WORLD) for c in COUNTS[rank]]
    weights = [c / sum(COUNTS[rank]) / WORLD for rank in range(WORLD) for c in COUNTS[rank]]
    batch_size = 1 / sum(w * w / c for w, c in zip(weights, counts, strict=True))
    part_size = sum(w * w for w in weights) * batch_size
    holds(replicated(found, "counts"), parts, weights, (4, part_size, batch_size), CLOSE)


def test_replicas_with_unused_parameters(found: list[dict[str, Any]]) -> None:
    holds(replicated(found, "unused"), [rows(6, 0), rows(6, 1)], None, ("unused", 2, 6, 12), CLOSE)


def test_replicas_average_to_the_exact_values(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["estimates"], found[1]["estimates"])
    mean, error = mean_and_error(found[0]["estimates"])
    for estimate, own, truth in zip(mean, error, exact(*data_set()), strict=True):
        assert abs(float(estimate) - truth) < 3 * float(own)


@pytest.mark.parametrize("hooked", [False, True])
def test_the_monitor_in_two_processes(found: list[dict[str, Any]], hooked: bool) -> None:
    first, second = (each[f"monitor, hooked {hooked}"] for each in found)
    assert first == second
    assert first["source"] == "replicas"
    assert first["left"] == 0
    assert first["every"] == 125  # 1.5 plain steps, the slower process's price, over 1.2 %
    assert len(first["norms"]) == 8
    step, examples, parts, part_size, mean_squared, parts_squared = first["norms"][-1]
    assert (examples, parts, part_size) == (12 * step, 2, 6)
    model = Net()
    both = [rows(6, 30 + 2 * step + rank) for rank in range(WORLD)]
    expected = naive(model, cross_entropy, both)
    assert (parts_squared, mean_squared) == pytest.approx([float(e.sum()) for e in expected], rel=CLOSE)


def test_the_monitors_of_both_kinds_agree(found: list[dict[str, Any]]) -> None:
    by_parameter, by_bucket = (found[0][f"monitor, hooked {hooked}"]["norms"] for hooked in (False, True))
    for a, b in zip(by_parameter, by_bucket, strict=True):
        assert a == pytest.approx(b, rel=CLOSE)
