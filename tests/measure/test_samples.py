"""Is the largest example found, and does a probe train on nothing else?"""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from batchscope.measure.samples import largest_sample, of_largest, units_per_example
from toys import CPU, SIZE, toy


class Texts(Dataset):
    """Texts of different lengths: example 13 is the longest."""

    lengths = (*(3 + index % 5 for index in range(13)), 40, *(4,) * 10)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((self.lengths[index],), index)


def padded(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = pad_sequence(items, batch_first=True, padding_value=-100)
    return batch.float(), batch


def texts(**changes: object):
    fields = {"train": Texts(), "valid": Texts(), "collate_fn": padded, "unit": "tokens", "metrics": {}, "goal": None}
    return toy(**fields | changes)


def test_examples_in_tensors_are_of_one_size() -> None:
    found = largest_sample(toy())
    assert found.index is None
    assert of_largest(toy(), found.index).train_size == SIZE


def test_the_longest_text_is_found_and_repeated() -> None:
    task = texts()
    found = largest_sample(task)
    assert found.index == 13
    assert found.found == "example 13 is the largest of all 24: 480 bytes; the smallest has 36"
    copies = of_largest(task, found.index).train
    assert len(copies) == 24
    assert {len(copies[i]) for i in range(24)} == {40}


def test_a_scan_that_runs_out_of_time_says_so() -> None:
    found = largest_sample(texts(), seconds=-1.0)
    assert found.index == 0
    assert "the first 1 of 24 (the rest was not looked at)" in found.found


def test_units_are_counted_tokens() -> None:
    assert units_per_example(toy(), CPU) == 1.0
    batch = next(iter(torch.utils.data.DataLoader(Texts(), batch_size=24, collate_fn=padded)))
    assert units_per_example(texts(batch_size=24), CPU) == (batch[1] != -100).sum().item() / 24
