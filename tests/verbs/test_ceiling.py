"""Is the micro-batch that `largest_micro_batch` returns one that was run, and is the batch size kept?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchscope as bs
from batchscope.analysis.memory import conclusion
from batchscope.records import Conditions, MemoryProbe
from batchscope.verbs.ceiling import _Search, default_limit, equal_micro_batch

TASK = Path(__file__).parents[1] / "sweep" / "probed_task.py"
MIB = 1 << 20


def test_what_fits_under_a_limit_was_run() -> None:
    """The hungry task needs about 1 MiB an example, and some 330 MiB for the process."""
    found = bs.largest_micro_batch(f"{TASK}:hungry", batch_size=1000, memory_limit=900 * MIB)
    run = {probe.micro_batch_size: probe for probe in found.memory.probes}  # of a repeat, the later one
    largest = run[found.largest_micro_batch_size]
    assert largest.fits
    assert 0.7 * 900 * MIB < (largest.peak_bytes or 0) <= 900 * MIB == found.limit_bytes
    assert found.micro_batch_size <= found.largest_micro_batch_size
    assert found.accumulation == math.ceil(1000 / found.micro_batch_size)
    assert 0 < found.peak_bytes <= 900 * MIB
    assert len(found.memory.probes) <= 6


class Made:
    """A prober of made-up peaks: `peak(size, how often it was run before)`."""

    conditions = Conditions()

    def __init__(self, peak: Callable[[int, int], int], limit: int) -> None:
        self.peak, self.limit, self.runs = peak, limit, []

    def probe(self, size: int) -> MemoryProbe:
        peak = self.peak(size, self.runs.count(size))
        self.runs.append(size)
        outcome = "fits" if peak <= self.limit else "out_of_memory"
        return MemoryProbe(size, outcome, "", peak, peak, peak, peak, None, 100.0, 3)


def test_a_size_that_fits_by_luck_is_found_out() -> None:
    """100 bytes an example under 100,000; from 900 on, the first run of a size is 12 % below what it needs."""
    made = Made(lambda b, before: int(100 * b * (0.88 if b > 900 and not before else 1.0)), 100_000)
    search = _Search(made, 100_000, 64, 10**6, lambda *_: None)
    search.run()
    found, *_ = conclusion(search.probes, 100_000, 64, 10**6)
    assert len(made.runs) == len(search.every) <= 6
    repeated = [size for size in made.runs if made.runs.count(size) == 2]
    assert repeated, "a size near the limit is run twice"
    assert found is None or found <= 1000 or (made.runs.count(found) == 1 and len(made.runs) == 6)


def test_a_size_that_fits_twice_is_the_answer_and_its_higher_peak_counts() -> None:
    made = Made(lambda b, before: 100 * b + before, 100_000)
    search = _Search(made, 100_000, 64, 10**6, lambda *_: None)
    search.run()
    found, *_ = conclusion(search.probes, 100_000, 64, 10**6)
    assert found is not None
    assert 950 <= found <= 1000
    assert made.runs.count(found) == 2
    assert next(p for p in search.probes if p.micro_batch_size == found).peak_bytes == 100 * found + 1


def test_what_does_not_fit_at_all_is_an_error_with_the_reason() -> None:
    with pytest.raises(bs.CannotAnswer, match=r"expected some micro-batch to fit into 0\.01 GiB: "):
        bs.largest_micro_batch(f"{TASK}:hungry", batch_size=1, memory_limit=10 * MIB)


def test_a_task_object_cannot_be_probed(small: bs.Task) -> None:
    with pytest.raises(bs.UsageError, match="expected a task reference, got Task"):
        bs.largest_micro_batch(small)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(bs.UsageError, match="expected a batch size from 1 to the 4096 examples, got 5000"):
        bs.largest_micro_batch(f"{TASK}:hungry", batch_size=5000)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_equal_micro_batches_fit_and_are_few(batch_size: int, most: int) -> None:
    most = min(most, batch_size)
    micro = equal_micro_batch(batch_size, most)
    fewest = math.ceil(batch_size / most)
    assert 1 <= micro <= most
    assert fewest <= math.ceil(batch_size / micro) <= 2 * fewest


def test_micro_batches_are_equal_where_a_divisor_is_near() -> None:
    assert equal_micro_batch(256, 100) == 64
    assert equal_micro_batch(97, 20) == 20  # a prime
    assert equal_micro_batch(64, 64) == 64


def test_default_limits() -> None:
    facts = {"total_bytes": 100 * 1024**3, "free_bytes": 40 * 1024**3}
    assert default_limit(Conditions(device="cpu"), facts) == (80 * 1024**3, "80% of the machine's 100.0 GiB")
    limit, words = default_limit(Conditions(device="cuda"), facts)
    assert limit == 35 * 1024**3
    assert words == "the 40.0 GiB free on the device less a margin of 5.0 GiB"
