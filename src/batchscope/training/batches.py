"""Which examples make up a step? Batches are cut from one permutation per epoch; the last one may be short.

The last short batch of an epoch is *kept*: every example is seen once per epoch whatever the batch size. A step of
it averages over fewer examples, so the mean number of examples per step is N / ceil(N / B), the effective batch
size that the analysis uses.

Two sources with one shape: `TensorSource` keeps tensors on the device and indexes them there; `DatasetSource` goes
through torch's DataLoader. Both give the same examples in the same order for the same (seed, epoch).

What does not lie on the device is sent there batch by batch (`sent`), on CUDA from pinned memory; with the engine's
`prefetched` the next batch is on its way while this one computes.

Every batch begins at an address that is a multiple of ALIGNMENT. Matrix products sum in an order that depends on it, so
that bits would otherwise depend on where a resumed epoch went on, or on where the allocator of numpy put the data.

What an evaluation sees is `FixedBatches`: the same examples in the same chunks, whoever looked at them before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from batchscope.errors import TaskError
from batchscope.records import Engine
from batchscope.task import Batch, Data, Task, data_size
from batchscope.training.engine import PLAIN
from batchscope.training.seeding import drawing_from, mix, permutation, seed_host

IGNORED_TARGET = -100  # torch.nn.functional.cross_entropy's default ignore_index
CHUNK_BYTES = 1 << 20  # gathered at once by TensorSource: about a core's second-level cache (a guess)
EVALUATION_BATCH = 1024  # examples per forward pass of an evaluation; the same for every trial
Part = Callable[[int], slice]
ALIGNMENT = 64  # bytes: c10's gAlignment, where every tensor that torch allocates on the CPU begins (CUDA: 512)


class Source(Protocol):
    """Training batches on the device, in an order that (seed, epoch) determines."""

    size: int

    def epoch(self, epoch: int, batch_size: int, start: int = 0, used: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from batch number `start` on; the first `used` examples of it are left out."""
        ...


class TensorSource:
    """Tensors kept on the device. Batches of an epoch are gathered a cache-sized chunk at a time, then sliced."""

    def __init__(
        self, tensors: tuple[torch.Tensor, ...], seed: int, device: torch.device, part: Part | None = None
    ) -> None:
        self.tensors = tuple(t.to(device) for t in tensors)
        self.size, self.seed, self.device, self.part = len(tensors[0]), seed, device, part

    def epoch(self, epoch: int, batch_size: int, start: int = 0, used: int = 0) -> Iterator[Batch]:
        """Tuples of tensors; each is a view into a gathered chunk."""
        order = permutation(self.seed, epoch, self.size).to(self.device)[used + start * batch_size :]
        if self.part is None:
            return self._gathered(order, batch_size)
        whole, own = len(order) - len(order) % batch_size, self.part(batch_size)
        rest = order[whole:]
        batches = self._gathered(order[:whole].view(-1, batch_size)[:, own].reshape(-1), own.stop - own.start)
        short = rest[self.part(len(rest))]
        return itertools.chain(batches, [tuple(t[short] for t in self.tensors)] if len(rest) else [])

    def _gathered(self, order: torch.Tensor, batch_size: int) -> Iterator[Batch]:
        return zip(*(_cut(t, order, batch_size) for t in self.tensors), strict=True)


