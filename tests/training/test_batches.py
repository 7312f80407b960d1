"""Both sources give every example once an epoch, in one order; augmentation follows from (seed, epoch, index) alone."""

import collections
import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from batchscope.errors import TaskError
from batchscope.records import Engine
from batchscope.training import batches as module
from batchscope.training.batches import (
    ALIGNMENT,
    FixedBatches,
    aligned,
    examples_in,
    fixed_subset,
    make_source,
    mapped,
    one_ahead,
    sent,
    split,
    to_device,
    units_in,
)
from batchscope.training.seeding import permutation, rng_state
from toys import CPU, SIZE, VALID, Augmented, examples, toy

Pair = collections.namedtuple("Pair", "x y")


def generators():
    """The three global generators' states, comparable."""
    return torch.get_rng_state().tolist(), random.getstate(), repr(rng_state(CPU)["numpy"])


@pytest.mark.parametrize("chunk_bytes", [1, 400, 1 << 20])
@pytest.mark.parametrize("batch_size", [1, 7, 8, SIZE])
def test_every_example_once_an_epoch_in_the_same_order_from_both_sources(batch_size, chunk_bytes, monkeypatch):
    """The naive twin indexes the permutation batch by batch; any start gives the rest of the same epoch."""
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    x, _ = examples(SIZE)
    data = (x, torch.arange(SIZE))
    sources = [make_source(toy(train=train), 3, CPU) for train in (data, list(data), TensorDataset(*data))]
    for epoch in (0, 1):
        order = permutation(3, epoch, SIZE)
        naive = [order[i : i + batch_size] for i in range(0, SIZE, batch_size)]
        assert sorted(order.tolist()) == list(range(SIZE))
        for source in sources:
            assert source.size == SIZE
            for start in (0, 1, len(naive) - 1, len(naive), len(naive) + 5):
                got = list(source.epoch(epoch, batch_size, start))
                assert [y.tolist() for _, y in got] == [n.tolist() for n in naive[start:]]
                assert all(torch.equal(xb, x[y]) for xb, y in got)
                assert all(t.data_ptr() % ALIGNMENT == 0 for batch in got for t in batch)
    assert not torch.equal(permutation(3, 0, SIZE), permutation(3, 1, SIZE))
    assert not torch.equal(permutation(3, 0, SIZE), permutation(4, 0, SIZE))


def test_augmentation_follows_from_seed_epoch_and_index_and_leaves_the_generators_alone():
    """Whatever the batch size, the start, the loader's workers and the state of the generators."""

    def by_label(seed, epoch, batch_size, workers=0, start=0):
        data = Augmented()
        data.y = torch.arange(SIZE)
        source = make_source(toy(train=data, num_workers=workers), seed, CPU)
        return {
            int(i): x.tolist() for xb, yb in source.epoch(epoch, batch_size, start) for x, i in zip(xb, yb, strict=True)
        }

    before = generators()
    whole = by_label(0, 0, 8)
    assert generators() == before
    torch.rand(3), np.random.rand(), random.random()
    assert whole == by_label(0, 0, 1) == by_label(0, 0, 20, workers=1)
    assert whole | by_label(0, 0, 8, start=3) == whole
    assert len(by_label(0, 0, 8, start=3)) == SIZE - 24
    for other in (by_label(0, 1, 8), by_label(1, 0, 8)):
        assert all(other[i] != whole[i] for i in range(SIZE))
    assert multiprocessing.active_children() == []


def test_collate_functions_draw_from_seed_and_epoch_too():
    def masked(items):
        return torch.stack([x for x, _ in items]), torch.rand(1) + random.random()

    tasks = [toy(train=Augmented(), collate_fn=masked, num_workers=n) for n in (0, 1)]
    epochs = [[b[1].item() for b in make_source(t, 0, CPU).epoch(e, 20)] for t in tasks for e in (0, 1)]
    assert epochs[0] == epochs[2]
    assert epochs[1] == epochs[3]
    assert len({*epochs[0], *epochs[1]}) == 6
    rest = [b[1].item() for b in make_source(tasks[1], 0, CPU).epoch(0, 20, 1)]
    assert rest == epochs[0][1:]


def test_workers_are_gone_when_an_epoch_is_left_early():
    epoch = make_source(toy(train=Augmented(), num_workers=1), 0, CPU).epoch(0, 4)
    next(epoch)
    assert len(multiprocessing.active_children()) == 1
    epoch.close()
    assert multiprocessing.active_children() == []


class Log:
    """A sender that notes when a batch sets out and when it has arrived."""

    def __init__(self):
        self.lines = []

    def start(self, batch):
        self.lines.append(f"start {batch}")
        return batch

    def finish(self, batch):
        self.lines.append(f"finish {batch}")
        return batch


def test_the_next_batch_sets_out_before_this_one_is_used():
    log = Log()
    for batch in one_ahead(iter("abc"), log):
        log.lines.append(f"use {batch}")
    expected = "start a, start b, finish a, use a, start c, finish b, use b, finish c, use c"
    assert ", ".join(log.lines) == expected
    for few in ("", "a", "ab"):
        assert list(one_ahead(iter(few), Log())) == list(few)


def test_batches_that_are_left_early_are_not_read_on():
    source = iter(range(100))
    ahead = one_ahead(source, Log())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert next(source) == 4


