"""Which example needs the most memory? The one whose batch has the most bytes; a probe trains on copies of it.

Examples of a tuple of tensors are all of one size. The items of a Dataset may differ (texts, crowded images): each is
collated by itself and its tensors' bytes are counted, for at most SCAN_SECONDS; how many were looked at is said.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from batchscope.task import Data, Task, data_size
from batchscope.training.batches import examples_in, make_source, nbytes, units_in
from batchscope.training.seeding import drawing_from

SCAN_SECONDS = 10.0  # a guess: enough for 100,000 short texts, not for a million images


@dataclass(frozen=True)
class LargestSample:
    """Where it is (None: all are equal) and how it was found, in words."""

    index: int | None
    found: str


def largest_sample(task: Task, seconds: float = SCAN_SECONDS) -> LargestSample:
    """Look for the training example with the most bytes."""
    data = task.train
    if isinstance(data, (tuple, list)):
        return LargestSample(None, "all examples are of one size")
    collate, size = task.collate_fn or default_collate, data_size(data)
    most, least, where, looked = -1, -1, 0, 0
    deadline = time.monotonic() + seconds
    with drawing_from(0):
        for looked in range(1, size + 1):
            found = nbytes(collate([data[looked - 1]]))
            least = found if least < 0 else min(least, found)
            if found > most:
                most, where = found, looked - 1
            if time.monotonic() > deadline:
                break
    seen = f"all {size:,}" if looked == size else f"the first {looked:,} of {size:,} (the rest was not looked at)"
    if most == least:
        return LargestSample(where, f"{seen} examples are of one size, {most:,} bytes")
    return LargestSample(where, f"example {where} is the largest of {seen}: {most:,} bytes; the smallest has {least:,}")


def of_largest(task: Task, index: int | None) -> Task:
    """The task with every training example replaced by the largest one; the task itself where all are of one size."""
    if index is None:
        return task
    return dataclasses.replace(task, train=_Copies(task.train, index))


class _Copies(Dataset):
    """As many examples as the data set has, all the same one."""

    def __init__(self, data: Data, index: int) -> None:
        self.data, self.largest = data, index

    def __len__(self) -> int:
        return data_size(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[self.largest]


def units_per_example(task: Task, device: torch.device) -> float:
    """How many units (examples, or counted tokens) an example has, over the first batch of the task's own size."""
    if task.unit == "examples":
        return 1.0
    batch = next(iter(make_source(task, 0, device).epoch(0, task.batch_size)))
    return units_in(task, batch) / examples_in(batch)