def _cut(tensor: torch.Tensor, order: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """The examples in this order, cut into batches. Those of a size that breaks the alignment are gathered singly."""
    batch_bytes = max(1, batch_size * tensor[:1].nbytes)
    batches = max(1, CHUNK_BYTES // batch_bytes) if batch_bytes % ALIGNMENT == 0 else 1
    for indices in order.split(batches * batch_size):
        if len(indices) > 0:  # an epoch that is over has no batches
            yield from tensor.index_select(0, indices).split(batch_size)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where torch would have put it: itself, or a copy."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


class _SeededBatches(Dataset):
    """Batches asked for by (epoch, indices). What an item draws at random follows from (seed, epoch, index).

    What `collate_fn` draws (masked tokens, say) goes on from the last item's. Being asked for whole batches, it saves
    and restores the host's generators once a batch; seeding them costs an item some 10 us.
    """

    def __init__(self, task: Task, data: Data, seed: int) -> None:
        self.data, self.seed, self.collate = data, seed, task.collate_fn or default_collate

    def __getitem__(self, index: tuple[int, list[int]]) -> Batch:
        epoch, indices = index
        if not indices:  # a replica's part of a batch with fewer examples than there are replicas
            return None
        items = []
        with drawing_from(0):
            for i in indices:
                seed_host(mix(self.seed, epoch, i))
                items.append(self.data[i])
            return self.collate(items)


class DatasetSource:
    """A map-style Dataset through a DataLoader; random augmentation is a function of (seed, epoch, index)."""

    def __init__(
        self, task: Task, seed: int, device: torch.device, engine: Engine = PLAIN, part: Part | None = None
    ) -> None:
        self.task, self.device, self.seed, self.prefetched = task, device, seed, engine.prefetched
        self.part = part or (lambda examples: slice(0, examples))
        self.batches, self.size = _SeededBatches(task, task.train, seed), data_size(task.train)

    def epoch(self, epoch: int, batch_size: int, start: int = 0, used: int = 0) -> Iterator[Batch]:
        """Collated batches, moved to the device."""
        order = permutation(self.seed, epoch, self.size).tolist()[used:]
        batches = [order[i : i + batch_size] for i in range(start * batch_size, len(order), batch_size)]
        keys = [(epoch, batch[self.part(len(batch))]) for batch in batches]
        yield from _load(self.batches, keys, self.task, self.device, self.prefetched)


def _load(
    batches: Dataset, keys: list[Any], task: Task, device: torch.device, prefetched: bool = False
) -> Iterator[Batch]:
    """The batches of the given keys, in order, on the device. Draws nothing from the global generators."""
    loader = DataLoader(
        batches,
        batch_size=None,  # a key is a whole batch already
        sampler=keys,
        collate_fn=_as_it_is,
        num_workers=task.num_workers if keys else 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
    )
    for batch in sent(iter(loader), device, prefetched):
        yield mapped(batch, aligned)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def make_source(
    task: Task, seed: int, device: torch.device, engine: Engine = PLAIN, part: Part | None = None
) -> Source:
    """The source for a task's training data: on the device where tensors fit into half of its free memory.

    `part`: which examples of a batch of so many are wanted, where several replicas share it; batch sizes are global.
    """
    if not isinstance(task.train, (tuple, list)):
        return DatasetSource(task, seed, device, engine, part)
    tensors = tuple(task.train)
    if device.type == "cuda" and sum(t.nbytes for t in tensors) > torch.cuda.mem_get_info(device)[0] // 2:
        return _HostTensors(tensors, seed, device, engine, part)
    return TensorSource(tensors, seed, device, part)


class _HostTensors(TensorSource):
    """Tensors that do not fit on the device: gathered on the host, sent batch by batch."""

    def __init__(
        self,
        tensors: tuple[torch.Tensor, ...],
        seed: int,
        device: torch.device,
        engine: Engine,
        part: Part | None = None,
    ) -> None:
        super().__init__(tensors, seed, torch.device("cpu"), part)
        self.target, self.prefetched = device, engine.prefetched

    def epoch(self, epoch: int, batch_size: int, start: int = 0, used: int = 0) -> Iterator[Batch]:
        batches = super().epoch(epoch, batch_size, start, used)
        pinned = (tuple(t.pin_memory() for t in batch) for batch in batches)
        return sent(pinned, self.target, self.prefetched)


class Sender(Protocol):
    """How a batch comes from the host to the device in two moves: set out, and be there."""

    def start(self, batch: Batch) -> Any:
        """Begin to copy; returns what `finish` needs."""
        ...

    def finish(self, coming: Any) -> Batch:
        """The batch on the device: whatever is done with it from now on is done after the copy."""
        ...


def sent(batches: Iterator[Batch], device: torch.device, prefetched: bool) -> Iterator[Batch]:
    """The host's batches, in order, on the device."""
    if prefetched and device.type == "cuda":
        return one_ahead(batches, _SideStream(device))
    return (to_device(batch, device) for batch in batches)


def one_ahead(batches: Iterator[Batch], sender: Sender) -> Iterator[Batch]:
    """All batches in order; each one sets out before the one before it is handed out. One more is held than in use."""
    coming = [sender.start(batch) for batch in itertools.islice(batches, 1)]
    for batch in batches:
        coming.append(sender.start(batch))
        yield sender.finish(coming.pop(0))
    for last in coming:
        yield sender.finish(last)


class _SideStream:
    """Copies on a CUDA stream of its own, beside the stream that computes.

    The computing stream waits for the copy's event; and each tensor is recorded on it, so that the allocator hands
    the memory out again only after what was queued there has read it (torch's notes on CUDA streams). An object of
    the user's moves itself, and its tensors cannot be found: it is copied on the computing stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Queue the copy and an event after it."""
        if not isinstance(batch, (torch.Tensor, Mapping, tuple, list)):
            return batch, None
        with torch.cuda.stream(self.stream):
            return to_device(batch, self.device), self.stream.record_event()

    def finish(self, coming: tuple[Batch, torch.cuda.Event | None]) -> Batch:
        """Let the computing stream wait for the copy."""
        batch, copied = coming
        if copied is None:
            return to_device(batch, self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        for tensor in tensors_in(batch):
            tensor.record_stream(computing)
        return batch


class FixedBatches:
    """Examples for evaluation: always the same, in the same chunks, in the same order.

    Tensors are sliced as they are. A Dataset's items are drawn once with fixed seeds and kept when they take less than
    `keep_bytes`; augmentation inside its `__getitem__` cannot be switched off from here, but never changes.

    What is kept is handed out as a copy at first. If the first pass left all copies unchanged, later passes share the
    kept tensors; a model that works on its input in place goes on getting copies.
    """

    def __init__(
        self,
        task: Task,
        data: Data,
        indices: list[int] | None,
        device: torch.device,
        keep_bytes: int = 1 << 29,
        chunk: int | None = None,
    ) -> None:
        self.task, self.device, self.keep_bytes = task, device, keep_bytes
        self.chunk = chunk or EVALUATION_BATCH
        self.size = len(indices) if indices is not None else data_size(data)
        self._kept: list[Batch] | None = None
        self._copies = True
        if isinstance(data, (tuple, list)):
            tensors = [t if indices is None else t[torch.as_tensor(indices, device=t.device)] for t in data]
            chunks = zip(*[aligned(t.to(device)).split(self.chunk) for t in tensors], strict=True)
            self._kept = list(chunks)
        else:
            self._batches = _SeededBatches(task, data, 0)
            self._indices = indices if indices is not None else list(range(self.size))

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None and not self._copies:
            yield from self._kept
            return
        kept: list[Batch] | None = []
        unchanged, room = True, self.keep_bytes if self._kept is None else math.inf
        for batch in self._read():
            room -= nbytes(batch)
            kept = [*kept, batch] if kept is not None and room >= 0 else None
            copy = mapped(batch, torch.clone)
            yield copy
            unchanged = unchanged and all(t._version == 0 for t in tensors_in(copy))
        self._kept, self._copies = kept, not unchanged

    def _read(self) -> Iterator[Batch]:
        """The chunks, from memory or from the Dataset."""
        if self._kept is not None:
            return iter(self._kept)
        keys = [(-1, self._indices[i : i + self.chunk]) for i in range(0, self.size, self.chunk)]
        return _load(self._batches, keys, self.task, self.device)


def fixed_subset(size: int, wanted: int) -> list[int]:
    """`wanted` of `size` indices, drawn once from a fixed seed: the same for every trial of every study."""
    return permutation(0, -1, size)[:wanted].sort().values.tolist()


def mapped(batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """A batch with the function applied to every tensor in it; tuples, lists and mappings keep their kind."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return _rebuilt(batch, [mapped(value, function) for value in batch.values()])
    if isinstance(batch, (tuple, list)):
        return _rebuilt(batch, [mapped(value, function) for value in batch])
    return batch


def _rebuilt(batch: Batch, values: list[Any]) -> Batch:
    """A container like `batch` with other values in it."""
    if isinstance(batch, Mapping):
        filled = dict(zip(batch, values, strict=True))
        return filled if isinstance(batch, dict) else type(batch)(filled)
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with every tensor in it on the device; an object of the user's is asked to move itself."""
    if not isinstance(batch, (torch.Tensor, Mapping, tuple, list)) and hasattr(batch, "to"):
        return batch.to(device)
    return mapped(batch, lambda t: t.to(device, non_blocking=True))


def tensors_in(batch: Batch) -> Iterator[torch.Tensor]:
    """Every tensor of a batch, depth first."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(value)


def nbytes(batch: Batch) -> int:
    """Bytes of a batch's tensors."""
    return sum(t.nbytes for t in tensors_in(batch))


def examples_in(batch: Batch) -> int:
    """Examples of a batch: the first dimension of its first tensor that has one."""
    for tensor in tensors_in(batch):
        if tensor.dim() > 0:
            return len(tensor)
    raise TaskError(
        f"expected a batch with a tensor whose first dimension counts examples, got a {type(batch).__name__} "
        "without one: let collate_fn return a tuple or a dict of tensors"
    )


def units_in(task: Task, batch: Batch) -> int:
    """How many units the batch's mean loss averages over: examples, or counted tokens."""
    if task.count is not None:
        return int(task.count(batch))
    if task.unit == "tokens":
        target = batch["labels"] if isinstance(batch, Mapping) and "labels" in batch else batch[1]
        return int((target != IGNORED_TARGET).sum())
    return examples_in(batch)


def split(batch: Batch, size: int | list[int]) -> list[Batch]:
    """A batch cut along its first dimension into micro-batches of `size` examples, the last one possibly shorter.

    `size`: or the sizes of all of them, which add up to the batch's.
    """
    if isinstance(batch, torch.Tensor):
        return list(batch.split(size)) if batch.dim() > 0 else [batch]
    if isinstance(batch, (Mapping, tuple, list)):
        members = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        return [_rebuilt(batch, list(values)) for values in zip(*(split(m, size) for m in members), strict=True)]
    raise TaskError(
        f"expected a batch of tensors to cut into micro-batches, got a {type(batch).__name__} in it: "
        "let collate_fn return tensors only, or train without micro-batches"
    )
