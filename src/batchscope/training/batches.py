"""Which examples make up a step? Batches are cut from one permutation per epoch; the last one may be short.

The last short batch of an epoch is *kept*: every example is seen once per epoch whatever the batch size. A step of
it averages over fewer examples, so the mean number of examples per step is N / ceil(N / B), the effective batch
size that the analysis uses.

Two sources with one shape: `TensorSource` keeps tensors on the device and indexes them there; `DatasetSource` goes
through torch's DataLoader. Both give the same examples in the same order for the same (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from batchscope.task import Batch, Data, Task, data_size
from batchscope.training.seeding import drawing_from, mix, permutation

IGNORED_TARGET = -100  # torch.nn.functional.cross_entropy's default ignore_index
CHUNK_BYTES = 1 << 20  # gathered at once by TensorSource: about a core's second-level cache (a guess)
EVALUATION_BATCH = 1024  # examples per forward pass of an evaluation; the same for every trial


class Source(Protocol):
    """Training batches on the device, in an order that (seed, epoch) determines."""

    size: int

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from batch number `start` on."""
        ...


class TensorSource:
    """Tensors kept on the device. Batches of an epoch are gathered a cache-sized chunk at a time, then sliced."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], seed: int, device: torch.device) -> None:
        self.tensors = tuple(t.to(device) for t in tensors)
        self.size, self.seed, self.device = len(tensors[0]), seed, device
        per_example = max(1, sum(t[:1].numel() * t.element_size() for t in tensors))
        self._chunk_examples = max(1, CHUNK_BYTES // per_example)

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Tuples of tensors; each batch is a view into a gathered chunk."""
        if start * batch_size >= self.size:
            return
        order = permutation(self.seed, epoch, self.size).to(self.device)[start * batch_size :]
        chunk = batch_size * max(1, self._chunk_examples // batch_size)
        for indices in order.split(chunk):
            gathered = [t.index_select(0, indices).split(batch_size) for t in self.tensors]
            yield from zip(*gathered, strict=True)


class _SeededItems(Dataset):
    """A data set whose items are asked for by (epoch, index) and draw their randomness from (seed, epoch, index)."""

    def __init__(self, dataset: Data, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with drawing_from(mix(self.seed, epoch, index)):
            return self.dataset[index]


class DatasetSource:
    """A map-style Dataset through a DataLoader; random augmentation is a function of (seed, epoch, index)."""

    def __init__(self, task: Task, seed: int, device: torch.device) -> None:
        self.task, self.device, self.seed = task, device, seed
        self.items, self.size = _SeededItems(task.train, seed), len(task.train)

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Collated batches, moved to the device."""
        order = permutation(self.seed, epoch, self.size).tolist()
        batches = [order[i : i + batch_size] for i in range(start * batch_size, self.size, batch_size)]
        yield from _load(self.items, [[(epoch, i) for i in batch] for batch in batches], self.task, self.device)


def _load(items: Dataset, batches: list[list[Any]], task: Task, device: torch.device) -> Iterator[Batch]:
    """The given batches of keys, collated in order, on the device. Draws nothing from the global generators."""
    loader = DataLoader(
        items,
        batch_sampler=batches,
        collate_fn=task.collate_fn,
        num_workers=task.num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        yield to_device(batch, device)


def make_source(task: Task, seed: int, device: torch.device) -> Source:
    """The source for a task's training data: on the device where tensors fit into half of its free memory."""
    if not isinstance(task.train, (tuple, list)):
        return DatasetSource(task, seed, device)
    tensors = tuple(task.train)
    if device.type == "cuda" and sum(t.nbytes for t in tensors) > torch.cuda.mem_get_info(device)[0] // 2:
        return _HostTensors(tensors, seed, device)
    return TensorSource(tensors, seed, device)


class _HostTensors(TensorSource):
    """Tensors that do not fit on the device: gathered on the host, sent batch by batch."""

    def __init__(self, tensors: tuple[torch.Tensor, ...], seed: int, device: torch.device) -> None:
        super().__init__(tensors, seed, torch.device("cpu"))
        self.target = device

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, batch_size, start):
            yield tuple(t.pin_memory().to(self.target, non_blocking=True) for t in batch)


class FixedBatches:
    """Examples for evaluation: always the same, in the same chunks, in the same order.

    Tensors are sliced as they are. A Dataset's items are drawn once with fixed seeds and kept when they take less than
    `keep_bytes`; augmentation inside its `__getitem__` cannot be switched off from here, but never changes.
    """

    def __init__(
        self, task: Task, data: Data, indices: list[int] | None, device: torch.device, keep_bytes: int = 1 << 29
    ) -> None:
        self.task, self.device, self.keep_bytes = task, device, keep_bytes
        self.size = len(indices) if indices is not None else data_size(data)
        self._kept: list[Batch] | None = None
        if isinstance(data, (tuple, list)):
            tensors = [t if indices is None else t[torch.as_tensor(indices)] for t in data]
            chunks = zip(*[t.to(device).split(EVALUATION_BATCH) for t in tensors], strict=True)
            self._kept = list(chunks)
        else:
            self._items = _SeededItems(data, 0)
            self._indices = indices if indices is not None else list(range(self.size))

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        keys = [(-1, i) for i in self._indices]
        batches = [keys[i : i + EVALUATION_BATCH] for i in range(0, len(keys), EVALUATION_BATCH)]
        kept: list[Batch] = []
        size = 0
        for batch in _load(self._items, batches, self.task, self.device):
            size += nbytes(batch)
            kept.append(batch) if size <= self.keep_bytes else kept.clear()
            yield batch
        self._kept = kept if size <= self.keep_bytes else None


def fixed_subset(size: int, wanted: int) -> list[int]:
    """`wanted` of `size` indices, drawn once from a fixed seed: the same for every trial of every study."""
    return permutation(0, -1, size)[:wanted].sort().values.tolist()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with every tensor in it on the device (tuples, lists and dicts are kept as they are)."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(v, device) for v in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(v, device) for v in batch)
    return batch


def tensors_in(batch: Batch) -> Iterator[torch.Tensor]:
    """Every tensor of a batch, depth first."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors_in(value)


def nbytes(batch: Batch) -> int:
    """Bytes of a batch's tensors."""
    return sum(t.nbytes for t in tensors_in(batch))


def examples_in(batch: Batch) -> int:
    """Examples of a batch: the first dimension of its first tensor that has one."""
    return next(len(t) for t in tensors_in(batch) if t.dim() > 0)


def units_in(task: Task, batch: Batch) -> int:
    """How many units the batch's mean loss averages over: examples, or counted tokens."""
    if task.count is not None:
        return int(task.count(batch))
    if task.unit == "tokens":
        target = batch["labels"] if isinstance(batch, dict) and "labels" in batch else batch[1]
        return int((target != IGNORED_TARGET).sum())
    return examples_in(batch)


def split(batch: Batch, size: int) -> list[Batch]:
    """A batch cut along its first dimension into micro-batches of `size` examples, the last one possibly shorter."""
    if isinstance(batch, torch.Tensor):
        return list(batch.split(size)) if batch.dim() > 0 else [batch]
    if isinstance(batch, dict):
        parts = {k: split(v, size) for k, v in batch.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return [type(batch)(*values) for values in zip(*(split(v, size) for v in batch), strict=True)]
    if isinstance(batch, (tuple, list)):
        return [type(batch)(values) for values in zip(*(split(v, size) for v in batch), strict=True)]
    raise TypeError(f"a batch of {type(batch).__name__} cannot be cut into micro-batches")
