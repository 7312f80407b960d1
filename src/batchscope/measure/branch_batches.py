"""Which batches do a checkpoint's branches train on? The same examples in the same order, whatever the batch size.

A map-style data set is reshuffled by the seed and cut without regard to the ends of its epochs, so that every batch is
full: k times the batch size is then exactly k times fewer steps. A function of the user's is taken at its word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from batchscope.errors import UnsupportedTask, UsageError
from batchscope.task import Batch
from batchscope.training.batches import IGNORED_TARGET, examples_in
from batchscope.training.seeding import drawing_from, mix, permutation, seed_host

Order = Callable[[int, int], Iterable[Batch]]  # (batch size, seed) -> batches
Count = Callable[[Batch], float]


class Reshuffled:
    """(batch size, seed) -> batches of a map-style data set without end: its permutations, one after the other, cut.

    The order of examples, and what each draws at random (augmentation), follow from the seed alone.
    """

    def __init__(self, data: Any, loader: DataLoader | None = None) -> None:
        self.data, self.loader = data, loader
        self.size = len(data[0]) if isinstance(data, (tuple, list)) else len(data)

    def __call__(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches of `batch_size`, on the host or where the tensors are."""
        keys = self._keys(batch_size, seed)
        if isinstance(self.data, (tuple, list)):
            chosen = (torch.tensor([i for _, i in key]) for key in keys)
            return (tuple(t[indices.to(t.device)] for t in self.data) for indices in chosen)
        collate = self.loader.collate_fn if self.loader is not None else default_collate
        loader = DataLoader(
            _Items(self.data, collate, seed),
            batch_size=None,  # a key is a whole batch
            sampler=keys,
            collate_fn=_as_it_is,
            num_workers=self.loader.num_workers if self.loader is not None else 0,
            worker_init_fn=self.loader.worker_init_fn if self.loader is not None else None,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)

    def _keys(self, batch_size: int, seed: int) -> Iterator[tuple[tuple[int, int], ...]]:
        epochs = (((e, i) for i in permutation(seed, e, self.size).tolist()) for e in itertools.count())
        endless = itertools.chain.from_iterable(epochs)
        while True:
            yield tuple(itertools.islice(endless, batch_size))


class _Items(Dataset):
    """Whole batches, asked for by the (epoch, index) of their items."""

    def __init__(self, data: Any, collate: Callable[[list[Any]], Batch], seed: int) -> None:
        self.data, self.collate, self.seed = data, collate, seed

    def __getitem__(self, index: tuple[tuple[int, int], ...]) -> Batch:
        items = []
        with drawing_from(0):
            for epoch, i in index:
                seed_host(mix(self.seed, epoch, i))
                items.append(self.data[i])
            return self.collate(items)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def order_of(batches: Order | DataLoader | Dataset | Sequence[torch.Tensor], largest: int) -> Order:
    """The user's batches as a function of (batch size, seed)."""
    data = batches.dataset if isinstance(batches, DataLoader) else batches
    instead = "write batches=lambda batch_size, seed: ..., which yields batches of that size in an order from the seed"
    if isinstance(data, IterableDataset):
        raise UnsupportedTask(f"expected a map-style Dataset, got {type(data).__name__}, which is iterable: {instead}")
    if isinstance(batches, DataLoader):
        cut = type(batches.batch_sampler) is BatchSampler
        if not cut or not isinstance(batches.sampler, (RandomSampler, SequentialSampler)):
            odd = batches.sampler if cut else batches.batch_sampler
            raise UnsupportedTask(
                f"expected a DataLoader that takes every example once, got one with {type(odd).__name__}: {instead}"
            )
    elif not hasattr(batches, "__getitem__"):
        if callable(batches):
            return batches
        raise UsageError(f"expected a DataLoader, a Dataset or a function, got {type(batches).__name__}: {instead}")
    order = Reshuffled(data, batches if isinstance(batches, DataLoader) else None)
    if largest > order.size:
        raise UsageError(
            f"expected batches of at most the {order.size} examples of the data, got {largest}: give smaller ks"
        )
    return order


def count_of(unit: str) -> Count:
    """Units in a batch: examples, or the targets other than -100 (cross_entropy's ignore_index)."""
    if unit == "examples":
        return examples_in

    def tokens(batch: Batch) -> float:
        targets = batch["labels"] if isinstance(batch, Mapping) and "labels" in batch else None
        if targets is None and isinstance(batch, (tuple, list)) and len(batch) > 1:
            targets = batch[1]
        if not isinstance(targets, torch.Tensor):
            raise UsageError(
                'expected targets as batch["labels"] or batch[1] to count tokens by, got '
                f"{type(batch).__name__} without: write count=lambda batch: ..."
            )
        return float((targets != IGNORED_TARGET).sum())

    return tokens