def test_a_prefetched_batch_is_waited_for_and_recorded_on_the_stream_that_uses_it(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"{self.name} records")
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

        def __enter__(self):
            log.append(f"on {self.name}")

        def __exit__(self, *error):
            log.append(f"off {self.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"used by {stream.name}"))
    monkeypatch.setattr(module, "to_device", lambda batch, device: log.append("copy") or batch)
    cuda = torch.device("cuda")
    (batch,) = sent(iter([examples(2)]), cuda, prefetched=True)
    assert torch.equal(batch[0], examples(2)[0])
    queued = ["on side", "copy", "side records", "off side"]
    assert log == [*queued, "computing waits for event of side", *["used by computing"] * 2]
    log.clear()
    assert len(list(sent(iter([object()]), cuda, prefetched=True))) == 1  # moves itself: on the computing stream
    assert log == ["copy"]


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetching_changes_nothing_on_the_cpu(workers):
    for train in (examples(SIZE), Augmented()):
        task = toy(train=train, num_workers=workers if isinstance(train, Dataset) else 0)
        sources = [make_source(task, 0, CPU, Engine(prefetched=on)) for on in (False, True)]
        for a, b in zip(*(source.epoch(1, 8, 2) for source in sources), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefetched_batches_on_the_gpu_are_the_same(monkeypatch):
    """From a Dataset and from tensors too large for the device, with work queued on what was handed out."""
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    for train in (examples(SIZE), TensorDataset(*examples(SIZE))):
        sums = []
        for on in (False, True):
            source = make_source(toy(train=train), 0, cuda, Engine(prefetched=on))
            sums.append([(x @ x.T).sum() + y.sum() for epoch in range(20) for x, y in source.epoch(epoch, 8)])
        assert torch.equal(torch.stack(sums[0]), torch.stack(sums[1]))


def test_fixed_batches_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_BATCH", 7)
    x, y = examples(VALID)
    before = generators()
    for data in ((x, y), TensorDataset(x, y), Augmented(VALID)):
        for keep_bytes in (0, 1 << 20):
            fixed = FixedBatches(toy(), data, None, CPU, keep_bytes)
            assert fixed.size == VALID
            passes = [list(fixed) for _ in range(3)]
            assert [len(b[0]) for b in passes[0]] == [7, 7, 6]
            for batches in passes:
                assert torch.equal(torch.cat([b[1] for b in batches]), y)
                assert torch.equal(torch.cat([b[0] for b in batches]), torch.cat([b[0] for b in passes[0]]))
    assert generators() == before
    some = FixedBatches(toy(), (x, y), [3, 1, 19], CPU)
    assert torch.equal(next(iter(some))[0], x[[3, 1, 19]])
    assert fixed_subset(100, 9) == sorted(fixed_subset(100, 9))
    assert len({*fixed_subset(100, 100)}) == 100


def test_kept_examples_survive_a_model_that_works_on_them_in_place():
    x, y = examples(VALID)
    original = x.clone()
    for data in ((x, y), TensorDataset(x, y)):
        fixed = FixedBatches(toy(), data, None, CPU)
        for _ in range(3):
            for xb, _ in fixed:
                assert torch.equal(xb, original)
                xb.mul_(2).unsqueeze_(1)
    assert torch.equal(x, original)


def test_evaluation_batches_are_aligned_wherever_the_user_put_the_data():
    memory = np.zeros(VALID * 5 * 4 + 64, dtype=np.uint8)
    shifted = torch.from_numpy(memory[4 : 4 + VALID * 5 * 4].view(np.float32)).view(VALID, 5)
    assert {aligned(shifted).data_ptr() % ALIGNMENT, aligned(shifted[1:]).data_ptr() % ALIGNMENT} == {0}
    fixed = FixedBatches(toy(), (shifted, shifted[:, 0]), None, CPU)
    for _ in range(2):
        assert {t.data_ptr() % ALIGNMENT for batch in fixed for t in batch} == {0}


def test_a_large_data_set_is_not_kept():
    class Counted(Dataset):
        reads = 0

        def __len__(self):
            return VALID

        def __getitem__(self, index):
            Counted.reads += 1
            return torch.zeros(100)

    for keep_bytes, reads in ((VALID * 400, VALID), (VALID * 400 - 1, 3 * VALID)):
        Counted.reads = 0
        fixed = FixedBatches(toy(), Counted(), None, CPU, keep_bytes)
        assert [len(list(fixed)) for _ in range(3)] == [1, 1, 1]
        assert Counted.reads == reads


def test_nested_batches_keep_their_kinds():
    x = torch.arange(10).view(5, 2)
    batch = {"x": x, "pair": Pair(x, [x, (x,)]), "text": "as it is"}
    doubled = mapped(batch, lambda t: 2 * t)
    assert type(doubled["pair"]) is Pair
    assert torch.equal(doubled["pair"].y[1][0], 2 * x)
    assert to_device(batch, CPU)["text"] == "as it is"
    del batch["text"]
    parts = split(batch, 2)
    assert [examples_in(p) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p["pair"].y[1][0] for p in parts]), x)
    held = collections.UserDict(x=x)
    assert [type(p) for p in split(held, 3)] == [collections.UserDict] * 2
    assert examples_in(to_device(held, CPU)) == 5


def test_units_are_examples_or_counted_tokens():
    target = torch.tensor([[1, -100, 2], [-100, -100, 3]])
    assert units_in(toy(), (target, target)) == 2
    assert units_in(toy(unit="tokens"), (target, target)) == 3
    assert units_in(toy(unit="tokens"), {"labels": target}) == 3
    assert units_in(toy(unit="tokens", count=lambda batch: 11), {"labels": target}) == 11
    with pytest.raises(TaskError, match="first dimension counts examples, got a str"):
        units_in(toy(), "text")
    with pytest.raises(TaskError, match="got a str in it"):
        split((target, "text"), 1)
